"""The rule that each config key's value must keep, beyond having its default's type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bloodjax.augment import tta, views
from bloodjax.corruptions import registry
from bloodjax.distributed.sharding import LAYOUTS
from bloodjax.errors import UserError
from bloodjax.models.head import ACTIVATIONS, FREEZE

# Metrics of each epoch's validation, and whether a larger value is better.
METRICS = {
    "loss": False,
    "accuracy": True,
    "balanced_accuracy": True,
    "f1_macro": True,
    "ece": False,
}

# What early stopping may look at: names of evaluated sets, of whose figures the mean counts.
WATCHED = {
    "validation": ("validation",),
    "validation_distorted": ("validation_distorted",),
    "both": ("validation", "validation_distorted"),
}


def fraction(value: str | float) -> float | None:
    """`data.validation` or `data.test` as a fraction of train, or None where it is a SPEC."""
    try:
        return float(value)
    except ValueError:
        return None


def check_distortion(text: str, validation: str, watched: str) -> None:
    """Raises a UserError where distortions or a distorted set are asked for that cannot be.

    Args:
      text: `data.validation_distortion`.
      validation: `data.validation`.
      watched: `early_stopping.set`.
    """
    if "validation_distorted" in WATCHED.get(watched, ()) and not text:
        raise UserError(
            f"config.early_stopping.set is {watched!r}, but there is no distorted set: "
            "expected config.data.validation_distortion to name distortions, such as all"
        )
    if not text:
        return
    registry.parse(text, "config.data.validation_distortion")
    if fraction(validation) == 0:
        raise UserError(
            f"config.data.validation_distortion is {text!r}, but config.data.validation is 0: "
            "expected a validation part"
        )


def _one_of(*options: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in options), "one of " + ", ".join(options)


def _at_least(low: int | float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: low <= value < float("inf")), f"a number of at least {low}"


def _within(low: int | float, high: int | float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: low <= value < high), f"a number of at least {low} and below {high}"


def _numbers(lengths: tuple[int, ...], test: Callable[[float], bool], expected: str):
    def holds(value):
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        return numeric and (not lengths or len(value) in lengths) and all(map(test, value))

    return holds, expected


def _validation_part(value: str) -> bool:
    number = fraction(value)
    return bool(value) if number is None else 0 <= number < 1


def _distinct_names(value: tuple) -> bool:
    return all(isinstance(name, str) and name for name in value) and len(set(value)) == len(value)


# Keys within a phase stand last, without the phase's name.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _within(0, 2**31),
    "batch_size": _at_least(1),
    "accumulate_steps": _at_least(1),
    "parallel": _one_of("jit", "pmap"),
    "sharding": _one_of(*LAYOUTS),
    "steps_per_call": _at_least(1),
    "dtype": _one_of("auto", "float32", "bfloat16"),
    "data.validation": (_validation_part, "auto, a SPEC, or a fraction of train in [0, 1)"),
    "data.test": (_validation_part, "auto, a SPEC, or a fraction of train in [0, 1)"),
    "data.image_size": _within(16, 2049),
    "data.on_device": _one_of("auto", "always", "never"),
    "data.clean": _one_of("drop", "report", "fail"),
    "data.bad_images": _one_of("fail", "skip"),
    "data.classes": (_distinct_names, "names that differ, as text"),
    "model.drop_path": _within(0, 1),
    "model.mean": _numbers((0, 3), lambda v: True, "nothing or three numbers, one a channel"),
    "model.std": _numbers((0, 3), lambda v: v > 0, "nothing or three numbers above 0"),
    "model.head.hidden": _numbers((), lambda v: v >= 1 and v == int(v), "whole numbers above 0"),
    "model.head.dropout": _numbers((2,), lambda v: 0 <= v < 1, "two numbers in [0, 1)"),
    "model.head.activation": _one_of(*ACTIVATIONS),
    "loss.name": _one_of("cross_entropy", "focal"),
    "loss.gamma": _at_least(0),
    "loss.class_weights": _one_of("none", "balanced", "effective"),
    "loss.effective_beta": _within(0, 1),
    "loss.logit_adjustment": _at_least(0),
    "loss.label_smoothing": _within(0, 1),
    "ema": _within(0, 1),
    "soup": _at_least(0),
    "early_stopping.metric": _one_of(*METRICS),
    "early_stopping.patience": _at_least(1),
    "early_stopping.set": _one_of(*WATCHED),
    "divergence.skip": _within(0, 2**31),
    "divergence.rollbacks": _at_least(0),
    "divergence.factor": (lambda v: 0 < v < 1, "a number above 0 and below 1"),
    "folds": (lambda v: v == 0 or v >= 2, "0 or a whole number of at least 2"),
    "evaluation.tta": (views.is_known, f"{', '.join(views.SETS)}, or different sets joined by +"),
    "evaluation.tta_average": _one_of(*tta.AVERAGES),
    "evaluation.tta_select": _one_of("none", *tta.METHODS),
    "evaluation.bootstrap": _at_least(1),
    "checkpoint_minutes": _at_least(0),
    "grace_seconds": _at_least(0),
    "peer_timeout": _at_least(5),
    # In each phase:
    "epochs": _at_least(0),
    "freeze": _one_of(*FREEZE),
    "cache_features": _one_of("auto", "always", "never"),
    "optimizer": _one_of("adamw", "lion", "sgd"),
    "learning_rate": _at_least(0),
    "layer_decay": (lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "weight_decay": _at_least(0),
    "clip_norm": _at_least(0),
    "mu_dtype": _one_of("float32", "bfloat16"),
    "schedule.name": _one_of("sgdr", "cosine", "wsd", "constant"),
    "schedule.warmup": _at_least(0),
    "schedule.first_cycle": _at_least(0),
    "schedule.t_mul": _at_least(1),
    "schedule.m_mul": _within(1e-6, 10),
    "schedule.decay": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "schedule.alpha": _within(0, 1),
}


def check_evaluation(config: Any) -> None:
    """Which values of `evaluation`, `folds` and `data.validation` do not go together.

    Raises:
      UserError: these.
    """
    evaluation, share = config.evaluation, fraction(config.data.validation)
    if evaluation.tta_select != "none" and evaluation.tta == "none":
        raise UserError(
            f"config.evaluation.tta_select is {evaluation.tta_select!r}, expected "
            "config.evaluation.tta to name several views then, such as d4"
        )
    if evaluation.tta_select != "none" and share == 0 and not config.folds:
        raise UserError(
            f"config.evaluation.tta_select is {evaluation.tta_select!r}, expected a validation "
            "part to select on, but config.data.validation is 0"
        )
    if config.folds and share is None and config.data.validation != "auto":
        raise UserError(
            f"config.data.validation is {config.data.validation!r}, expected auto with "
            "config.folds: each fold is a part of train"
        )
