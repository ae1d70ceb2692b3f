"""Tests of bloodjax/config/validation.py; load_test.py checks each rule."""

import numpy as np
import pytest

from bloodjax import config as config_lib
from bloodjax import metrics
from bloodjax.config import validation
from bloodjax.config.load import flatten
from bloodjax.errors import UserError


def test_every_rule_is_of_a_key_that_exists_and_every_metric_is_logged():
    keys = set(flatten(config_lib.defaults()))
    for key in validation.RULES:
        assert key in keys or f"phases.head.{key}" in keys, key
    quick = metrics.quick(np.array([[0.9, 0.1]]), np.array([0]))
    assert set(validation.METRICS) == set(quick)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.validation_distortion": "defocus"},
            "config.data.validation_distortion holds the unknown distortion 'defocus'; did you mean"
            " defocus_blur",
        ),
        (
            {"early_stopping.set": "validation_distorted"},
            "config.early_stopping.set is 'validation_distorted', but there is no distorted split",
        ),
        (
            {"data.validation_distortion": "all", "data.validation": "0"},
            "config.data.validation is 0: expected a validation split",
        ),
    ],
)
def test_a_distorted_set_that_cannot_be(changes, message, make_config):
    with pytest.raises(UserError, match=message):
        make_config(**changes)


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
    config = config_lib.defaults()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        validation.check_combinations(config)
    with pytest.raises(UserError, match=message):
        config_lib.validate(config)
