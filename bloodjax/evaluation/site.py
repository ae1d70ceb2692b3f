"""The site at which a run is used: its classes, their shares, the look of its images: `site.json`.

A run that was trained in one laboratory and is used in another keeps here what is known of the
other one. A classifier applies it to every image and every probability. A run without the file is
used where it was trained.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from bloodjax.augment import zoom
from bloodjax.config import parsed
from bloodjax.data import lazy
from bloodjax.data import names as names_lib
from bloodjax.data.lazy import LazyImages
from bloodjax.data.options import FIT_VALUES, is_fit
from bloodjax.errors import UserError, did_you_mean
from bloodjax.evaluation.appearance import Appearance
from bloodjax.io.files import atomic_write, read_json
from bloodjax.metrics import calibration

FILE = "site.json"


@dataclasses.dataclass(frozen=True)
class Site:
    """What is known of the site.

    Attributes:
      classes: Names of the classes that can occur; empty if all of the run's can. The others get
        the probability 0, and those of the listed ones are scaled to the sum 1.
      share_ratio: For each class of the run, its share of the site's images divided by its share of
        the training images, above 0; empty for ones. Probabilities are multiplied by it and scaled
        to the sum 1 (Saerens, Latinne and Decaestecker 2002, Adjusting the outputs of a classifier
        to new a priori probabilities, https://doi.org/10.1162/089976602753284446).
      appearance: Changes images of the site to look like the training images; None for no change.
        It is applied to images of the network's size, before test-time views and normalisation.
      fit: How an image of the site becomes a square, see `config.data.fit`; "" for the run's own.
    """

    classes: tuple[str, ...] = ()
    share_ratio: tuple[float, ...] = ()
    appearance: Appearance | None = None
    fit: str = ""

    def log_weights(self, names: Sequence[str]) -> Float[np.ndarray, " classes"] | None:
        """What `adjust` adds to the logarithm of each class's probability; None for nothing.

        Args:
          names: All class names of the run, in label order.
        """
        if not self.classes and not self.share_ratio:
            return None
        weights = np.log(self.share_ratio) if self.share_ratio else np.zeros(len(names))
        if self.classes:
            weights = np.where(np.isin(names, self.classes), weights, -np.inf)
        return weights

    def adjust(
        self, probabilities: Float[np.ndarray, "*n classes"], names: Sequence[str]
    ) -> Float[np.ndarray, "*n classes"]:
        """Class probabilities at the site, in the dtype of `probabilities`.

        Args:
          probabilities: Calibrated class probabilities as in training; rows sum to 1.
          names: All class names of the run, in label order.
        """
        weights = self.log_weights(names)
        if weights is None:
            return probabilities
        logits = calibration.logarithms(probabilities) + weights
        return np.exp(calibration.log_softmax(logits)).astype(probabilities.dtype)

    def prepare(
        self, images: UInt8[np.ndarray, "n size size 3"] | LazyImages
    ) -> UInt8[np.ndarray, "n size size 3"] | LazyImages:
        """The images as the network takes them, with the appearance of the training images.

        Args:
          images: RGB images of the network's size. Lazy images stay lazy.
        """
        if isinstance(images, LazyImages):
            return images.mapped(self.prepare) if self.appearance else images
        if self.appearance is None:
            return images
        prepared = np.empty_like(images)
        for start in range(0, len(images), lazy.AT_ONCE):
            block = images[start : start + lazy.AT_ONCE]
            # With powers of two, the program is compiled for a few numbers of images only.
            count = 1 << (len(block) - 1).bit_length()
            fill = ((0, count - len(block)), (0, 0), (0, 0), (0, 0))
            result = self._program(np.pad(block, fill, mode="edge"))
            prepared[start : start + len(block)] = np.asarray(result)[: len(block)]
        return prepared

    def place_back(
        self, maps: Float[np.ndarray, "n size size"]
    ) -> Float[np.ndarray, "n size size"]:
        """Maps of what `prepare` returns as maps of what it takes; 0 where that lost the image."""
        factor = 1.0 if self.appearance is None else self.appearance.zoom
        if factor == 1:
            return maps
        size = maps.shape[1]
        weights = zoom.weights(size, 1 / factor)
        distance = np.abs(np.arange(size) + 0.5 - size / 2)
        weights[distance * factor > size / 2] = 0
        return weights @ maps @ weights.T

    @functools.cached_property
    def _program(self) -> Callable[[np.ndarray], jax.Array]:
        return jax.jit(self.appearance.apply)

    def check(self, names: Sequence[str]) -> None:
        """Checks that the site is one of a run with these classes.

        Raises:
          ValueError: A class is unknown or listed twice, or the number of ratios is another.
        """
        unknown = [name for name in self.classes if name not in names]
        if unknown or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {', '.join(self.classes)}, not of {', '.join(names)}")
        if self.share_ratio and len(self.share_ratio) != len(names):
            raise ValueError(f"{len(self.share_ratio)} share ratios for {len(names)} classes")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "classes": list(self.classes),
            "share_ratio": list(self.share_ratio),
            "appearance": None if self.appearance is None else self.appearance.to_dict(),
            "fit": self.fit,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Site:
        """The inverse of `to_dict`.

        Raises:
          ValueError: A value is not allowed.
          KeyError: A field is missing.
        """
        found = cls(
            tuple(str(name) for name in content["classes"]),
            tuple(float(ratio) for ratio in content["share_ratio"]),
            None if content["appearance"] is None else Appearance.from_dict(content["appearance"]),
            str(content["fit"]),
        )
        if found.fit and not is_fit(found.fit):
            raise ValueError(f"fit {found.fit!r}, expected {FIT_VALUES}")
        if not all(0 < ratio < np.inf for ratio in found.share_ratio):
            raise ValueError(f"share ratios {found.share_ratio}, expected numbers above 0")
        return found

    def write(self, workdir: pathlib.Path) -> None:
        """Writes `site.json`."""
        atomic_write(workdir / FILE, json.dumps(self.to_dict(), indent=2) + "\n")


def load(workdir: pathlib.Path, names: Sequence[str] | None = None) -> Site | None:
    """The site in `site.json`, or None if the run has no such file.

    Args:
      workdir: Folder of the run.
      names: All class names of the run, which the file is then checked against.

    Raises:
      UserError: The file is damaged, or of a run with other classes.
    """
    path = workdir / FILE
    if not path.exists():
        return None

    def parse(content: Any) -> Site:
        found = Site.from_dict(content)
        if names is not None:
            found.check(names)
        return found

    return read_json(path, "what is known of the site of this run", parse)


def parse_classes(
    classes: str | Sequence[str], known: Sequence[str], where: str
) -> tuple[str, ...]:
    """The classes that can occur, in the run's label order.

    A name matches a class of the run if both are equal, or differ only in form (`data.names`), such
    as in case.

    Args:
      classes: Names, or one text that lists them (`config.parsed.parse_names`).
      known: All class names of the run, in label order.
      where: Names the value in an error, such as "--classes".

    Raises:
      UserError: There is no name, one is empty or unknown, or two are the same class.
    """
    given = parsed.parse_names(classes) if isinstance(classes, str) else tuple(map(str, classes))
    text = classes if isinstance(classes, str) else ",".join(given)
    given = [names_lib.tidy(name) if name.strip() else "" for name in given]
    if not any(given):
        raise UserError(f"{where} is empty, expected some of {', '.join(known)}")
    if "" in given:
        raise UserError(f"{where}={text}: a name is empty, expected some of {', '.join(known)}")
    match = names_lib.match(given, known)
    found = {}
    for name in given:
        if name not in match:
            raise UserError(f"{where}={text}: {name!r} is no class; {did_you_mean(name, known)}")
        if match[name] in found:
            raise UserError(f"{where}={text}: {match[name]} is listed twice, expected once")
        found[match[name]] = None
    return tuple(name for name in known if name in found)


def restricted(site: Site | None, classes: Sequence[str]) -> Site:
    """The site with another list of classes that can occur; see `Site.classes`."""
    return dataclasses.replace(site or Site(), classes=tuple(classes))
