"""The config: its defaults, and the checks that stop an impossible one before anything runs.

A config file defines `get_config()`, which returns `config.defaults()` with whatever it changes;
`--config.key=value` changes it further. Every key that exists stands in `defaults`, and every
rule in `validation.RULES`, so that a wrong key or value fails here, by name, and nowhere later.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from bloodjax import models
from bloodjax.augment import policy
from bloodjax.config.defaults import defaults
from bloodjax.config.validation import RULES, check_distortion, check_evaluation
from bloodjax.errors import UserError
from bloodjax.io import files
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg

Config = ml_collections.ConfigDict | ml_collections.FrozenConfigDict

PHASES = ("head", "finetune")
_FILLED_IN = "model.source."
# What a run may be asked anew each time that it goes on, for it changes none of its numbers.
_FREE = ("profile", "grace_seconds", "sharding", "peer_timeout")


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
        if key.startswith(_FILLED_IN):
            raise UserError(
                f"config.{key} is filled in by the run: expected model.weights, model.flavour, "
                "model.mean or model.std"
            )
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
        rule = RULES.get(key.removeprefix("phases.head.").removeprefix("phases.finetune."))
        if rule and not rule[0](value):
            raise UserError(f"config.{key} is {value!r}, expected {rule[1]}")
    augmentation = _augmentation(whole)
    for name in PHASES:
        phase = whole.phases[name]
        if phase.cache_features == "always" and (
            phase.freeze != "backbone" or whole.parallel != "jit" or not augmentation.only_views
        ):
            raise UserError(
                f"config.phases.{name}.cache_features is 'always', expected freeze to be backbone, "
                "parallel jit, and augment none, flip or d4 then"
            )
    data = whole.data
    check_distortion(data.validation_distortion, data.validation, whole.early_stopping.set)
    if whole.data.oversample and whole.loss.logit_adjustment:
        raise UserError(
            f"config.loss.logit_adjustment is {whole.loss.logit_adjustment}, expected 0.0 with "
            "config.data.oversample, which leaves no class rarer than another"
        )
    if whole.sharding != "data" and whole.parallel == "pmap":
        raise UserError(
            f"config.sharding is {whole.sharding!r}, expected data with config.parallel pmap"
        )
    check_evaluation(whole)
    if sum(whole.phases[name].epochs for name in PHASES) == 0:
        raise UserError("config.phases.head.epochs and config.phases.finetune.epochs are both 0")
    smallest = models.smallest(whole.model.name)  # raises with the nearest name
    if whole.data.image_size < smallest:
        raise UserError(
            f"config.data.image_size is {whole.data.image_size}, expected at least {smallest} for "
            f"{whole.model.name}"
        )
    return ml_collections.FrozenConfigDict(whole)


def _augmentation(config: Config) -> policy.Policy:
    try:
        parsed = policy.parse(config.augment)
    except policy.PolicyError as error:
        raise UserError(f"config.augment: {error}") from None
    if parsed.mix and config.batch_size % 2:
        raise UserError(
            f"config.batch_size is {config.batch_size}, expected an even number with mixup or "
            "cutmix"
        )
    return parsed


def to_json(config: Config) -> str:
    """The config as JSON text, keys sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def read(path: pathlib.Path) -> ml_collections.FrozenConfigDict:
    """The config in a file that holds what `to_json` wrote.

    Raises:
      UserError: the file cannot be read, or holds no config.
    """
    return files.read_json(path, "a run's config", check)


def with_source(config: Config, source: PretrainedCfg) -> ml_collections.FrozenConfigDict:
    """`config` with the terms of its weights filled in."""
    return check(
        {
            **config.to_dict(),
            "model": {**config.model.to_dict(), "source": dataclasses.asdict(source)},
        }
    )


def differences(old: Config, new: Config) -> list[str]:
    """`key: old value -> new value` for each key of the user's that differs."""
    before, after = _flatten(old.to_dict()), _flatten(new.to_dict())
    return [
        f"{k}: {before[k]!r} -> {after[k]!r}"
        for k in after
        if before[k] != after[k] and not k.startswith(_FILLED_IN) and k not in _FREE
    ]


def resumed(stored: Config, asked: Config) -> ml_collections.FrozenConfigDict:
    """A run's own config, with what may differ from one start to the next as it is asked for."""
    return check({**stored.to_dict(), **{key: asked[key] for key in _FREE}})


def _run_config_file(path: str) -> ml_collections.ConfigDict:
    if not os.path.isfile(path):
        raise UserError(f"--config={path}: no such file; expected a Python file with get_config()")
    # Config files build on each other (`from configs import common`), wherever one starts from.
    folders = pathlib.Path(path).resolve().parents
    roots = [str(folder) for folder in folders[1:3]]  # of configs/x.py and configs/recipes/x.py
    sys.path[:0] = roots
    try:
        spec = importlib.util.spec_from_file_location("_bloodjax_config", path)
        if spec is None:
            raise UserError(f"--config={path}: expected a Python file (.py)")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"--config={path}: it defines no get_config()")
        config = module.get_config()
    except UserError:
        raise
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        raise UserError(f"--config={path}: {line}{error.msg}") from error
    except Exception as error:  # it is the user's code, and may fail in any way
        raise UserError(f"--config={path}: {_where(path, error)}{_what(error)}") from error
    finally:
        for root in roots:
            sys.path.remove(root)
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"--config={path}: get_config() returns {type(config).__name__}, expected a ConfigDict"
        )
    return config


def _where(path: str, error: Exception) -> str:
    """The last line of the file that led to the error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f"line {lines[-1]}: " if lines else ""


def _what(error: Exception) -> str:
    # A ConfigDict has its own words for a wrong key or a value of the wrong type.
    named = not isinstance(error, (AttributeError, KeyError, TypeError))
    text = str(error.args[0] if error.args else error)
    return f"{type(error).__name__}: {text}" if named else text


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
