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
    quick = metrics.quick(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]))
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss.consistency": 12.0},
            "config.loss.consistency is 12.0, but config.augment is 'd4': expected random",
        ),
        (
            {"phases.finetune.sizes": "16:0.5,32", "model.name": "convnext_atto"},
            "config.phases.finetune.sizes has the size 16, expected sizes from 32,",
        ),
        ({"phases.head.sizes": "48"}, "has the size 48, .* to config.data.image_size, 32"),
        (
            {"phases.head.sizes": "24", "phases.head.cache_features": "always"},
            "expected none with config.phases.head.cache_features always",
        ),
        (
            {"phases.finetune.freeze": "stages:4"},
            "config.phases.finetune.freeze is 'stages:4', expected fewer than the 4 stages of",
        ),
        ({"distill.online": True}, "config.distill.workdir is empty: expected the workdir of"),
        (
            {"distill.online": True, "distill.workdir": "a", "distill.tta": "d4"},
            "config.distill.tta is 'd4', expected none with config.distill.online",
        ),
        (
            {
                "distill.online": True,
                "distill.workdir": "a",
                "phases.head.cache_features": "always",
            },
            "expected auto or never with config.distill.online",
        ),
    ],
)
def test_options_of_the_step_that_do_not_fit(changes, message, make_config):
    with pytest.raises(UserError, match=message):
        make_config(**changes)


def test_options_of_the_step_that_fit(make_config):
    changes = {"loss.consistency": 12, "augment": "d4|augmix()", "phases.head.sizes": "24:0.5,32"}
    assert make_config(**changes).phases.head.sizes == "24:0.5,32"
