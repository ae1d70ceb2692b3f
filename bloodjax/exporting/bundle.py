"""`Bundle`: a trained classifier, and what an exported file needs besides the network."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, UInt8

from bloodjax import config as config_lib
from bloodjax.augment import views
from bloodjax.augment.tta import SELECTED, TTAConfig
from bloodjax.config import Config
from bloodjax.data.dataset import Dataset
from bloodjax.errors import UserError
from bloodjax.evaluation import classifier as classifier_lib
from bloodjax.evaluation import model_folder, multi_label
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import fold_folders
from bloodjax.io import files
from bloodjax.metrics.calibration import NONE, Calibration
from bloodjax.training import factory, saved_splits
from bloodjax.training.saved_splits import SPLITS_FILE
from bloodjax.training.workdir import open_run

# Images whose probabilities travel with an exported file.
VECTORS = 16
# Splits that an export is checked on: the first that the run has.
_CHECKED_ON = ("validation", "test", "train")
# The order in which metrics are named; others of `metrics.json` stay there.
_METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "auc_ovr", "nll", "ece", "brier")


@dataclasses.dataclass(frozen=True)
class Weights:
    """The pretrained weights that a run started from.

    Attributes:
      location: Where they are from; empty if the run started from random weights.
      licence: SPDX identifier; empty if it is not known.
      citation: The paper; empty if it is not known.
    """

    location: str
    licence: str
    citation: str


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Test vectors: images and the probabilities that bloodjax computes for them.

    Attributes:
      images: uint8 RGB of the network's size.
      probabilities: Class probabilities of `images`.
      large: uint8 RGB of another height and width, which are resized first.
      large_probabilities: Class probabilities of `large`.
    """

    images: UInt8[np.ndarray, "n size size 3"]
    probabilities: Float[np.ndarray, "n classes"]
    large: UInt8[np.ndarray, "m height width 3"]
    large_probabilities: Float[np.ndarray, "m classes"]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A trained classifier and what travels with it.

    Attributes:
      classifier: The classifier, with float32 as its compute dtype.
      views: Views whose probabilities are averaged.
      tta: Name of the views.
      calibration: Applied to the averaged probabilities.
      weights: Origin and licence of the pretrained weights.
      checked_on: Split that `images` and `labels` are from: the validation split, or for a run
        without one the test split, or else the training split.
      images: Images of that split, lazy if they do not fit into memory.
      labels: Class index of each.
      vectors: Test vectors from that split.
      metrics: Split -> `n`, the views `tta` and the method of `calibration` that it was evaluated
        with, and metric -> `value` and the ends `low` and `high` of its 95 % interval.
    """

    classifier: Classifier
    views: TTAConfig
    tta: str
    calibration: Calibration
    weights: Weights
    checked_on: str
    images: np.ndarray
    labels: Int[np.ndarray, " n"]
    vectors: Vectors
    metrics: Mapping[str, Mapping[str, object]]

    @property
    def config(self) -> Config:
        """Config of the run."""
        return self.classifier.config

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.classifier.classes

    @property
    def image_size(self) -> int:
        """Height and width of the network's input in pixels."""
        return self.config.data.image_size

    @property
    def fit(self) -> str:
        """How an image becomes a square; see `config.data.fit`."""
        return self.classifier.fit

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per-channel mean and standard deviation of images in 0..1."""
        return factory.normalisation(self.config)

    def to_dict(self) -> dict[str, object]:
        """The metadata that every exported file carries, as JSON values."""
        mean, std = self.normalisation
        model = self.config.model
        return {
            "bloodjax": importlib.metadata.version("bloodjax"),
            "network": model.name,
            "variant": model.variant or model.source.variant,
            "step": self.classifier.step,
            "classes": list(self.classes),
            "image_size": self.image_size,
            "fit": self.fit,
            "mean": list(mean),
            "std": list(std),
            "tta": self.tta,
            "views": view_names(self.views),
            "calibration": self.calibration.to_dict(),
            "site": self.classifier.site.to_dict() if self.classifier.site else None,
            "weights": dataclasses.asdict(self.weights),
            "metrics": {split: dict(values) for split, values in self.metrics.items()},
        }


def collect(workdir: str | pathlib.Path, *, tta: str = "none", calibrated: bool = True) -> Bundle:
    """Loads the classifier of a run, and the data that an export of it is checked with.

    Args:
      workdir: Folder of the run.
      tta: Views to average over: sets of views (see `augment.views`), "selected", or "default",
        those that `predict` takes by default.
      calibrated: Whether the probabilities are calibrated.

    Raises:
      UserError: The folder has no run, or a run with folds; the run has no calibration; or the
        source of its images is missing or has changed.
    """
    workdir = pathlib.Path(workdir)
    if fold_folders(workdir) != [workdir]:
        folders = " or ".join(str(folder) for folder in fold_folders(workdir)[:2])
        raise UserError(f"{workdir}: has folds, expected one run, such as {folders}")
    classifier = load(workdir)
    multi_label.refuse(classifier.config, f"export of {workdir}")
    tta = classifier.tta if tta == "default" else tta
    chosen = _views(classifier, tta)
    calibration = _calibration(classifier, workdir, tta, calibrated)
    part, dataset = _split(classifier, workdir)
    source = classifier.config.model.source
    return Bundle(
        classifier=classifier,
        views=chosen,
        tta=tta,
        calibration=calibration,
        # A folder of this machine is no one else's business.
        weights=Weights(
            model_folder.without_folders(source.location), source.licence, source.citation
        ),
        checked_on=part,
        images=dataset.images,
        labels=dataset.labels,
        vectors=_vectors(classifier, dataset, tta, calibrated),
        metrics=_metrics(workdir),
    )


def load(workdir: pathlib.Path) -> Classifier:
    """The classifier of a run, with float32 as its compute dtype whatever the run's was."""
    with open_run(workdir) as run:
        config = config_lib.validate({**run.config.to_dict(), "dtype": "float32"})
        return classifier_lib.from_run(dataclasses.replace(run, config=config))


