"""Loads and validates a config.

A config file defines `get_config()`, which returns `config.defaults()` with changed values;
`--config.key=value` overrides change it further. All keys are in `defaults` and their allowed
values in `validation`, so an unknown key or an impossible value is a one-line `UserError` here and
never an error later in the run.

Overrides are parsed here and not by `ml_collections.config_flags`. That would save some 20 lines,
but a misspelt key would end with a traceback, names with commas (`data.classes=a,b`) would be one
name, old names of keys would be unknown, and `load` could not be called without command-line flags.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ml_collections
from flax import traverse_util

from bloodjax.cli import console
from bloodjax.config import parsed, recipes
from bloodjax.config.defaults import OLD_VALUES, PHASES, RENAMED, Config, defaults
from bloodjax.config.validation import check_combinations, check_values
from bloodjax.data.options import AUTO
from bloodjax.errors import UserError
from bloodjax.io import files
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg

_FILLED_IN = ("model.source.", "data.scale")
# Keys that may change on resume, because they do not affect results.
_FREE = ("profile", "grace_seconds", "sharding", "peer_timeout", "trackers", "data.images")
_FREE_SECTION = "tracking."
# Keys whose value is a list of names.
_NAMES = ("data.classes", "trackers", "tracking.tags")
# Keys whose value is a SPEC or a fraction.
_SPLIT_SOURCES = ("data.validation", "data.test")
_SOURCES = ("data.train", *_SPLIT_SOURCES)
# Keys whose value is text that may be a number, and may be given as one.
_NUMBER_OR_TEXT = (*_SPLIT_SOURCES, "data.sampling", "learning_rate")
# Keys whose value is a number or "auto".
_RATES = tuple(f"phases.{name}.learning_rate" for name in PHASES)


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
    config = _current_names(flatten(_run_config_file(path)))
    for override in overrides:
        key, _, text = override.partition("=")
        if key.startswith(_FILLED_IN):
            others = "model.weights, model.variant, model.mean or model.std"
            raise UserError(
                f"config.{key} is filled in by the run: expected "
                f"{'data.bits' if key == 'data.scale' else others}"
            )
        config |= _current_names({key: _parse(key, text)})
    return _validated(config)


def get_config(path: str) -> ml_collections.ConfigDict:
    """The mutable, unchecked config of a recipe or config file.

    Args:
      path: As for `load`.

    Raises:
      UserError: The file cannot be run.
    """
    return _run_config_file(path)


def validate(config: Config | Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
    """Fills in the defaults of the keys that `config` lacks, checks all values, and freezes it.

    Raises:
      UserError: A key is unknown, or a value has the wrong type or is not allowed.
    """
    return _validated(_current_names(flatten(config)))


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
    stored = flatten(content)
    if "data.bits" not in stored:
        # Earlier versions took the upper 8 of 16 bits, whatever the values were.
        stored["data.scale"] = "16"
    return _validated(_current_names(stored))


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


def differences(old: Config, new: Config) -> list[str]:
    """`key: old value -> new value` for each key that affects results and that the user sets.

    Another SPEC of a source is no difference: whether it is the same data, its contents tell.
    """
    before, after = flatten(old), flatten(new)
    return [
        f"{k}: {before[k]!r} -> {after[k]!r}"
        for k in after
        if before[k] != after[k]
        and not k.startswith(_FILLED_IN)
        and not _is_free(k)
        and not (k == "data.task" and after[k] == AUTO)  # the run has filled it in
        and not (_is_spec(k, before[k]) and _is_spec(k, after[k]))
    ]


def changes(config: Config) -> dict[str, Any]:
    """Dotted key -> value of each key that the user sets and whose value is not the default."""
    known = _default_values()
    return {
        key: value
        for key, value in flatten(config).items()
        if value != known[key] and not key.startswith(_FILLED_IN)
    }


def resumed(stored: Config, requested: Config) -> ml_collections.FrozenConfigDict:
    """The stored config of a run, with the requested values of the keys that may change."""
    after = flatten(requested)
    specs = {key: after[key] for key in _SOURCES if _is_spec(key, after[key])}
    free = {key: after[key] for key in after if _is_free(key)}
    return _validated({**flatten(stored), **free, **specs})


def with_learning_rates(
    config: Config, rates: Mapping[str, float]
) -> ml_collections.FrozenConfigDict:
    """`config` with the highest learning rates of some phases, such as those that were found."""
    changed = {f"phases.{name}.learning_rate": rate for name, rate in rates.items()}
    return with_values(config, changed)


def _is_free(key: str) -> bool:
    return key in _FREE or key.startswith(_FREE_SECTION)


def _is_spec(key: str, value: object) -> bool:
    """Whether a value of a key names a source of images, and is no fraction of another."""
    if key == "data.train":
        return bool(value)
    return key in _SPLIT_SOURCES and parsed.parse_split_source(str(value)).spec is not None


def flatten(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of every key in `config`."""
    tree = config.to_dict() if isinstance(config, Config) else config
    return traverse_util.flatten_dict(tree, sep=".")


