"""The config of a run: defaults, allowed values, loading."""

from bloodjax.config.defaults import defaults
from bloodjax.config.load import (
    PHASES,
    Config,
    check,
    differences,
    load,
    read,
    resumed,
    to_json,
    with_source,
)

__all__ = [
    "PHASES",
    "Config",
    "check",
    "defaults",
    "differences",
    "load",
    "read",
    "resumed",
    "to_json",
    "with_source",
]