def _views(classifier: Classifier, tta: str) -> TTAConfig:
    classifier.check_tta(tta)
    if tta == SELECTED:
        return classifier.selected
    return TTAConfig(tta, classifier.config.evaluation.tta_average)


def _calibration(
    classifier: Classifier, workdir: pathlib.Path, tta: str, calibrated: bool
) -> Calibration:
    if not calibrated:
        return NONE
    if not classifier.is_calibrated:
        raise UserError(
            f"{workdir}: the run has no calibration; expected one, which `bloodjax evaluate "
            f"--workdir={workdir} --calibrate` fits, or --uncalibrated"
        )
    return classifier.calibration(tta)


def _split(classifier: Classifier, workdir: pathlib.Path) -> tuple[str, Dataset]:
    file = workdir / SPLITS_FILE
    parts = files.read_json(file, "the splits of a run", lambda content: content["parts"])
    name = next((name for name in _CHECKED_ON if parts.get(name)), None)
    if name is None:
        raise UserError(f"{file}: names no images, expected those of {', '.join(_CHECKED_ON)}")
    return name, recall(classifier, workdir, name)


def recall(classifier: Classifier, workdir: pathlib.Path, name: str) -> Dataset:
    """The images of a split of a run.

    Raises:
      UserError: Their source is missing or has changed.
    """
    return saved_splits.recall(classifier.config, workdir / SPLITS_FILE, classifier.classes, name)


def _vectors(classifier: Classifier, dataset: Dataset, tta: str, calibrated: bool) -> Vectors:
    chosen = dataset.take(_one_of_each_class_first(dataset.labels)[:VECTORS])
    images = np.asarray(chosen.images[np.arange(len(chosen))])
    # Neither a multiple of the network's size nor of its proportions: what is resized is tested.
    size = images.shape[1]
    large = np.tile(images[:2], (1, 2, 3, 1))[:, : size + size // 3 + 1, : 2 * size + 5]

    def predict(images):
        return classifier.predict(images, tta, calibrated=calibrated).astype(np.float32)

    return Vectors(images, predict(images), large, predict(large))


def _one_of_each_class_first(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Indices of all images: the first of each class, then the second of each, and so on."""
    rank = np.zeros(len(labels), int)
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        rank[where] = np.arange(len(where))
    return np.lexsort((labels, rank))


def _metrics(workdir: pathlib.Path) -> dict[str, dict[str, object]]:
    found = {}
    for split in ("test", "validation"):
        file = workdir / "evaluate" / split / "metrics.json"
        if file.is_file():
            found[split] = files.read_json(file, "metrics of a run", _with_intervals)
    return found


def _with_intervals(content: dict) -> dict[str, object]:
    intervals = content.get("ci95", {})
    values = {}
    for name in _METRICS:
        if content.get(name) is not None:
            low, high = intervals.get(name, (None, None))
            values[name] = {"value": content[name], "low": low, "high": high}
    calibration = content.get("calibration") or {}
    return {
        "n": content["n"],
        "tta": content.get("tta", "none"),
        "calibration": calibration.get("method", "none"),
        **values,
    }


def view_names(config: TTAConfig) -> list[str]:
    """Names of the views that are computed, in their order."""
    return [name for name, _ in config.weights] or list(views.named(config.views))


def as_json(metadata: Mapping[str, object]) -> str:
    """Metadata as the text of a JSON file."""
    return json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
