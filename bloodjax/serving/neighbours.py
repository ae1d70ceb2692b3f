"""The training cells that are most like an image, by the network's features."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, UInt8

from bloodjax.cli import console
from bloodjax.data.arrays import ImagesLike
from bloodjax.data.dataset import Dataset
from bloodjax.errors import UserError
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io import files
from bloodjax.training import saved_splits

# Below the workdir: names, labels and features of training images, no pixels. An ensemble has its
# own, below the workdir of the member whose training images they are.
FILE, ENSEMBLE_FILE = "serve/neighbours.npz", "serve/neighbours_ensemble.npz"
# Images whose features are computed at once, between which requests are answered.
_BATCH = 64
# Two computations of the same features may differ by rounding.
_TOLERANCE = {"rtol": 1e-2, "atol": 1e-3}


@dataclasses.dataclass(frozen=True)
class TrainingCells:
    """Training images with their features.

    Attributes:
      names: Name of each image.
      labels: Class index of each image.
      features: Features of unit length.
      images: The images, or None if the run's data can no longer be read.
      missing: Why they cannot be read, or "".
    """

    names: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    features: Float[np.ndarray, "n features"]
    images: Dataset | None
    missing: str = ""

    def nearest(
        self, features: Float[np.ndarray, " features"], count: int
    ) -> list[tuple[int, float]]:
        """Index and cosine similarity of the `count` nearest images, the nearest first."""
        similarity = self.features @ _unit(features[None])[0]
        order = np.argsort(-similarity, kind="stable")[:count]
        return [(int(i), float(similarity[i])) for i in order]

    def image(self, index: int) -> UInt8[np.ndarray, "size size 3"] | None:
        """The image at `index`; None if the run's data can no longer be read."""
        return None if self.images is None else np.asarray(self.images.images[index])


def describe(model: Classifier | Ensemble, images: ImagesLike) -> Float[np.ndarray, "n features"]:
    """Features of length 1 of at least one image.

    Those of an ensemble are its members' side by side, so the cosine similarity of two images is
    the mean of the members' similarities.
    """
    members = model.each_with(images) if isinstance(model, Ensemble) else [(model, images)]
    each = [_unit(member.describe(seen)[0]) for member, seen in members]
    return np.concatenate(each, axis=1) / np.float32(np.sqrt(len(each)))


def prepare(
    model: Classifier | Ensemble,
    workdir: pathlib.Path,
    count: int,
    on_progress: Callable[[int, int], None],
) -> TrainingCells:
    """Training images with their features, from `FILE` or computed and stored there.

    Of each class the same number is taken where there are enough, evenly spaced over the split.
    An ensemble is compared with the training images of its first member whose images can be read.

    Args:
      model: The classifier of the run, or the ensemble of several.
      workdir: Folder of the run. If it is not writable, the features are not stored. For an
        ensemble the folders of its members are used instead.
      count: Most images.
      on_progress: Called with the number of images that are done, and of all, before each batch.
        What it raises ends the computation.

    Raises:
      UserError: The run's training images cannot be read, and no features of these weights are
        stored.
    """
    model = model.at_home()  # The images are of the laboratory where the run was trained.
    probe = describe(model, _probe_image(model.config.data.image_size))[0]
    if not isinstance(model, Ensemble):
        return _prepare(model, model, workdir, FILE, probe, count, on_progress)
    error = None
    for folder, member in model.members.items():
        try:
            return _prepare(model, member, folder, ENSEMBLE_FILE, probe, count, on_progress)
        except UserError as raised:
            error = error or raised
    raise error


def _prepare(
    model: Classifier | Ensemble,
    member: Classifier,
    workdir: pathlib.Path,
    file: str,
    probe: Float[np.ndarray, " features"],
    count: int,
    on_progress: Callable[[int, int], None],
) -> TrainingCells:
    """The training images of `member`, the run in `workdir`, with the features of `model`."""
    stored = _load(workdir / file, probe)
    splits_file = workdir / saved_splits.SPLITS_FILE
    try:
        train = saved_splits.recall(member.config, splits_file, member.classes, "train", lazy=True)
    except UserError as error:
        if stored is None:
            raise
        return dataclasses.replace(stored, missing=str(error))
    chosen = train.take(_evenly(train.labels, count))
    if stored is not None and stored.names == chosen.names:
        return dataclasses.replace(stored, images=chosen)
    features = []
    for start in range(0, len(chosen), _BATCH):
        on_progress(start, len(chosen))
        features.append(describe(model, chosen.images[start : start + _BATCH]))
    cells = TrainingCells(chosen.names, chosen.labels, np.concatenate(features), chosen)
    _save(workdir / file, cells, probe)
    return cells


def _evenly(labels: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, " m"]:
    """At most `count` indices, as many of each class as there are, evenly spaced in each."""
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    left, taken = count, []
    for i, indices in enumerate(sorted(by_class, key=len)):
        n = min(len(indices), left // (len(by_class) - i))
        taken.append(indices[np.linspace(0, len(indices) - 1, n).round().astype(int)])
        left -= n
    return np.sort(np.concatenate(taken))


def _unit(features: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "n features"]:
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    return (features / np.maximum(lengths, 1e-12)).astype(np.float32)


def _probe_image(size: int) -> UInt8[np.ndarray, "1 {size} {size} 3"]:
    """An image whose features tell one set of weights from another."""
    y, x = np.mgrid[:size, :size] * 255 // max(size - 1, 1)
    return np.stack([x, y, 255 - x // 2 - y // 2], -1).astype(np.uint8)[None]


def _load(path: pathlib.Path, probe: Float[np.ndarray, " features"]) -> TrainingCells | None:
    """Stored cells; None if there are none, they are damaged, or are those of other weights."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            same = stored["probe"].shape == probe.shape
            if not (same and np.allclose(stored["probe"], probe, **_TOLERANCE)):
                return None
            names = tuple(map(str, stored["names"]))
            cells = TrainingCells(names, stored["labels"], stored["features"], None)
    except Exception:  # zip, NumPy and the system raise many types; it is computed anew
        return None
    n = len(names)
    fits = cells.labels.shape == (n,) and cells.features.shape == (n, len(probe))
    return cells if fits and n else None


def _save(path: pathlib.Path, cells: TrainingCells, probe: Float[np.ndarray, " features"]) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        names=np.array(cells.names),
        labels=cells.labels,
        features=cells.features,
        probe=probe,
    )
    try:
        path.parent.mkdir(exist_ok=True)
        files.atomic_write(path, buffer.getvalue())
    except OSError as error:
        console.log_info(f"{path}: not stored ({error.strerror}); computed again at the next start")
