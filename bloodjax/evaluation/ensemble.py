"""An ensemble: the mean of the class probabilities of several trained classifiers."""

from __future__ import annotations

import copy
import itertools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int

from bloodjax import attribution, metrics
from bloodjax import config as config_lib
from bloodjax.attribution import geometry
from bloodjax.data import arrays, lazy
from bloodjax.data.arrays import ImagesLike
from bloodjax.data.lazy import Images
from bloodjax.errors import UserError
from bloodjax.evaluation import answers, classifier, model_folder
from bloodjax.evaluation.answers import Answers
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.histogram_baseline import HistogramBaseline
from bloodjax.evaluation.referral import Referral
from bloodjax.io import bucket_urls, remote
from bloodjax.training.workdir import CONFIG_FILE


class Ensemble:
    """Classifiers of the same classes, with the interface of a single one.

    The members may be different networks; each resizes the images to its own size.

    Attributes:
      members: Folder of each run -> its classifier.
      classes: Class names in label order.
      config: Config of the first member, with the largest `data.image_size` of all members.
      step: None, because each member has its own.
      baseline: Colour-histogram regression to compare the ensemble with, or None.
    """

    step = None

    def __init__(
        self,
        members: dict[pathlib.Path, Classifier],
        baseline: HistogramBaseline | None = None,
    ):
        """Combines classifiers.

        Args:
          members: Folder of each run -> its classifier.
          baseline: Colour-histogram regression; by default the first member's.

        Raises:
          UserError: The members have different classes.
        """
        (first, model), *others = members.items()
        for folder, member in others:
            if member.classes != model.classes:
                raise UserError(
                    f"{folder}: has the classes {', '.join(member.classes)}; expected those of "
                    f"{first}: {', '.join(model.classes)}"
                )
        for folder, member in others:
            if member.is_multi_label != model.is_multi_label:
                raise UserError(
                    f"{folder}: has config.data.task {member.config.data.task}; expected that of "
                    f"{first}: {model.config.data.task}"
                )
            if member.fit != model.fit:
                raise UserError(
                    f"{folder}: has data.fit {member.fit}; expected that of {first}: {model.fit}"
                )
        scales = {member.config.data.scale for member in members.values()} - {""}
        if len(scales) > 1:
            raise UserError(
                f"{', '.join(map(str, members))}: were trained on values of different scales "
                f"({', '.join(sorted(scales))}), expected one scale"
            )
        size = max(member.config.data.image_size for member in members.values())
        content = model.config.to_dict()
        content["data"] |= {"image_size": size, "scale": next(iter(scales), "")}
        self.members, self.classes = members, model.classes
        self.config = config_lib.validate(content)
        self.baseline = baseline or model.baseline

    @property
    def fit(self) -> str:
        """How images become squares, for all members alike."""
        return next(iter(self.members.values())).fit

    @property
    def tta(self) -> str:
        """The default views of the members, each listed once."""
        return ", ".join(sorted({member.tta for member in self.members.values()}))

    def check_tta(self, tta: str | None) -> None:
        """Raises the UserError that `predict` would raise for `tta`, before images are read."""
        for member in self.members.values():
            member.check_tta(tta)

    def predict(
        self, images: ImagesLike, tta: str | None = None, calibrated: bool = True
    ) -> Float[np.ndarray, "n classes"]:
        """Class probabilities, averaged over the members after their calibrations.

        See `Classifier.predict`.
        """
        each = [one.predict(seen, tta, calibrated) for one, seen in self.each_with(images)]
        return np.mean(each, axis=0)

    def predict_members(
        self, images: ImagesLike, tta: str | None = None, calibrated: bool = True
    ) -> Float[np.ndarray, "members n 2 classes"]:
        """Class probabilities by each member; see `Classifier.predict_with_plain`."""
        return np.stack(
            [one.predict_with_plain(seen, tta, calibrated) for one, seen in self.each_with(images)]
        )

    def calibrate(
        self, each: Float[np.ndarray, "members n 2 classes"], tta: str | None = None
    ) -> Float[np.ndarray, "members n 2 classes"]:
        """The uncalibrated result of `predict_members` after `Classifier.calibrate` of each."""
        members = self.members.values()
        return np.stack([one.calibrate(both, tta) for one, both in zip(members, each, strict=True)])

    def adjust(
        self, each: Float[np.ndarray, "members *n classes"]
    ) -> Float[np.ndarray, "members *n classes"]:
        """Each member's probabilities as they are at its site; see `Site.adjust`."""
        members = self.members.values()
        return np.stack([one.adjust(its) for one, its in zip(members, each, strict=True)])

    def restrict(self, classes: str | Sequence[str]) -> None:
        """Sets the classes that can occur; see `Classifier.restrict`."""
        for member in self.members.values():
            member.restrict(classes)

    @property
    def possible_classes(self) -> tuple[str, ...]:
        """The classes that can occur according to any member, in label order."""
        possible = {name for one in self.members.values() for name in one.possible_classes}
        return tuple(name for name in self.classes if name in possible)

    def at_home(self) -> Ensemble:
        """The same ensemble, each member where it was trained; see `Classifier.at_home`."""
        return Ensemble({at: one.at_home() for at, one in self.members.items()}, self.baseline)

    def baseline_predict(self, images: Images) -> Float[np.ndarray, "n classes"]:
        """Class probabilities by the colour-histogram baseline, at the first member's site."""
        first = copy.copy(next(iter(self.members.values())))
        first.baseline = self.baseline
        return first.baseline_predict(images)

    def answer(self, images: ImagesLike, tta: str | None = None) -> Answers:
        """The answers to images; see `judge` and `Classifier.answer`."""
        parts = lazy.parts(images)
        return answers.concatenate([self.judge(part, self.predict(part, tta)) for part in parts])

    def judge(self, images: ImagesLike, probabilities: Float[np.ndarray, "n classes"]) -> Answers:
        """The answers to images whose calibrated class probabilities are known.

        An image is unlike the training cells if more than half of the members say so. The distance
        is the share of the members that do.
        """
        if self.is_multi_label:
            return answers.judge_labels(probabilities, self.thresholds)
        votes = []
        for member, seen in self.each_with(images):
            distance = member.distance(seen)
            if distance is not None:
                votes.append(distance > member.detector.threshold)
        share = np.mean(votes, axis=0) if votes else None
        chosen = self.referral
        possible = np.isin(self.classes, self.possible_classes)
        return answers.judge(
            probabilities,
            threshold=None if chosen is None else chosen.threshold,
            unlike=None if share is None else share > 0.5,
            distance=share,
            sets=None if chosen is None else chosen.sets(probabilities, possible),
        )

    def explain(
        self,
        images: ImagesLike,
        classes: np.ndarray | Sequence[int] | None = None,
        method: str = attribution.DEFAULT,
    ) -> tuple[list[Float32[np.ndarray, "_ _"]], Int[np.ndarray, " n"]]:
        """The mean of the members' maps; see `Classifier.explain`."""
        if classes is None:
            classes = self.predict(images).argmax(axis=-1)
        each = []
        for one, seen in self.each_with(images):
            maps, classes = one.explain(seen, classes, method)
            each.append(maps)
        return [_mean_map(maps) for maps in zip(*each, strict=True)], classes

    def each_with(self, images: ImagesLike) -> list[tuple[Classifier, ImagesLike]]:
        """Each member, with the images as it takes them.

        Images of the ensemble's size are squares already, whatever `config.data.fit` is, as they
        are for a single classifier of that size.

        Raises:
          UserError: `images` are of another type or shape.
        """
        side, found = self.config.data.image_size, []
        for member in self.members.values():
            size, seen = member.config.data.image_size, images
            if size != side:
                try:
                    seen = arrays.resize_squares(images, side, size)
                except ValueError as error:
                    raise UserError(str(error)) from error
            found.append((member, seen))
        return found

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return next(iter(self.members.values())).is_multi_label

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The mean of the members' thresholds of labels; () unless every member has some."""
        each = [member.thresholds for member in self.members.values()]
        return tuple(np.mean(each, axis=0).tolist()) if all(each) else ()

    @property
    def is_calibrated(self) -> bool:
        """Whether every member has calibrations."""
        return all(member.is_calibrated for member in self.members.values())

    @property
    def referral(self) -> Referral | None:
        """The strictest thresholds of the members; None unless every member has some.

        The mean of several members is about as confident as each of them where they agree, and
        less where they do not. So the highest threshold of confidence and the lowest threshold of
        a conformal set are conservative.
        """
        each = [member.referral for member in self.members.values()]
        if None in each:
            return None
        return Referral(
            target_error=min(one.target_error for one in each),
            threshold=max(one.threshold for one in each),
            n=min(one.n for one in each),
            alpha=min(one.alpha for one in each),
            set_threshold=min(one.set_threshold for one in each),
        )

    def member_metrics(
        self, each: Float[np.ndarray, "members n classes"], labels: np.ndarray
    ) -> list[dict[str, object]]:
        """Metrics of each member (`metrics.quick`), with its folder, network and step.

        Args:
          each: Class probabilities by each member.
          labels: True class indices.
        """
        return [
            {
                "workdir": str(folder),
                "network": member.config.model.name,
                "step": member.step,
                **metrics.quick(probabilities, labels),
            }
            for (folder, member), probabilities in zip(self.members.items(), each, strict=True)
        ]


