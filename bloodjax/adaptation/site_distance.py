"""How far the images of a site are from the training images, in terms of a microscope.

Background, stain, sharpness, noise and the size of the cells are measured in each image of the site
and in a sample of the training images. The detector of unlike images adds what the network sees.
Each quantity whose median at the site lies outside the training images' quartiles is put into a
sentence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy
from jaxtyping import Bool, Float, UInt8

from bloodjax.adaptation import cell_finder
from bloodjax.adaptation.cell_finder import FoundCells
from bloodjax.data import lazy
from bloodjax.data.arrays import ImagesLike
from bloodjax.data.dataset import Dataset
from bloodjax.data.lazy import AT_ONCE, Images
from bloodjax.evaluation.rejection import Detector
from bloodjax.metrics import wilson_interval

# Training images that the site's are compared with.
_MAX_TRAINING = 2_000
# How far a quantity is from the training images.
LIKE, DIFFERENT, FAR = "like", "different", "far"
# A share of the site's images is different if it is above the training images' by more than chance,
# and far if by at least this.
_FAR_SHARE = 0.25

Values = Float[np.ndarray, " _"]


@runtime_checkable
class Describing(Protocol):
    """What is needed of a classifier."""

    detector: Detector | None

    def distance(self, images: ImagesLike) -> Values | None:
        """The detector's scores of images; None without a detector."""
        ...


@dataclasses.dataclass(frozen=True)
class Spread:
    """Quantiles of a quantity over images: 5 %, 25 %, 50 %, 75 % and 95 %."""

    low: float
    lower_quartile: float
    median: float
    upper_quartile: float
    high: float


