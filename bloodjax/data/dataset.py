"""Dataset: labelled images, as all modules of `bloodjax.data` exchange them."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int32

from bloodjax.data import lazy
from bloodjax.data.lazy import Images
from bloodjax.data.reading import Reading


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images, all of one size.

    Attributes:
      images: uint8 RGB in 0..255, in memory or lazy.
      labels: Class index of each image, in range(len(classes)).
      names: Unique name of each image: its path in a folder or zip, or `[split/]index` in an npz.
      classes: Class names in label order.
      splits: Split that the source assigns to each image ("train", "val", "test", ...), or "" if
        it assigns none.
      groups: Key of each image, such as a patient or a slide; images with the same key must not be
        separated by a split. "" for an image without a key.
      reading: How the source was read.
    """

    images: Images
    labels: Int32[np.ndarray, " n"]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    reading: Reading = dataclasses.field(default_factory=Reading)

    def __post_init__(self):
        n = len(self.images)
        for field in ("labels", "names", "splits", "groups"):
            if len(getattr(self, field)) != n:
                raise ValueError(f"{field} has {len(getattr(self, field))} entries for {n} images")

    def __len__(self) -> int:
        return len(self.images)

    def with_reading(self, reading: Reading) -> Dataset:
        """The same images, with another account of how they were read."""
        return dataclasses.replace(self, reading=reading)

    def take(self, indices: np.ndarray) -> Dataset:
        """Selects the images at `indices` (int [m] or bool [n]), without reading lazy images."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        return dataclasses.replace(
            self,
            images=lazy.take(self.images, indices),
            labels=self.labels[indices],
            names=tuple(self.names[i] for i in indices),
            splits=tuple(self.splits[i] for i in indices),
            groups=tuple(self.groups[i] for i in indices),
        )

    def concatenate(self, other: Dataset) -> Dataset:
        """The images of `self`, then those of `other`; lazy images must have the same source."""
        return Dataset(
            images=lazy.concatenate(self.images, other.images),
            labels=np.concatenate([self.labels, other.labels]),
            names=self.names + other.names,
            classes=self.classes,
            splits=self.splits + other.splits,
            groups=self.groups + other.groups,
            reading=self.reading.joined(other.reading),
        )
