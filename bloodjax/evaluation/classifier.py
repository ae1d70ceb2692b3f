"""A trained classifier: images in, class probabilities out."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, PyTree, UInt8

from bloodjax import attribution
from bloodjax.attribution import geometry
from bloodjax.augment import views
from bloodjax.augment.tta import SELECTED, TTAConfig
from bloodjax.config import Config
from bloodjax.data import arrays, lazy, names
from bloodjax.data.arrays import ImagesLike
from bloodjax.data.lazy import Images, LazyImages
from bloodjax.data.options import MULTI_LABEL
from bloodjax.errors import UserError
from bloodjax.evaluation import (
    answers,
    calibration,
    referral,
    rejection,
    soup,
    thresholds,
    tta_selection,
)
from bloodjax.evaluation import site as site_lib
from bloodjax.evaluation.answers import Answers
from bloodjax.evaluation.histogram_baseline import HistogramBaseline
from bloodjax.evaluation.predictor import Predictor
from bloodjax.evaluation.referral import Referral
from bloodjax.evaluation.rejection import Detector
from bloodjax.evaluation.site import Site
from bloodjax.io import files
from bloodjax.metrics.calibration import NONE, Calibration
from bloodjax.metrics.novelty import Description
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
      calibrations: Calibrations by name (see `evaluation.calibration`); empty for a run that has
        none.
      referral: Threshold of confidence below which images are referred to a person, or None.
      detector: Detector of images unlike the training images, or None.
      thresholds: Probability of each label from which on it counts as predicted, for images with
        any number of labels; () for 0.5, and for images with one class each.
      site: What is known of the site at which it is used, or None. The network sees every image
        with the site's appearance, and every calibrated probability is adjusted to the site.
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
        calibrations: Mapping[str, Calibration] | None = None,
        referral: Referral | None = None,
        detector: Detector | None = None,
        site: Site | None = None,
        thresholds: tuple[float, ...] = (),
    ):
        self.config, self.classes, self.step, self.baseline = config, classes, step, baseline
        self.selected = selected
        self.calibrations = dict(calibrations or {})
        self.referral, self.detector, self.site = referral, detector, site
        self.thresholds = thresholds
        self.predictor = Predictor(factory.executor(config, len(classes)), variables)

    def predict(
        self, images: ImagesLike, tta: str | None = None, calibrated: bool = True
    ) -> Float[np.ndarray, "n classes"]:
        """Class probabilities of images.

        Args:
          images: uint8 images of any size, in 0..255: an array [n, height, width, 3] (RGB, not
            OpenCV's BGR), or [n, height, width] (grey), or with an axis of 1 (grey) or 4 channels
            (RGBA, laid over white) at the end; one such image without the first axis; or a list of
            images of several sizes. They become squares of the network's size as in training.
          tta: Sets of views (see `augment.views`), or "selected". By default, the views that the
            run selected, or else those of its config.
          calibrated: Whether to apply the run's calibration, if it has one. The probabilities are
            adjusted to the site in both cases.

        Raises:
          UserError: `images` are of another type or shape, or `tta` is invalid, or it is "selected"
            and the run has selected no views.
        """
        probabilities = self._predict(images, self._tta_config(tta or self.tta))
        if calibrated:
            probabilities = self.calibration(tta).apply(probabilities)
        return self.adjust(probabilities)

    def predict_with_plain(
        self, images: ImagesLike, tta: str | None = None, calibrated: bool = True
    ) -> Float[np.ndarray, "n 2 classes"]:
        """The result of `predict`, and class probabilities without test-time augmentation.

        Args:
          images: Images as for `predict`.
          tta: As for `predict`.
          calibrated: If False, both are the network's own: neither calibrated nor adjusted to the
            site, which `calibrate` does.
        """
        config = self._tta_config(tta or self.tta)
        both = self._predict(images, dataclasses.replace(config, with_plain=True))
        return self.calibrate(both, tta) if calibrated else both

    def answer(self, images: ImagesLike, tta: str | None = None) -> Answers:
        """The answers to images: classes, confidences, and which images to refer to a person.

        See `predict` for the arguments and errors.
        """
        # Lazy images are read once, for the predictions and for the detector.
        parts = lazy.parts(self._squares(images))
        return answers.concatenate([self.judge(part, self.predict(part, tta)) for part in parts])

    def judge(self, images: ImagesLike, probabilities: Float[np.ndarray, "n classes"]) -> Answers:
        """The answers to images whose calibrated class probabilities are known."""
        if self.is_multi_label:
            return answers.judge_labels(probabilities, self.thresholds)
        distance, chosen = self.distance(images), self.referral
        possible = np.isin(self.classes, self.possible_classes)
        return answers.judge(
            probabilities,
            threshold=None if chosen is None else chosen.threshold,
            unlike=None if distance is None else distance > self.detector.threshold,
            distance=distance,
            sets=None if chosen is None else chosen.sets(probabilities, possible),
        )

    def distance(self, images: ImagesLike) -> Float[np.ndarray, " n"] | None:
        """The detector's score of images, larger for more unlike; None without a detector."""
        if self.detector is None:
            return None
        squares = self._squares(images)
        return self.detector.score(self.describe_fully(squares)) if len(squares) else np.zeros(0)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.config.data.task == MULTI_LABEL

    @property
    def is_calibrated(self) -> bool:
        """Whether the run has calibrations."""
        return bool(self.calibrations)

    def calibration(self, tta: str | None = None) -> Calibration:
        """The calibration of predictions with the views `tta`, by default those of `predict`."""
        name = calibration.NO_VIEWS if (tta or self.tta) == "none" else calibration.DEFAULT
        return self.calibrations.get(name, NONE)

    def calibrate(
        self, both: Float[np.ndarray, "n 2 classes"], tta: str | None = None
    ) -> Float[np.ndarray, "n 2 classes"]:
        """The uncalibrated result of `predict_with_plain`, calibrated and adjusted to the site."""
        views_and_none = (self.calibration(tta), self.calibration("none"))
        each = [c.apply(both[:, i]) for i, c in enumerate(views_and_none)]
        return self.adjust(np.stack(each, axis=1))

    def adjust(
        self, probabilities: Float[np.ndarray, "*n classes"]
    ) -> Float[np.ndarray, "*n classes"]:
        """Calibrated probabilities as they are at the site; see `Site.adjust`."""
        return self.site.adjust(probabilities, self.classes) if self.site else probabilities

    def restrict(self, classes: str | Sequence[str]) -> None:
        """Sets the classes that can occur; the others get the probability 0.

        Args:
          classes: Names from `classes`, at least one, or a text that lists them.

        Raises:
          UserError: The images have any number of labels, whose probabilities do not depend on one
            another; or a name is no class, or listed twice.
        """
        if self.is_multi_label:
            raise UserError("--classes: the run's images have any number of labels, expected none")
        possible = site_lib.parse_classes(classes, self.classes, "classes")
        self.site = site_lib.restricted(self.site, possible)

    def change_site(self, **changes: Any) -> None:
        """Replaces attributes of the classifier's `Site`, which it gets if it has none."""
        self.site = dataclasses.replace(self.site or Site(), **changes)

    @property
    def possible_classes(self) -> tuple[str, ...]:
        """The classes that can occur at the site, in label order."""
        return (self.site and self.site.classes) or self.classes

    def at_home(self) -> Classifier:
        """The same classifier where it was trained: without a site, and with the same weights."""
        return self if self.site is None else self.at(None)

    def at(self, site: Site | None) -> Classifier:
        """The same classifier at another site, with the same weights."""
        other = copy.copy(self)
        other.site = site
        return other

    def baseline_predict(self, images: Images) -> Float[np.ndarray, "n classes"]:
        """Class probabilities of squares by the colour-histogram baseline, adjusted to the site."""
        seen = self._inputs(images) if self.site else images
        return self.adjust(self.baseline.predict(seen))

    def _predict(self, images: ImagesLike, config: TTAConfig) -> np.ndarray:
        squares = self._inputs(images)
        if len(squares) == 0:
            n = len(self.classes)
            return np.zeros((0, 2, n) if config.with_plain else (0, n), np.float32)
        return self.predictor.predict(squares, config)

    def _squares(self, images: ImagesLike) -> UInt8[np.ndarray, "n size size 3"] | LazyImages:
        """The images in the network's size."""
        data = self.config.data
        try:
            return arrays.resize(images, data.image_size, self.fit)
        except ValueError as error:
            raise UserError(str(error)) from error

    def _inputs(self, images: ImagesLike) -> UInt8[np.ndarray, "n size size 3"] | LazyImages:
        """The images as the network takes them: in its size, with the site's appearance."""
        squares = self._squares(images)
        return self.site.prepare(squares) if self.site else squares

    def predict_views(self, images: ImagesLike, tta: str) -> Float[np.ndarray, "views n classes"]:
        """Class probabilities of at least one image for each view of the sets `tta`."""
        return self.predictor.each_view(self._inputs(images), tta).swapaxes(0, 1)

    def describe(
        self, images: ImagesLike
    ) -> tuple[Float[np.ndarray, "n features"], Float[np.ndarray, "n classes"]]:
        """Features and logits of at least one image, without views, in float32."""
        return self.predictor.describe(self._inputs(images))

    def describe_fully(self, images: ImagesLike) -> Description:
        """Features, logits and appearance of at least one image, without views."""
        each = [
            Description(*self.predictor.describe(part), rejection.appearance(part))
            for part in lazy.parts(self._inputs(images))
        ]
        return Description(*(np.concatenate(values) for values in zip(*each, strict=True)))

    def explain(
        self,
        images: ImagesLike,
        classes: np.ndarray | Sequence[int] | None = None,
        method: str = attribution.DEFAULT,
    ) -> tuple[list[Float32[np.ndarray, "_ _"]], Int[np.ndarray, " n"]]:
        """Where in each image the network sees a class.

        Args:
          images: Images as for `predict`.
          classes: Index of the class to look for in each image, integers of shape (n,); by default
            the predicted one.
          method: One of `attribution.METHODS`.

        Returns:
          For each image a map in 0..1 at the image's own size, see `attribution.explain`; and the
          class that the map is about.

        Raises:
          UserError: `images` are of another type or shape, there is not a class for each, or
            `method` is unknown.
        """
        if method not in attribution.METHODS:
            raise UserError(
                f"method is {method!r}, expected one of {', '.join(attribution.METHODS)}"
            )
        squares = self._squares(images)
        if classes is None:
            classes = self.predict(squares).argmax(axis=-1)
        classes = self._checked(classes, len(squares))
        step_config = self.predictor.step_config
        maps = attribution.explain(
            step_config.model,
            self.predictor.variables,
            step_config.mean,
            step_config.std,
            self._inputs(squares),
            classes,
            method,
        )
        maps = self.site.place_back(maps) if self.site else maps
        sizes = [image.shape[:2] for image in arrays.as_rgb(images)]
        restored = [
            geometry.restore(square, *size, self.fit)
            for square, size in zip(maps, sizes, strict=True)
        ]
        return restored, classes

    def _checked(self, classes: Any, n: int) -> Int[np.ndarray, " n"]:
        """The indices of a class for each of `n` images, which may be a sequence of integers."""
        found = np.asarray(classes)
        if found.shape != (n,) or (n and found.dtype.kind not in "iu"):
            raise UserError(
                f"classes are {found.dtype} of shape {found.shape}, expected the index of a class "
                f"for each image, integers of shape ({n},)"
            )
        wrong = np.flatnonzero((found < 0) | (found >= len(self.classes)))
        if len(wrong):
            i = int(wrong[0])
            raise UserError(
                f"classes[{i}] is {found[i]}, expected 0..{len(self.classes) - 1} "
                f"({names.shown(self.classes)})"
            )
        return found.astype(int)

    @property
    def fit(self) -> str:
        """How images become squares: as at the site if that is known, else as in training."""
        return (self.site.fit if self.site else "") or self.config.data.fit

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
    model = with_files_of(run.workdir, config, classes, variables, run.best_step)
    if which != "best":  # What was fitted to the predictions of other weights does not apply.
        model.calibrations, model.referral, model.detector = {}, None, None
        model.thresholds = ()
    return model


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
    return Classifier(
        config,
        classes,
        variables,
        step,
        load_baseline(folder),
        tta_selection.load(folder),
        calibration.load(folder),
        referral.load(folder),
        rejection.load(folder),
        site_lib.load(folder, classes),
        thresholds.load(folder, classes),
    )


def load_baseline(workdir: pathlib.Path) -> HistogramBaseline | None:
    """The colour-histogram regression of the run in `workdir`, or None if it has none."""
    file = workdir / BASELINE_FILE
    if not file.exists():
        return None
    return files.read_json(file, "a colour-histogram regression", HistogramBaseline.from_dict)
