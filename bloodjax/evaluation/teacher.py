"""Trained runs as the teacher of another run, see `training.distillation`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float, PyTree

from bloodjax.config import Config
from bloodjax.data.lazy import Images
from bloodjax.errors import UserError
from bloodjax.evaluation import ensemble, multi_label
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io import remote
from bloodjax.training.online_teacher import TeacherNetwork


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

    def networks(
        self, order: Sequence[int]
    ) -> tuple[tuple[TeacherNetwork, ...], tuple[PyTree, ...]]:
        """The networks and their variables on the host.

        Args:
          order: The teacher's index of each class of the run that learns.

        Raises:
          UserError: A run was adapted to a site, which acts on its answers and not on its network.
        """
        several = isinstance(self._model, Ensemble)
        members = list(self._model.members.values()) if several else [self._model]
        found, variables = [], []
        for folder, member in zip(self.runs, members, strict=True):
            if member.site is not None:
                raise UserError(
                    f"config.distill.workdir {folder}: was adapted to a site, expected the run "
                    "itself, or config.distill.online=False"
                )
            step_config = member.predictor.step_config
            found.append(
                TeacherNetwork(
                    step_config.model,
                    step_config.mean,
                    step_config.std,
                    member.config.data.image_size,
                    member.calibration("none"),
                    tuple(order),
                )
            )
            variables.append(jax.device_get(member.predictor.variables))
        return tuple(found), tuple(variables)


def load(folders: Sequence[str], student: pathlib.Path) -> Teacher:
    """Loads a teacher.

    Args:
      folders: Workdirs of runs, of which some may have folds; or folders of exported models.
      student: Workdir of the run that learns.

    Raises:
      UserError: A folder has no run or no valid checkpoint, or is the student's; or the runs have
        different classes.
    """
    workdirs = [pathlib.Path(os.path.expanduser(remote.local(folder))) for folder in folders]
    for workdir in workdirs:
        if workdir.resolve() in (student.resolve(), *student.resolve().parents[:1]):
            raise UserError(
                f"config.distill.workdir {workdir}: is the run that learns, expected another run"
            )
    try:
        model = ensemble.load(workdirs)
        multi_label.refuse(model.config, ", ".join(folders))
    except UserError as error:
        raise UserError(f"config.distill.workdir: {error}") from error
    if isinstance(model, Ensemble):
        return Teacher(model, {folder: member.config for folder, member in model.members.items()})
    (folder,) = ensemble.fold_folders(workdirs[0])
    return Teacher(model, {folder: model.config})
