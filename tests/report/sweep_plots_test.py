import re

import pytest

from bloodjax.report import sweep_plots

from . import examples


def trial(number, value):
    return {"number": number, "state": "complete", "value": value, "epochs": {1: value}}


@pytest.mark.parametrize("larger", [False, True])
def test_an_outlier_does_not_flatten_the_history(larger):
    sign = 1 if not larger else -1
    trials = [trial(i, sign * (1 + i / 100)) for i in range(6)] + [trial(6, sign * 1e6)]
    svg = sweep_plots.sweep_history(trials, "validation loss", 0, larger)
    assert svg.count('role="img"') == 1
    heights = [float(y) for y in re.findall(r'<use [^>]*y="([\d.]+)"', svg)]
    assert max(heights) - min(heights) > 20  # points


@pytest.mark.parametrize("larger", [False, True])
def test_better_is_higher_in_parallel_coordinates(larger):
    tried = [{"rate": 10.0**-i, "net": "ab"[i % 2], "depth": i} for i in range(3)]
    values = (0.25, 0.5, 0.75)
    svg = sweep_plots.parallel_coordinates(
        list(zip(tried, values, range(3), strict=True)),
        ["rate", "net", "depth"],
        "loss",
        log_keys=["rate"],
        options={"net": ["a", "b"]},
        best=0,
        larger_is_better=larger,
    )
    low, high = ("0.25", "0.75") if larger else ("0.75", "0.25")
    ends = ["0.01", "1", "a", "b", "0", "2", low, high]
    texts = examples.texts(svg)
    assert [text for text in texts if text not in ("rate", "net", "depth", "loss")] == ends