@dataclasses.dataclass(frozen=True)
class Measure:
    """One quantity at the site and in the training images.

    Attributes:
      name: Its key.
      title: What it is, with its unit.
      training: Its spread over training images.
      site: Its spread over images of the site.
      state: "like": the site's median is within the training images' quartiles. "far": it is
        outside their 5 % and 95 % quantiles. "different": in between.
      sentence: What differs, for a person; "" if the state is "like".
    """

    name: str
    title: str
    training: Spread
    site: Spread
    state: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of images with a property, at the site and in the training images.

    Attributes:
      name: Its key.
      title: What the property is.
      training: Share of the training images.
      site: Share of the site's images.
      state: "like", unless the 95 % interval of the site's share is above that of the training
        images; then "different", and "far" from 0.25 on.
      sentence: What differs, for a person; "" if the state is "like".
    """

    name: str
    title: str
    training: float
    site: float
    state: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class SiteDistance:
    """Images of a site compared with training images.

    Attributes:
      n: Number of images of the site.
      n_training: Number of training images that they were compared with.
      classes: Classes that the training images are of; empty for all.
      backgrounds: Median colour (red, green, blue) of the background in 0..255: "training", "site".
      measures: The quantities, those of one kind together.
      shares: Shares of images: cells not found, cells cut by the border, and images unlike the
        training images, if the run has a detector.
    """

    n: int
    n_training: int
    classes: tuple[str, ...]
    backgrounds: Mapping[str, tuple[float, ...]]
    measures: tuple[Measure, ...]
    shares: tuple[Share, ...]

    @property
    def sentences(self) -> list[str]:
        """What differs, far quantities first."""
        found = [*self.shares, *self.measures]
        return [x.sentence for state in (FAR, DIFFERENT) for x in found if x.state == state]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SiteDistance:
        """The inverse of `to_dict`.

        Raises:
          KeyError, TypeError: `content` is of another form.
        """
        backgrounds = {key: tuple(colour) for key, colour in content["backgrounds"].items()}
        measures = (
            Measure(**{**m, "training": Spread(**m["training"]), "site": Spread(**m["site"])})
            for m in content["measures"]
        )
        return cls(
            n=content["n"],
            n_training=content["n_training"],
            classes=tuple(content["classes"]),
            backgrounds=backgrounds,
            measures=tuple(measures),
            shares=tuple(Share(**share) for share in content["shares"]),
        )


@dataclasses.dataclass(frozen=True)
class _Quantity:
    """How a quantity is called.

    Attributes:
      title: What it is, with its unit.
      more: Says that the site has more of it; may have {ratio}, {site} and {training}.
      less: Says that it has less.
      form: Format of its values in sentences.
    """

    title: str
    more: str
    less: str
    form: str = ".2f"


_QUANTITIES = {
    "background_brightness": _Quantity(
        "Brightness of the background (0 to 255)",
        "The background is brighter: {site} instead of {training} of 255.",
        "The background is darker: {site} instead of {training} of 255.",
        form=".0f",
    ),
    "background_blue": _Quantity(
        "Blue of the background, divided by red",
        "The background is bluer: its blue is {site} times its red instead of {training} times.",
        "The background is yellower: its blue is {site} times its red instead of {training} times.",
    ),
    "background_green": _Quantity(
        "Green of the background, divided by the mean of red and blue",
        "The background is greener: its green is {site} times the mean of its red and blue "
        "instead of {training} times.",
        "The background is pinker: its green is {site} times the mean of its red and blue "
        "instead of {training} times.",
    ),
    "nucleus_density": _Quantity(
        "Stain of the nuclei (optical density)",
        "Nuclei are darker: their optical density is {ratio} times that of the training cells.",
        "Nuclei are paler: their optical density is {ratio} times that of the training cells.",
    ),
    "nucleus_hue": _Quantity(
        "Red light absorbed by the nuclei, divided by green",
        "Nuclei are bluer: they absorb {site} times as much red as green light instead of "
        "{training} times.",
        "Nuclei are more purple: they absorb {site} times as much red as green light "
        "instead of {training} times.",
    ),
    "cell_density": _Quantity(
        "Stain of the cells (optical density)",
        "Cells are darker: their optical density is {ratio} times that of the training cells.",
        "Cells are paler: their optical density is {ratio} times that of the training cells.",
    ),
    "sharpness": _Quantity(
        "Sharpness (variance of the Laplacian over that of the image)",
        "Images are sharper: their fine structure is {ratio} times as strong.",
        "Images are less sharp: their fine structure is {ratio} times as strong.",
    ),
    "noise": _Quantity(
        "Noise (standard deviation, of 255)",
        "Images have more noise: its standard deviation is {site} instead of {training} of 255.",
        "Images have less noise: its standard deviation is {site} instead of {training} of 255.",
        form=".1f",
    ),
    "nucleus_diameter": _Quantity(
        "Diameter of the nuclei (pixels)",
        "Nuclei are {ratio} times as large: {site} pixels across instead of {training}.",
        "Nuclei are {ratio} times as large: {site} pixels across instead of {training}.",
        form=".0f",
    ),
    "cell_diameter": _Quantity(
        "Diameter of the cells (pixels)",
        "Cells are {ratio} times as large: {site} pixels across instead of {training}.",
        "Cells are {ratio} times as large: {site} pixels across instead of {training}.",
        form=".0f",
    ),
    "off_centre": _Quantity(
        "Distance of the cell from the middle of the image (pixels)",
        "Cells are farther from the middle of the image: {site} pixels instead of {training}.",
        "Cells are nearer to the middle of the image: {site} pixels instead of {training}.",
        form=".0f",
    ),
    "feature_distance": _Quantity(
        "Score of the detector of unlike images",
        "The network's features are farther from those of the training images: the detector's "
        "score is {site} instead of {training}.",
        "The network's features are nearer to those of the training images than most of them are: "
        "the detector's score is {site} instead of {training}.",
        form=",.1f",
    ),
}


def measure(
    model: Describing,
    site_images: Images,
    training: Dataset | Images,
    classes: Sequence[str] = (),
) -> SiteDistance:
    """Compares images of a site with training images.

    Args:
      model: The run's classifier, for its detector; without one, features are not compared.
      site_images: At least one image of the site, of the network's size.
      training: Training images of the same size. At most 2,000 of them are taken, at random.
      classes: Classes that occur at the site; training images of others are left out if
        `training` has labels. Empty for all.

    Raises:
      ValueError: The images differ in size.
    """
    known = _sample(training, classes)
    if known.shape[1:] != site_images.shape[1:]:
        raise ValueError(f"images of {site_images.shape[1:]}, training images {known.shape[1:]}")
    found = {"training": _values(model, known), "site": _values(model, site_images)}
    measures = []
    for name, quantity in _QUANTITIES.items():
        values = {key: _finite(of[0].get(name)) for key, of in found.items()}
        if all(len(of) for of in values.values()):
            measures.append(_compared(name, quantity, values["training"], values["site"]))
    return SiteDistance(
        n=len(site_images),
        n_training=len(known),
        classes=tuple(classes),
        backgrounds={
            key: tuple(np.median(cells.background, axis=0).round(1).tolist())
            for key, (_, cells) in found.items()
        },
        measures=tuple(measures),
        shares=tuple(_shares(model, found["training"][1], *found["site"])),
    )


def _sample(training: Dataset | Images, classes: Sequence[str]) -> UInt8[np.ndarray, "n s s 3"]:
    """At most `_MAX_TRAINING` of the training images, those of `classes` if labels are known."""
    if isinstance(training, Dataset):
        chosen = [training.classes.index(name) for name in classes if name in training.classes]
        images = training.images
        rows = (
            np.flatnonzero(np.isin(training.labels, chosen)) if chosen else np.arange(len(images))
        )
    else:
        images, rows = training, np.arange(len(training))
    if len(rows) > _MAX_TRAINING:
        rows = np.sort(np.random.default_rng(0).choice(rows, _MAX_TRAINING, replace=False))
    return np.asarray(lazy.take(images, rows))


def _values(model: Describing, images: Images) -> tuple[dict[str, Values], FoundCells]:
    """Each quantity of each image, NaN where it is not known; and the cells."""
    cells = cell_finder.find(images)
    background = np.maximum(cells.background, 1)
    red, green, blue = background.T
    nucleus = np.maximum(cells.nucleus_density, 1e-3)
    size = images.shape[1]
    whole = np.where(cells.is_whole, 1, np.nan)
    sharpness, noise = _texture(images)
    values = {
        "background_brightness": background.mean(1),
        "background_blue": blue / red,
        "background_green": 2 * green / (red + blue),
        "nucleus_density": cells.nucleus_density.mean(1),
        "nucleus_hue": nucleus[:, 0] / nucleus[:, 1],
        "cell_density": cells.cell_density.mean(1) * whole,
        "sharpness": sharpness,
        "noise": noise,
        "nucleus_diameter": cells.nucleus_diameter,
        "cell_diameter": cells.cell_diameter * whole,
        "off_centre": np.linalg.norm(cells.cell_centre - size / 2, axis=1),
    }
    distance = model.distance(images)
    if distance is not None:
        values["feature_distance"] = distance
    return values, cells


def _texture(images: Images) -> tuple[Values, Values]:
    """Sharpness and noise of each image.

    Noise is the median deviation of the image from a smooth surface (Immerkaer 1996,
    https://doi.org/10.1006/cviu.1996.0060). Sharpness is the variance of the Laplacian, less the
    noise's, divided by the variance of the image, so that contrast does not count.
    """
    surface = np.outer([1, -2, 1], [1, -2, 1]).astype(np.float32)[None]
    laplacian = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)[None]
    sharpness, noise = [], []
    for start in range(0, len(images), AT_ONCE):
        green = np.asarray(images[start : start + AT_ONCE])[..., 1].astype(np.float32)
        inner = (slice(None), slice(1, -1), slice(1, -1))
        residual = np.abs(scipy.ndimage.convolve(green, surface)[inner])
        # 36 is the sum of the squares of the kernel; 0.6745, the median of a normal deviate's size.
        sigma = np.median(residual, axis=(1, 2)) / (6 * 0.6745)
        edges = scipy.ndimage.convolve(green, laplacian)[inner].var((1, 2)) - 20 * sigma**2
        sharpness.append(np.maximum(edges, 0) / np.maximum(green.var((1, 2)), 1))
        noise.append(sigma)
    return np.concatenate(sharpness), np.concatenate(noise)


def _finite(values: Values | None) -> Values:
    return np.zeros(0) if values is None else values[np.isfinite(values)]


def _compared(name: str, quantity: _Quantity, training: Values, site: Values) -> Measure:
    known, here = _spread(training), _spread(site)
    state = LIKE
    if not known.lower_quartile <= here.median <= known.upper_quartile:
        state = DIFFERENT if known.low <= here.median <= known.high else FAR
    sentence = ""
    if state != LIKE:
        text = quantity.more if here.median > known.median else quantity.less
        sentence = text.format(
            site=f"{here.median:{quantity.form}}",
            training=f"{known.median:{quantity.form}}",
            ratio=f"{here.median / max(known.median, 1e-6):.2g}",
        )
    return Measure(name, quantity.title, known, here, state, sentence)


def _spread(values: Values) -> Spread:
    quantiles = np.quantile(np.float64(values), (0.05, 0.25, 0.5, 0.75, 0.95))
    return Spread(*(float(f"{value:.4g}") for value in quantiles))


def _shares(
    model: Describing,
    known: FoundCells,
    values: Mapping[str, Values],
    cells: FoundCells,
) -> list[Share]:
    """The shares of images with a property; see `SiteDistance.shares`."""
    shares = [
        _share(
            "not_found",
            "No nucleus or platelet was found",
            float(np.mean(~known.has_nucleus)),
            ~cells.has_nucleus,
            "No stained nucleus or platelet was found in {site} of the images instead of "
            "{training} of the training images.",
        ),
        _share(
            "cut",
            "The border of the image cuts the cell",
            float(np.mean(known.has_nucleus & ~known.is_whole)),
            cells.has_nucleus & ~cells.is_whole,
            "The border of the image cuts the cell in {site} of the images instead of {training} "
            "of the training images.",
        ),
    ]
    if model.detector is not None and "feature_distance" in values:
        shares.append(
            _share(
                "unlike",
                "The run's detector finds the image unlike the training images",
                model.detector.rate,
                values["feature_distance"] > model.detector.threshold,
                "The run's detector finds {site} of the images unlike the training images; "
                "{training} were expected.",
            )
        )
    return shares


def _share(
    name: str, title: str, training: float, site: Bool[np.ndarray, " n"], text: str
) -> Share:
    share = float(site.mean())
    state, sentence = LIKE, ""
    if wilson_interval(int(site.sum()), len(site))[0] > training:
        state = FAR if share >= training + _FAR_SHARE else DIFFERENT
        sentence = text.format(site=f"{share:.0%}", training=f"{training:.0%}").replace("%", " %")
    return Share(name, title, round(training, 4), round(share, 4), state, sentence)
