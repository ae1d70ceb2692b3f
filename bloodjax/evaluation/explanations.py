"""Writes where a classifier looked: an overlay for each image, and all maps in one file."""

from __future__ import annotations

import math
import pathlib
import re
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from jaxtyping import Int, UInt8

from bloodjax.attribution.overlay import overlay
from bloodjax.cli import console
from bloodjax.data import image_types
from bloodjax.data import images as images_lib
from bloodjax.data.own_size import ReadImage
from bloodjax.errors import UserError
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io import files

MAPS_FILE = "maps.npz"
# Images are explained together until they have this many pixels, or are so many.
_PIXELS_AT_ONCE = 2**24
_AT_ONCE = 64
_CHUNK = 2**22  # bytes copied at once
_LONGEST_NAME = 150  # characters of a file's name, of at most 255 bytes


def check_folder(folder: pathlib.Path, source: pathlib.Path) -> None:
    """Checks that overlays can be written to a folder, before anything is computed.

    Overlays are named as the images are, so they are written only where they replace no image.

    Args:
      folder: The folder.
      source: File or folder of the images; it need not exist.

    Raises:
      UserError: It cannot be made or may not be written to, its parent does not exist, it is the
        folder of the images or inside it, or it has files but those of an earlier call.
    """
    if not folder.parent.is_dir():
        raise UserError(f"--explain={folder}: there is no folder {folder.parent}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--explain={folder}: is a file, expected a folder")
    real = folder.resolve()
    if source.is_dir() and source.resolve() in (real, *real.parents):
        raise UserError(f"--explain={folder}: is read for images, expected a folder elsewhere")
    is_ours = (folder / MAPS_FILE).is_file()
    if folder.is_dir() and not is_ours and any(folder.iterdir()):
        raise UserError(
            f"--explain={folder}: has files but no {MAPS_FILE}; expected a new or empty folder, or "
            "one of an earlier call"
        )
    files.check_folder(folder)


def write(
    model: Classifier | Ensemble,
    folder: pathlib.Path,
    names: Sequence[str],
    read: ReadImage,
    predicted: Int[np.ndarray, " n"],
) -> None:
    """Writes an overlay per image as PNG, and `maps.npz`.

    Args:
      model: The classifier.
      folder: A folder that `check_folder` accepts. Files of an earlier call are replaced.
      names: Name of each image.
      read: Function from an index to the image at its own size.
      predicted: Predicted class of each image, which the maps are about.

    Raises:
      UserError: An image can no longer be read, or the folder cannot be made.
    """
    files.make_folder(folder)
    targets = file_names(names)
    sizes: list[tuple[int, int]] = []
    with tempfile.TemporaryFile(dir=folder) as raw:
        # Until all overlays are there, the file lists none. It also marks a killed call's folder.
        _write_npz(folder / MAPS_FILE, _texts([], [], []), [], raw)
        for rows, images in _batches(read, len(names)):
            maps, _ = model.explain(images, predicted[rows])
            for i, image, attribution in zip(rows, images, maps, strict=True):
                drawn = images_lib.encode_png(overlay(image, attribution))
                files.atomic_write(folder / targets[i], drawn)
                raw.write(np.ascontiguousarray(attribution, "<f4").tobytes())
                sizes.append(attribution.shape)
        classes = [model.classes[i] for i in predicted]
        _write_npz(folder / MAPS_FILE, _texts(names, classes, targets), sizes, raw)
    console.log_info(f"{console.counted(len(names), 'overlay')} and {MAPS_FILE} in {folder}")


def file_names(names: Sequence[str]) -> list[str]:
    """A file name for the overlay of each image, without folders, and different for each.

    The suffix of an image is replaced by .png. Separators of folders become two underscores, other
    characters that are not letters, digits, dots, hyphens or underscores become one. Names that
    would be the same file on a system that ignores case get a number.
    """
    taken: set[str] = set()
    found = []
    for name in names:
        parts = [part for part in re.split(r"[/\\]+", name) if part not in ("", ".", "..")]
        text = unicodedata.normalize("NFC", "__".join(parts))
        text = re.sub(r"[^\w.-]", "_", text).lstrip(".-")
        base, dot, suffix = text.rpartition(".")
        if base and (dot + suffix).lower() in image_types.SUFFIXES:
            text = base
        stem = text[:_LONGEST_NAME] or "image"
        while len(stem.encode()) > _LONGEST_NAME:
            stem = stem[:-1]
        target, number = f"{stem}.png", 1
        while target.casefold() in taken:
            number += 1
            target = f"{stem}-{number}.png"
        taken.add(target.casefold())
        found.append(target)
    return found


def _batches(
    read: ReadImage, n: int
) -> Iterator[tuple[np.ndarray, list[UInt8[np.ndarray, "_ _ 3"]]]]:
    """Indices and images of batches that fit into memory, in order."""
    start, images, pixels = 0, [], 0
    for i in range(n):
        images.append(read(i))
        pixels += images[-1].size // 3
        if len(images) == _AT_ONCE or pixels >= _PIXELS_AT_ONCE or i == n - 1:
            yield np.arange(start, i + 1), images
            start, images, pixels = i + 1, [], 0


def _texts(
    names: Sequence[str], predicted: Sequence[str], targets: Sequence[str]
) -> dict[str, np.ndarray]:
    """The arrays of `maps.npz` other than maps: name, class and overlay's file of each image."""
    columns = {"names": names, "predicted": predicted, "files": targets}
    return {key: np.array(values, str) for key, values in columns.items()}


def _write_npz(
    path: pathlib.Path, texts: dict[str, np.ndarray], sizes: list[tuple[int, int]], raw: IO[bytes]
) -> None:
    """Writes an npz of texts and maps, which are copied from `raw` and are never all in memory.

    Args:
      path: The file.
      texts: Arrays of strings by name.
      sizes: Height and width of each map.
      raw: The maps as float32, one after another.
    """
    if len(set(sizes)) == 1:
        arrays = {"maps": (len(sizes), *sizes[0])}
    else:
        arrays = {f"maps_{i}": size for i, size in enumerate(sizes)}
    raw.seek(0)
    with files.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as zipped:
        for name, values in texts.items():
            with zipped.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
        for name, shape in arrays.items():
            with zipped.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                left = 4 * math.prod(shape)
                while left:
                    left -= file.write(raw.read(min(left, _CHUNK)))
