import pytest

from bloodjax.profiling import breakdown, hlo, trace

PROGRAM = hlo.Program(
    "jit_train_steps",
    {
        "dot.1": hlo.Instruction("dot", "f32[8,4]", "jit(f)/jvp(Network)/head/dot", "a.py:1"),
        "dot.2": hlo.Instruction("dot", "f32[4,4]", "jit(f)/transpose(jvp(Network))/head/dot"),
        "add.1": hlo.Instruction("add", "f32[4]", "jit(f)/optimizer/add"),
        "while.1": hlo.Instruction("while", "(f32[4])", "jit(f)/optimizer/while"),
    },
)
KINDS = {"head": "dense"}


def _spans():
    """Two steps of 5 ms each."""
    names = ["while.1", "dot.1", "dot.2", "add.1", "mystery", trace.UNNAMED]
    bounds = [(0, 8), (0, 4), (4, 6), (6, 7), (7, 7.5), (7.5, 8)]
    return [
        trace.Span(name, "cpu", "t", 1e6 * start, 1e6 * end, 1e6 * end)
        for name, (start, end) in zip(names, bounds, strict=True)
    ]


def test_groups_add_up_to_a_step():
    found = breakdown.tables(_spans(), PROGRAM, KINDS, 2, 10e-3, 1)
    assert {row["group"]: row["ms"] for row in found["groups"]} == pytest.approx(
        {
            "dense, forward": 2.0,
            "dense, gradient": 1.0,
            "optimiser": 0.5,
            "copies that the compiler adds": 0.25,
            breakdown.UNNAMED: 0.25,
            breakdown.IDLE: 1.0,
        }
    )
    assert sum(row["share"] for row in found["groups"]) == pytest.approx(1)
    assert found["groups"][0]["thread_ms"] == pytest.approx(2.0)


def test_operations_are_named_the_longest_first():
    first, second, *_ = breakdown.tables(_spans(), PROGRAM, KINDS, 2, 10e-3, 1)["operations"]
    assert first == {
        "operation": "dot.1",
        "group": "dense, forward",
        "shape": "f32[8,4]",
        "op_name": "jit(f)/jvp(Network)/head/dot",
        "source": "a.py:1",
        "ms": pytest.approx(2.0),
        "share": pytest.approx(0.4),
        "thread_ms": pytest.approx(2.0),
    }
    assert second["operation"] == "dot.2"


def test_without_spans_there_are_no_tables():
    assert breakdown.tables([], PROGRAM, KINDS, 2, 1.0, 1) == {"groups": [], "operations": []}


def entry(**changes):
    return {
        "device": "1 x cpu",
        "steps": 2,
        "batch_size": 16,
        "ms_per_step": 5.0,
        "cpu_ms_per_step": 9.0,
        "images_per_second": 3200.0,
        "first_call_seconds": 12.34,
        "flops_per_image": 3e9,
        "peak_flops": 1e14,
        "peak_origin": "published",
        "mfu": 0.096,
        "peak_memory_bytes": 3 * 2**30,
        "peak_memory_of": "fullest device",
        "note": "",
        **breakdown.tables(_spans(), PROGRAM, KINDS, 2, 10e-3, 1),
        **changes,
    }


def test_the_text_states_the_figures():
    text = breakdown.as_text({"head": entry(), "finetune": entry(mfu=None, note="Nothing here.")})
    for part in (
        *("head: 1 x cpu", "3,200.0 images/s", "9.6% of 100 TFLOP/s", "3.00 GiB (fullest device)"),
        *("12.3 s", "     2.00   40.0%      2.00  dense, forward", "dot.1  f32[8,4]  a.py:1"),
        *("finetune: 1 x cpu", "utilisation: unknown; published", "Nothing here."),
    ):
        assert part in text, part
