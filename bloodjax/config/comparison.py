"""What differs between two configs, and what may change when a run resumes."""

from __future__ import annotations

from typing import Any

import ml_collections

from bloodjax.config import parsed
from bloodjax.config.defaults import FILLED_IN, SPLIT_SOURCES, Config
from bloodjax.config.load import with_values
from bloodjax.config.values import default_values, flatten
from bloodjax.data.options import AUTO

# Keys that may change on resume, because they do not affect results.
_FREE = ("profile", "grace_seconds", "sharding", "peer_timeout", "trackers", "data.images")
_FREE_SECTION = "tracking."
# Keys whose value names a source of images.
_SOURCES = ("data.train", *SPLIT_SOURCES)


def differences(old: Config, new: Config) -> list[str]:
    """`key: old value -> new value` for each key that affects results and that the user sets.

    Another SPEC of a source is no difference: a resumed run compares the contents of its sources.
    """
    before, after = flatten(old), flatten(new)
    return [
        f"{k}: {before[k]!r} -> {after[k]!r}"
        for k in after
        if before[k] != after[k]
        and not k.startswith(FILLED_IN)
        and not _is_free(k)
        and not (k == "data.task" and after[k] == AUTO)  # the run has filled it in
        and not (_is_spec(k, before[k]) and _is_spec(k, after[k]))
    ]


def changes(config: Config) -> dict[str, Any]:
    """Dotted key -> value of each key that the user sets and whose value is not the default."""
    known = default_values()
    return {
        key: value
        for key, value in flatten(config).items()
        if value != known[key] and not key.startswith(FILLED_IN)
    }


def resumed(stored: Config, requested: Config) -> ml_collections.FrozenConfigDict:
    """The stored config of a run, with the requested values of the keys that may change."""
    after = flatten(requested)
    specs = {key: after[key] for key in _SOURCES if _is_spec(key, after[key])}
    free = {key: after[key] for key in after if _is_free(key)}
    return with_values(stored, free | specs)


def _is_free(key: str) -> bool:
    return key in _FREE or key.startswith(_FREE_SECTION)


def _is_spec(key: str, value: object) -> bool:
    """Whether a value of a key names a source of images, and is no fraction of another."""
    if key == "data.train":
        return bool(value)
    return key in SPLIT_SOURCES and parsed.parse_split_source(str(value)).spec is not None
