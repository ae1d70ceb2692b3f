"""Images of a site as `adapt` reads them: without labels, and a few with labels."""

from __future__ import annotations

import dataclasses
import os
import types
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, UInt8

from bloodjax import config as config_lib
from bloodjax.cli import console
from bloodjax.data import fingerprint, lazy, own_size, sources, statement
from bloodjax.data.dataset import Dataset
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError
from bloodjax.evaluation.classifier import Classifier

# Images that sizes, distances and error estimates are measured on, at most.
_MEASURED = 2000

# Key of `config.data` -> its value; None for the run's.
Reading = Mapping[str, str | None]
NO_READING: Reading = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class SiteImages:
    """Images of the site.

    Attributes:
      dataset: As the network reads them.
      sides: Shorter side of each measured image in its own pixels.
      path: Their SPEC.
      reading: Values of keys of `config.data` that say how to read them, other than the run's.
      fit: How they became squares; see `config.data.fit`.
    """

    dataset: Dataset
    sides: Float[np.ndarray, " m"]
    path: str
    reading: Reading = dataclasses.field(default_factory=dict)
    fit: str = ""

    @classmethod
    def read(cls, model: Classifier, data: str, reading: Reading = NO_READING) -> SiteImages:
        """Reads the images, and says how.

        Args:
          model: The classifier, whose site says how images become squares.
          data: Images, as `sources.load_images` reads them.
          reading: See the attribute.

        Raises:
          UserError: They cannot be read, or there are none.
        """
        path = os.path.expanduser(data)
        dataset = _load(model, path, reading)
        for line in statement.lines({"images": dataset}):
            console.log_info(line)
        if not len(dataset):
            raise UserError(f"--data={data}: has no images, expected at least one")
        read = own_size.reader(path, dataset, _options(model, reading))
        sides = [min(read(int(i)).shape[:2]) for i in sample(len(dataset))]
        return cls(dataset, np.array(sides, np.float64), path, reading, model.fit)

    def measured(self) -> UInt8[np.ndarray, "m size size 3"]:
        """The images that are measured, in memory."""
        return np.asarray(lazy.take(self.dataset.images, sample(len(self.dataset))))

    def again(self, model: Classifier) -> SiteImages:
        """The same images as the model at its site reads them."""
        if model.fit == self.fit:
            return self
        dataset = _load(model, self.path, self.reading)
        return dataclasses.replace(self, dataset=dataset, fit=model.fit)


def read_labelled(model: Classifier, spec: str, reading: Reading = NO_READING) -> Dataset:
    """Reads labelled images of the site.

    Args:
      model: The classifier, with its site.
      spec: SPEC of the images.
      reading: As for `SiteImages`.

    Raises:
      UserError: They cannot be read, or one is of a class that cannot occur.
    """
    dataset = sources.load(
        spec,
        model.config.data.image_size,
        options=_options(model, reading),
        class_names=model.classes,
        seed=model.config.seed,
    )
    found = {model.classes[i] for i in np.unique(dataset.labels)}
    if absent := sorted(found - set(model.possible_classes)):
        raise UserError(
            f"--labelled={spec}: has images of {', '.join(absent)}, expected only the classes that "
            f"can occur: {', '.join(model.possible_classes)}"
        )
    return dataset


def read_with_labelled(
    model: Classifier, data: str, labelled: str, reading: Reading = NO_READING
) -> tuple[SiteImages, Dataset]:
    """Reads the images of the site and labelled ones with one scale of values, and says how.

    Args:
      model: The classifier, with its site.
      data: As for `SiteImages.read`.
      labelled: SPEC of the labelled images.
      reading: As for `SiteImages`.

    Raises:
      UserError: As for `SiteImages.read`, `read_labelled` and `sources.on_common_scale`; or an
        image is in both.
    """
    of_site = SiteImages.read(model, data, reading)

    def again(name: str, bits: str) -> Dataset:
        scaled = {**reading, "bits": bits}
        if name == "images":
            return _load(model, of_site.path, scaled)
        return read_labelled(model, labelled, scaled)

    both = {"images": of_site.dataset, "labelled": read_labelled(model, labelled, reading)}
    images, of_labels = sources.on_common_scale(both, again).values()
    if scale := images.reading.tally.scale or of_labels.reading.tally.scale:
        reading = {**reading, "bits": scale}
    for line in statement.lines({"labelled": of_labels}):
        console.log_info(line)
    check_apart(of_labels, images, labelled, data)
    return dataclasses.replace(of_site, dataset=images, reading=reading), of_labels


def check_apart(of_labels: Dataset, images: Dataset, spec: str, data: str) -> None:
    """Refuses labelled images that are among the others, which estimates are made of.

    Args:
      of_labels: Labelled images.
      images: Images without labels, read in the same way.
      spec: SPEC of the labelled images.
      data: SPEC of the others.

    Raises:
      UserError: An image is in both, by its pixels.
    """
    hashes = [fingerprint.of_images(dataset.images) for dataset in (of_labels, images)]
    shared = int(np.isin(hashes[0], hashes[1]).sum())
    if shared:
        raise UserError(
            f"--labelled={spec}: {console.counted(shared, 'image')} of it are also in --data={data}"
            ", expected others: what is learned must not be among what is estimated"
        )


def sample(n: int) -> Int[np.ndarray, " m"]:
    """Indices of the images that are measured, of n: random, the same each time, ascending."""
    return np.sort(np.random.default_rng(0).permutation(n)[:_MEASURED])


def _options(model: Classifier, reading: Reading) -> ReadOptions:
    config = config_lib.with_reading(model.config, fit=model.fit, **reading)
    return config_lib.read_options(config)


def _load(model: Classifier, path: str, reading: Reading) -> Dataset:
    size, seed = model.config.data.image_size, model.config.seed
    return sources.load_images(path, size, options=_options(model, reading), seed=seed)
