"""How the images of a source are read: options that a run keeps for all of its sources."""

from __future__ import annotations

import dataclasses

from bloodjax.data import bit_depth
from bloodjax.errors import UserError

AUTO = "auto"
# Values of `config.data.bits` and of the flag `--bits`.
BITS = (AUTO, *bit_depth.BITS)
FITS = ("crop", "pad", "squash")


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How images are read. Other values of the first three raise UserError.

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

    bad_images: str = "fail"
    bits: str = AUTO
    fit: str = "crop"
    layout: str = AUTO

    def __post_init__(self):
        allowed = {
            "bad_images": ("fail", "skip"),
            "bits": (*BITS, bit_depth.UNIT),
            "fit": FITS,
        }
        for name, values in allowed.items():
            value = getattr(self, name)
            if value not in values:
                raise UserError(f"{name} is {value!r}, expected one of {', '.join(values)}")


DEFAULTS = ReadOptions()
