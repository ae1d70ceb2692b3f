"""Trained runs as the teacher of another run, see `training.distillation`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from bloodjax.config import Config
from bloodjax.data.lazy import Images
from bloodjax.errors import UserError
from bloodjax.evaluation import ensemble
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble


class Teacher:
    """One trained classifier, or several whose calibrated probabilities are averaged.

    Attributes:
      classes: Class names in label order.
      config: Config that says how images are read.
      runs: Folder of each run -> its config.
    """

    def __init__(self, model: Classifier | Ensemble, runs: Mapping[pathlib.Path, Config]):
        self._model = model
        self.classes, self.config, self.runs = model.classes, model.config, runs

    def predict(self, images: Images, tta: str) -> Float[np.ndarray, "n classes"]:
        """Class probabilities of images with the test-time views `tta`."""
        return self._model.predict(images, tta)


def load(folders: Sequence[str], student: pathlib.Path) -> Teacher:
    """Loads a teacher.

    Args:
      folders: Workdirs of runs, of which some may have folds; or folders of exported models.
      student: Workdir of the run that learns.

    Raises:
      UserError: A folder has no run or no valid checkpoint, or is the student's; or the runs have
        different classes.
    """
    workdirs = [pathlib.Path(folder).expanduser() for folder in folders]
    for workdir in workdirs:
        if workdir.resolve() in (student.resolve(), *student.resolve().parents[:1]):
            raise UserError(
                f"config.distill.workdir {workdir}: is the run that learns, expected another run"
            )
    try:
        model = ensemble.load(workdirs)
    except UserError as error:
        raise UserError(f"config.distill.workdir: {error}") from error
    if isinstance(model, Ensemble):
        return Teacher(model, {folder: member.config for folder, member in model.members.items()})
    (folder,) = ensemble.fold_folders(workdirs[0])
    return Teacher(model, {folder: model.config})
