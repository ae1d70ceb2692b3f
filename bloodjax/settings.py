"""The config: its defaults, and the checks that stop an impossible one before anything runs.

A config file defines `get_config()`, which returns `settings.defaults()` with whatever it changes;
`--config.key=value` changes it further. Every key that exists stands in `defaults`, and every
check in `_CHECKS`, so that a wrong key or value fails here, by name, and nowhere later.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from bloodjax import models
from bloodjax.errors import UserError
from bloodjax.models.head import ACTIVATIONS, FREEZE

Config = ml_collections.ConfigDict | ml_collections.FrozenConfigDict

PHASES = ("head", "finetune")
# Metrics of each epoch's validation, and whether a larger value is better.
METRICS = {
    "loss": False,
    "accuracy": True,
    "balanced_accuracy": True,
    "f1_macro": True,
    "ece": False,
}


def defaults() -> ml_collections.ConfigDict:
    """Every key there is, with the value that it has where a config file leaves it alone."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "batch_size": 64,
            # "jit" over a mesh of all devices, or "pmap"; the numbers are the same.
            "parallel": "jit",
            # Training steps that one dispatch to the device runs.
            "steps_per_call": 1,
            # Of the computation: "auto" is float32 on CPU and bfloat16 elsewhere.
            "dtype": "auto",
            "data": {
                # A SPEC: FILE.npz, a folder or .zip of <class>/<image>, or synthetic[:N].
                "train": "",
                # A SPEC, a fraction of train, or "auto": the source's own split, else a fraction.
                "validation": "auto",
                "test": "auto",
                "image_size": 96,
                # What the audit's findings lead to: drop | report | fail.
                "clean": "drop",
                # An unreadable picture in a folder: fail | skip.
                "bad_images": "fail",
                # Class names in label order, for a file that does not name its own.
                "classes": (),
            },
            "model": {
                "name": "convnext_base",
                # Training starts from random weights where this is empty.
                "weights": "",
                "drop_path": 0.0,
                "mean": (0.485, 0.456, 0.406),
                "std": (0.229, 0.224, 0.225),
                "head": {
                    "hidden": (512, 256, 128, 64),
                    "batch_norm": True,
                    "dropout": (0.3, 0.3),
                    "activation": "relu",
                },
            },
            # The eight flips and quarter turns of each picture: none | flip | d4.
            "augment": "d4",
            "loss": {"class_weights": "balanced", "label_smoothing": 0.0},
            "phases": {
                "head": _phase(epochs=10, freeze="backbone", learning_rate=1e-3),
                "finetune": _phase(epochs=90, freeze="batchnorm", learning_rate=1e-4),
            },
            # Training stops, in each phase, after `patience` epochs without a better `metric`.
            "early_stopping": {"metric": "loss", "patience": 10},
            "evaluation": {"tta": "none", "bootstrap": 1000},
            # A checkpoint is written after every epoch, and within one after this many minutes.
            "checkpoint_minutes": 10.0,
        }
    )


def _phase(epochs: int, freeze: str, learning_rate: float) -> dict[str, Any]:
    return {
        "epochs": epochs,
        # What is not trained: none | batchnorm | backbone.
        "freeze": freeze,
        "learning_rate": learning_rate,
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        # Cosine decay with warm restarts; lengths in epochs. A `first_cycle` of 0 is one cycle as
        # long as the phase.
        "schedule": {"warmup": 1.0, "first_cycle": 0.0, "t_mul": 2.0, "m_mul": 1.0, "alpha": 0.0},
    }


def load(path: str, overrides: Sequence[str] = ()) -> ml_collections.FrozenConfigDict:
    """Reads a config file, applies `key=value` overrides, checks it all, and freezes it.

    Args:
      path: a Python file that defines `get_config()`.
      overrides: such as `"data.image_size=64"`; values are Python literals or plain strings.

    Raises:
      UserError: the file cannot be read, or a key or value is wrong.
    """
    config = _run_config_file(path)
    for override in overrides:
        key, _, text = override.partition("=")
        _set(config, key, _parse(text))
    return check(config)


