"""What reading images had to decide, by image and for a whole source."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bloodjax.data import bit_depth
from bloodjax.data.options import ReadOptions

# What transparent pixels are laid over, as red, green and blue.
BACKGROUND = (255, 255, 255)
# Images whose longer side exceeds the shorter one by more than a fifth.
MAX_ASPECT = 1.2

_FIT = {
    "crop": "cropped to the central square",
    "pad": "padded to a square",
    "squash": "squashed to a square",
}


class Facts(NamedTuple):
    """What reading one image had to decide.

    Attributes:
      oriented: Whether its EXIF orientation was applied.
      transparent: Whether it has transparent pixels, which were laid over `BACKGROUND`.
      frames: Whether it has several frames, of which the first was taken.
      elongated: Whether its sides differ by more than a fifth.
      values: Range of its values if they have more than 8 bits or are floats, else None.
    """

    oriented: bool = False
    transparent: bool = False
    frames: bool = False
    elongated: bool = False
    values: bit_depth.Range | None = None


PLAIN = Facts()


@dataclasses.dataclass(frozen=True)
class Tally:
    """In how many images of a source each of the `Facts` holds, and their scale.

    Attributes:
      oriented: Number of images, as are the next three.
      transparent: See `Facts`.
      frames: See `Facts`.
      elongated: See `Facts`.
      deep: Number of images of more than 8 bits.
      largest: Largest value of those.
      typical: Median of their largest values.
      scale: Scale of their values, see `bit_depth`; "" if there are none.
    """

    oriented: int = 0
    transparent: int = 0
    frames: int = 0
    elongated: int = 0
    deep: int = 0
    largest: float = 0.0
    typical: float = 0.0
    scale: str = ""

    @classmethod
    def count(cls, facts: Iterable[Facts], scale: str = "") -> Tally:
        """Adds up the facts of the images of a source, whose values have the scale `scale`."""
        notable = [one for one in facts if one is not PLAIN]
        deep = [one.values.largest for one in notable if one.values is not None]
        return cls(
            oriented=sum(one.oriented for one in notable),
            transparent=sum(one.transparent for one in notable),
            frames=sum(one.frames for one in notable),
            elongated=sum(one.elongated for one in notable),
            deep=len(deep),
            largest=max(deep, default=0.0),
            typical=statistics.median(deep) if deep else 0.0,
            scale=scale if deep else "",
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tally:
        """The inverse of `dataclasses.asdict`.

        Raises:
          KeyError: The keys are others.
          ValueError: The values are others.
        """
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        for name, value in content.items():
            if type(value) is not kinds[name]:
                raise ValueError(f"{name} is {value!r}")
        found = cls(**content)
        scales = ("", bit_depth.UNIT, *bit_depth.BITS)
        if found.scale not in scales or bool(found.scale) != bool(found.deep):
            raise ValueError(f"{found.scale!r} is the scale of {found.deep} images")
        return found

    def phrases(self, options: ReadOptions) -> tuple[str, ...]:
        """What is not 0, in words, for images that were read with `options`."""
        found = []
        if self.deep:
            found.append(bit_depth.describe(self.scale, self.largest, self.typical, self.deep))
        if self.oriented:
            found.append(f"orientation of {_images(self.oriented)} applied")
        if self.transparent:
            found.append(f"transparent pixels of {_images(self.transparent)} over white")
        if self.frames:
            found.append(f"first frame of {_images(self.frames)} with several")
        if self.elongated:
            found.append(
                f"{_images(self.elongated)} whose sides differ by more than a fifth "
                f"{_FIT.get(options.fit, 'framed by a square')} (data.fit={options.fit})"
            )
        return tuple(found)

    def joined(self, other: Tally) -> Tally:
        """The tally of two sources, which have the same scale if both have one."""
        names = ("oriented", "transparent", "frames", "elongated", "deep")
        counts = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Tally(
            **counts,
            largest=max(self.largest, other.largest),
            typical=max(self.typical, other.typical),
            scale=self.scale or other.scale,
        )


NO_IMAGES = Tally()


def _images(n: int) -> str:
    return f"{n:,} image{'s' if n > 1 else ''}"
