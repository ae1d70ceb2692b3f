"""Dataset: labelled images, as all modules of `bloodjax.data` exchange them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from bloodjax.data import lazy
from bloodjax.data.lazy import Images
from bloodjax.data.reading import Reading, left_out_by_class

# Between the labels of an image that has several.
SEPARATOR = ";"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images, all of one size.

    Attributes:
      images: uint8 RGB in 0..255, in memory or lazy.
      labels: Class index of each image, in range(len(classes)); or if an image can have several
        labels, 1 for each class that it has and 0 for each other. Code that needs one class of an
        image uses `strata`, `class_counts` and `label_texts`, which are there for both.
      names: Unique name of each image: its path in a folder or zip, or `[split/]index` in an npz.
      classes: Class names in label order.
      splits: Split that the source assigns to each image ("train", "val", "test", ...), or "" if
        it assigns none.
      groups: Key of each image, such as a patient or a slide; images with the same key must not be
        separated by a split. "" for an image without a key.
      reading: How the source was read.
      weights: Factor of each image's loss in training, or None if the source gives none: all are 1.
    """

    images: Images
    labels: Int32[np.ndarray, "n ..."]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    reading: Reading = dataclasses.field(default_factory=Reading)
    weights: Float32[np.ndarray, " n"] | None = None

    def __post_init__(self):
        n = len(self.images)
        for field in ("labels", "names", "splits", "groups"):
            if len(getattr(self, field)) != n:
                raise ValueError(f"{field} has {len(getattr(self, field))} entries for {n} images")
        if self.weights is not None and len(self.weights) != n:
            raise ValueError(f"weights has {len(self.weights)} entries for {n} images")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image can have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def strata(self) -> Int32[np.ndarray, " n"]:
        """One class of each image, for splits and samples that keep the shares of the classes.

        If an image can have several labels, it is the rarest one of them in this dataset. Images
        without a label are a stratum of their own, `len(classes)`.
        """
        return rarest_labels(self.labels) if self.is_multi_label else self.labels

    @property
    def class_counts(self) -> Int[np.ndarray, " classes"]:
        """Number of images of each class."""
        return count_classes(self.labels, len(self.classes))

    def label_texts(self) -> list[str]:
        """The class of each image; if it can have several labels, all of them joined by ";"."""
        return label_texts(self.labels, self.classes)

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
            weights=None if self.weights is None else self.weights[indices],
        )

    def only_readable(self, readable: Bool[np.ndarray, " n"]) -> Dataset:
        """The readable images; `reading.left_out` counts the others by class."""
        if readable.all():
            return self
        lost = np.flatnonzero(~readable)
        texts = label_texts(self.labels[lost], self.classes) if self.classes else [""] * len(lost)
        entries = left_out_by_class("unreadable", texts)
        return self.with_reading(self.reading.with_left_out(*entries)).take(readable)

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
            weights=_joined_weights(self, other),
        )


def unlabelled(
    images: Images, names: Sequence[str], reading: Reading, groups: Sequence[str] = ()
) -> Dataset:
    """Images to classify: there are no class names, and all labels are 0.

    Args:
      images: As in `Dataset`, as are the next two.
      names: Name of each image.
      reading: How the images were read.
      groups: Key of each image, or empty.
    """
    n = len(names)
    blank = ("",) * n
    labels = np.zeros(n, np.int32)
    return Dataset(images, labels, tuple(names), (), blank, tuple(groups) or blank, reading)


def rarest_labels(labels: Int32[np.ndarray, "n classes"]) -> Int32[np.ndarray, " n"]:
    """Index of the rarest label of each image, given rows of 0 and 1; `classes` without a label.

    Equally rare labels are told apart by their order.
    """
    classes = labels.shape[1]
    order = np.argsort(labels.sum(axis=0), kind="stable")
    first = labels[:, order].argmax(axis=1)
    return np.where(labels.any(axis=1), order[first], classes).astype(np.int32)


def count_classes(
    labels: Int32[np.ndarray, "n ..."], num_classes: int
) -> Int[np.ndarray, " classes"]:
    """Number of images of each class, given labels as in `Dataset`."""
    if labels.ndim == 2:
        return labels.sum(axis=0)
    return np.bincount(labels, minlength=num_classes)


def label_texts(labels: Int[np.ndarray, "n ..."], classes: Sequence[str]) -> list[str]:
    """Labels as in `Dataset` as texts; see `Dataset.label_texts`."""
    if labels.ndim == 2:
        return [SEPARATOR.join(classes[i] for i in np.flatnonzero(row)) for row in labels]
    return [classes[label] for label in labels]


def _joined_weights(first: Dataset, second: Dataset) -> Float32[np.ndarray, " n"] | None:
    """The weights of two sources' images; those of a source that gives none are 1."""
    if first.weights is None and second.weights is None:
        return None
    ones = [np.ones(len(each), np.float32) for each in (first, second)]
    weights = [
        o if each.weights is None else each.weights
        for o, each in zip(ones, (first, second), strict=True)
    ]
    return np.concatenate(weights)
