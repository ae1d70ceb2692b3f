"""The detector of images that are unlike the training images: `rejection.npz`, `rejection.json`.

It is fitted to what the network makes of training images, and to their colours and textures. By
default its method is "combined", unless another tells validation images clearly better from images
that the network should not answer: those of `corruptions.unfamiliar`, and the validation images of
each class, for a detector that is fitted without this class. No image of junk is needed. The
threshold rejects a chosen share of the validation images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int

from bloodjax import distributed
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.corruptions import unfamiliar
from bloodjax.data import images as images_lib
from bloodjax.data.arrays import ImagesLike
from bloodjax.data.audit import duplicates, outliers
from bloodjax.data.dataset import Dataset
from bloodjax.data.lazy import AT_ONCE, Images
from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write, read_json
from bloodjax.metrics import novelty
from bloodjax.metrics.novelty import METHODS, Description

FILE, ARRAYS_FILE = "rejection.json", "rejection.npz"
NONE, AUTO = "none", "auto"
# The method of "auto", unless the mean AUROC of another is larger by more than the margin. The
# images of the comparison are made, or of classes that the network knows, so they are no images
# of a class that it has never seen: smaller differences do not show which method finds those.
DEFAULT, _MARGIN = "combined", 0.01

# Images of the training split that a detector is fitted to, equally many of each class.
_MAX_TRAIN = 2_000
# Validation images that each kind of unfamiliar image is made from, and that it is compared with.
_PER_KIND = 100
# Classes that are left out in turn, those with the most validation images.
_LEFT_OUT = 10
_MAX_LEFT_OUT = 1_000  # images of each split that this comparison uses

Labels = Int[np.ndarray, " _"]


class Labelled(NamedTuple):
    """Images with their class indices."""

    images: Description
    labels: Labels


@dataclasses.dataclass(frozen=True)
class Detector:
    """Scores images by how unlike the training images they are.

    Attributes:
      method: A key of `novelty.METHODS`.
      arrays: What the method keeps of the training images.
      threshold: Images with a larger score are unlike the training images.
      rate: Share of validation images above the threshold that was asked for.
      n_train: Number of training images that it was fitted to.
      n_validation: Number of validation images that the threshold was chosen on.
      comparison: Method -> {"kinds": mean AUROC against unfamiliar images, "classes": mean AUROC
        against classes that the detector was not fitted to (absent if the run has one class),
        "mean": the mean of both, "each": AUROC by kind and class}; empty if the config names the
        method.
    """

    method: str
    arrays: Mapping[str, np.ndarray]
    threshold: float
    rate: float
    n_train: int
    n_validation: int
    comparison: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def score(self, images: Description) -> Float[np.ndarray, " _"]:
        """Scores, larger for more unlike; infinite where the network's output is not finite.

        Args:
          images: The unmodified images, with their logits before calibration.
        """
        return novelty.score(self.method, self.arrays, images)

    def summary(self) -> dict[str, Any]:
        """What `metrics.json` says of the detector."""
        return {
            "method": self.method,
            "threshold": self.threshold,
            "expected": self.rate,
            "n_train": self.n_train,
            "n_validation": self.n_validation,
            "comparison": {
                method: {key: value for key, value in found.items() if key != "each"}
                for method, found in self.comparison.items()
            },
        }


@dataclasses.dataclass(frozen=True)
class Described:
    """Training images whose features are known.

    Attributes:
      index: Indices of the images in the training split, ascending.
      features: Their features.
    """

    index: Int[np.ndarray, " n"]
    features: Float[np.ndarray, "n features"]


@runtime_checkable
class Describing(Protocol):
    """What is needed of a classifier, which itself loads detectors."""

    config: Config
    classes: tuple[str, ...]
    detector: Detector | None

    def describe_fully(self, images: ImagesLike) -> Description:
        """Features, logits and appearance of unmodified images."""
        ...


def appearance(images: Images) -> Float32[np.ndarray, "n statistics"]:
    """Colours and textures of RGB images of one size; see `audit.outliers.features`."""
    found = [
        outliers.features(images_lib.resize(images[i : i + AT_ONCE], duplicates.THUMBNAIL))
        for i in range(0, len(images), AT_ONCE)
    ]
    return np.concatenate(found)


def fit_run(
    model: Describing, workdir: pathlib.Path, train: Dataset, validation: Dataset | None
) -> Described | None:
    """Fits the detector of a run, writes its files and sets it in `model`.

    Without a validation split, or if the network's features are not finite, the run has no detector
    and a message says why.

    Args:
      model: The classifier of the run.
      workdir: Folder of the run.
      train: Training split of the run.
      validation: Validation split of the run.

    Returns:
      The training images that were described; None if none were.
    """
    options = model.config.evaluation
    model.detector = described = None
    if options.rejection != NONE and validation is None:
        console.log_info("no validation split: images unlike the training images are not detected")
    elif options.rejection != NONE:
        model.detector, described = _fit(model, train, validation)
    if model.detector is None:
        remove(workdir)
        return described
    write(workdir, model.detector)
    console.log_info(_line(model.detector))
    return described


def detectors(model: Any) -> list[Detector]:
    """The detectors of a classifier, or of the members of an ensemble; those that it has."""
    members = getattr(model, "members", {"": model}).values()
    return [one.detector for one in members if one.detector is not None]


def usual(found: Sequence[Detector]) -> tuple[float, int | None]:
    """What `novelty.are_unlike` needs to know of detectors that vote.

    Returns:
      The largest share of validation images that a threshold rejects, and the smallest number of
      these images; 0.01 and None without a detector.
    """
    if not found:
        return 0.01, None
    return max(one.rate for one in found), min(one.n_validation for one in found)


def fit(
    known: Labelled,
    validation: Labelled,
    kinds: Mapping[str, Description],
    classes: Sequence[str],
    method: str,
    rate: float,
) -> Detector:
    """Fits a detector to what the network makes of images.

    Args:
      known: Training images.
      validation: Validation images.
      kinds: Kind -> unfamiliar images.
      classes: Class names in label order.
      method: A key of `novelty.METHODS`, or "auto".
      rate: Share of validation images that the threshold rejects.
    """
    comparison = {}
    if method == AUTO:
        comparison = _compare(known, validation, kinds, classes)
        means = {name: found["mean"] for name, found in comparison.items()}
        best = max(means, key=means.__getitem__)
        method = best if means[best] > means[DEFAULT] + _MARGIN else DEFAULT
    arrays = novelty.fit(method, known.images, known.labels, validation.images)
    scores = novelty.score(method, arrays, validation.images)
    threshold = novelty.threshold(scores, rate)
    return Detector(method, arrays, threshold, rate, len(known.labels), len(scores), comparison)


def write(workdir: pathlib.Path, detector: Detector) -> None:
    """Writes `rejection.npz` and `rejection.json`."""
    buffer = io.BytesIO()
    np.savez(buffer, **detector.arrays)
    content = dataclasses.asdict(dataclasses.replace(detector, arrays={}))
    content["arrays"] = _digest(buffer.getvalue())
    atomic_write(workdir / ARRAYS_FILE, buffer.getvalue())
    atomic_write(workdir / FILE, json.dumps(content, indent=2) + "\n")


def remove(workdir: pathlib.Path) -> None:
    """Removes the files of a detector, if the run has one."""
    if distributed.is_primary():
        for name in (FILE, ARRAYS_FILE):
            (workdir / name).unlink(missing_ok=True)


def load(workdir: pathlib.Path) -> Detector | None:
    """The detector of the run in `workdir`, or None if it has none.

    Raises:
      UserError: A file is missing or damaged, or the two files do not belong together.
    """
    if not (workdir / FILE).exists():
        return None
    expected = "a detector of unlike images; delete it to go on without one"
    content = read_json(workdir / FILE, expected, _parsed)
    arrays = _load_arrays(workdir / ARRAYS_FILE, content.pop("arrays"))
    return Detector(arrays=arrays, **content)


def describe_splits(
    model: Describing, train: Dataset, validation: Dataset
) -> tuple[Int[np.ndarray, " n"], Labelled, Labelled]:
    """Indices of the training images that a detector is fitted to; these; validation images."""
    index = _balanced(train.labels, _MAX_TRAIN, model.config.seed)
    used = train.take(index)
    known = Labelled(model.describe_fully(used.images), used.labels)
    return index, known, Labelled(model.describe_fully(validation.images), validation.labels)


def _fit(
    model: Describing, train: Dataset, validation: Dataset
) -> tuple[Detector | None, Described]:
    options, seed = model.config.evaluation, model.config.seed
    index, known, found = describe_splits(model, train, validation)
    described = Described(index, known.images.features)
    for name, labelled in (("training", known), ("validation", found)):
        bad = ~labelled.images.finite
        if bad.any():
            console.log_info(
                "images unlike the training images are not detected: the network's output is not "
                f"finite for {bad.sum():,} of {len(bad):,} {name} images"
            )
            return None, described
    kinds = {}
    if options.rejection == AUTO:
        chosen = _balanced(validation.labels, _PER_KIND, seed)
        images = np.asarray(validation.take(chosen).images)
        for name in unfamiliar.KINDS:
            kinds[name] = model.describe_fully(unfamiliar.make(name, images, seed))
    detector = fit(known, found, kinds, model.classes, options.rejection, options.rejection_rate)
    return detector, described


def _compare(
    known: Labelled,
    validation: Labelled,
    kinds: Mapping[str, Description],
    classes: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """AUROC of each method against each kind and each class left out, and their means."""
    each = {name: {"kinds": {}, "classes": {}} for name in METHODS}
    for name, arrays in novelty.fit_all(known.images, known.labels, validation.images).items():
        usual = novelty.score(name, arrays, validation.images)
        for kind, made in kinds.items():
            scores = novelty.score(name, arrays, made)
            each[name]["kinds"][kind] = novelty.auroc(usual, scores)
    # Fewer images do here: these scores are not those of the detector that is kept.
    known, validation = _part(known, _MAX_LEFT_OUT), _part(validation, _MAX_LEFT_OUT)
    for left_out in _frequent(validation.labels, known.labels):
        rest, is_new = known.labels != left_out, validation.labels == left_out
        # The network knows the class, so its logit is hidden from the methods that use logits.
        logits = np.delete(validation.images.logits, left_out, axis=1)
        seen = validation.images._replace(logits=logits)
        others = seen.take(~is_new)
        fitted = novelty.fit_all(known.images.take(rest), known.labels[rest], others)
        for name, arrays in fitted.items():
            scores = novelty.score(name, arrays, seen)
            auroc = novelty.auroc(scores[~is_new], scores[is_new])
            each[name]["classes"][classes[left_out]] = auroc
    return {name: _with_means(found) for name, found in each.items()}


def _with_means(each: dict[str, dict[str, float]]) -> dict[str, Any]:
    means = {key: float(np.mean(list(found.values()))) for key, found in each.items() if found}
    return means | {"mean": float(np.mean(list(means.values()))) if means else 0.5, "each": each}


def _part(labelled: Labelled, most: int) -> Labelled:
    chosen = _balanced(labelled.labels, most, 0)
    return Labelled(labelled.images.take(chosen), labelled.labels[chosen])


def _frequent(labels: Labels, fitted: Labels) -> list[int]:
    """The classes to leave out: the most frequent of `labels`, if others remain in both splits."""
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or len(np.unique(fitted)) < 2:
        return []
    return classes[np.argsort(-counts, kind="stable")][:_LEFT_OUT].tolist()


def _balanced(labels: Labels, most: int, seed: int) -> Int[np.ndarray, " _"]:
    """Indices of at most `most` images, as equally many of each class as there are; ascending."""
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels[order]
    rank = np.empty(len(labels), int)
    for label in np.unique(labels):
        rank[shuffled == label] = np.arange(np.count_nonzero(shuffled == label))
    return np.sort(order[np.argsort(rank, kind="stable")[:most]])


def _line(detector: Detector) -> str:
    line = f"images unlike the training images: {detector.method}, "
    if detector.comparison:
        means = {name: found["mean"] for name, found in detector.comparison.items()}
        others = [f"{name} {mean:.4f}" for name, mean in means.items() if name != detector.method]
        line += f"AUROC {means[detector.method]:.4f} on held-out kinds ({', '.join(others)}); "
    return (
        line + f"rejects {100 * detector.rate:g} % of {detector.n_validation:,} validation images"
    )


def _parsed(content: Any) -> dict[str, Any]:
    """The content of `rejection.json`, checked."""
    if content["method"] not in METHODS:
        raise ValueError(f"method {content['method']!r}")
    if not math.isfinite(content["threshold"]):
        raise ValueError(f"threshold {content['threshold']}")
    names = [field.name for field in dataclasses.fields(Detector)]
    if set(content) != set(names):
        raise ValueError(f"expected {', '.join(names)}")
    return {name: content[name] for name in names}


def _load_arrays(path: pathlib.Path, digest: str) -> dict[str, np.ndarray]:
    expected = f"the arrays that {FILE} names; delete {FILE} to go on without a detector"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected {expected}") from error
    if _digest(data) != digest:
        raise UserError(f"{path}: its SHA-256 differs, expected {expected}")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
