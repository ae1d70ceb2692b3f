import jax
import jax.numpy as jnp
import pytest

from bloodjax.profiling import hlo, trace
from bloodjax.profiling.trace import Span


def span(operation, start, end, done=None, line="a", device="cpu"):
    done = end if done is None else done
    return Span(operation, device, line, float(start), float(end), float(done))


def times(spans, threads=2, containers=()):
    found = trace.account(spans, threads, containers)
    return dict(found.wall), dict(found.busy)


def test_two_at_once_share_the_clock():
    wall, busy = times([span("x", 0, 10), span("y", 5, 10, line="b")])
    assert wall == {"x": 7.5, "y": 2.5}
    assert busy == {"x": 10, "y": 5}


def test_what_runs_within_another_counts_once():
    wall, busy = times([span("x", 0, 10), span("y", 2, 6), span("z", 20, 21)])
    assert wall == busy == {"x": 6, "y": 4, "z": 1}


def test_a_container_has_only_the_moments_in_which_nothing_else_runs():
    spans = [span("while", 0, 1, done=10), span("body", 2, 6, line="b")]
    wall, busy = times(spans, containers={"while"})
    assert wall == {"while": 6, "body": 4}
    assert busy == {"while": 6, "body": 4}


def test_threads_without_a_mark_work_on_what_is_not_done():
    spans = [span("x", 0, 2, done=6), span("y", 2, 4)]
    wall, busy = times(spans, threads=2)
    assert wall == {"x": 2 + 1 + 2, "y": 1}
    assert busy == {"x": 2 + 2 + 4, "y": 2}
    assert times(spans, threads=1)[0] == {"x": 4, "y": 2}, "none is free while y runs"


def test_devices_are_averaged():
    spans = [span("x", 0, 4, device="gpu:0"), span("x", 0, 2, device="gpu:1")]
    assert times(spans) == ({"x": 3}, {"x": 3})


def test_sums_by_name():
    found = trace.account([span("x.1", 0, 1), span("x.2", 2, 4), span("y.1", 5, 9)], 1)
    sums = found.by(lambda operation: operation.partition(".")[0])
    assert (sums.wall, sums.busy) == ({"x": 3, "y": 4}, {"x": 3, "y": 4})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with the trace of three calls, and the program that was called."""

    def step(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y @ x), x)

    x = jnp.full((256, 256), 1e-3)
    compiled = jax.jit(step).lower(x).compile()
    compiled(x).block_until_ready()
    folder = tmp_path_factory.mktemp("trace")
    with jax.profiler.trace(folder):
        for _ in range(3):
            compiled(x).block_until_ready()
    return folder, hlo.parse(compiled.as_text())


def test_a_trace_names_the_programs_operations(recorded):
    folder, program = recorded
    spans = trace.load(folder, program.name)
    assert {span.operation for span in spans} <= set(program.instructions)
    opcodes = [program.instructions[span.operation].opcode for span in spans]
    assert opcodes.count("while") == 3
    assert all(0 <= span.start < span.end <= span.done for span in spans)


def test_another_programs_operations_are_left_out(recorded):
    assert trace.load(recorded[0], "jit_other") == []


def test_a_folder_without_a_trace_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no trace"):
        trace.load(tmp_path, "jit_step")


class Fake:
    """A plane, a line or an event of `ProfileData`, as other platforms have them."""

    def __init__(self, name, inner=(), start=0.0, end=0.0, **stats):
        self.name, self.planes, self.lines, self.events = name, inner, inner, inner
        self.start_ns, self.end_ns, self.stats = start, end, stats.items()


def test_a_gpus_streams_and_a_tpus_own_line_hold_operations(monkeypatch, tmp_path):
    kernel = Fake("loop_fusion_kernel", (), 0.0, 5.0, hlo_op="fusion.1", hlo_module="jit_step")
    other = Fake("cutlass", (), 5.0, 6.0)
    gpu = Fake("/device:GPU:0", [Fake("Stream #13(Compute)", [kernel, other])])
    module = Fake("jit_step(123)", (), 0.0, 9.0)
    core = Fake("%fusion.2 = f32[8]{0} fusion(%x)", (), 0.0, 7.0)
    tpu = Fake("/device:TPU:0", [Fake("XLA Modules", [module]), Fake("XLA Ops", [core])])
    (tmp_path / "x.xplane.pb").touch()
    monkeypatch.setattr(trace.jax.profiler, "ProfileData", Fake)
    monkeypatch.setattr(Fake, "from_file", lambda _: Fake("", [gpu, tpu]), raising=False)
    found = [(s.device[8:11], s.operation, s.end) for s in trace.load(tmp_path, "jit_step")]
    assert found == [("GPU", "fusion.1", 5), ("GPU", trace.UNNAMED, 6), ("TPU", "fusion.2", 7)]
