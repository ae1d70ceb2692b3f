"""Tests of bloodjax/rules.py; that each rule is kept is tested with the settings."""

import numpy as np
import pytest

from bloodjax import metrics, rules, settings
from bloodjax.errors import UserError


@pytest.mark.parametrize(
    ("value", "expected"), [("0.25", 0.25), ("0", 0.0), ("auto", None), ("a.npz", None), (0.5, 0.5)]
)
def test_fraction(value, expected):
    assert rules.fraction(value) == expected


def test_every_rule_is_of_a_key_that_exists_and_every_metric_is_logged():
    keys = set(settings._flatten(settings.defaults()))
    for key in rules.RULES:
        assert key in keys or f"phases.head.{key}" in keys, key
    quick = metrics.quick(np.array([[0.9, 0.1]]), np.array([0]))
    assert set(rules.METRICS) == set(quick)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation.tta_select": "greedy"}, "expected config.evaluation.tta to name several"),
        (
            {
                "evaluation.tta": "d4",
                "evaluation.tta_select": "weights",
                "data.validation": "0",
            },
            "but config.data.validation is 0",
        ),
        ({"folds": 3, "data.validation": "a.npz"}, "expected auto with config.folds"),
    ],
)
def test_values_that_do_not_go_together(changes, message):
    config = settings.defaults()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        rules.check_evaluation(config)
    with pytest.raises(UserError, match=message):
        settings.check(config)
