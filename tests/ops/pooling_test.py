import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from bloodjax.ops import pooling


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_mean_is_that_of_all_pixels(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 7, 5, 3)).astype(dtype)
    np.testing.assert_array_equal(pooling.spatial_mean(x), x.mean(axis=(1, 2)))
    found, vjp = jax.vjp(pooling._mean_by_rows, x)
    expected, exact_vjp = jax.vjp(lambda x: x.astype(jnp.float32).mean(axis=(1, 2)), x)
    assert found.dtype == dtype
    tolerance = {"float32": 1e-6, "bfloat16": 1e-2}[x.dtype.name]
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=tolerance)
    grads = [f(jnp.ones_like(out))[0] for f, out in ((vjp, found), (exact_vjp, expected))]
    np.testing.assert_allclose(*(g.astype(jnp.float32) for g in grads), rtol=tolerance)


def test_a_gpu_sums_the_rows_first():
    def lowered(platform):
        shape = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.bfloat16)
        exported = export.export(jax.jit(pooling.spatial_mean), platforms=[platform])(shape)
        return exported.mlir_module()

    assert lowered("cuda").count("stablehlo.reduce(") == 2
    assert "optimization_barrier" in lowered("cuda")
    assert lowered("tpu").count("stablehlo.reduce(") == 1
    assert "optimization_barrier" not in lowered("tpu")
