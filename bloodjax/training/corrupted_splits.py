"""Distorted twins of the parts that a run is evaluated on."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile

import numpy as np

from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.corruptions import registry
from bloodjax.data.dataset import Dataset
from bloodjax.data.lazy import Images, LazyImages
from bloodjax.errors import UserError
from bloodjax.training.input_pipeline import Parts

_SHOWN_EVERY = 64


def with_distorted(config: Config, parts: Parts, folder: pathlib.Path | None = None) -> Parts:
    """`parts` with the distorted twins of validation and test that the config asks for.

    Each image has one distortion and one severity, drawn from `config.data.validation_distortion`
    by the run's seed and the image's name: the same ones each time that the run goes on. The
    twin of a part that is unread lies in a file without a name in `folder`, which ends with the
    process; one that is in memory has its twin there.
    """
    text = config.data.validation_distortion
    if not text:
        return parts
    choice = registry.parse(text, "config.data.validation_distortion")
    twins = {
        f"{name}_distorted": dataclasses.replace(
            dataset, images=distorted(dataset, choice, config.seed, name, folder)
        )
        for name, dataset in parts.items()
        if name != "train"
    }
    return dataclasses.replace(parts, **twins)


def distorted(
    dataset: Dataset,
    choice: dict[str, tuple[int, ...]],
    seed: int,
    description: str = "images",
    folder: pathlib.Path | None = None,
) -> np.ndarray:
    """The data set's images, each under a distortion of its own; see `corruptions.draw`."""
    images = _room(dataset.images, folder)
    with console.ProgressBar(f"{description}, distorted", len(dataset), 0) as bar:
        for i, (image, image_name) in enumerate(zip(dataset.images, dataset.names, strict=True)):
            name, severity = registry.draw(choice, seed=seed, image_name=image_name)
            images[i] = registry.distort(image, name, severity, seed=seed, image_name=image_name)
            if i % _SHOWN_EVERY == 0:
                bar.advance(i)
    return images


def _room(images: Images, folder: pathlib.Path | None) -> np.ndarray:
    """An array for as many images: in memory, or in a file where `images` are not."""
    if not isinstance(images, LazyImages):
        return np.empty_like(images)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Now, as a mapped file that finds no room later ends the process.
            for _ in range(len(images)):
                file.write(bytes(images.nbytes // len(images)))
            file.flush()
            return np.memmap(file, np.uint8, "r+", shape=images.shape)
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}, expected room for {images.nbytes:,} bytes of distorted "
            "images"
        ) from error