def _mean_map(maps: Sequence[Float32[np.ndarray, "_ _"]]) -> Float32[np.ndarray, "_ _"]:
    """The mean of the members' maps of one image; those of smaller squares are enlarged."""
    size = max(one.shape for one in maps)
    return np.mean(
        [one if one.shape == size else geometry.restore(one, *size, "crop") for one in maps],
        axis=0,
    )


def load(
    workdirs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> Classifier | Ensemble:
    """Loads the classifier of a run, or the ensemble of several runs or of the folds of one.

    Args:
      workdirs: Folder of a run, or one that `bloodjax export --format=hub` wrote, or the URL of
        one in a bucket; or several of these.

    Raises:
      UserError: A folder has no run, or a run has no valid checkpoint; a folder is listed twice;
        or the classes differ.
    """
    if isinstance(workdirs, (str, os.PathLike)):
        workdirs = [workdirs]
    workdirs = [_local(workdir) for workdir in workdirs]
    folders = [fold for workdir in workdirs for fold in fold_folders(workdir)]
    if not folders:
        raise UserError("no workdir is named, expected the folder of at least one run")
    real = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, real, strict=True):
        if real.count(path) > 1:
            raise UserError(f"{folder}: is named twice, expected different runs")
    members = {
        folder: (model_folder if model_folder.is_model_folder(folder) else classifier).load(folder)
        for folder in folders
    }
    if len(members) == 1:
        return members[folders[0]]
    return Ensemble(members, classifier.load_baseline(workdirs[0]))


def _local(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """A path on this machine; of a workdir in a bucket, that of its present copy in the cache."""
    workdir = os.fspath(workdir)
    bucket_urls.check(workdir)
    if bucket_urls.is_remote(workdir):
        return remote.local_copy(workdir)
    return pathlib.Path(os.path.expanduser(workdir))


def fold_folders(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Folders of the folds of a run; the run's own folder if it has no folds."""
    if model_folder.is_model_folder(workdir):
        return [workdir]
    file = workdir / CONFIG_FILE
    folds = config_lib.load_json(file).folds if file.is_file() else 0
    if folds == config_lib.LEAVE_ONE_GROUP_OUT:  # all folds were made before the config was written
        numbers = itertools.count()
        folds = next(i for i in numbers if not (workdir / f"fold{i}" / CONFIG_FILE).is_file())
    return [workdir / f"fold{i}" for i in range(folds)] or [workdir]
