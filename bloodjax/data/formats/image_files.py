"""Reads the images of a folder or zip, all with the same scale."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from bloodjax.data import bit_depth, image_types
from bloodjax.data import images as images_lib
from bloodjax.data import names as names_lib
from bloodjax.data.facts import PLAIN, Facts, Tally
from bloodjax.data.formats import groups
from bloodjax.data.formats.archive import Archive
from bloodjax.data.lazy import Images, decode_lazily, outgrows_memory, run_in_threads
from bloodjax.data.options import AUTO, DEFAULTS, ReadOptions
from bloodjax.data.reading import LeftOut
from bloodjax.errors import UserError

_CHUNK = 64

_log = logging.getLogger(__name__)


class ImagesRead(NamedTuple):
    """The images of a folder or zip.

    Attributes:
      images: All images; the unreadable ones are black, or raise an error if they are lazy.
      readable: Which of them are readable, bool [n].
      tally: What had to be decided about the readable ones.
    """

    images: Images
    readable: Bool[np.ndarray, " n"]
    tally: Tally


def read(
    path: pathlib.Path,
    archive: Archive,
    names: Sequence[str],
    size: int,
    options: ReadOptions = DEFAULTS,
    *,
    lazy: bool = False,
) -> ImagesRead:
    """Reads the images `names` of an open `archive`.

    All images are decoded once, even if they are lazy, to find those that are unreadable and the
    scale of the values. Images of more than 8 bits are decoded again with that scale.

    Args:
      path: The folder or zip, for messages.
      archive: The same, opened.
      names: Paths of the images in the archive.
      size: Height and width of the images in pixels.
      options: How the images are read.
      lazy: Whether the images are lazy even if they fit in memory.

    Raises:
      UserError: An image is unreadable and `options.bad_images` is "fail", or the values of the
        images do not show their scale.
    """
    lazy = lazy or outgrows_memory(len(names) * size**2 * 3)
    images = np.zeros((0 if lazy else len(names), size, size, 3), np.uint8)
    readable = np.ones(len(names), bool)
    facts: list[Facts] = [PLAIN] * len(names)

    def to_error(i: int, error: ValueError) -> UserError:
        return UserError(
            f"{path}: {names[i]} is not a readable image ({error}); mend or remove it, or leave "
            "such images out with config.data.bad_images=skip, or --bad_images=skip"
        )

    def decode(indices: Sequence[int], options: ReadOptions) -> None:
        def decode_chunk(start: int) -> None:
            for i in indices[start : start + _CHUNK]:
                try:
                    image, facts[i] = images_lib.read(archive.read(names[i]), size, options)
                except ValueError as error:
                    if options.bad_images == "fail":
                        raise to_error(i, error) from error
                    readable[i] = False
                    facts[i] = PLAIN
                else:
                    if not lazy and image is not None:
                        images[i] = image

        run_in_threads(decode_chunk, range(0, len(indices), _CHUNK))

    def read_files(indices: Sequence[int]) -> list[bytes]:
        files = []
        for i in indices:
            try:
                files.append(archive.read(names[i]))
            except ValueError as error:
                raise to_error(i, error) from error
        return files

    decode(range(len(names)), options)
    deep = [i for i, one in enumerate(facts) if one.values is not None]
    if deep and options.bits == AUTO:
        options = dataclasses.replace(options, bits=_scale(path, [facts[i] for i in deep]))
        if not lazy:
            decode(deep, options)
    tally = Tally.count(facts, options.bits)
    skipped = [names[i] for i in np.flatnonzero(~readable)]
    if skipped:
        shown = names_lib.shown(skipped, 5)
        _log.warning("%s: skipped %d unreadable images: %s", path, len(skipped), shown)
    if lazy:
        images = decode_lazily(read_files, len(names), size, to_error, options)
    return ImagesRead(images, readable, tally)


def find(path: pathlib.Path, archive: Archive) -> tuple[tuple[str, ...], tuple[LeftOut, ...]]:
    """Finds images at any depth of an open `archive`, by content or by name.

    Args:
      path: The folder or zip, for messages.
      archive: The same, opened.

    Returns:
      Paths of the images in the archive, and the other files as left out, but for tables of groups.
    """
    images, others = [], []
    tables = set(groups.tables(archive.files))
    for name in archive.files:
        if name in tables:
            continue
        (images if _is_image(archive, name) else others).append(name)
    if not others:
        return tuple(images), ()
    shown = names_lib.shown(others, 5)
    _log.warning(
        "%s: skipped %d files that are not images of a known format: %s", path, len(others), shown
    )
    return tuple(images), (LeftOut("not an image", "", len(others)),)


def _is_image(archive: Archive, name: str) -> bool:
    if name.lower().endswith(image_types.SUFFIXES):
        return True
    try:
        return image_types.is_image(archive.read(name), name)
    except ValueError:
        return False


def read_file(path: pathlib.Path, size: int, options: ReadOptions = DEFAULTS) -> ImagesRead:
    """Reads one image file.

    Raises:
      UserError: It is unreadable.
    """
    try:
        data = path.read_bytes()
        image, facts = images_lib.read(data, size, options)
        if image is None:
            options = dataclasses.replace(options, bits=bit_depth.choose([facts.values]))
            image, facts = images_lib.read(data, size, options)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a readable image ({error})") from error
    return ImagesRead(image[None], np.ones(1, bool), Tally.count([facts], options.bits))


def _scale(path: pathlib.Path, facts: Sequence[Facts]) -> str:
    try:
        return bit_depth.choose([one.values for one in facts])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
