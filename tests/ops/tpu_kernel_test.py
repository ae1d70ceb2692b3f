import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import mlir

from bloodjax.ops import tpu_kernel
from bloodjax.ops.tpu_kernel import block_rows


@pytest.mark.parametrize(
    ("rows", "batch", "most", "block"),
    [
        (24 * 24 * 64, 64, 1365, 1152),
        (6 * 6 * 64, 64, 341, 256),
        (9 * 512, 512, 1365, 512),
        (9 * 2048, 2048, 256, 256),
        (6 * 6 * 40, 40, 1365, 720),
        (9 * 8, 8, 1365, 0),
        (9 * 40, 40, 1365, 0),
    ],
)
def test_a_block_is_whole_pixels_or_a_part_of_the_batch(rows, batch, most, block):
    assert block_rows(rows, batch, most) == block


def both(x, y, *, factor):
    """Sum and scaled difference; the pair tells one call from another."""
    return [x + y, factor * (x - y)]


@pytest.mark.parametrize("axes", [(0, 0), (1, 0), (None, 0), (0, None)])
@pytest.mark.parametrize("at_once", [False, True])
def test_under_vmap_results_are_those_of_single_calls(axes, at_once):
    joins = []

    def joined(operands, axes, *, factor):
        joins.append(axes)
        if axes != (0, 0):
            return None
        return both(*operands, factor=factor)

    extra = (joined,) if at_once else ()
    kernel = tpu_kernel.primitive("both", both, lambda x, y, *, factor: [x, x], *extra)
    # There is no TPU here: the CPU lowers it in the same way.
    lowering = mlir.lower_fun(both, multiple_results=True)
    mlir.register_lowering(kernel, lowering, platform="cpu")
    x, y = np.arange(6.0, dtype="float32").reshape(2, 3), np.ones((2, 3), "float32")
    x, y = (x.T if axes[0] == 1 else x), y
    x = x[0] if axes[0] is None else x
    y = y[0] if axes[1] is None else y

    found = jax.vmap(lambda x, y: kernel.bind(x, y, factor=3.0), in_axes=axes)(x, y)
    wanted = jax.vmap(lambda x, y: both(x, y, factor=3.0), in_axes=axes)(x, y)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert bool(joins) == at_once
    alone = kernel.bind(jnp.float32(1), jnp.float32(2), factor=3.0)
    assert [float(a) for a in alone] == [3.0, -3.0]
