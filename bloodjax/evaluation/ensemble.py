"""Several trained classifiers as one: the mean of their probabilities."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from bloodjax import config as config_lib
from bloodjax import metrics
from bloodjax.data.lazy import LazyImages
from bloodjax.errors import UserError
from bloodjax.evaluation import classifier
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.histogram_baseline import HistogramBaseline
from bloodjax.training import input_pipeline
from bloodjax.training.workdir import CONFIG_FILE


class Ensemble:
    """Classifiers of the same classes, with the interface of one.

    The members may be of different networks; each takes the images at its own size.

    Attributes:
      members: the classifiers, by the folder of each.
      classes: class names in label order.
      config: the first member's, with the largest `data.image_size` of all.
      step: None, for each member has its own.
      baseline: a colour-histogram regression to hold the ensemble against, or None.
    """

    step = None

    def __init__(
        self,
        members: dict[pathlib.Path, Classifier],
        baseline: HistogramBaseline | None = None,
    ):
        (first, model), *others = members.items()
        for folder, member in others:
            if member.classes != model.classes:
                raise UserError(
                    f"{folder}: has the classes {', '.join(member.classes)}; expected those of "
                    f"{first}: {', '.join(model.classes)}"
                )
        size = max(member.config.data.image_size for member in members.values())
        content = model.config.to_dict()
        content["data"] = {**content["data"], "image_size": size}
        self.config = config_lib.validate(content)
        self.members, self.classes = members, model.classes
        self.baseline = baseline or model.baseline

    @property
    def tta(self) -> str:
        """The views that count where none are asked for; each member has its own."""
        return ", ".join(sorted({member.tta for member in self.members.values()}))

    def predict(
        self, images: UInt8[np.ndarray, "n height width 3"] | LazyImages, tta: str | None = None
    ) -> Float[np.ndarray, "n classes"]:
        """Probabilities of the classes, the mean over the members; see `Classifier.predict`."""
        return np.mean([member.predict(images, tta) for member in self.members.values()], axis=0)

    def predict_members(
        self, images: UInt8[np.ndarray, "n height width 3"] | LazyImages, tta: str | None = None
    ) -> Float[np.ndarray, "members n 2 classes"]:
        """Probabilities of the classes by each member; see `Classifier.predict_beside`."""
        return np.stack([member.predict_beside(images, tta) for member in self.members.values()])

    def figures(
        self, each: Float[np.ndarray, "members n classes"], labels: np.ndarray
    ) -> list[dict[str, object]]:
        """Each member alone, as `metrics.quick` has it, with its folder and network."""
        return [
            {
                "workdir": str(folder),
                "network": member.config.model.name,
                "step": member.step,
                **metrics.quick(probabilities, labels),
            }
            for (folder, member), probabilities in zip(self.members.items(), each, strict=True)
        ]

    def check_unseen(self, spec: str, names: Sequence[str]) -> None:
        """Makes sure that no member was trained on what the ensemble is to be judged by.

        Args:
          spec: of the source of the images.
          names: of the images in it.

        Raises:
          UserError: a member was.
        """
        for folder in self.members:
            seen = input_pipeline.trained_on(folder / "splits.json", spec, names)
            if seen:
                raise UserError(
                    f"{folder}: was trained on {seen:,} of these {len(names):,} images of "
                    f"{spec}; expected runs that all kept them back, or other --data"
                )


def load(workdirs: str | pathlib.Path | Sequence[str | pathlib.Path]) -> Classifier | Ensemble:
    """The classifier of a run, or the ensemble of several runs or of the folds of one.

    Raises:
      UserError: a folder holds no run, or none with a checkpoint; or the classes differ.
    """
    if isinstance(workdirs, (str, pathlib.Path)):
        workdirs = [workdirs]
    folders = [fold for workdir in workdirs for fold in fold_folders(pathlib.Path(workdir))]
    if len(set(folders)) < len(folders):
        raise UserError(f"{_first_twice(folders)}: is named twice, expected different runs")
    members = {folder: classifier.load(folder) for folder in folders}
    if len(members) == 1:
        return members[folders[0]]
    return Ensemble(members, classifier.read_baseline(pathlib.Path(workdirs[0])))


def fold_folders(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The folders of a run's folds; the run's own where it has none."""
    file = workdir / CONFIG_FILE
    folds = config_lib.load_json(file).folds if file.is_file() else 0
    return [workdir / f"fold{i}" for i in range(folds)] or [workdir]


def _first_twice(folders: Sequence[pathlib.Path]) -> pathlib.Path:
    return next(folder for folder in folders if folders.count(folder) > 1)
