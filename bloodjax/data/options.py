"""How the images of a source are read: options that a run keeps for all of its sources."""

from __future__ import annotations

import dataclasses
from typing import Literal

# Values of `config.data.bits` and of the flags `--bits`.
BITS = ("auto", "8", "10", "12", "14", "16")
FITS = ("crop", "pad", "squash")


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How images are read.

    Attributes:
      bad_images: What to do about an unreadable image in a folder or zip: "fail" raises an error,
        "skip" leaves it out with a warning. An unreadable image in shards is always an error.
      bits: Scale of values of more than 8 bits, one of `BITS` or a run's own `scales.UNIT`: the
        number of bits whose largest value becomes 255. "auto" takes it from the largest value in
        the source.
      fit: How an image becomes a square: "crop" keeps its central square, "pad" adds bars of the
        colour of its border, "squash" changes its proportions.
    """

    bad_images: Literal["fail", "skip"] = "fail"
    bits: str = "auto"
    fit: Literal["crop", "pad", "squash"] = "crop"


DEFAULTS = ReadOptions()
