import jax
import jax.numpy as jnp
import pytest
from jax import lax

from bloodjax.planning import costs, program
from bloodjax.planning.costs import Array, Traffic
from bloodjax.profiling import hlo


def test_arrays_of_a_result():
    found = costs.arrays("(bf16[64,144]{1,0:T(8,128)(2,1)S(1)}, f32[], pred[3]{0}, u32[]{:S(2)})")
    assert found == [
        Array("bf16", (64, 144), 1),
        Array("f32", ()),
        Array("pred", (3,)),
        Array("u32", (), 2),
    ]
    assert [array.bytes for array in found] == [2 * 64 * 144, 4, 3, 4]


@pytest.mark.parametrize(
    ("dtype", "size"), [("s4", 4), ("f8e4m3fn", 8), ("bf16", 16), ("token", 0), ("c64", 64)]
)
def test_sizes_of_dtypes(dtype, size):
    assert Array(dtype, (8,)).bytes == size


SLICED = """HloModule m

%take (data: u8[1000,48], index: s32[]) -> u8[2,48] {
  %data = u8[1000,48]{1,0} parameter(0)
  %index = s32[] parameter(1)
  %same = u8[1000,48]{1,0} bitcast(%data)
  ROOT %part = u8[2,48]{1,0} dynamic-slice(%same, %index, %index), dynamic_slice_sizes={2,48}
}

%put (into: f32[100,8], new: f32[2,8], at: s32[]) -> f32[100,8] {
  %into = f32[100,8]{1,0} parameter(0)
  %new = f32[2,8]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %put.1 = f32[100,8]{1,0} dynamic-update-slice(%into, %new, %at, %at)
}

ENTRY %main (x: u8[1000,48], i: s32[], y: f32[100,8], z: f32[2,8]) -> f32[100,8] {
  %x = u8[1000,48]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %y = f32[100,8]{1,0} parameter(2)
  %z = f32[2,8]{1,0} parameter(3)
  %fusion.1 = u8[2,48]{1,0} fusion(%x, %i), kind=kLoop, calls=%take
  %fusion.2 = f32[100,8]{1,0} fusion(%y, %z, %i), kind=kLoop, calls=%put
  %copy-start = (f32[100,8]{1,0:S(1)}, f32[100,8]{1,0}, u32[]{:S(2)}) copy-start(%y)
  %copy-done = f32[100,8]{1,0:S(1)} copy-done(%copy-start)
  ROOT %add = f32[100,8]{1,0} add(%fusion.2, %copy-done)
}
"""


@pytest.mark.parametrize(
    ("name", "total", "main"),
    [
        ("fusion.1", 2 * 48 + 4 + 2 * 48, 196),  # not all 1,000 rows
        ("fusion.2", 64 + 4 + 64, 132),  # the update, in place
        ("copy-start", 2 * 3200, 3200),  # into on-chip memory
        ("add", 3 * 3200, 2 * 3200),
    ],
)
def test_only_the_part_that_is_read_or_written_counts(name, total, main):
    assert costs.Costs(hlo.parse(SLICED)).traffic(name) == Traffic(total, main)


CONVOLUTIONS = {
    "plain": {"window_strides": (1, 1), "padding": "VALID"},
    "padded": {"window_strides": (2, 2), "padding": "SAME"},
    "dilated": {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 2)},
    "transposed": {"window_strides": (1, 1), "padding": ((1, 1), (2, 2)), "lhs_dilation": (2, 2)},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("groups", [1, 4])
def test_operations_of_a_convolution_are_those_that_xla_counts(name, groups):
    def convolve(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            **CONVOLUTIONS[name],
        )

    image = jax.ShapeDtypeStruct((2, 12, 10, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 5, 8 // groups, 16), jnp.float32)
    lowered = jax.jit(convolve).lower(image, kernel)
    counted = program.from_text(lowered.compile().as_text()).flops
    assert counted == lowered.cost_analysis()["flops"]


def test_operations_of_a_gpus_library_calls():
    text = """HloModule m

ENTRY %main (x: bf16[8,4,4,16], g: bf16[8,4,4,32], w: bf16[32,3,3,16]) -> bf16[32,3,3,16] {
  %x = bf16[8,4,4,16]{3,2,1,0} parameter(0)
  %g = bf16[8,4,4,32]{3,2,1,0} parameter(1)
  %w = bf16[32,3,3,16]{3,2,1,0} parameter(2)
  %a = bf16[16,32]{1,0} bitcast(%x)
  %b = bf16[32,64]{1,0} bitcast(%x)
  %forward = (bf16[8,4,4,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %input = (bf16[8,4,4,16]{3,2,1,0}, u8[0]{0}) custom-call(%g, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %filter = (bf16[32,3,3,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %g), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  ROOT %gemm = (bf16[16,64]{1,0}, s8[32]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""  # noqa: E501
    found = costs.Costs(hlo.parse(text))
    products = (3 * 4 - 2) ** 2  # of 3 x 3 with 4 x 4, without those with the padding
    convolution = 2 * 8 * 32 * 16 * products
    assert [found.flops(name) for name in ("forward", "input", "filter")] == [convolution] * 3
    assert found.flops("gemm") == 2 * 16 * 64 * 32
