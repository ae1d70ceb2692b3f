"""Forms for TPUs. Without one the kernels are interpreted, and lowered only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from bloodjax.ops import depthwise_blocks, depthwise_gpu, depthwise_mosaic, depthwise_tpu
from bloodjax.ops.depthwise import depthwise_branch, depthwise_conv

from .reference import grouped_conv

# (height, width), kernel, stride, padding, channels: uneven maps and paddings, a tap outside the
# map, two blocks of columns, two blocks of channels.
CASES = [
    ((3, 3), (7, 7), 1, ((3, 3), (3, 3)), 5),
    ((6, 5), (5, 5), 1, ((1, 2), (4, 0)), 5),
    ((7, 5), (3, 3), 1, ((4, 3), (3, 5)), 3),
    ((1, 1), (3, 3), 2, ((1, 1), (1, 1)), 4),
    ((9, 7), (3, 3), 2, ((0, 1), (0, 1)), 130),
    ((8, 9), (5, 5), 2, ((2, 2), (1, 2)), 3),
    ((9, 10), (7, 3), 2, ((3, 3), (1, 1)), 3),
    ((4, 27), (3, 3), 1, ((1, 1), (1, 1)), 3),
    ((11, 10), (2, 2), 3, ((1, 0), (0, 1)), 4),
]
DIRECTIONS = depthwise_gpu.Form._fields
BATCH = 16


@functools.cache
def expected(case):
    """A case's arguments, and its output and gradients by automatic differentiation."""
    size, window, stride, padding, channels = case
    rng = np.random.default_rng(0)
    # Exact in bfloat16, so that all dtypes compute from the same numbers.
    draw = [rng.normal(size=shape) for shape in ((BATCH, *size, channels), (*window, channels))]
    x, kernel = (jnp.asarray(a, jnp.bfloat16).astype(jnp.float32) for a in draw)
    function = functools.partial(grouped_conv, stride=stride, padding=padding)
    out, vjp = jax.vjp(function, x, kernel)
    grad = jnp.asarray(rng.normal(size=out.shape), jnp.bfloat16).astype(jnp.float32)
    return (x, kernel, grad), (out, *vjp(grad))


def interpreted(x, kernel, grad, stride, padding):
    """Output and gradients, computed by the kernels."""
    shape = {"stride": stride, "padding": padding, "interpret": True}

    def run(x, kernel, grad):
        return (
            depthwise_mosaic.forward(x, kernel, **shape),
            depthwise_mosaic.input_grad(grad, kernel, size=x.shape[1:3], **shape),
            depthwise_mosaic.kernel_grad(x, grad, window=kernel.shape[:2], **shape),
        )

    # Interpreted kernels compile slowly and run fast.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(run, compiler_options=options)(x, kernel, grad)


# Unrolled maps take half a minute each to interpret.
@pytest.mark.full
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("unrolled", "block"), [pytest.param(10**6, 2**30, marks=pytest.mark.slow), (0, 0)]
)
def test_kernels_equal_the_grouped_convolution(monkeypatch, unrolled, block, case):
    monkeypatch.setattr(depthwise_blocks, "_UNROLLED", unrolled)
    monkeypatch.setattr(depthwise_blocks, "_BLOCK_BYTES", block)  # one program or two
    arguments, results = expected(case)
    for a, b in zip(interpreted(*arguments, *case[2:4]), results, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.full
@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=str)
def test_bfloat16_is_summed_in_float32(case):
    arguments, results = expected(case)
    found = interpreted(*(a.astype(jnp.bfloat16) for a in arguments), *case[2:4])
    assert [a.dtype for a in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for a, b, digits in zip(found, results, (8, 8, 16), strict=True):
        # Within the result's last bit, which sums in bfloat16 would not achieve.
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2.0**-digits, atol=1e-4)