def _run_config_file(path: str) -> ml_collections.ConfigDict:
    path = recipes.locate(path)
    config = call_in_file(path, "get_config", "--config")
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"--config={path}: get_config() returns {type(config).__name__}, expected a ConfigDict"
        )
    return config


def call_in_file(path: str, function: str, flag: str) -> Any:
    """Runs a Python file, and returns what a function without arguments in it returns.

    Args:
      path: The file.
      function: Name of the function.
      flag: The flag that named the file, for errors.

    Raises:
      UserError: The file is not Python, lacks the function, or raises an error.
    """
    # A config file may import others (`from configs import common`) from any working directory.
    folders = pathlib.Path(path).resolve().parents
    roots = folders[1:3]  # of configs/x.py and configs/recipes/x.py
    try:
        with _imports_from(roots):
            spec = importlib.util.spec_from_file_location("_bloodjax_config", path)
            if spec is None:
                raise UserError(f"{flag}={path}: expected a Python file (.py)")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            if not hasattr(module, function):
                raise UserError(f"{flag}={path}: it defines no {function}()")
            return getattr(module, function)()
    except UserError:
        raise
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        raise UserError(f"{flag}={path}: {line}{error.msg}") from error
    except Exception as error:  # the user's code can raise any type
        raise UserError(f"{flag}={path}: {_where(path, error)}{_what(error)}") from error


@contextlib.contextmanager
def _imports_from(roots: Sequence[pathlib.Path]) -> Iterator[None]:
    """Lets modules in `roots` be imported, and forgets them afterwards.

    Python keeps modules by name, so a second config in a folder of the same name would get the
    modules of the first one; and modules of the program's own would stand for the config's.
    """
    paths = [str(root) for root in roots]
    before = dict(sys.modules)
    hidden = {name: before[name] for name in before if _is_hidden(name, roots)}
    for name in hidden:
        del sys.modules[name]
    # Bytecode is found by time in seconds and size, so an edited file may not be read again.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path[:0] = paths
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        new = [name for name in sys.modules if name not in before or name in hidden]
        tops = {name.partition(".")[0] for name in new}
        own = {top for top in tops if top in hidden or (top not in before and _is_in(top, roots))}
        for name in new:
            if name.partition(".")[0] in own:
                del sys.modules[name]
        for path in paths:
            sys.path.remove(path)
        sys.modules.update(hidden)


def _is_hidden(name: str, roots: Sequence[pathlib.Path]) -> bool:
    """Whether a loaded module is another one than a config would import by this name."""
    top = name.partition(".")[0]
    if top in ("__main__", "bloodjax") or top in sys.stdlib_module_names:
        return False
    places = _places(top)
    if all(place.parent in roots for place in places):
        return False
    if any({"site-packages", "dist-packages"} & {*place.parts} for place in places):
        return False
    return any((root / top).is_dir() or (root / f"{top}.py").is_file() for root in roots)


def _is_in(top: str, roots: Sequence[pathlib.Path]) -> bool:
    """Whether a loaded module, or a part of it, is in one of the folders `roots` itself."""
    return any(place.parent in roots for place in _places(top))


def _places(top: str) -> list[pathlib.Path]:
    """The folders of a loaded package, or the file of another module; [] if it has none."""
    module = sys.modules.get(top)
    found = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    return [pathlib.Path(place).resolve() for place in found if isinstance(place, str)]


