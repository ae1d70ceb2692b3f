"""Dataset: labelled images, the currency of everything under `bloodjax.data`."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int32

from bloodjax.data import lazy
from bloodjax.data.lazy import Images


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images, all of one size.

    Attributes:
      images: uint8 RGB in 0..255, in memory or read when they are indexed.
      labels: class index of each image, in range(len(classes)).
      names: one unique name an image: its path in its folder or zip, or `[split/]index` in an npz.
      classes: class names in label order.
      splits: the part that the source itself puts each image in ("train", "val", "test", ...), or
        "" where the source has none.
      groups: a key shared by images that must stay on one side of a split (a patient, a slide),
        or "" where the source has none.
    """

    images: Images
    labels: Int32[np.ndarray, " n"]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]

    def __post_init__(self):
        n = len(self.images)
        for field in ("labels", "names", "splits", "groups"):
            if len(getattr(self, field)) != n:
                raise ValueError(f"{field} has {len(getattr(self, field))} entries for {n} images")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> Dataset:
        """The images at `indices` (int [m] or bool [n]), in that order."""
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

    def joined(self, other: Dataset) -> Dataset:
        """These images and then those of `other`, both of one source."""
        return Dataset(
            images=lazy.joined(self.images, other.images),
            labels=np.concatenate([self.labels, other.labels]),
            names=self.names + other.names,
            classes=self.classes,
            splits=self.splits + other.splits,
            groups=self.groups + other.groups,
        )
