import jax
import jax.numpy as jnp
import pytest

from bloodjax.profiling import hlo

TEXT = """HloModule jit_train_steps, is_scheduled=true

FileNames
1 "/home/me/bloodjax/.venv/lib/site-packages/flax/linen/linear.py"
2 "/home/me/bloodjax/models/layers.py"

FunctionNames
1 "__call__"

FileLocations
1 {file_name_id=2 function_name_id=1 line=71 end_line=72 column=1 end_column=2}
2 {file_name_id=1 function_name_id=1 line=5 end_line=5 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}
3 {file_location_id=2 }


%fused.1 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %mul.1 = f32[4]{0} multiply(%p, %p), metadata={op_name="jit(train_steps)/jvp(Network)/a/mul" stack_frame_id=2}
  ROOT %bitcast.1 = f32[4]{0} bitcast(%mul.1)
}

ENTRY %main (p.1: f32[4]) -> (f32[4], s32[]) {
  %p.1 = f32[4]{0:T(8,128)} parameter(0), metadata={op_name="state.params['a']"}
  %loop = (f32[4]{0:T(8,128)}, s32[]) while(%t), body=%b, metadata={op_name="x" stack_frame_id=3}
  ROOT %fusion.1 = f32[4]{0} fusion(%p.1), kind=kLoop, calls=%fused.1
}
"""  # noqa: E501


def test_a_text_becomes_instructions():
    program = hlo.parse(TEXT)
    assert program.name == "jit_train_steps"
    loop = program.instructions["loop"]
    assert (loop.opcode, loop.shape) == ("while", "(f32[4]{0:T(8,128)}, s32[])")
    assert loop.source == "flax/linen/linear.py:5"


def test_a_fusion_without_a_name_takes_that_of_what_it_fuses():
    fusion = hlo.parse(TEXT).instructions["fusion.1"]
    assert (fusion.opcode, fusion.shape) == ("fusion", "f32[4]{0}")
    assert fusion.op_name == "jit(train_steps)/jvp(Network)/a/mul"
    assert fusion.source == "models/layers.py:71", "the innermost line of this library"


def test_what_is_no_program_is_an_empty_one():
    assert hlo.parse("something else\n  a = b\n") == hlo.Program("", {})


def test_the_text_of_this_version_of_jax_is_understood():
    def step(x):
        with jax.named_scope("optimizer"):
            return jnp.sin(x @ x) + 1.0

    x = jnp.ones((64, 64))
    program = hlo.parse(jax.jit(step).lower(x).compile().as_text())
    assert program.name == "jit_step"
    named = [i for i in program.instructions.values() if "/optimizer/" in i.op_name]
    assert {hlo.group(i, {}) for i in named} == {"optimiser"}
    assert any(i.source.partition(":")[0].endswith("hlo_test.py") for i in named)


KINDS = {"backbone/block_0/dw": "depthwise convolution", "head/norm": "BatchNorm"}


@pytest.mark.parametrize(
    ("op_name", "group"),
    [
        (
            "jit(train_steps)/jvp(Network)/backbone/block_0/dw/cond/branch_0_fun/pad",
            "depthwise convolution, forward",
        ),
        (
            "jit(train_steps)/while/body/closed_call/transpose(jvp(Network))/backbone/block_0/dw/mul",
            "depthwise convolution, gradient",
        ),
        ("pmap(train_steps)/jvp(Network)/head/head._method/norm/sub", "BatchNorm, forward"),
        (
            "jit(train_steps)/transpose(jvp(Network))/backbone/block_0/select_n",
            "activations, residuals, pooling, gradient",
        ),
        ("jit(train_steps)/transpose(jvp(loss))/mul", "loss and metrics"),
        ("jit(train_steps)/vmap(augment)/gather", "augmentation and input"),
        ("jit(train_steps)/optimizer/mul;jit(train_steps)/add", "optimiser"),
        ("jit(train_steps)/add", "rest of the step"),
        ("", "copies that the compiler adds"),
    ],
)
def test_groups(op_name, group):
    assert hlo.group(hlo.Instruction("fusion", "f32[4]", op_name), KINDS) == group


def test_a_copy_without_a_place_in_the_step_is_the_compilers():
    copy = hlo.Instruction("copy", "f32[4]", "state.params['a']")
    assert hlo.group(copy, {}) == "copies that the compiler adds"
