"""How the images of a source are read: options that a run keeps for all of its sources."""

from __future__ import annotations

import dataclasses
import re

from bloodjax.data import bit_depth
from bloodjax.errors import UserError

AUTO = "auto"
# Values of `config.data.bits` and of the flag `--bits`.
BITS = (AUTO, *bit_depth.BITS)
MULTI_CLASS, MULTI_LABEL = "multi-class", "multi-label"
# Values of `config.data.task`.
TASKS = (AUTO, MULTI_CLASS, MULTI_LABEL)
FITS = ("crop", "pad", "squash")
MAX_FRAME = 8000  # pixels; an image of that side has as many as one that is read may have
FIT_VALUES = f"{', '.join(FITS)}, or a number of pixels up to {MAX_FRAME} such as 240px"
_FRAME = re.compile(r"([1-9][0-9]{0,3})px")


def is_fit(value: str) -> bool:
    """Whether `value` is allowed as `ReadOptions.fit`."""
    return value in FITS or 1 <= (frame_side(value) or 0) <= MAX_FRAME


def frame_side(fit: str) -> int | None:
    """The pixels of an image's central square that `fit` names, or None if it is one of `FITS`."""
    match = _FRAME.fullmatch(fit)
    return None if match is None else int(match[1])


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How images are read. Other values of `bad_images`, `bits`, `fit` and `task` raise UserError.

    Attributes:
      bad_images: What to do about an unreadable image in a folder or zip: "fail" raises an error,
        "skip" leaves it out with a warning. An unreadable image in shards is always an error.
      bits: Scale of values of more than 8 bits, see `bit_depth`; "auto" takes it from the largest
        value in the source.
      fit: How an image becomes a square: "crop" keeps its central square, "pad" adds bars of the
        colour of its border, "squash" changes its proportions. "240px" keeps the central square of
        240 pixels, filled with the colour of the border where the image is smaller: images of one
        magnification but of several sizes show cells in proportion.
      layout: What the folders of a source mean, such as "class/group", see `formats.layout`; "auto"
        finds it from their names.
      columns: Which columns of a table mean what, such as "path=image_id,label=dx", see
        `formats.table`; those that it does not name are found by their names.
      images: Folder or zip that the paths in a table are relative to; "" is the table's folder.
      first_label: Number of the first class among labels that are numbers, "0" or "1"; "names" if
        the class names state the numbers; "" if it is not known, see `formats.labels.read`.
      task: "multi-class": an image has one class; "multi-label": it has any number of labels, so
        that a file has a row of 0 and 1 for each image; "auto": as the source is known to be.
    """

    bad_images: str = "fail"
    bits: str = AUTO
    fit: str = "crop"
    layout: str = AUTO
    columns: str = ""
    images: str = ""
    task: str = AUTO
    first_label: str = ""

    def __post_init__(self):
        allowed = {
            "bad_images": ("fail", "skip"),
            "bits": (*BITS, bit_depth.UNIT),
            "task": TASKS,
        }
        for name, values in allowed.items():
            value = getattr(self, name)
            if value not in values:
                raise UserError(f"{name} is {value!r}, expected one of {', '.join(values)}")
        if not is_fit(self.fit):
            raise UserError(f"fit is {self.fit!r}, expected {FIT_VALUES}")


DEFAULTS = ReadOptions()
