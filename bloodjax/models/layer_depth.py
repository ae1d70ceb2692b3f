"""How deep in a network each of its parameters lies, by the names of the backbone's modules."""

from __future__ import annotations

import re

import flax.traverse_util
from jaxtyping import PyTree

# A module directly within a backbone -> the stage and the place within it, before all of which the
# stem lies, and after them the rest. What leads into a stage belongs to its first block.
_BLOCK = re.compile(r"stage_(\d+)_(?:block|layer|conv)_(\d+)(?:_norm)?")
_INTO = re.compile(r"downsample_(\d+)(?:_norm)?")
_OUT_OF = re.compile(r"transition_(\d+)(?:_norm)?")
_MIXED = re.compile(r"mixed_(\d)([a-z])")
_AFTER = re.compile(r"norm|last(?:_norm)?|top_\d+")


def depths(params: PyTree) -> PyTree:
    """The depth of each parameter: 0 in the stem, 1 in the first block, and largest in the head.

    What follows the backbone's last block counts as the head, and a network without a stem of its
    own begins at 1.

    Args:
      params: a `models.head.Network`'s parameters; only their paths count.

    Raises:
      ValueError: a module whose place is not known.
    """
    paths = flax.traverse_util.flatten_dict(params)
    places = {path: _place(path) for path in paths}
    blocks = {place for place in places.values() if isinstance(place, tuple)}
    depth = {place: i for i, place in enumerate(sorted(blocks), 1)}
    depth |= {"stem": 0, "head": len(blocks) + 1}
    return flax.traverse_util.unflatten_dict({path: depth[place] for path, place in places.items()})


def _place(path: tuple[str, ...]) -> str | tuple[int, int]:
    if path[0] != "backbone":
        return "head"
    name = path[1]
    if name.startswith("stem"):
        return "stem"
    if _AFTER.fullmatch(name):
        return "head"
    if found := _BLOCK.fullmatch(name):
        return int(found[1]), int(found[2])
    if found := _INTO.fullmatch(name):
        return int(found[1]), 0
    if found := _OUT_OF.fullmatch(name):
        return int(found[1]) + 1, 0
    if found := _MIXED.fullmatch(name):
        return int(found[1]), ord(found[2])
    raise ValueError(f"the depth of {'/'.join(path)} is not known")
