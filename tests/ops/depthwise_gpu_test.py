"""Forms for accelerators. Without a GPU the Pallas kernels are interpreted, and lowered only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from bloodjax.ops import depthwise_gpu, depthwise_pallas
from bloodjax.ops.depthwise import depthwise_conv

from .reference import grouped_conv

# (height, width), kernel, stride, padding, channels: one row tile and several, uneven blocks.
CASES = [
    ((3, 3), (7, 7), 1, ((3, 3), (3, 3)), 40),
    ((9, 8), (5, 5), 1, ((1, 2), (4, 0)), 5),
    ((7, 5), (3, 3), 1, ((4, 3), (3, 5)), 3),
    ((1, 1), (3, 3), 2, ((1, 1), (1, 1)), 4),
    ((9, 7), (3, 3), 2, ((0, 1), (0, 1)), 33),
    ((8, 13), (5, 5), 2, ((2, 2), (1, 2)), 3),
    ((9, 10), (7, 3), 2, ((3, 3), (1, 1)), 3),
]
CUDA = {
    "platforms": ["cuda"],
    "disabled_checks": [
        export.DisabledSafetyCheck.custom_call(name)
        for name in ("__gpu$xla.gpu.triton", "triton_kernel_call_ffi")
    ],
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Makes small maps need several programs, and each program several steps."""
    if jax.default_backend() == "cpu":
        monkeypatch.setattr(depthwise_pallas, "_WARP_VALUES", 32)
        monkeypatch.setattr(depthwise_pallas, "_PROGRAMS", 6)


def all_directions(name, x, kernel, grad, stride, padding):
    """Output and gradients, computed by a form."""
    form = depthwise_gpu.form(name)
    shape = {"stride": stride, "padding": padding}
    if name == "pallas":
        shape["interpret"] = jax.default_backend() == "cpu"

    def run(x, kernel, grad):
        return (
            form.forward(x, kernel, **shape),
            form.input_grad(grad, kernel, size=x.shape[1:3], **shape),
            form.kernel_grad(x, grad, window=kernel.shape[:2], **shape),
        )

    # Interpreted kernels compile slowly and run fast.
    options = {"xla_backend_optimization_level": 0} if shape.get("interpret") else None
    return jax.jit(run, compiler_options=options)(x, kernel, grad)


@functools.cache
def expected(case):
    """A case's arguments, and its output and gradients by automatic differentiation."""
    size, window, stride, padding, channels = case
    rng = np.random.default_rng(0)
    # Exact in bfloat16, so that all dtypes compute from the same numbers.
    draw = [rng.normal(size=shape) for shape in ((3, *size, channels), (*window, channels))]
    x, kernel = (jnp.asarray(a, jnp.bfloat16).astype(jnp.float32) for a in draw)
    function = functools.partial(grouped_conv, stride=stride, padding=padding)
    out, vjp = jax.vjp(function, x, kernel)
    grad = jnp.asarray(rng.normal(size=out.shape), jnp.bfloat16).astype(jnp.float32)
    return (x, kernel, grad), (out, *vjp(grad))