def check(config: Config | Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
    """Returns `config` over the defaults, frozen.

    Raises:
      UserError: a key is unknown, or a value is of the wrong type or impossible.
    """
    whole = defaults()
    for key, value in _flatten(config).items():
        _set(whole, key, value)
    for key, value in _flatten(whole).items():
        rule = _CHECKS.get(key.removeprefix("phases.head.").removeprefix("phases.finetune."))
        if rule and not rule[0](value):
            raise UserError(f"config.{key} is {value!r}, expected {rule[1]}")
    if sum(whole.phases[name].epochs for name in PHASES) == 0:
        raise UserError("config.phases.head.epochs and config.phases.finetune.epochs are both 0")
    if whole.model.name not in models.names():
        models.build(whole.model.name, 2)  # raises with the nearest name
    return ml_collections.FrozenConfigDict(whole)


def to_json(config: Config) -> str:
    """The config as JSON text, keys sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ml_collections.FrozenConfigDict:
    """The inverse of `to_json`.

    Raises:
      UserError: the text is not that of a config.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"not a config: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"not a config: {content!r}, expected an object")
    return check(content)


def differences(old: Config, new: Config) -> list[str]:
    """`key: old value -> new value` for each key that differs."""
    before, after = _flatten(old.to_dict()), _flatten(new.to_dict())
    return [f"{k}: {before[k]!r} -> {after[k]!r}" for k in after if before[k] != after[k]]


def fraction(value: str | float) -> float | None:
    """`data.validation` or `data.test` as a fraction of train, or None where it is a SPEC."""
    try:
        return float(value)
    except ValueError:
        return None


def _run_config_file(path: str) -> ml_collections.ConfigDict:
    if not os.path.isfile(path):
        raise UserError(f"--config={path}: no such file; expected a Python file with get_config()")
    # Config files build on each other (`from configs import common`), wherever one starts from.
    root = str(pathlib.Path(path).resolve().parent.parent)
    sys.path.insert(0, root)
    try:
        spec = importlib.util.spec_from_file_location("_bloodjax_config", path)
        if spec is None:
            raise UserError(f"--config={path}: expected a Python file (.py)")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"--config={path}: line {error.lineno}: {error.msg}") from error
    finally:
        sys.path.remove(root)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={path}: it defines no get_config()")
    try:
        config = module.get_config()
    except (AttributeError, KeyError, TypeError) as error:
        # A ConfigDict's own words for a wrong key or a value of the wrong type.
        raise UserError(f"--config={path}: {error.args[0] if error.args else error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"--config={path}: get_config() returns {config!r}, expected a ConfigDict")
    return config


def _parse(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _flatten(tree: Config | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, (Mapping, Config)):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _set(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key, to a value of the type that its default has."""
    known = _flatten(defaults())
    if key not in known:
        near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
        hint = f"; did you mean config.{near[0]}?" if near else ""
        raise UserError(f"unknown config key config.{key}{hint}")
    default = known[key]
    if key in _FRACTION_OR_SPEC or isinstance(default, str):
        value = str(value)
    elif isinstance(default, tuple):
        value = tuple(value.split(",")) if isinstance(value, str) else value
        value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    elif isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        raise UserError(
            f"config.{key} is {value!r}, expected a value of type {type(default).__name__}"
        )
    parent, _, leaf = key.rpartition(".")
    target = config
    for part in filter(None, parent.split(".")):
        target = target[part]
    with target.unlocked():
        target[leaf] = value


_FRACTION_OR_SPEC = ("data.validation", "data.test")


def _one_of(*options: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in options), "one of " + ", ".join(options)


def _at_least(low: int | float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: low <= value < float("inf")), f"a number of at least {low}"


def _within(low: int | float, high: int | float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: low <= value < high), f"a number of at least {low} and below {high}"


def _numbers(length: int | None, test: Callable[[float], bool], expected: str):
    def holds(value):
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        return numeric and length in (None, len(value)) and all(map(test, value))

    return holds, expected


def _validation_part(value: str) -> bool:
    number = fraction(value)
    return bool(value) if number is None else 0 <= number < 1


def _distinct_names(value: tuple) -> bool:
    return all(isinstance(name, str) and name for name in value) and len(set(value)) == len(value)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _within(0, 2**31),
    "batch_size": _at_least(1),
    "parallel": _one_of("jit", "pmap"),
    "steps_per_call": _at_least(1),
    "dtype": _one_of("auto", "float32", "bfloat16"),
    "data.validation": (_validation_part, "auto, a SPEC, or a fraction of train in [0, 1)"),
    "data.test": (_validation_part, "auto, a SPEC, or a fraction of train in [0, 1)"),
    "data.image_size": _within(16, 2049),
    "data.clean": _one_of("drop", "report", "fail"),
    "data.bad_images": _one_of("fail", "skip"),
    "data.classes": (_distinct_names, "names that differ, as text"),
    "model.weights": (
        (lambda value: not value),
        "nothing: this version starts from random weights",
    ),
    "model.drop_path": _within(0, 1),
    "model.mean": _numbers(3, lambda v: True, "three numbers, red, green and blue"),
    "model.std": _numbers(3, lambda v: v > 0, "three numbers above 0, red, green and blue"),
    "model.head.hidden": _numbers(None, lambda v: v >= 1 and v == int(v), "whole numbers above 0"),
    "model.head.dropout": _numbers(2, lambda v: 0 <= v < 1, "two numbers in [0, 1)"),
    "model.head.activation": _one_of(*ACTIVATIONS),
    "augment": _one_of("none", "flip", "d4"),
    "loss.class_weights": _one_of("balanced", "none"),
    "loss.label_smoothing": _within(0, 1),
    "early_stopping.metric": _one_of(*METRICS),
    "early_stopping.patience": _at_least(1),
    "evaluation.tta": _one_of("none", "flip", "d4"),
    "evaluation.bootstrap": _at_least(1),
    "checkpoint_minutes": _at_least(0),
    # In each phase:
    "epochs": _at_least(0),
    "freeze": _one_of(*FREEZE),
    "learning_rate": _at_least(0),
    "weight_decay": _at_least(0),
    "clip_norm": _at_least(0),
    "schedule.warmup": _at_least(0),
    "schedule.first_cycle": _at_least(0),
    "schedule.t_mul": _at_least(1),
    "schedule.m_mul": _within(1e-6, 10),
    "schedule.alpha": _within(0, 1),
}
