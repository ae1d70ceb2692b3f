"""Distorted twins of the parts that a run is evaluated on."""

from __future__ import annotations

import dataclasses

import numpy as np

from bloodjax import logs
from bloodjax.data.dataset import Dataset
from bloodjax.data.parts import Parts
from bloodjax.distort import corruptions
from bloodjax.settings import Config

_SHOWN_EVERY = 64


def with_distorted(config: Config, parts: Parts) -> Parts:
    """`parts` with the distorted twins of validation and test that the config asks for.

    Each picture has one distortion and one severity, drawn from `config.data.validation_distortion`
    by the run's seed and the picture's name: the same ones each time that the run goes on.
    """
    text = config.data.validation_distortion
    if not text:
        return parts
    choice = corruptions.parse(text, "config.data.validation_distortion")
    twins = {
        f"{name}_distorted": dataclasses.replace(
            dataset, images=distorted(dataset, choice, config.seed, name)
        )
        for name, dataset in parts.items()
        if name != "train"
    }
    return dataclasses.replace(parts, **twins)


def distorted(
    dataset: Dataset, choice: dict[str, tuple[int, ...]], seed: int, description: str = "pictures"
) -> np.ndarray:
    """The data set's pictures, each under a distortion of its own; see `corruptions.draw`."""
    images = np.empty_like(dataset.images)
    with logs.ProgressBar(f"{description}, distorted", len(dataset), 0) as bar:
        for i, (image, picture) in enumerate(zip(dataset.images, dataset.names, strict=True)):
            name, severity = corruptions.draw(choice, seed=seed, picture=picture)
            images[i] = corruptions.distort(image, name, severity, seed=seed, picture=picture)
            if i % _SHOWN_EVERY == 0:
                bar.advance(i)
    return images