@pytest.mark.full
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", ["native", "shifted", "pallas"])
@pytest.mark.usefixtures("small_blocks")
def test_forms_equal_the_grouped_convolution(name, case):
    arguments, results = expected(case)
    with jax.default_matmul_precision("highest"):
        found = all_directions(name, *arguments, *case[2:4])
    for a, b in zip(found, results, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.full
@pytest.mark.parametrize("name", ["shifted", "pallas"])
@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=str)
@pytest.mark.usefixtures("small_blocks")
def test_bfloat16_is_summed_in_float32(name, case):
    arguments, results = expected(case)
    found = all_directions(name, *(a.astype(jnp.bfloat16) for a in arguments), *case[2:4])
    assert [a.dtype for a in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for a, b, digits in zip(found, results, (8, 8, 16), strict=True):
        # Within the result's last bit, which sums in bfloat16 would not achieve.
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2.0**-digits, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(
    ("window", "stride", "size", "channels"),
    [(7, 1, 24, 128), (7, 1, 3, 1024), (5, 2, 24, 144), (3, 1, 48, 32)],
)
def test_networks_shapes_lower_for_cuda(monkeypatch, window, stride, size, channels, dtype):
    monkeypatch.setenv(depthwise_gpu.FORCE, "pallas")
    shapes = (
        jax.ShapeDtypeStruct((64, size, size, channels), dtype),
        jax.ShapeDtypeStruct((window, window, channels), dtype),
    )

    def gradients(x, kernel):
        out, vjp = jax.vjp(functools.partial(depthwise_conv, stride=stride), x, kernel)
        return out, *vjp(out)

    exported = export.export(jax.jit(gradients), **CUDA)(*shapes)
    text = exported.mlir_module()
    assert text.count("triton") >= 3
    assert "convolution" not in text
    assert [a.dtype for a in exported.out_avals] == [dtype] * 3


def test_under_vmap_lowers_for_cuda(monkeypatch):
    monkeypatch.setenv(depthwise_gpu.FORCE, "pallas")
    shapes = (
        jax.ShapeDtypeStruct((3, 2, 9, 9, 5), jnp.float32),
        jax.ShapeDtypeStruct((3, 3, 5), jnp.float32),
    )
    function = jax.jit(jax.vmap(depthwise_conv, in_axes=(0, None)))
    assert "triton" in export.export(function, **CUDA)(*shapes).mlir_module()


def lowered(platform):
    shapes = (
        jax.ShapeDtypeStruct((2, 6, 6, 4), jnp.float32),
        jax.ShapeDtypeStruct((3, 3, 4), jnp.float32),
    )
    # A new function each time, because the environment variable is read during tracing.
    function = jax.jit(lambda x, kernel: depthwise_conv(x, kernel))
    return export.export(function, **(CUDA | {"platforms": [platform]}))(*shapes).mlir_module()


def test_cuda_uses_xlas_own_by_default(monkeypatch):
    monkeypatch.delenv(depthwise_gpu.FORCE, raising=False)
    assert "stablehlo.convolution" in lowered("cuda")
    monkeypatch.setenv(depthwise_gpu.FORCE, "shifted")
    assert "stablehlo.convolution" not in lowered("cuda")
    assert "stablehlo.convolution" in lowered("tpu")


def test_the_table_goes_by_the_side_of_the_map(monkeypatch):
    monkeypatch.delenv(depthwise_gpu.FORCE, raising=False)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    table = {("forward", 7, 1, "bfloat16"): ((6, "shifted"), (24, "pallas"))}
    monkeypatch.setattr(depthwise_gpu, "CUDA_FORMS", table)

    def choice(side, direction="forward", window=(7, 7), stride=1, dtype=jnp.bfloat16):
        return depthwise_gpu.cuda_form(direction, window, stride, (3, side), dtype)

    assert [choice(side) for side in (3, 6, 7, 24, 56)] == ["shifted"] * 2 + ["pallas"] * 3
    others = [
        choice(6, direction="input_grad"),
        choice(6, window=(7, 5)),
        choice(6, window=(5, 5)),
        choice(6, stride=2),
        choice(6, dtype=jnp.float32),
        choice(6, dtype=jnp.float64),
    ]
    assert others == ["native"] * 6
    # XLA cannot partition a Pallas kernel, and would gather the full batch on each device.
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert [choice(side) for side in (6, 24)] == ["shifted", "native"]


def test_the_table_holds_known_forms():
    for (direction, *_), steps in depthwise_gpu.CUDA_FORMS.items():
        assert direction in depthwise_gpu.Form._fields
        assert [side for side, _ in steps] == sorted(side for side, _ in steps)
        assert all(depthwise_gpu.form(name) for _, name in steps)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form is 'fast', expected one of native"):
        depthwise_gpu.form("fast")


def test_each_device_uses_the_kernels_on_its_own_images(monkeypatch):
    monkeypatch.delenv(depthwise_gpu.FORCE, raising=False)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    table = {("forward", 3, 1, "float32"): ((6, "pallas"),)}
    monkeypatch.setattr(depthwise_gpu, "CUDA_FORMS", table)
    shapes = jax.ShapeDtypeStruct((2, 2, 2, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 4), "f4")
    images = PartitionSpec("data")
    divided = jax.shard_map(
        depthwise_conv,
        mesh=AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,)),
        in_specs=(images, PartitionSpec()),
        out_specs=images,
        check_vma=False,
    )
    assert "pallas_call" in str(jax.make_jaxpr(divided)(*shapes))
    # XLA would gather the full batch on each device.
    assert "pallas_call" not in str(jax.make_jaxpr(lambda *a: depthwise_conv(*a))(*shapes))