def _where(path: str, error: Exception) -> str:
    """Names the last line of the config file that led to the error: "line N: ", or ""."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f"line {lines[-1]}: " if lines else ""


def _what(error: Exception) -> str:
    """The message, after the error's type, which is left out if a ConfigDict raised it."""
    if isinstance(error, ModuleNotFoundError) and error.name in ("configs", "configs.common"):
        return f"{error}; expected `from bloodjax.configs import common`"
    named = not isinstance(error, (AttributeError, KeyError, TypeError))
    text = str(error.args[0] if error.args else error)
    return f"{type(error).__name__}: {text}" if named else text


def _validated(values: Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
    """`validate` for values by dotted key."""
    config = defaults()
    config.update_from_flattened_dict({key: _typed(key, value) for key, value in values.items()})
    check_values(flatten(config))
    if config.learning_rate != "":
        rate = parsed.parse_learning_rate(config.learning_rate)
        for name in PHASES:
            config.phases[name].learning_rate = parsed.AUTO_RATE if rate is None else rate
        config.learning_rate = ""
    check_combinations(config)
    return ml_collections.FrozenConfigDict(config)


@functools.cache
def _default_values() -> Mapping[str, Any]:
    return MappingProxyType(flatten(defaults()))


def _current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` by dotted key, with the old names of keys replaced by the present ones."""
    renamed = dict(values)
    for old in RENAMED.keys() & values.keys():
        new = RENAMED[old]
        value = _present_value(old, renamed.pop(old))
        # A config file starts from the defaults, so it always holds the present name as well.
        if renamed.get(new, value) not in (value, _default_values()[new]):
            raise UserError(f"config.{old} was renamed to config.{new}, expected only one of them")
        renamed[new] = value
        # The user cannot rename what a run filled in. The config.json of an earlier version has
        # every key; a default value in it is nothing that the user wrote.
        if not old.startswith(_FILLED_IN) and value != _default_values()[new]:
            _log_renamed(old, new)
    return renamed


def _present_value(old: str, value: Any) -> Any:
    """The present value of a key that had the name `old`, given its old value."""
    if old not in OLD_VALUES:
        return value
    known = {str(each): present for each, present in OLD_VALUES[old].items()}
    if str(value).capitalize() not in known:
        raise UserError(f"config.{old} is {value!r}, expected {' or '.join(known)}")
    return known[str(value).capitalize()]


@functools.cache  # once per key, however many configs are loaded
def _log_renamed(old: str, new: str) -> None:
    console.log_info(f"config.{old} was renamed to config.{new}; the old name still works")


def _parse(key: str, text: str) -> Any:
    """The value that an override's text stands for, by the type of the key."""
    key = RENAMED.get(key, key)
    if isinstance(_default_values().get(key), str):
        return text
    return parsed.parse_names(text) if key in _NAMES else _literal(text)


def _literal(text: str) -> Any:
    """The boolean, number or tuple that `text` is as a Python literal; other text as it is."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _typed(key: str, value: Any) -> Any:
    """`value` as the type of the key's default.

    Raises:
      UserError: The key is unknown, or the value has another type.
    """
    known = _default_values()
    if key not in known:
        near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
        hint = f"; did you mean config.{near[0]}?" if near else ""
        raise UserError(f"unknown config key config.{key}{hint}")
    default = known[key]
    if key in _RATES and value == parsed.AUTO_RATE:
        return value
    if key == "folds" and isinstance(value, str):
        return value  # a kind of folds; `RULES` knows which there are
    if isinstance(default, str):
        value = _text(key, value)
    elif isinstance(default, tuple):
        if isinstance(value, str):
            value = parsed.parse_names(value)
        value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    elif isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        raise UserError(
            f"config.{key} is {value!r}, expected a value of type {type(default).__name__}"
        )
    return value


def _text(key: str, value: Any) -> Any:
    """A path as text; of some keys also a number, and for a split a path that looks like one.

    Any other value is returned as it is: 1.10 as a number would be the text 1.1.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key in _NUMBER_OR_TEXT and is_number:
        return str(value)
    if key not in _SPLIT_SOURCES:
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
