"""A trained classifier, as a workdir holds it: pictures in, probabilities out."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
from jaxtyping import Float, PyTree, UInt8

from bloodjax import build, settings, soup
from bloodjax.checkpoint import Checkpoints
from bloodjax.classical import HistogramBaseline
from bloodjax.data import images as pictures
from bloodjax.errors import UserError
from bloodjax.settings import Config

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
BASELINE_FILE = "baseline.json"


class Classifier:
    """A network with its weights and class names.

    Attributes:
      classes: class names in label order.
      config: of the run that trained it.
      step: the step that its weights are of.
      baseline: the colour-histogram regression of the same training part, or None.
    """

    def __init__(
        self,
        config: Config,
        classes: tuple[str, ...],
        variables: PyTree,
        step: int,
        baseline: HistogramBaseline | None = None,
    ):
        self.config, self.classes, self.step, self.baseline = config, classes, step, baseline
        self._steps = build.steps(config, len(classes))
        self._variables = self._steps.place(jax.device_get(variables))

    def predict(
        self, images: UInt8[np.ndarray, "n height width 3"], tta: str | None = None
    ) -> Float[np.ndarray, "n classes"]:
        """Probabilities of the classes.

        Args:
          images: RGB pictures of any size; others than the network's are resized as in training.
          tta: "none", "flip" or "d4"; by default what the run's config says.
        """
        resized = pictures.resize(np.asarray(images), self.config.data.image_size)
        return self._steps.predict(self._variables, resized, tta or self.config.evaluation.tta)


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
    config = settings.from_json(config_file.read_text(encoding="utf-8"))
    if not (workdir / CHECKPOINTS).is_dir():
        raise UserError(f"{workdir}: the run has no checkpoint yet")
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        if checkpoints.latest_step is None:
            raise UserError(f"{workdir}: the run has no checkpoint yet")
        progress = checkpoints.progress()
        step = checkpoints.latest_step if progress.best_step is None else progress.best_step
        shapes = jax.eval_shape(lambda: build.variables(config, len(progress.classes)))
        if which == "best" and soup.is_chosen(workdir):
            variables = soup.restore(workdir, shapes)
        else:
            ema = config.ema > 0 and which != "raw"
            variables = checkpoints.restore_variables(step, shapes, ema=ema)
    baseline_file = workdir / BASELINE_FILE
    baseline = None
    if baseline_file.exists():
        baseline = HistogramBaseline.from_dict(json.loads(baseline_file.read_text("utf-8")))
    return Classifier(config, progress.classes, variables, step, baseline)
