"""The arrays of an open npz, checked as they are read."""

from __future__ import annotations

import logging
import pathlib
import sys
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped, UInt8

from bloodjax.data import arrays as arrays_lib
from bloodjax.data import bit_depth
from bloodjax.data.facts import MAX_ASPECT, Tally
from bloodjax.data.formats import groups as groups_lib
from bloodjax.data.formats import labels as labels_lib
from bloodjax.data.images import resize
from bloodjax.data.options import AUTO, ReadOptions
from bloodjax.errors import UserError

SPLITS = ("train", "val", "test")  # as MedMNIST names them in its keys

_log = logging.getLogger(__name__)


class Arrays:
    """Reads and checks the arrays of an open npz; never unpickles anything.

    Attributes:
      path: The file.
      options: How the images are read.
      keys: Names of its arrays.
      found: The arrays that it has, for messages.
    """

    def __init__(
        self, path: pathlib.Path, zipped: zipfile.ZipFile, size: int | None, options: ReadOptions
    ):
        """Lists the arrays.

        Args:
          path: The file.
          zipped: The same, open.
          size: Height and width in pixels to resize images to; None keeps the size that is stored.
          options: How the images are read.
        """
        self.path, self._size, self.options = path, size, options
        self.keys = {n.removesuffix(".npy") for n in zipped.namelist() if n.endswith(".npy")}
        self.found = "the arrays " + ", ".join(sorted(self.keys)[:12]) if self.keys else "no arrays"
        self._zipped = zipped

    def require(self, *keys: str) -> None:
        """Raises UserError for the first of `keys` that the file lacks."""
        for key in keys:
            if key not in self.keys:
                raise UserError(f"{self.path}: contains {self.found}; expected {key} too")

    def array(self, key: str) -> np.ndarray:
        """An array as it is stored.

        Raises:
          UserError: The file lacks it, or it is damaged, contains objects, or is too large.
        """
        self.require(key)
        try:
            with self._zipped.open(key + ".npy") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            _check_text(array)
            return array
        except MemoryError as error:
            raise UserError(f"{self.path}: {key} does not fit into memory ({error})") from error
        except Exception as error:  # NumPy raises any type for a damaged header
            raise UserError(
                f"{self.path}: {key} cannot be read ({error}), expected an array of numbers "
                "or strings without pickled objects; for strings, save array.astype(str)"
            ) from error

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        return pixels if self._size is None else resize(pixels, self._size, self.options.fit)

    def images(self, keys: Sequence[str]) -> tuple[list[UInt8[np.ndarray, "_ _ _ 3"]], Tally]:
        """The images of several arrays as RGB, all with one scale, and their tally."""
        ranges: list[bit_depth.Range] = []
        deep = transparent = elongated = 0
        # The first pass finds the scale. Arrays of 8 bits, which have none, are kept from it.
        kept: dict[str, np.ndarray] = {}
        for key in keys:
            pixels = self.pixels(key)
            if pixels.dtype == np.uint8:
                pixels, n = self._rgb(key, pixels)
                transparent += n
                kept[key] = self._resized(pixels)
            else:
                ranges.append(self._range(key, pixels))
                deep += len(pixels)
            height, width = pixels.shape[1:3]
            if max(height, width) > MAX_ASPECT * min(height, width):
                elongated += len(pixels)
        scale = self._scale(ranges) if ranges else ""
        for key in keys:
            if key not in kept:
                pixels = self._scaled(key, scale)
                kept[key] = self._resized(pixels)
        largest = max((one.largest for one in ranges), default=0.0)
        tally = Tally(
            transparent=transparent,
            elongated=elongated,
            deep=deep,
            largest=largest,
            typical=largest,
            scale=scale,
        )
        return [kept[key] for key in keys], tally

    def pixels(self, key: str) -> Shaped[np.ndarray, "n height width channels"]:
        """Images as they are stored; grey ones have one channel."""
        array = self.array(key)
        expected = (
            "images of uint8, uint16 or floats of 0..1, and of shape (N, H, W, 3) or (N, H, W)"
        )
        if array.dtype.kind not in "iuf":
            raise self._error(key, array, expected)
        try:
            pixels = arrays_lib.with_channels(array)
        except ValueError as error:
            raise self._error(key, array, f"{expected}, but {error}") from None
        if array.size == 0:
            raise self._error(key, array, "at least one image")
        if pixels.shape[-1] == 4 and array.dtype != np.uint8:
            raise self._error(key, array, f"uint8 with a channel of opacity, or {expected}")
        return pixels

    def _rgb(self, key: str, pixels: np.ndarray) -> tuple[np.ndarray, int]:
        try:
            return arrays_lib.to_rgb(pixels)
        except ValueError as error:
            raise UserError(f"{self.path}: {key}: {error}") from error

    def _range(self, key: str, pixels: np.ndarray) -> bit_depth.Range:
        try:
            return bit_depth.measure(pixels)
        except ValueError as error:
            raise UserError(f"{self.path}: {key} has {error}") from error

    def _scale(self, ranges: Sequence[bit_depth.Range]) -> str:
        if self.options.bits != AUTO:
            return self.options.bits
        try:
            return bit_depth.choose(ranges)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from error

    def _scaled(self, key: str, scale: str) -> UInt8[np.ndarray, "n height width 3"]:
        pixels = self.pixels(key)
        try:
            scaled = bit_depth.to_uint8(pixels, self._range(key, pixels), scale)
        except ValueError as error:
            raise UserError(f"{self.path}: {key} has {error}") from error
        return arrays_lib.to_rgb(scaled)[0]

    def kind(self) -> tuple[list[str], list[str]]:
        """Prefixes of the keys: [""] for a challenge file; and the splits of a MedMNIST file.

        Raises:
          UserError: It is neither, or both.
        """
        splits = [s for s in SPLITS if {f"{s}_images", f"{s}_labels"} & self.keys]
        if {"images", "labels"} & self.keys:
            if splits:
                raise UserError(
                    f"{self.path}: contains {self.found}; expected either images and labels, or "
                    f"{splits[0]}_images and {splits[0]}_labels, but not both"
                )
            return [""], []
        if splits:
            return [f"{split}_" for split in splits], splits
        raise UserError(
            f"{self.path}: contains {self.found}; expected images and labels (a challenge file) or "
            "train_images, train_labels and so on (a MedMNIST file)"
        )

    def is_grey(self, key: str) -> bool:
        """Whether the images `key` have no channels, by the header of the array alone."""
        try:
            with self._zipped.open(key + ".npy") as file:
                version = np.lib.format.read_magic(file)
                if version == (1, 0):
                    return len(np.lib.format.read_array_header_1_0(file)[0]) == 3
                return len(np.lib.format.read_array_header_2_0(file)[0]) == 3
        except Exception:  # NumPy raises any type; reading the array says what is wrong
            return self.array(key).ndim == 3

    def classes(self) -> tuple[str, ...] | None:
        """The file's own class names; None if it has none."""
        if "classes" not in self.keys:
            return None
        array = self.array("classes")
        if array.ndim != 1 or array.dtype.kind not in "USiu":
            raise self._error("classes", array, "a list of strings")
        if array.dtype.kind in "US":
            array = labels_lib.texts(f"{self.path}: classes", array)
        found = tuple(array.astype(str).tolist())
        if len(set(found)) < len(found):
            raise UserError(f"{self.path}: classes names a class twice: {', '.join(found)}")
        return found

    def groups(self, counts: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Group of each image, and facts about the groups.

        Args:
          counts: Prefix of the keys of each split -> its number of images.
        """
        keys = [f"{prefix}groups" for prefix in counts]
        read = {f"{prefix}{kind}" for prefix in counts for kind in ("images", "labels", "groups")}
        others = sorted(self.keys - read - {"classes"})
        unused = (f"unused arrays: {', '.join(others[:6])}",) if others else ()
        n = sum(counts.values())
        if not self.keys.intersection(keys):
            meant = [key for key in others if groups_lib.tables([f"{key}.csv"])]
            beside = [groups_lib.TABLE] if groups_lib.is_beside(self.path) else []
            for name in [f"the array {key}" for key in meant] + [
                f"{name} beside it" for name in beside
            ]:
                _log.warning(
                    "%s: %s is not read; the keys of images that belong together, such as those of "
                    "a patient, are an array %s",
                    *(self.path, name, " and ".join(keys)),
                )
            return ("",) * n, unused
        cells = [
            cell
            for key, count in zip(keys, counts.values(), strict=True)
            for cell in (self._groups(key, count) if key in self.keys else ("",) * count)
        ]
        found, facts = groups_lib.of_column(cells)
        without = found.count("")
        if without:
            _log.warning(
                "%s: no key in %s for %d of %d images; they may be on another side of a split "
                "than images of the same patient or slide",
                *(self.path, ", ".join(keys), without, n),
            )
        return tuple(found), (*facts, *unused)

    def _groups(self, key: str, n: int) -> list[str]:
        array = self.array(key)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1 or array.dtype.kind not in "USiuf":
            raise self._error(key, array, "a list of strings or of whole numbers")
        if len(array) != n:
            raise UserError(f"{self.path}: {key} has {len(array)} entries, expected {n}")
        if array.dtype.kind == "S":
            try:
                array = np.char.decode(array, "utf-8")
            except UnicodeError as error:
                raise self._error(key, array, "bytes of UTF-8") from error
        return list(map(str, array.tolist()))

    def _error(self, key: str, array: np.ndarray, expected: str) -> UserError:
        found = f"{array.dtype} of shape {array.shape}"
        return UserError(f"{self.path}: {key} is {found}, expected {expected}")


def _check_text(array: np.ndarray) -> None:
    """Raises ValueError if an array of text has numbers that are no characters."""
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        number = np.dtype(np.uint32).newbyteorder(array.dtype.byteorder)
        if np.ascontiguousarray(array).view(number).max() > sys.maxunicode:
            raise ValueError("its text is damaged")
