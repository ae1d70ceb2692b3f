"""A trained classifier: images in, class probabilities out."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float, PyTree, UInt8

from bloodjax.augment import views
from bloodjax.augment.tta import SELECTED, TTAConfig
from bloodjax.config import Config
from bloodjax.data import arrays
from bloodjax.data.arrays import ImagesLike
from bloodjax.data.lazy import LazyImages
from bloodjax.errors import UserError
from bloodjax.evaluation import soup, tta_selection
from bloodjax.evaluation.histogram_baseline import HistogramBaseline
from bloodjax.evaluation.predictor import Predictor
from bloodjax.io import files
from bloodjax.training import factory
from bloodjax.training.workdir import BASELINE_FILE, SavedRun, open_run


class Classifier:
    """A network with its weights and class names.

    Attributes:
      classes: Class names in label order.
      config: Config of the run that trained it.
      step: Training step of its weights.
      baseline: Colour-histogram regression fitted to the same training split, or None.
      selected: Views and weights that were selected on its validation split, or None.
      predictor: The network with its weights.
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
        self.predictor = Predictor(factory.executor(config, len(classes)), variables)

    def predict(self, images: ImagesLike, tta: str | None = None) -> Float[np.ndarray, "n classes"]:
        """Class probabilities of images.

        Args:
          images: uint8 images of any size, in 0..255: an array [n, height, width, 3] (RGB, not
            OpenCV's BGR), or [n, height, width] (grey), or with an axis of 1 (grey) or 4 channels
            (RGBA, laid over white) at the end; one such image without the first axis; or a list of
            images of several sizes. They become squares of the network's size as in training.
          tta: Sets of views (see `augment.views`), or "selected". By default, the views that the
            run selected, or else those of its config.

        Raises:
          UserError: `images` are of another type or shape, or `tta` is invalid, or it is "selected"
            and the run has selected no views.
        """
        return self._predict(images, self._tta_config(tta or self.tta))

    def predict_with_plain(
        self, images: ImagesLike, tta: str | None = None
    ) -> Float[np.ndarray, "n 2 classes"]:
        """The result of `predict`, and class probabilities without test-time augmentation."""
        config = self._tta_config(tta or self.tta)
        return self._predict(images, dataclasses.replace(config, with_plain=True))

    def _predict(self, images: ImagesLike, config: TTAConfig) -> np.ndarray:
        squares = self._squares(images)
        if len(squares) == 0:
            n = len(self.classes)
            return np.zeros((0, 2, n) if config.with_plain else (0, n), np.float32)
        return self.predictor.predict(squares, config)

    def _squares(self, images: ImagesLike) -> UInt8[np.ndarray, "n size size 3"] | LazyImages:
        """The images as the network takes them."""
        data = self.config.data
        try:
            return arrays.resize(images, data.image_size, data.fit)
        except ValueError as error:
            raise UserError(str(error)) from error

    def predict_views(self, images: ImagesLike, tta: str) -> Float[np.ndarray, "views n classes"]:
        """Class probabilities of at least one image for each view of the sets `tta`."""
        resized = self._squares(images)
        return self.predictor.each_view(resized, tta).swapaxes(0, 1)

    def describe(
        self, images: ImagesLike
    ) -> tuple[Float[np.ndarray, "n features"], Float[np.ndarray, "n classes"]]:
        """Features and logits of at least one unmodified image, in float32."""
        return self.predictor.describe(self._squares(images))

    @property
    def tta(self) -> str:
        """The default of `predict`'s argument `tta`."""
        use_selected = self.selected is not None and self.config.evaluation.tta_select != "none"
        return SELECTED if use_selected else self.config.evaluation.tta

    def check_tta(self, tta: str | None) -> None:
        """Raises the UserError that `predict` would raise for `tta`, before images are read."""
        self._tta_config(tta or self.tta)

    def _tta_config(self, tta: str) -> TTAConfig:
        if tta == SELECTED and self.selected is None:
            raise UserError(
                f"tta is {SELECTED!r}, but the run has no {tta_selection.FILE}; expected views "
                "that evaluate --tta_select selected"
            )
        if tta == SELECTED:
            return self.selected
        return TTAConfig(views.check(tta, "tta", (SELECTED,)), self.config.evaluation.tta_average)


def load(workdir: str | pathlib.Path, which: str = "best") -> Classifier:
    """Loads a classifier of the run in `workdir`; see `from_run`.

    Raises:
      UserError: The folder has no run, or the run has no valid checkpoint.
    """
    with open_run(pathlib.Path(workdir)) as run:
        return from_run(run, which)


def from_run(run: SavedRun, which: str = "best") -> Classifier:
    """A classifier with weights of an open run.

    Args:
      run: The run.
      which: "best": the soup of several epochs if the run made one that is better (`config.soup`),
        otherwise the same as "epoch". "epoch": the best epoch's weights, averaged if `config.ema`
        is set. "raw": that epoch's weights without averaging.

    Raises:
      UserError: The soup's weights are missing or damaged.
    """
    config, classes = run.config, run.progress.classes
    shapes = factory.shapes(config, len(classes))
    if which == "best" and soup.is_chosen(run.workdir):
        variables = soup.restore(run.workdir, shapes)
    else:
        variables = run.best_variables(shapes, ema=config.ema > 0 and which != "raw")
    return with_files_of(run.workdir, config, classes, variables, run.best_step)


def with_files_of(
    folder: pathlib.Path, config: Config, classes: tuple[str, ...], variables: PyTree, step: int
) -> Classifier:
    """A classifier, completed by the files that were fitted to a run's data.

    Args:
      folder: Folder with the files, of which each may be missing: the folder of a run, or one that
        was exported.
      config: Config of the run.
      classes: Class names in label order.
      variables: Variables of the network.
      step: Training step of the variables.
    """
    baseline, selected = load_baseline(folder), tta_selection.load(folder)
    return Classifier(config, classes, variables, step, baseline, selected)


def load_baseline(workdir: pathlib.Path) -> HistogramBaseline | None:
    """The colour-histogram regression of the run in `workdir`, or None if it has none."""
    file = workdir / BASELINE_FILE
    if not file.exists():
        return None
    return files.read_json(file, "a colour-histogram regression", HistogramBaseline.from_dict)
