import pytest

from bloodjax.planning import findings, program

# One line per fault, as the compilers print it.
TEXT = """HloModule jit_train_steps, is_scheduled=true

%conv (a: f32[32,16,16,8], b: f32[3,3,8,16]) -> f32[32,16,16,16] {
  %a = f32[32,16,16,8]{3,2,1,0} parameter(0)
  %b = f32[3,3,8,16]{3,2,1,0} parameter(1)
  ROOT %c = f32[32,16,16,16]{3,2,1,0} convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}

%look-up (image: f32[1024,8], at: s32[4096,2]) -> f32[4096] {
  %image = f32[1024,8]{1,0} parameter(0)
  %at = s32[4096,2]{1,0} parameter(1)
  ROOT %pixels = f32[4096]{0} gather(%image, %at), offset_dims={}, collapsed_slice_dims={0,1}, slice_sizes={1,1}
}

ENTRY %main (data: u8[1031,8,128], x: bf16[32,16,16,8], w: f32[4,64]) -> f32[16,64] {
  %data = u8[1031,8,128]{2,1,0} parameter(0)
  %x = bf16[32,16,16,8]{3,2,1,0} parameter(1)
  %w = f32[4,64]{1,0} parameter(2)
  %copied = u8[1031,8,128]{0,2,1} copy(%data)
  %rows = u8[32,8,128]{2,1,0} gather(%data, %data), slice_sizes={1,8,128}
  %map = f32[32,16,16,8]{3,2,1,0} convert(%x)
  %kernel = f32[3,3,8,16]{3,2,1,0} fusion(%w), kind=kLoop, calls=%none
  %product = f32[32,16,16,16]{3,2,1,0} fusion(%map, %kernel), kind=kOutput, calls=%conv
  %sum = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={0}
  %index = s32[4096,2]{1,0} parameter(3)
  %image = f32[1024,8]{1,0} parameter(4)
  %shifted = f32[4096]{0} fusion(%image, %index), kind=kLoop, calls=%look-up
  %first = f32[16,64]{1,0} all-gather(%w), dimensions={0}
  %again = f32[4,64]{1,0} copy(%w)
  ROOT %second = f32[16,64]{1,0} all-gather(%again), dimensions={0}
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def step():
    return program.from_text(TEXT)


def _names(found):
    return [op.name for op in found]


def test_a_copy_of_the_dataset(step):
    assert _names(findings.grows_with(step, 1031)) == ["copied"]
    assert findings.grows_with(step, 1033) == []


def test_a_gather_of_single_pixels_but_not_of_rows(step):
    found = findings.small_gathers(step)
    assert [(op.name, gather.shape) for op, gather in found] == [("shifted", "f32[4096]{0}")]
    assert findings.small_gathers(step, results=5000) == []
    assert {op.name for op, _ in findings.small_gathers(step, elements=1024)} == {"shifted", "rows"}


def test_a_convolution_of_float32_but_not_one_that_only_sums_in_it(step):
    assert [(op.name, each.opcode) for op, each in findings.float32_products(step)] == [
        ("product", "convolution")
    ]


def test_a_map_in_float32(step):
    assert _names(findings.float32_maps(step, 32)) == ["map", "product"]
    assert findings.float32_maps(step, 64) == []
    assert _names(findings.float32_maps(step, 32, elements=1 << 17)) == ["product"]


def test_a_parameter_that_is_gathered_twice(step):
    assert _names(findings.repeated_gathers(step)) == ["second"]
