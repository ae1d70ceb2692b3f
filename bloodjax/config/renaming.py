"""Old names and old values of keys, which config files, overrides and config.json may still use."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from bloodjax.cli import console
from bloodjax.config.defaults import FILLED_IN, OLD_VALUES, RENAMED
from bloodjax.config.values import default_values
from bloodjax.errors import UserError


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` by dotted key, with the old names of keys replaced by the current ones."""
    renamed = dict(values)
    for old in RENAMED.keys() & values.keys():
        new = RENAMED[old]
        value = _current_value(old, renamed.pop(old))
        # A config file starts from the defaults, so it always holds the current name as well.
        if renamed.get(new, value) not in (value, default_values()[new]):
            raise UserError(f"config.{old} was renamed to config.{new}, expected only one of them")
        renamed[new] = value
        # The user cannot rename what a run filled in. The config.json of an earlier version has
        # every key; a default value in it is nothing that the user wrote.
        if not old.startswith(FILLED_IN) and value != default_values()[new]:
            _log_renamed(old, new)
    return renamed


def _current_value(old: str, value: Any) -> Any:
    """The current value of a key that had the name `old`, given its old value."""
    if old not in OLD_VALUES:
        return value
    known = {str(each): current for each, current in OLD_VALUES[old].items()}
    if str(value).capitalize() not in known:
        raise UserError(f"config.{old} is {value!r}, expected {' or '.join(known)}")
    return known[str(value).capitalize()]


@functools.cache  # once per key, however many configs are loaded
def _log_renamed(old: str, new: str) -> None:
    console.log_info(f"config.{old} was renamed to config.{new}; the old name still works")
