"""Tests of bloodjax/report/numbers.py."""

import pytest

from bloodjax.report import numbers


def test_shares_are_in_percent_with_a_blank_that_does_not_break():
    assert numbers.percent(0.1234) == "12.3\N{NO-BREAK SPACE}%"
    assert numbers.percent(None) == "–"
    assert numbers.number(0.5, True) == numbers.percent(0.5)
    assert numbers.number(0.51234, False) == "0.512"
    assert numbers.number(None, False) == "–"


def test_intervals():
    assert numbers.interval((0.9, 0.987)) == "90.0–98.7"
    assert numbers.interval((0.9, 0.9876), is_share=False) == "0.900–0.988"
    assert numbers.interval(None) == ""


@pytest.mark.parametrize(
    ("difference", "text"), [(0.0123, "+1.2"), (-0.005, "-0.5"), (0.0, "+0.0")]
)
def test_differences_are_in_points_with_a_sign(difference, text):
    assert numbers.points(difference) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (9.4, "9 s"),
        (59.7, "1 min 0 s"),
        (65.0, "1 min 5 s"),
        (3599.6, "1 h 0 min"),
        (3725.0, "1 h 2 min"),
    ],
)
def test_durations(seconds, text):
    assert numbers.duration(seconds) == text