@pytest.mark.parametrize("unrolled", [10**6, 0])
def test_the_input_gradient_adds_that_of_another_layer(monkeypatch, unrolled):
    monkeypatch.setattr(depthwise_blocks, "_UNROLLED", unrolled)
    rng = np.random.default_rng(0)
    grad, added = (jnp.asarray(rng.normal(size=(16, 4, 3, 5)), jnp.bfloat16) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 5)), jnp.bfloat16)
    shape = {"size": (4, 3), "stride": 1, "padding": ((1, 1),) * 2, "interpret": True}

    def both(grad, kernel, added):
        grad = grad.astype(jnp.float32)
        alone = depthwise_mosaic.input_grad(grad, kernel, **shape)
        return alone, depthwise_mosaic.input_grad(grad, kernel, added, **shape)

    options = {"xla_backend_optimization_level": 0}
    alone, found = jax.jit(both, compiler_options=options)(grad, kernel, added)
    np.testing.assert_array_equal(found, alone + added.astype(jnp.float32))


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.fixture
def every_case(monkeypatch):
    """Makes the table choose the kernels in all directions, sizes and dtypes."""
    monkeypatch.setattr(depthwise_tpu, "_FEWEST_CHANNELS", 1)

    class Everything(dict):
        def get(self, key, default=None):
            return ((1, "mosaic"),)

    monkeypatch.setattr(depthwise_tpu, "TPU_FORMS", Everything())


def gradients(x, kernel, stride=1):
    out, vjp = jax.vjp(lambda x, kernel: depthwise_conv(x, kernel, stride=stride), x, kernel)
    return out, *vjp(out)


def lowered(function, *shapes, platform="tpu"):
    return export.export(jax.jit(function), platforms=[platform])(*shapes)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(
    ("window", "stride", "size", "channels"),
    [(7, 1, 6, 384), (7, 1, 3, 768), (5, 2, 24, 144), (3, 1, 24, 128)],
)
@pytest.mark.usefixtures("one_device", "every_case")
def test_networks_shapes_lower_for_tpu(window, stride, size, channels, dtype):
    shapes = (
        jax.ShapeDtypeStruct((64, size, size, channels), dtype),
        jax.ShapeDtypeStruct((window, window, channels), dtype),
    )
    exported = lowered(functools.partial(gradients, stride=stride), *shapes)
    text = exported.mlir_module()
    assert text.count("stablehlo.custom_call @tpu_custom_call") == 3
    assert "convolution" not in text
    assert [a.dtype for a in exported.out_avals] == [dtype] * 3
    # Other platforms neither trace the kernels nor see them.
    assert "tpu_custom_call" not in lowered(gradients, *shapes, platform="cpu").mlir_module()


def branch_gradients(x, kernel):
    (shortcut, out), vjp = jax.vjp(
        lambda x, kernel: depthwise_branch(x, kernel, padding=((1, 1), (1, 1))), x, kernel
    )
    return shortcut, out, *vjp((shortcut, out))


@pytest.mark.usefixtures("one_device", "every_case")
def test_a_branch_lowers_for_tpu_without_another_addition():
    shapes = (
        jax.ShapeDtypeStruct((16, 6, 6, 64), jnp.bfloat16),
        jax.ShapeDtypeStruct((3, 3, 64), jnp.bfloat16),
    )
    exported = lowered(branch_gradients, *shapes)
    text = exported.mlir_module()
    assert text.count("stablehlo.custom_call @tpu_custom_call") == 3
    assert "convolution" not in text
    assert "stablehlo.add " not in text.partition("@main")[2].partition("return")[0]
    batched = jax.vmap(branch_gradients, in_axes=(0, None))
    stacked = jax.ShapeDtypeStruct((3, *shapes[0].shape), jnp.bfloat16)
    found = lowered(batched, stacked, shapes[1])
    assert [a.shape for a in found.out_avals[:3]] == [stacked.shape] * 3


