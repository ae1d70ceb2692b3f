"""What a table or a dataset of Hugging Face's library states of each of its images."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, Int32

from bloodjax.data import fingerprint as fingerprint_lib
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import image_files
from bloodjax.data.formats.archive import Archive
from bloodjax.data.options import ReadOptions
from bloodjax.data.reading import LeftOut, Reading
from bloodjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What is known of n images before they are read.

    Attributes:
      names: Unique name of each image.
      labels: Class index of each image; -1 for an image without a label.
      classes: Class names in label order.
      splits: Split of each image, or "".
      groups: Key of each image's group, or "".
      weights: Weight of each image, or None if the source gives none.
      details: Facts for `Reading.details`.
      left_out: Images that are not among the n.
      first_label: Number of the first class, see `labels.Labels.first`.
    """

    names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    weights: Float32[np.ndarray, " n"] | None = None
    details: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    first_label: str = ""

    @classmethod
    def without_labels(
        cls, names: Sequence[str], groups: Sequence[str], details: tuple[str, ...]
    ) -> Annotations:
        """Annotations of images to classify: there are no classes, and all labels are 0."""
        n = len(names)
        return cls(
            tuple(names), np.zeros(n, np.int32), (), ("",) * n, tuple(groups), details=details
        )

    def take(self, indices: np.ndarray) -> Annotations:
        """The annotations of the images at `indices`, int [m]."""
        return dataclasses.replace(
            self,
            names=tuple(self.names[i] for i in indices),
            labels=self.labels[indices],
            splits=tuple(self.splits[i] for i in indices),
            groups=tuple(self.groups[i] for i in indices),
            weights=None if self.weights is None else self.weights[indices],
        )

    def labelled(self) -> Annotations:
        """The images that have a label; `left_out` counts the others."""
        kept = np.flatnonzero(self.labels >= 0)
        if len(kept) == len(self.names):
            return self
        others = LeftOut("without a label", "", len(self.names) - len(kept))
        return dataclasses.replace(self.take(kept), left_out=(*self.left_out, others))

    def read(
        self,
        where: str,
        layout: str,
        archive: Archive,
        size: int,
        options: ReadOptions,
        *,
        lazy: bool = False,
    ) -> Dataset:
        """Reads the images, all of which have a label.

        Args:
          where: The source, for messages and `Reading.spec`.
          layout: What the source was taken for, for `Reading.layout`.
          archive: The encoded images by name.
          size: Height and width of the images in pixels.
          options: How the images are read.
          lazy: Whether the images are lazy even if they fit in memory.

        Raises:
          UserError: No image is readable; or one is not, and `options.bad_images` is "fail".
        """
        read = image_files.read(pathlib.Path(where), archive, self.names, size, options, lazy=lazy)
        if not read.readable.any():
            raise UserError(f"{where}: contains no readable images")
        reading = Reading(where, layout, self.details, self.left_out, first_label=self.first_label)
        return Dataset(
            images=read.images,
            labels=self.labels,
            names=self.names,
            classes=self.classes,
            splits=self.splits,
            groups=self.groups,
            reading=reading.with_tally(read.tally, options),
            weights=self.weights,
        ).only_readable(read.readable)

    def fingerprint(self, where: str, read: Callable[[str], bytes]) -> str:
        """Fingerprint of names, labels, splits, groups, weights and the bytes of the images.

        Args:
          where: The source, for messages.
          read: The bytes of the image of a name.

        Raises:
          UserError: An image cannot be read.
        """
        texts = ["" if i < 0 else self.classes[i] for i in self.labels.tolist()]
        weights = [""] * len(texts) if self.weights is None else map(repr, self.weights.tolist())
        known = zip(texts, self.splits, self.groups, weights, strict=True)
        entries = list(zip(self.names, known, strict=True))
        return fingerprint_lib.of_contents(where, entries, read)
