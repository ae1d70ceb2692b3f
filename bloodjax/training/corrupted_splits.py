"""Distorted copies of the splits that a run is evaluated on."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile

import numpy as np

from bloodjax.cli import console
from bloodjax.config import Config, distortions
from bloodjax.corruptions import registry
from bloodjax.data.dataset import Dataset
from bloodjax.data.lazy import Images, LazyImages
from bloodjax.errors import UserError
from bloodjax.training.input_pipeline import Splits

# Images between two updates of the progress bar.
_SHOWN_EVERY = 64


def with_distorted(config: Config, splits: Splits, folder: pathlib.Path | None = None) -> Splits:
    """Adds the distorted copies of validation and test that the config asks for.

    Each image gets one distortion and one severity of `config.data.validation_distortion`, sampled
    by the run's seed and the image's name. A resumed run gets the same ones.

    Args:
      config: Config of the run.
      splits: Splits without distorted copies.
      folder: Folder for an unnamed temporary file that holds the copy of a split whose images are
        lazy. The copy of a split in memory is in memory.

    Raises:
      UserError: The disk has no room for the temporary file.
    """
    choice = distortions(config)
    if not choice:
        return splits
    copies = {
        f"{name}_distorted": dataclasses.replace(
            dataset, images=distorted(dataset, choice, config.seed, name, folder)
        )
        for name, dataset in splits.items()
        if name != "train"
    }
    return dataclasses.replace(splits, **copies)


def distorted(
    dataset: Dataset,
    choice: dict[str, tuple[int, ...]],
    seed: int,
    description: str = "images",
    folder: pathlib.Path | None = None,
) -> np.ndarray:
    """The images of a dataset, each under a distortion of its own.

    Args:
      dataset: Images and their names.
      choice: Distortion name -> severities to sample from.
      seed: Random seed.
      description: Name of the images in the progress bar.
      folder: Folder of the temporary file for lazy images.

    Returns:
      uint8 [n, size, size, 3].

    Raises:
      UserError: The disk has no room for the temporary file.
    """
    images = _allocate(dataset.images, folder)
    with console.ProgressBar(f"{description}, distorted", len(dataset), 0) as bar:
        for i, (image, image_name) in enumerate(zip(dataset.images, dataset.names, strict=True)):
            name, severity = registry.sample(choice, seed=seed, image_name=image_name)
            images[i] = registry.distort(image, name, severity, seed=seed, image_name=image_name)
            if i % _SHOWN_EVERY == 0:
                bar.advance(i)
    return images


def _allocate(images: Images, folder: pathlib.Path | None) -> np.ndarray:
    """An array for as many images: in memory, or in a temporary file if `images` are lazy."""
    if not isinstance(images, LazyImages):
        return np.empty_like(images)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Fills the file now: a mapped file that finds the disk full later ends the process.
            for _ in range(len(images)):
                file.write(bytes(images.nbytes // len(images)))
            file.flush()
            return np.memmap(file, np.uint8, "r+", shape=images.shape)
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}, expected room for {images.nbytes:,} bytes of distorted "
            "images"
        ) from error