@pytest.mark.parametrize("mapped", [(0, None), (0, 0)])
@pytest.mark.usefixtures("one_device", "every_case")
def test_under_vmap_lowers_for_tpu(mapped):
    kernel = (3, 3, 5) if mapped[1] is None else (3, 3, 3, 5)
    shapes = (
        jax.ShapeDtypeStruct((3, 8, 9, 9, 5), jnp.float32),
        jax.ShapeDtypeStruct(kernel, jnp.float32),
    )
    exported = lowered(jax.vmap(gradients, in_axes=mapped), *shapes)
    assert exported.mlir_module().count("stablehlo.custom_call @tpu_custom_call") == 3
    assert [a.shape for a in exported.out_avals] == [shapes[0].shape] * 2 + [(3, 3, 3, 5)]


@pytest.mark.parametrize("axis", [0, 2])
def test_under_vmap_one_kernel_computes_a_larger_batch(monkeypatch, axis):
    call = depthwise_tpu._Call("forward", 1, ((1, 1), (1, 1)))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, 4, 4, 3)))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3)))

    def one(x, kernel, call=call):
        return [grouped_conv(x, kernel, 1, ((1, 1), (1, 1)))]

    monkeypatch.setattr(depthwise_tpu._kernel_p, "bind", one)
    moved = jnp.moveaxis(x, 0, axis)
    (found,) = depthwise_tpu._joined((moved, kernel), (axis, None), call=call)
    for i in range(2):
        np.testing.assert_allclose(found[i], one(x[i], kernel)[0], rtol=1e-5, atol=1e-5)
    assert depthwise_tpu._joined((x, kernel), (0, 0), call=call) is None


@pytest.mark.usefixtures("every_case")
def test_several_devices_use_the_kernels_inside_shard_map_only(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    x = jax.ShapeDtypeStruct((16, 6, 6, 4), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((3, 3, 4), jnp.bfloat16)
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))
    images, everywhere = PartitionSpec("data"), PartitionSpec()
    divided = jax.shard_map(
        depthwise_conv,
        mesh=mesh,
        in_specs=(images, everywhere),
        out_specs=images,
        check_vma=False,
    )
    assert "depthwise_mosaic" in str(jax.make_jaxpr(divided)(x, kernel))
    # XLA would gather the full batch on each device.
    assert "depthwise_mosaic" not in str(jax.make_jaxpr(lambda *a: depthwise_conv(*a))(x, kernel))
    with jax.sharding.use_abstract_mesh(mesh):
        inside = jax.make_jaxpr(lambda x, kernel: depthwise_conv(x, kernel))(x, kernel)
    assert "depthwise_mosaic" not in str(inside)


@pytest.mark.usefixtures("one_device")
def test_the_table_goes_by_the_side_of_the_map(monkeypatch):
    table = {("forward", 7, 1, "bfloat16"): ((6, "native"), (24, "mosaic"))}
    monkeypatch.setattr(depthwise_tpu, "TPU_FORMS", table)

    def choice(
        side,
        direction="forward",
        window=(7, 7),
        stride=1,
        dtype=jnp.bfloat16,
        batch=64,
        channels=96,
    ):
        shape = (batch, 3, side, channels)
        return depthwise_tpu.tpu_form(direction, window, stride, shape, dtype)

    assert [choice(side) for side in (3, 6, 7, 24, 56)] == ["native"] * 2 + ["mosaic"] * 3
    others = [
        choice(24, direction="input_grad"),
        choice(24, window=(7, 5)),
        choice(24, window=(5, 5)),
        choice(24, stride=2),
        choice(24, dtype=jnp.float32),
        choice(24, dtype=jnp.float64),
        choice(24, batch=12),  # does not fill the registers
        choice(24, channels=32),
        choice(9_000),  # does not fit the memory
    ]
    assert others == ["native"] * 9


def test_the_table_holds_known_forms():
    for (direction, *_), steps in depthwise_tpu.TPU_FORMS.items():
        assert direction in DIRECTIONS
        assert [side for side, _ in steps] == sorted(side for side, _ in steps)
        assert {name for _, name in steps} <= set(depthwise_tpu._FORMS)
