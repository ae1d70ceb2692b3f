import re

import numpy as np
import pytest

from bloodjax import config as config_lib
from bloodjax import metrics
from bloodjax.config import validation
from bloodjax.config.values import flatten
from bloodjax.errors import UserError

from .keys import nested

PHASE_RULES = {
    "epochs": -1,
    "freeze": "head",
    "sizes": "64:0.4,80:0.3,96",
    "cache_features": "maybe",
    "optimizer": "adam",
    "learning_rate": -1.0,
    "layer_decay": 0.0,
    "weight_decay": -0.1,
    "clip_norm": float("inf"),
    "mu_dtype": "float16",
    "schedule.name": "linear",
    "schedule.warmup": -1.0,
    "schedule.first_cycle": -1.0,
    "schedule.t_mul": 1.001,
    "schedule.m_mul": 0.0,
    "schedule.decay": 1.5,
    "schedule.milestones": (0.75, 0.5),
    "schedule.factor": 0.0,
    "schedule.alpha": 1.0,
}
# One value for each rule that has the right type and breaks the rule.
IMPOSSIBLE = {
    "seed": -1,
    "batch_size": 0,
    "accumulate_steps": 0,
    "parallel": "xmap",
    "steps_per_call": 0,
    "dtype": "float16",
    "data.validation": 1.0,
    "data.test": -0.1,
    "data.image_size": 15,
    "data.on_device": "yes",
    "data.clean": "yes",
    "data.bad_images": "drop",
    "data.sampling": "1.5",
    "data.layout": "patient/class",
    "data.bits": "11",
    "data.columns": "label:dx",
    "data.fit": "stretch",
    "data.scale": "auto",
    "data.first_label": "2",
    "data.task": "labels",
    "data.classes": ("a", "a"),
    "model.drop_path": 1.0,
    "model.mean": (0.5, 0.5),
    "model.std": (0.5, 0.5, 0.0),
    "model.head.hidden": (16, 0),
    "model.head.dropout": (0.5, 1.0),
    "model.head.activation": "step",
    "loss.name": "hinge",
    "loss.gamma": -1.0,
    "loss.class_weights": "inverse",
    "loss.effective_beta": 1.0,
    "loss.logit_adjustment": -0.5,
    "loss.label_smoothing": 1.0,
    "loss.consistency": -1.0,
    "distill.weight": 0.0,
    "distill.temperature": 0.0,
    "distill.tta": "d8",
    "ema": 1.0,
    "soup": -1,
    "early_stopping.metric": "recall",
    "early_stopping.patience": 0,
    "early_stopping.set": "test",
    "grace_seconds": -1.0,
    "peer_timeout": 1.0,
    "trackers": ("comet",),
    "tracking.tags": ("a", "a"),
    "tracking.finish_seconds": -1.0,
    "sharding": "both",
    "divergence.skip": -1,
    "divergence.rollbacks": -1,
    "divergence.factor": 1.0,
    "folds": 1,
    "evaluation.tta": "d8",
    "evaluation.tta_average": "medians",
    "evaluation.tta_select": "best",
    "evaluation.bootstrap": 0,
    "evaluation.calibration": "isotonic",
    "evaluation.target_error": 0.0,
    "evaluation.conformal": 1.0,
    "evaluation.rejection": "vim",
    "evaluation.rejection_rate": 0.0,
    "checkpoint_minutes": -1.0,
    **{f"phases.{phase}.{k}": v for phase in config_lib.PHASES for k, v in PHASE_RULES.items()},
}


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


def test_every_rule_has_an_impossible_value_here():
    short = {re.sub(r"^phases\.\w+\.", "", key) for key in IMPOSSIBLE}
    assert short == set(validation.RULES)


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_an_impossible_value(key):
    rule = key.removeprefix("phases.head.").removeprefix("phases.finetune.")
    expected = validation.RULES[rule][1]
    message = rf"^config\.{re.escape(key)} is .*, expected {re.escape(expected)}$"
    with pytest.raises(UserError, match=message):
        config_lib.validate(nested(key, IMPOSSIBLE[key]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"augment": "rotatte"},
            "config.augment: unknown operation 'rotatte': did you mean rotate?",
        ),
        (
            {"augment": "mixup(p=2)"},
            "config.augment: mixup's p is 2, expected a number from 0 to 1",
        ),
        (
            {"augment": "mixup", "batch_size": 9},
            "config.batch_size is 9, expected an even number with mixup, "
            "cutmix, fourier or mixstyle",
        ),
        (
            {
                "augment": "d4|rotate",
                "phases.head.freeze": "backbone",
                "phases.head.cache_features": "always",
            },
            "expected freeze to be backbone, parallel jit, and augment none, flip or d4 then",
        ),
    ],
)
def test_an_impossible_augmentation(changes, message):
    config = config_lib.defaults()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["phases.head.learning_rate", "checkpoint_minutes"])
def test_a_number_must_be_one(key):
    with pytest.raises(UserError, match=rf"config\.{key} is nan"):
        config_lib.validate(nested(key, float("nan")))


def test_training_needs_an_epoch():
    with pytest.raises(UserError, match="both 0"):
        config_lib.validate({"phases": {"head": {"epochs": 0}, "finetune": {"epochs": 0}}})


def test_an_unknown_model_is_told_the_nearest():
    with pytest.raises(UserError, match=r"'convnext_bass'.*'convnext_base'"):
        config_lib.validate(nested("model.name", "convnext_bass"))


def test_default_weights_are_those_of_the_name(make_config):
    with pytest.raises(
        UserError, match=r"tf_efficientnet_b0: has no default weights; expected eff"
    ):
        make_config(**{"model.name": "tf_efficientnet_b0", "model.weights": "imagenet"})
    for name in ("tf_efficientnet_b7", "tf_efficientnet_lite0", "efficientnet_b0"):
        make_config(**{"model.name": name, "model.weights": "imagenet"})
    make_config(**{"model.name": "tf_efficientnet_b0"})


def test_images_too_small_for_the_network_are_named(make_config):
    make_config(**{"model.name": "inception_v3", "data.image_size": 75})
    message = r"config\.data\.image_size is 74, expected at least 75 for inception_v3"
    with pytest.raises(UserError, match=message):
        make_config(**{"model.name": "inception_v3", "data.image_size": 74})


@pytest.mark.parametrize("value", ["often", "1.01", "-0.1", "", "nan", 2])
def test_sampling_that_is_neither(value):
    message = (
        r"config\.data\.sampling is .*, expected natural, sqrt, balanced, or a number from 0 to"
    )
    with pytest.raises(UserError, match=message):
        config_lib.validate(nested("data.sampling", value))
