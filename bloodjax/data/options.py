"""How the images of a source are read: options that a run keeps for all of its sources."""

from __future__ import annotations

import dataclasses
from typing import Literal

from bloodjax.data import bit_depth

AUTO = "auto"
# Values of `config.data.bits` and of the flag `--bits`.
BITS = (AUTO, *bit_depth.BITS)
FITS = ("crop", "pad", "squash")


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How images are read.

    Attributes:
      bad_images: What to do about an unreadable image in a folder or zip: "fail" raises an error,
        "skip" leaves it out with a warning. An unreadable image in shards is always an error.
      bits: Scale of values of more than 8 bits, see `bit_depth`; "auto" takes it from the largest
        value in the source.
      fit: How an image becomes a square: "crop" keeps its central square, "pad" adds bars of the
        colour of its border, "squash" changes its proportions.
      layout: What the folders of a source mean, such as "class/group", see `formats.layout`; "auto"
        finds it from their names.
    """

    bad_images: Literal["fail", "skip"] = "fail"
    bits: str = AUTO
    fit: Literal["crop", "pad", "squash"] = "crop"
    layout: str = AUTO


DEFAULTS = ReadOptions()
