"""Values of keys, from a config file, JSON or an override, as the type of the key's default."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flax import traverse_util

from bloodjax.cli import console
from bloodjax.config import parsed
from bloodjax.config.defaults import PHASES, RENAMED, SPLIT_SOURCES, Config, defaults
from bloodjax.errors import UserError

# Keys whose value is a list of names.
_NAMES = ("data.classes", "trackers", "tracking.tags")
# Keys whose value is text that may be a number, and may be given as one.
_NUMBER_OR_TEXT = (*SPLIT_SOURCES, "data.sampling", "learning_rate")
# Keys whose value is a number or "auto".
_RATES = tuple(f"phases.{name}.learning_rate" for name in PHASES)


def flatten(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of every key in `config`."""
    tree = config.to_dict() if isinstance(config, Config) else config
    return traverse_util.flatten_dict(tree, sep=".")


@functools.cache
def default_values() -> Mapping[str, Any]:
    """Dotted key -> default value of every key."""
    return MappingProxyType(flatten(defaults()))


def parse_override(key: str, text: str) -> Any:
    """The value that an override's text stands for, by the type of the key."""
    key = RENAMED.get(key, key)
    if isinstance(default_values().get(key), str):
        return text
    return parsed.parse_names(text) if key in _NAMES else _literal(text)


def _literal(text: str) -> Any:
    """The boolean, number or tuple that `text` is as a Python literal; other text as it is."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except parsed.NOT_LITERAL:
        return text


def as_type_of_default(key: str, value: Any) -> Any:
    """`value` as the type of the key's default.

    Raises:
      UserError: The key is unknown, or the value has another type.
    """
    known = default_values()
    if key not in known:
        near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
        hint = f"; did you mean config.{near[0]}?" if near else ""
        raise UserError(f"unknown config key config.{key}{hint}")
    default = known[key]
    if key in _RATES and value == parsed.AUTO_RATE:
        return value
    if key == "folds" and isinstance(value, str):
        return value  # a kind of folds; `validation.RULES` names them
    if isinstance(default, str):
        value = _text(key, value)
    elif isinstance(default, tuple):
        if isinstance(value, str):
            value = parsed.parse_names(value)
        value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    elif isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer of more than 308 digits is no float
            value = float(value)
    if type(value) is not type(default):
        raise UserError(
            f"config.{key} is {value!r}, expected a value of type {type(default).__name__}"
        )
    return value


def _text(key: str, value: Any) -> Any:
    """A path as text, and a number as text if the key may have one.

    For other keys a number stays one, which is an error, because 1.10 would become the text 1.1. A
    split that is a number, but no fraction, and the name of a folder or file becomes its path.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key in _NUMBER_OR_TEXT and is_number:
        return str(value)
    if key not in SPLIT_SOURCES:
        return value
    fraction = parsed.parse_split_source(value).fraction if isinstance(value, str) else None
    if fraction is None or not os.path.exists(value):
        return value
    if 0 <= fraction < 1:
        _log_fraction(key, value)
        return value
    return os.path.join(os.curdir, value)  # a folder called 5; it cannot be a fraction


@functools.cache  # a config is validated more than once
def _log_fraction(key: str, text: str) -> None:
    console.log_info(
        f"config.{key} is the fraction {text} of train; the folder or file of that name is ./{text}"
    )
