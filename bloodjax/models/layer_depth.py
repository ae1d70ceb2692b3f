"""Depth and stage of each parameter in a network, by the names of the backbone's modules.

Layer-wise learning-rate decay uses depths, and freezing uses stages.
"""

from __future__ import annotations

import re

import flax.traverse_util
from jaxtyping import PyTree

from bloodjax.models.backbone import STEM

# Names of a backbone's direct submodules. Groups are the stage and the position within it; a module
# that leads into a stage (downsampling, transition) belongs to the stage's first block.
_BLOCK = re.compile(r"stage_(\d+)_(?:block|layer|conv)_(\d+)(?:_norm)?")
_INTO = re.compile(r"downsample_(\d+)(?:_norm)?")
_OUT_OF = re.compile(r"transition_(\d+)(?:_norm)?")
_MIXED = re.compile(r"mixed_(\d)([a-z])")
# Number in the names of the third stage of Inception-v3, less 2. The stem has two stages.
_FIRST_MIXED = 3
_AFTER = re.compile(r"norm|last(?:_norm)?|top_\d+")


def depths(params: PyTree) -> PyTree:
    """Returns the depth of each parameter: 0 in the stem, 1 in the first block, most in the head.

    Layers after the backbone's last block have the depth of the head. In a network without a stem
    the smallest depth is 1.

    Args:
      params: parameters of a `models.head.Network`; only their paths matter.

    Returns:
      A tree of `params`' structure with an integer for each parameter.

    Raises:
      ValueError: the name of a module is unknown.
    """
    paths = flax.traverse_util.flatten_dict(params)
    positions = {path: _position(path) for path in paths}
    blocks = {position for position in positions.values() if isinstance(position, tuple)}
    depth = {position: i for i, position in enumerate(sorted(blocks), 1)}
    depth |= {"stem": 0, "head": len(blocks) + 1}
    return flax.traverse_util.unflatten_dict({path: depth[p] for path, p in positions.items()})


def stages(params: PyTree) -> PyTree:
    """Returns the number of each parameter's stage; `backbone.STEM` in the stem.

    Parameters after the backbone's last stage, and those of the head, are in the stage after it. A
    module that leads into a stage belongs to that stage.

    Args:
      params: as for `depths`.

    Raises:
      ValueError: the name of a module is unknown.
    """
    paths = flax.traverse_util.flatten_dict(params)
    positions = {path: _position(path) for path in paths}
    count = 1 + max(place[0] for place in positions.values() if isinstance(place, tuple))
    stage = {"stem": STEM, "head": count}
    return flax.traverse_util.unflatten_dict(
        {path: stage.get(p, p[0]) for path, p in positions.items()}
    )


def _position(path: tuple[str, ...]) -> str | tuple[int, int]:
    """The position of a parameter: "stem", "head", or (stage, block)."""
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
        return int(found[1]) - _FIRST_MIXED, ord(found[2])
    raise ValueError(f"{'/'.join(path)}: unknown module, cannot tell its depth")
