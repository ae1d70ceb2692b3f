"""Allowed values of each config key, and combinations of values that are not allowed.

A value must also have the type of the key's default, which `values` checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from bloodjax import models
from bloodjax.augment import tta, views
from bloodjax.config import parsed
from bloodjax.config.defaults import PHASES, Config
from bloodjax.data import bit_depth
from bloodjax.data.formats import columns, layout
from bloodjax.data.options import BITS, FIT_VALUES, MULTI_LABEL, TASKS, is_fit
from bloodjax.distributed.sharding import LAYOUTS
from bloodjax.errors import UserError
from bloodjax.metrics import calibration, novelty
from bloodjax.models.head import ACTIVATIONS, parse_freeze
from bloodjax.pretrained import pretrained_cfg
from bloodjax.pretrained.pretrained_cfg import DEFAULTS
from bloodjax.tracking import TRACKERS

# Metrics that each epoch computes on the validation split -> whether a larger value is better.
METRICS = {
    "loss": False,
    "accuracy": True,
    "balanced_accuracy": True,
    "f1_macro": True,
    "auc": True,
    "ece": False,
    "refinement": False,
}

# Values of early_stopping.set -> the evaluated splits whose metrics are averaged.
WATCHED = {
    "validation": ("validation",),
    "validation_distorted": ("validation_distorted",),
    "both": ("validation", "validation_distorted"),
}


def _one_of(*options: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in options), "one of " + ", ".join(options)


def _at_least(low: int | float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: low <= value < float("inf")), f"a number of at least {low}"


def _within(low: int | float, high: int | float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: low <= value < high), f"a number of at least {low} and below {high}"


def _numbers(lengths: tuple[int, ...], test: Callable[[float], bool], expected: str):
    def is_allowed(value: tuple) -> bool:
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        return numeric and (not lengths or len(value) in lengths) and all(map(test, value))

    return is_allowed, expected


def _is_split_source(value: str) -> bool:
    fraction = parsed.parse_split_source(value).fraction
    return bool(value) if fraction is None else 0 <= fraction < 1


def _parses(parse: Callable[[str], Any]) -> Callable[[str], bool]:
    def is_allowed(value: str) -> bool:
        try:
            parse(value)
        except ValueError:
            return False
        return True

    return is_allowed


_SPLIT_SOURCE = (
    _is_split_source,
    "auto, a SPEC, or a fraction of train in [0, 1); write a path that looks like a number as "
    "./NUMBER",
)


def _distinct_names(value: tuple) -> bool:
    return all(isinstance(name, str) and name for name in value) and len(set(value)) == len(value)


# Key -> (whether a value is allowed, what is expected). The keys of a phase come last, without
# the phase's name.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _within(0, 2**31),
    "batch_size": _at_least(1),
    "accumulate_steps": _at_least(1),
    "parallel": _one_of("jit", "pmap"),
    "sharding": _one_of(*LAYOUTS),
    "steps_per_call": _at_least(1),
    "dtype": _one_of("auto", "float32", "bfloat16"),
    "data.validation": _SPLIT_SOURCE,
    "data.test": _SPLIT_SOURCE,
    "data.image_size": _within(16, 2049),
    "data.on_device": _one_of("auto", "always", "never"),
    "data.clean": _one_of("drop", "report", "fail"),
    "data.bad_images": _one_of("fail", "skip"),
    "data.sampling": (
        lambda value: 0 <= parsed.parse_sampling(value) <= 1,
        f"{', '.join(parsed.SAMPLING)}, or a number from 0 to 1",
    ),
    "data.layout": (
        layout.is_valid,
        "auto, or the levels of folders joined by /, each one of split, class, group and other, "
        "such as split/class/group",
    ),
    "data.columns": (_parses(columns.parse), columns.FORM),
    "data.bits": _one_of(*BITS),
    "data.fit": (is_fit, FIT_VALUES),
    "data.scale": _one_of("", bit_depth.UNIT, *bit_depth.BITS),
    "data.first_label": _one_of("", "0", "1", "names"),
    "data.task": _one_of(*TASKS),
    "data.classes": (_distinct_names, "distinct names, as text"),
    "model.drop_path": _within(0, 1),
    "model.mean": _numbers((0, 3), math.isfinite, "nothing or three numbers, one per channel"),
    "model.std": _numbers((0, 3), lambda v: 0 < v < math.inf, "nothing or three numbers above 0"),
    "model.head.hidden": _numbers((), lambda v: isinstance(v, int) and v >= 1, "integers above 0"),
    "model.head.dropout": _numbers((2,), lambda v: 0 <= v < 1, "two numbers in [0, 1)"),
    "model.head.activation": _one_of(*ACTIVATIONS),
    "loss.name": _one_of("cross_entropy", "focal"),
    "loss.gamma": _at_least(0),
    "loss.class_weights": _one_of("none", "balanced", "effective"),
    "loss.effective_beta": _within(0, 1),
    "loss.logit_adjustment": _at_least(0),
    "loss.label_smoothing": _within(0, 1),
    "loss.consistency": _at_least(0),
    "distill.weight": (lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
    "distill.temperature": (lambda v: 0.1 <= v <= 100, "a number from 0.1 to 100"),
    "distill.tta": (views.is_known, f"{', '.join(views.SETS)}, or distinct sets joined by +"),
    "ema": _within(0, 1),
    "soup": _at_least(0),
    "early_stopping.metric": _one_of(*METRICS),
    "early_stopping.patience": _at_least(1),
    "early_stopping.set": _one_of(*WATCHED),
    "divergence.skip": _within(0, 2**31),
    "divergence.rollbacks": _at_least(0),
    "divergence.factor": (lambda v: 0 < v < 1, "a number above 0 and below 1"),
    "folds": (
        lambda v: v == parsed.LEAVE_ONE_GROUP_OUT or (isinstance(v, int) and (v == 0 or v >= 2)),
        f"0, an integer of at least 2, or {parsed.LEAVE_ONE_GROUP_OUT}",
    ),
    "evaluation.tta": (views.is_known, f"{', '.join(views.SETS)}, or distinct sets joined by +"),
    "evaluation.tta_average": _one_of(*tta.AVERAGES),
    "evaluation.tta_select": _one_of("none", *tta.METHODS),
    "evaluation.bootstrap": _at_least(1),
    "evaluation.calibration": _one_of(*calibration.METHODS, calibration.AUTO),
    "evaluation.target_error": (lambda v: 0 < v < 1, "a number above 0 and below 1"),
    "evaluation.conformal": _within(0, 1),
    "evaluation.rejection": _one_of("none", *novelty.METHODS, "auto"),
    "evaluation.rejection_rate": (lambda v: 0 < v < 1, "a number above 0 and below 1"),
    "checkpoint_minutes": _at_least(0),
    "grace_seconds": _at_least(0),
    "peer_timeout": _at_least(5),
    "trackers": (
        lambda value: _distinct_names(value) and set(value) <= set(TRACKERS),
        f"distinct names out of {', '.join(TRACKERS)}",
    ),
    "tracking.tags": (_distinct_names, "distinct words or key=value, as text"),
    "tracking.finish_seconds": _at_least(0),
    # In each phase:
    "epochs": _at_least(0),
    "freeze": (
        _parses(parse_freeze),
        "none, batchnorm, backbone, stages:N or stages:N+batchnorm, such as stages:2",
    ),
    "sizes": (
        _parses(parsed.parse_sizes),
        "sizes in pixels, each with the fraction of the phase at which it ends, but for the last, "
        "such as 64:0.4,80:0.7,96",
    ),
    "cache_features": _one_of("auto", "always", "never"),
    "optimizer": _one_of("adamw", "lion", "sgd"),
    "learning_rate": (
        lambda value: value == "" or 0 <= (parsed.parse_learning_rate(value) or 0) < math.inf,
        "a number of at least 0, or auto",
    ),
    "layer_decay": (lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "weight_decay": _at_least(0),
    "clip_norm": _at_least(0),
    "mu_dtype": _one_of("float32", "bfloat16"),
    "schedule.name": _one_of("sgdr", "cosine", "wsd", "step", "constant"),
    "schedule.warmup": _at_least(0),
    "schedule.first_cycle": _at_least(0),
    # The cycle of a step is computed from logarithms in float32, which are too coarse near 1.
    "schedule.t_mul": (
        lambda value: value == 1 or value >= 1.01,
        "1 or a number from 1.01 on",
    ),
    "schedule.m_mul": _within(1e-6, 10),
    "schedule.decay": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "schedule.milestones": (
        lambda value: (
            _numbers((), lambda v: 0 < v < 1, "")[0](value) and list(value) == sorted(value)
        ),
        "ascending numbers above 0 and below 1",
    ),
    "schedule.factor": (lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "schedule.alpha": _within(0, 1),
}


def check_values(values: Mapping[str, Any]) -> None:
    """Checks each value against `RULES`.

    Args:
      values: Dotted config key -> value.

    Raises:
      UserError: A value is not allowed.
    """
    for key, value in values.items():
        rule = RULES.get(key.removeprefix("phases.head.").removeprefix("phases.finetune."))
        if rule and not rule[0](value):
            raise UserError(f"config.{key} is {value!r}, expected {rule[1]}")


def check_new_run(config: Config) -> None:
    """Checks what a new run may not have. Runs of earlier versions may have it, and are read.

    Raises:
      UserError: The mean or standard deviation of the images is not that of values in 0..1.
    """
    for key in ("mean", "std"):
        value = tuple(config.model[key])
        if not all(0 <= each <= 1 for each in value):
            raise UserError(
                f"config.model.{key} is {value}, expected three numbers from 0 to 1; divide those "
                "of values up to 255 by 255"
            )


def check_combinations(config: Config) -> None:
    """Checks that the values of different keys fit together, and parses those with a grammar.

    Raises:
      UserError: Values do not fit together, or a text cannot be parsed.
    """
    _check_augmentation(config)
    _check_distortion(config)
    _check_teacher(config)
    if parsed.sampling_exponent(config) == 0 and config.loss.logit_adjustment:
        raise UserError(
            f"config.loss.logit_adjustment is {config.loss.logit_adjustment}, expected 0.0 with "
            f"config.data.sampling {config.data.sampling}, which makes all classes equally frequent"
        )
    if config.sharding != "data" and config.parallel == "pmap":
        raise UserError(
            f"config.sharding is {config.sharding!r}, expected data with config.parallel pmap"
        )
    _check_evaluation(config)
    _check_labels(config)
    if sum(config.phases[name].epochs for name in PHASES) == 0:
        raise UserError("config.phases.head.epochs and config.phases.finetune.epochs are both 0")
    # Raises for an unknown name. Runs of older versions and users may name networks by an alias.
    if config.model.weights == "imagenet" and models.canonical_name(config.model.name) in DEFAULTS:
        pretrained_cfg.check_default(config.model.name)
    config.model.name = models.canonical_name(config.model.name)
    smallest = models.architecture(config.model.name).smallest_images(config.model.variant)
    _check_sizes(config, smallest)
    _check_stages(config)
    if config.data.image_size < smallest:
        raise UserError(
            f"config.data.image_size is {config.data.image_size}, expected at least {smallest} for "
            f"{config.model.name}"
        )


def _check_augmentation(config: Config) -> None:
    policy = parsed.augmentation(config)
    if policy.mix and config.batch_size % 2:
        raise UserError(
            f"config.batch_size is {config.batch_size}, expected an even number with mixup, "
            "cutmix, fourier or mixstyle"
        )
    if config.loss.consistency and not policy.passes:
        raise UserError(
            f"config.loss.consistency is {config.loss.consistency}, but config.augment is "
            f"{config.augment!r}: expected random operations to compare, such as d4|augmix()"
        )
    for name in PHASES:
        phase = config.phases[name]
        if phase.cache_features == "always" and (
            phase.freeze != "backbone" or config.parallel != "jit" or not policy.only_views
        ):
            raise UserError(
                f"config.phases.{name}.cache_features is 'always', expected freeze to be backbone, "
                "parallel jit, and augment none, flip or d4 then"
            )


def _check_sizes(config: Config, smallest: int) -> None:
    largest = config.data.image_size
    for name in PHASES:
        if config.phases[name].sizes and config.phases[name].cache_features == "always":
            raise UserError(
                f"config.phases.{name}.sizes is {config.phases[name].sizes!r}, expected none with "
                f"config.phases.{name}.cache_features always, which computes features once"
            )
        for size, _ in parsed.parse_sizes(config.phases[name].sizes):
            if not smallest <= size <= largest:
                raise UserError(
                    f"config.phases.{name}.sizes has the size {size}, expected sizes from "
                    f"{smallest}, the smallest of {config.model.name}, to config.data.image_size, "
                    f"{largest}"
                )


def _check_stages(config: Config) -> None:
    for name in PHASES:
        freeze = config.phases[name].freeze
        count = models.architecture(config.model.name).stages
        if parse_freeze(freeze).stages >= count:
            raise UserError(
                f"config.phases.{name}.freeze is {freeze!r}, expected fewer than the {count} "
                f"stages of {config.model.name}"
            )


def _check_teacher(config: Config) -> None:
    if not config.distill.online:
        return
    if not config.distill.workdir:
        raise UserError(
            "config.distill.online is True, but config.distill.workdir is empty: expected the "
            "workdir of a teacher"
        )
    if config.distill.tta != "none":
        raise UserError(
            f"config.distill.tta is {config.distill.tta!r}, expected none with "
            "config.distill.online, where the teacher sees the student's images"
        )
    for name in PHASES:
        if config.phases[name].cache_features == "always":
            raise UserError(
                f"config.phases.{name}.cache_features is 'always', expected auto or never with "
                "config.distill.online, where the teacher needs the images"
            )


def _check_distortion(config: Config) -> None:
    text, watched = config.data.validation_distortion, config.early_stopping.set
    if "validation_distorted" in WATCHED[watched] and not text:
        raise UserError(
            f"config.early_stopping.set is {watched!r}, but there is no distorted split: "
            "expected config.data.validation_distortion to name distortions, such as all"
        )
    if parsed.distortions(config) and parsed.split_source(config, "validation").fraction == 0:
        raise UserError(
            f"config.data.validation_distortion is {text!r}, but config.data.validation is 0: "
            "expected a validation split"
        )


def _check_labels(config: Config) -> None:
    """Refuses what needs one class for each image, for a run whose images can have several."""
    if config.data.task != MULTI_LABEL:
        return
    balanced = "none or balanced (each label's positives weigh as much as its negatives)"
    needs_one_class = {
        "data.sampling": (parsed.sampling_exponent(config) == 1, "natural"),
        "loss.class_weights": (config.loss.class_weights != "effective", balanced),
        "loss.logit_adjustment": (config.loss.logit_adjustment == 0, "0.0"),
        "loss.consistency": (config.loss.consistency == 0, "0.0"),
        "distill.workdir": (not config.distill.workdir, "none"),
        "folds": (config.folds == 0, "0"),
        "evaluation.tta_select": (config.evaluation.tta_select == "none", "none"),
        "evaluation.conformal": (config.evaluation.conformal == 0, "0.0"),
    }
    for key, (is_allowed, expected) in needs_one_class.items():
        if not is_allowed:
            section, _, name = key.rpartition(".")
            value = (config[section] if section else config)[name]
            raise UserError(
                f"config.{key} is {value!r}, expected {expected} with images of several labels"
            )


def _check_evaluation(config: Config) -> None:
    evaluation, source = config.evaluation, parsed.split_source(config, "validation")
    if evaluation.tta_select != "none" and evaluation.tta == "none":
        raise UserError(
            f"config.evaluation.tta_select is {evaluation.tta_select!r}, expected "
            "config.evaluation.tta to name several views then, such as d4"
        )
    if evaluation.tta_select != "none" and source.fraction == 0 and not config.folds:
        raise UserError(
            f"config.evaluation.tta_select is {evaluation.tta_select!r}, expected a validation "
            "split to fit the weights on, but config.data.validation is 0"
        )
    if config.folds and source.spec is not None:
        raise UserError(
            f"config.data.validation is {config.data.validation!r}, expected auto with "
            "config.folds, where each fold is split off train"
        )
