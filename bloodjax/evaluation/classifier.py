"""A trained classifier, as a workdir holds it: images in, probabilities out."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float, PyTree, UInt8

from bloodjax import config as config_lib
from bloodjax.augment import views
from bloodjax.augment.tta import SELECTED, TTAConfig
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.config import Config
from bloodjax.data import lazy
from bloodjax.data.lazy import LazyImages
from bloodjax.errors import UserError
from bloodjax.evaluation import soup, tta_selection
from bloodjax.evaluation.histogram_baseline import HistogramBaseline
from bloodjax.io import files
from bloodjax.training import factory
from bloodjax.training.workdir import BASELINE_FILE, CHECKPOINTS, CONFIG_FILE


class Classifier:
    """A network with its weights and class names.

    Attributes:
      classes: class names in label order.
      config: of the run that trained it.
      step: the step that its weights are of.
      baseline: the colour-histogram regression of the same training part, or None.
      selected: the views and weights that were chosen on its validation part, or None.
    """

    def __init__(
        self,
        config: Config,
        classes: tuple[str, ...],
        variables: PyTree,
        step: int,
        baseline: HistogramBaseline | None = None,
        selected: TTAConfig | None = None,
    ):
        self.config, self.classes, self.step, self.baseline = config, classes, step, baseline
        self.selected = selected
        self._steps = factory.steps(config, len(classes))
        self._variables = self._steps.shard_state(variables)

    def predict(
        self, images: UInt8[np.ndarray, "n height width 3"] | LazyImages, tta: str | None = None
    ) -> Float[np.ndarray, "n classes"]:
        """Probabilities of the classes.

        Args:
          images: RGB images of any size; others than the network's are resized as in training.
          tta: sets of views (see `augment.views`), or "selected"; by default the views that the
            run selected, and otherwise what its config says.

        Raises:
          UserError: `tta` is not known, or nothing was selected.
        """
        return self._predict(images, self._plan(tta or self.tta))

    def predict_beside(
        self, images: UInt8[np.ndarray, "n height width 3"] | LazyImages, tta: str | None = None
    ) -> Float[np.ndarray, "n 2 classes"]:
        """What `predict` gives, and beside it the same of each image alone, without views."""
        plan = self._plan(tta or self.tta)
        return self._predict(images, dataclasses.replace(plan, beside=True))

    def _predict(self, images: np.ndarray | LazyImages, plan: TTAConfig) -> np.ndarray:
        resized = lazy.resize(images, self.config.data.image_size)
        return self._steps.predict(self._variables, resized, plan)

    def predict_views(
        self, images: UInt8[np.ndarray, "n height width 3"] | LazyImages, tta: str
    ) -> Float[np.ndarray, "views n classes"]:
        """Probabilities of the classes in each view of the sets `tta`."""
        resized = lazy.resize(images, self.config.data.image_size)
        return self._steps.each_view(self._variables, resized, tta).swapaxes(0, 1)

    @property
    def tta(self) -> str:
        """The views that count where none are asked for."""
        chosen = self.selected is not None and self.config.evaluation.tta_select != "none"
        return SELECTED if chosen else self.config.evaluation.tta

    def _plan(self, tta: str) -> TTAConfig:
        if tta == SELECTED and self.selected is None:
            raise UserError(
                f"tta is {SELECTED!r}, but the run has no {tta_selection.FILE}; expected views that "
                "evaluate --tta_select chose"
            )
        if tta == SELECTED:
            return self.selected
        return TTAConfig(views.check(tta, "tta", (SELECTED,)), self.config.evaluation.tta_average)


def load(workdir: str | pathlib.Path, which: str = "best") -> Classifier:
    """The best classifier of the run in `workdir`.

    Args:
      workdir: the run's folder.
      which: "best" is the soup of several epochs where the run has one (`config.soup`), else
        "epoch": the best epoch's weights, averaged where `config.ema` has them so, else "raw": the
        same epoch's weights as they were trained.

    Raises:
      UserError: the folder holds no run, or one without a checkpoint.
    """
    workdir = pathlib.Path(workdir)
    config_file = workdir / CONFIG_FILE
    if not config_file.is_file():
        raise UserError(f"{workdir}: no run is here, expected a folder with {CONFIG_FILE}")
    config = config_lib.read(config_file)
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        if checkpoints.latest_step is None:
            raise UserError(f"{workdir}: the run has no whole checkpoint yet")
        progress = checkpoints.progress()
        step = checkpoints.latest_step if progress.best_step is None else progress.best_step
        shapes = factory.shapes(config, len(progress.classes))
        if which == "best" and soup.is_chosen(workdir):
            variables = soup.restore(workdir, shapes)
        else:
            ema = config.ema > 0 and which != "raw"
            variables = checkpoints.restore_variables(step, shapes, ema=ema)
    baseline, selected = read_baseline(workdir), tta_selection.read(workdir)
    return Classifier(config, progress.classes, variables, step, baseline, selected)


def read_baseline(workdir: pathlib.Path) -> HistogramBaseline | None:
    """The colour-histogram regression in `workdir`, or None where there is none."""
    file = workdir / BASELINE_FILE
    if not file.exists():
        return None
    return files.read_json(file, "a colour-histogram regression", HistogramBaseline.from_dict)
