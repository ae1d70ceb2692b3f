"""Tests of benchmarks/depthwise_compiled.py that need no TPU compiler."""

import dataclasses

from benchmarks import depthwise_compiled
from benchmarks.depthwise_forms import Case

FUSION = 'fusion(), "estimated_cycles":"500", "bundle_analysis_data":{"estimated_cycles":"3"}'
KERNEL = 'custom-call(), custom_call_target="tpu_custom_call"'


def scheduled(cycles):
    return f'{KERNEL}, "bundle_analysis_data":{{"estimated_cycles":"{cycles}"}}'


def test_a_kernel_counts_as_scheduled_and_the_rest_as_estimated():
    text = "\n".join(["inner", FUSION, "ENTRY main", FUSION, scheduled(70)])
    assert depthwise_compiled.cycles(text) == 570
    assert depthwise_compiled.cycles(f"ENTRY main\n{FUSION}\n{KERNEL}") is None
    assert depthwise_compiled.cycles(f"ENTRY main\n{scheduled(0)}") is None


def compared(side, channels, best, direction="forward"):
    case = dataclasses.asdict(Case(3, 1, side, channels, batch=64, dtype="bfloat16"))
    forms = {"native": 2_000, "mosaic": 1_250 if best == "mosaic" else None}
    return {"case": case, "direction": direction, "forms": forms, "best": best}


def test_the_entries_merge_neighbours_and_need_every_case_of_a_side():
    results = [
        compared(24, 128, "mosaic"),
        compared(24, 144, "mosaic"),
        compared(12, 256, "mosaic"),
        compared(6, 512, "native"),
        compared(6, 480, "mosaic"),
        compared(6, 480, "native", "kernel_grad"),
    ]
    assert depthwise_compiled.entries(results) == {
        ("forward", 3, 1, "bfloat16"): ((6, "native"), (24, "mosaic")),
        ("kernel_grad", 3, 1, "bfloat16"): ((6, "native"),),
    }
    lines = depthwise_compiled.table(results).splitlines()
    assert lines[2] == "| 3 | 1 | 24 | 128 | forward | 2.0 | 1.2 |"
    assert lines[5] == "| 3 | 1 | 6 | 512 | forward | 2.0 | - |"
