"""Loads and validates a config.

A config file defines `get_config()`, which returns `config.defaults()` with changed values;
`--config.key=value` overrides change it further. All keys are in `defaults` and their allowed
values in `validation`, so an unknown key or an impossible value is a one-line `UserError` here and
never an error later in the run.

`values` parses the overrides. `ml_collections.config_flags` would save some 20 lines, but a
misspelt key would end with a traceback, names with commas (`data.classes=a,b`) would be one name,
old names of keys would be unknown, and `load` could not be called without command-line flags.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from bloodjax.config import parsed, recipes
from bloodjax.config.defaults import FILLED_IN, PHASES, Config, defaults
from bloodjax.config.python_file import call_in_file
from bloodjax.config.renaming import with_current_names
from bloodjax.config.validation import check_combinations, check_values
from bloodjax.config.values import as_type_of_default, flatten, parse_override
from bloodjax.errors import UserError
from bloodjax.io import files
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg


def load(path: str, overrides: Sequence[str] = ()) -> ml_collections.FrozenConfigDict:
    """Runs a config file, applies the overrides, and validates the result.

    Args:
      path: Name of a recipe, such as "quickstart", or path of a Python file that defines
        `get_config()`.
      overrides: `"key=value"` texts, such as `"data.image_size=64"`. The type of the key's default
        decides how a value is read: text is taken as it is, names are split at commas
        (`parsed.parse_names`), and numbers, booleans and tuples of numbers are Python literals. A
        tuple may also be written as `1,2`.

    Raises:
      UserError: The file cannot be run, or a key or a value is wrong.
    """
    config = with_current_names(flatten(get_config(path)))
    given = {}
    for override in overrides:
        key, _, text = override.partition("=")
        if key.startswith(FILLED_IN):
            expected = "model.weights, model.variant, model.mean or model.std"
            if key.startswith("data."):
                expected = {"data.scale": "data.bits"}.get(key, "data.classes")
            raise UserError(f"config.{key} is filled in by the run: expected {expected}")
        given |= with_current_names({key: parse_override(key, text)})
    for key in (f"phases.{name}.learning_rate" for name in PHASES):
        if given.get("learning_rate", "") != "" and key in given:
            raise UserError(
                f"config.learning_rate is that of all phases, so config.{key} would have no "
                "effect; expected one of them"
            )
    return _validated(config | given)


def get_config(path: str) -> ml_collections.ConfigDict:
    """The mutable, unchecked config of a recipe or config file.

    Args:
      path: As for `load`.

    Raises:
      UserError: The file cannot be run.
    """
    path = recipes.locate(path)
    config = call_in_file(path, "get_config", "--config")
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"--config={path}: get_config() returns {type(config).__name__}, expected a ConfigDict"
        )
    return config


def validate(config: Config | Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
    """Fills in the defaults of the keys that `config` lacks, checks all values, and freezes it.

    Raises:
      UserError: A key is unknown, or a value has the wrong type or is not allowed.
    """
    return _validated(with_current_names(flatten(config)))


def to_json(config: Config) -> str:
    """The config as JSON text with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def load_json(path: pathlib.Path) -> ml_collections.FrozenConfigDict:
    """Loads and validates a file that `to_json` wrote.

    Raises:
      UserError: The file cannot be read, or is not a valid config.
    """
    return files.read_json(path, "a run's config", _validate_stored)


def _validate_stored(content: Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
    if "library_name" in content:
        raise UserError("is that of an exported model, expected that of a run")
    stored = flatten(content)
    if "data.bits" not in stored:
        # Earlier versions took the upper 8 of 16 bits, whatever the values were.
        stored["data.scale"] = "16"
    return _validated(with_current_names(stored))


def with_values(config: Config, changed: Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
    """`config` with other values of some keys.

    Args:
      config: A valid config.
      changed: Dotted key -> value.

    Raises:
      UserError: The values are not allowed, alone or together.
    """
    return _validated({**flatten(config), **changed})


def with_source(config: Config, source: PretrainedCfg) -> ml_collections.FrozenConfigDict:
    """`config` with the metadata of its pretrained weights filled in."""
    known = dataclasses.asdict(source)
    return with_values(config, {f"model.source.{key}": value for key, value in known.items()})


def with_reading(config: Config, **values: str | None) -> Config:
    """`config` with other values of keys of `data`, such as `bad_images`; None keeps its own."""
    changed = {f"data.{key}": value for key, value in values.items() if value is not None}
    return with_values(config, changed) if changed else config


def with_learning_rates(
    config: Config, rates: Mapping[str, float]
) -> ml_collections.FrozenConfigDict:
    """`config` with the highest learning rates of some phases, such as those that were found."""
    changed = {f"phases.{name}.learning_rate": rate for name, rate in rates.items()}
    return with_values(config, changed)


def _validated(values: Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
    """`validate` for values by dotted key."""
    config = defaults()
    config.update_from_flattened_dict(
        {key: as_type_of_default(key, value) for key, value in values.items()}
    )
    check_values(flatten(config))
    if config.learning_rate != "":
        rate = parsed.parse_learning_rate(config.learning_rate)
        for name in PHASES:
            config.phases[name].learning_rate = parsed.AUTO_RATE if rate is None else rate
        config.learning_rate = ""
    check_combinations(config)
    return ml_collections.FrozenConfigDict(config)
