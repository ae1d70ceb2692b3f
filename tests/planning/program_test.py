import types

import jax
import jax.numpy as jnp
import pytest

from bloodjax.planning import program
from bloodjax.planning.costs import Traffic

# A step as a TPU's compiler prints it, with what matters here.
TPU = """HloModule jit_train_steps, is_scheduled=true

%fused (p0: bf16[64,32], p1: bf16[32,16]) -> bf16[64,16] {
  %p0 = bf16[64,32]{1,0} parameter(0)
  %p1 = bf16[32,16]{1,0} parameter(1)
  ROOT %convolution.1 = bf16[64,16]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf, metadata={op_name="jit(train_steps)/jvp(Network)/head/dense/dot_general"}
}

%scatter (input: f32[16,8]) -> f32[4,8] {
  %input = f32[16,8]{1,0} parameter(0)
  %all-reduce.2 = f32[16,8]{1,0} all-reduce(%input), channel_id=2
  %zero = s32[] constant(0)
  ROOT %dynamic-slice.4 = f32[4,8]{1,0} dynamic-slice(%all-reduce.2, %zero, %zero), dynamic_slice_sizes={4,8}
}

%body (state: (s32[], bf16[64,32], bf16[32,16])) -> (s32[], bf16[64,32], bf16[32,16]) {
  %state = (s32[], bf16[64,32], bf16[32,16]) parameter(0)
  %x = bf16[64,32]{1,0} get-tuple-element(%state), index=1
  %w = bf16[32,16]{1,0} get-tuple-element(%state), index=2
  %fusion.1 = bf16[64,16]{1,0:T(8,128)S(1)} fusion(%x, %w), kind=kOutput, calls=%fused, backend_config={"window_config":{"estimated_cycles":"500"}}
  %fusion.2.remat = bf16[64,16]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused, backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %next = (s32[], bf16[64,32], bf16[32,16]) tuple(%state, %x, %w)
}

%condition (state.1: (s32[], bf16[64,32], bf16[32,16])) -> pred[] {
  %state.1 = (s32[], bf16[64,32], bf16[32,16]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%unknown (state.2: (s32[], s32[])) -> pred[] {
  %state.2 = (s32[], s32[]) parameter(0)
  %i.2 = s32[] get-tuple-element(%state.2), index=0
  %end.2 = s32[] get-tuple-element(%state.2), index=1
  ROOT %lt.2 = pred[] compare(%i.2, %end.2), direction=LT
}

%cheap (a: f32[4]) -> f32[4] {
  ROOT %a = f32[4]{0} parameter(0)
}

%dear (b: f32[4]) -> f32[4] {
  %b = f32[4]{0} parameter(0)
  ROOT %negate.1 = f32[4]{0} negate(%b), backend_config={"estimated_cycles":"30"}
}

ENTRY %main (w.1: bf16[32,16], x.1: bf16[64,32], n: s32[]) -> f32[4] {
  %x.1 = bf16[64,32]{1,0} parameter(1)
  %w.1 = bf16[32,16]{1,0} parameter(0)
  %n = s32[] parameter(2)
  %two = s32[] constant(2)
  %start = (s32[], bf16[64,32], bf16[32,16]) tuple(%two, %x.1, %w.1)
  %while.1 = (s32[], bf16[64,32], bf16[32,16]) while(%start), condition=%condition, body=%body
  %state.3 = (s32[], s32[]) tuple(%two, %n)
  %while.2 = (s32[], s32[]) while(%state.3), condition=%unknown, body=%cheap
  %kernel = f32[4]{0} custom-call(%n), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"4096000","bytes_accessed":"8"}}}
  %hint = s32[] custom-call(%n), custom_call_target="AssumeGatherIndicesInBound"
  %grads = f32[16,8]{1,0} copy(%w.1)
  %sum = f32[4,8]{1,0} fusion(%grads), kind=kCustom, calls=%scatter
  %gather-start = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%sum), dimensions={0}
  %gather-done = f32[16,8]{1,0} all-gather-done(%gather-start)
  ROOT %cond = f32[4]{0} conditional(%n, %kernel, %kernel), branch_computations={%cheap, %dear}
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def step():
    return program.from_text(TPU, {"head/dense": "dense"})


def _named(step, name):
    return next(op for op in step.operations if op.name == name)


def test_a_loop_counts_as_often_as_it_runs(step):
    dense = _named(step, "fusion.1")
    assert (dense.runs, dense.cycles) == (10, 5000)
    assert dense.flops == 10 * 2 * 64 * 32 * 16
    assert dense.group == "dense, forward"


def test_on_chip_memory_is_not_main_memory(step):
    inputs, result = 2 * (64 * 32 + 32 * 16), 2 * 64 * 16
    assert _named(step, "fusion.1").traffic == Traffic(10 * (inputs + result), 10 * inputs)


def test_a_loop_of_unknown_length_counts_once_and_is_named(step):
    assert step.loops == ("while.2",)


def test_of_a_conditional_the_dearest_branch_counts(step):
    assert _named(step, "negate.1").cycles == 30
    assert step.cycles == 5000 + 70 + 30


def test_calls_without_an_estimate_are_named(step):
    assert {op.name for op in step.without_estimate} == {"kernel", "sum", "gather-start"}


def test_a_kernel_has_the_operations_that_it_declares(step):
    assert [(op.name, op.flops) for op in step.operations if op.is_kernel] == [("kernel", 4096000)]


def test_collectives_and_their_bytes(step):
    kinds = {op.name: (op.collective, op.payload) for op in step.collectives}
    assert kinds == {"sum": ("reduce-scatter", 512), "gather-start": ("all-gather", 512)}


def test_what_is_recomputed_or_copied(step):
    assert [op.name for op in step.operations if op.recomputed] == ["fusion.2.remat"]
    assert [op.name for op in step.operations if op.copies] == ["grads"]


def test_groups_add_up(step):
    groups = step.by(lambda op: op.group)
    assert sum(row["cycles"] for row in groups.values()) == step.cycles
    assert sum(row["bytes"] for row in groups.values()) == step.traffic.total
    assert next(iter(groups)) == "dense, forward"


def test_a_text_without_estimates_has_no_cycles():
    step = program.from_text(TPU.replace("estimated_cycles", "other"))
    assert step.cycles is None
    assert step.without_estimate == ()


def test_the_peak_of_memory_counts_a_donated_argument_once():
    stats = types.SimpleNamespace(
        argument_size_in_bytes=100,
        output_size_in_bytes=90,
        alias_size_in_bytes=80,
        temp_size_in_bytes=50,
        generated_code_size_in_bytes=5,
    )
    memory = program.memory(stats)
    assert (memory.arguments, memory.outputs, memory.temporaries) == (100, 10, 50)
    assert memory.peak == 165


def test_a_program_of_this_version_of_jax_is_understood():
    def f(x, w):
        def body(c, i):
            return jnp.tanh(c @ w) * i, None

        return jax.lax.scan(body, x, jnp.arange(5, dtype=jnp.float32))[0]

    x = jnp.ones((64, 64))
    step = program.analyse(jax.jit(f).lower(x, x).compile())
    assert step.flops == 5 * 2 * 64**3
    assert step.loops == ()
    assert step.memory.arguments == 2 * 4 * 64 * 64


# All collectives of a `shard_map` share a channel. A chain is one collective in several fusions.
CONTINUED = """HloModule jit_step, is_scheduled=true

%begin (p: f32[4,8]) -> f32[16,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[16,8]{1,0} all-gather(%p), channel_id=1, dimensions={0}, frontend_attributes={chain_id="0"}
}

%go-on (q: f32[4,8]) -> f32[16,8] {
  %q = f32[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[16,8]{1,0} all-gather(%q), channel_id=1, dimensions={0}, frontend_attributes={chain_id="0"}
}

%other (r: f32[4,8]) -> f32[16,8] {
  %r = f32[4,8]{1,0} parameter(0)
  ROOT %all-gather.3 = f32[16,8]{1,0} all-gather(%r), channel_id=1, dimensions={0}, frontend_attributes={chain_id="1"}
}

ENTRY %main (w: f32[4,8]) -> f32[16,8] {
  %w = f32[4,8]{1,0} parameter(0)
  %start = f32[16,8]{1,0} fusion(%w), kind=kCustom, calls=%begin
  %fused = f32[16,8]{1,0} fusion(%w), kind=kOutput, calls=%go-on
  %start.2 = f32[16,8]{1,0} fusion(%w), kind=kCustom, calls=%other
  %norm = f32[] all-reduce(%w), channel_id=1
  ROOT %loss = f32[4,8]{1,0} all-reduce(%w), channel_id=1
}
"""  # noqa: E501


def test_a_collective_that_several_fusions_continue_counts_once():
    kinds = [(op.name, op.payload) for op in program.from_text(CONTINUED).collectives]
    assert kinds == [("start", 512), ("start.2", 512), ("norm", 128), ("loss", 128)]


GROUPS = """HloModule jit_step, is_scheduled=true

ENTRY %main (w: f32[4,8]) -> f32[4,8] {
  %w = f32[4,8]{1,0} parameter(0)
  %all = f32[4,8]{1,0} all-reduce(%w), channel_id=1, replica_groups={}
  %listed = f32[4,8]{1,0} all-reduce(%all), channel_id=2, replica_groups={{0,2},{1,3}}
  ROOT %numbered = f32[4,8]{1,0} all-reduce(%listed), channel_id=3, replica_groups=[4,2]<=[8]
}
"""


def test_a_collective_is_between_the_devices_of_its_group():
    found = program.from_text(GROUPS).collectives
    participants = {op.name: op.participants for op in found}
    assert participants == {"all": 0, "listed": 2, "numbered": 2}
