"""Fits to a trained run what says when to believe it, on splits that it was not trained on.

The calibration of its probabilities, the detector of images that are unlike the training images,
and the threshold of confidence below which images are referred to a person. If an image can have
several labels, each label gets a calibration and a threshold from which on it counts as predicted;
what compares the classes of an image with one another is not fitted. All are written to the run's
folder and set in its classifier.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from bloodjax import config as config_lib
from bloodjax import distributed, metrics
from bloodjax.cli import console
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import calibration, referral, rejection, thresholds
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io.files import make_folder
from bloodjax.metrics import calibration as scaling
from bloodjax.metrics import label_calibration, multi_label


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What `fit_run` computed on the way, which need not be computed again.

    Attributes:
      described: Features of training images that the fit of the detector needed; None if it needed
        none.
      raw: Probabilities of the validation images before calibration, with the run's views and
        without, as from `Classifier.predict_with_plain`; None without a validation split.
    """

    described: rejection.Described | None
    raw: Float[np.ndarray, "n 2 classes"] | None


def fit_run(
    model: Classifier, workdir: pathlib.Path, train: Dataset, validation: Dataset | None
) -> Fitted:
    """Fits what the module lists, and writes `calibration.json` and the other files.

    The images are of the laboratory where the run was trained, so the classifier's site does not
    apply to them.

    Args:
      model: The classifier of the run; its views are final. It gets what is fitted.
      workdir: Folder of the run.
      train: Training split of the run.
      validation: Validation split of the run. Without one, nothing is fitted.

    Raises:
      UserError: `workdir` cannot be written to.
    """
    make_folder(workdir)
    home = model.at_home()
    described = raw = None
    if home.is_multi_label:
        console.log_info(
            "images of several labels: the run has no colour-histogram baseline, referral, "
            "detector of unlike images or label review"
        )
    else:
        described = rejection.fit_run(home, workdir, train, validation)
    if validation is None:
        _forget(home, workdir)
    else:
        raw = home.predict_with_plain(validation.images, calibrated=False)
        (_fit_labels if home.is_multi_label else _fit_classes)(home, workdir, validation, raw)
    model.calibrations, model.detector = home.calibrations, home.detector
    model.referral, model.thresholds = home.referral, home.thresholds
    return Fitted(described, raw)


def _forget(model: Classifier, workdir: pathlib.Path) -> None:
    """Removes what an earlier fit left, because nothing is fitted without a validation split."""
    model.calibrations, model.referral, model.thresholds = {}, None, ()
    if distributed.is_primary():
        for name in (calibration.FILE, referral.FILE, thresholds.FILE):
            (workdir / name).unlink(missing_ok=True)
    console.log_info(
        "no validation split: the labels are not calibrated, thresholds are 0.5"
        if model.is_multi_label
        else "no validation split: the probabilities are not calibrated, and no threshold of "
        "confidence is chosen"
    )


def _fit_classes(
    model: Classifier, workdir: pathlib.Path, validation: Dataset, raw: np.ndarray
) -> None:
    options, labels = model.config.evaluation, validation.labels
    calibrated, change = _calibrate(
        model,
        workdir,
        labels,
        raw,
        lambda one: scaling.fit(one, labels, options.calibration, model.config.seed),
    )
    found = model.calibrations[calibration.DEFAULT]
    console.log_info(
        "calibration: none, as the config says"
        if found.method == "none"
        else f"calibration: {found.method} scaling, temperature {found.temperature:.3f}; {change}"
    )
    model.referral = referral.fit(calibrated, labels, options.target_error, options.conformal)
    referral.write(workdir, model.referral)
    if model.referral.answers_nothing:
        console.log_info(
            "no threshold of confidence has an error of at most "
            f"{100 * options.target_error:g} % on validation: every image is referred"
        )


def _fit_labels(
    model: Classifier, workdir: pathlib.Path, validation: Dataset, raw: np.ndarray
) -> None:
    method, labels = model.config.evaluation.calibration, validation.labels
    calibrated, change = _calibrate(
        model,
        workdir,
        labels,
        raw,
        lambda one: label_calibration.fit(
            one, labels, validation.strata, method, model.config.seed
        ),
    )
    found = model.calibrations[calibration.DEFAULT]
    console.log_info(f"calibration of each label: {found.method} scaling; {change}")
    model.thresholds = tuple(multi_label.fit_thresholds(calibrated, labels).tolist())
    thresholds.write(workdir, model.classes, model.thresholds)


def _calibrate(
    model: Classifier,
    workdir: pathlib.Path,
    labels: np.ndarray,
    raw: np.ndarray,
    fit: Callable[[np.ndarray], scaling.Calibration],
) -> tuple[np.ndarray, str]:
    """Calibrates the run with and without views by `fit`, a function of probabilities.

    Returns:
      Calibrated probabilities of the images, and in words how their loss and error change.
    """
    found = {
        name: fit(raw[:, i]) for i, name in enumerate((calibration.DEFAULT, calibration.NO_VIEWS))
    }
    if model.tta == "none":
        found[calibration.DEFAULT] = found[calibration.NO_VIEWS]
    model.calibrations = found
    calibrated = model.calibrate(raw)[:, 0]
    before, after = (metrics.quick(p, labels) for p in (raw[:, 0], calibrated))
    details = {"tta": model.tta, "n": len(labels)}
    for key, source in (("nll", "loss"), ("ece", "ece")):
        details |= {f"{key}_before": before[source], key: after[source]}
    calibration.write(workdir, found, details)
    return calibrated, (
        f"validation loss {before['loss']:.4f} -> {after['loss']:.4f}, calibration error "
        f"{100 * before['ece']:.2f} % -> {100 * after['ece']:.2f} %"
    )


def remark(model: Classifier | Ensemble, workdirs: Sequence[pathlib.Path]) -> str | None:
    """One line if a run has no calibration, and how to fit one; otherwise None."""
    members = model.members if isinstance(model, Ensemble) else {workdirs[0]: model}
    for folder, member in members.items():
        if member.is_calibrated:
            continue
        found = (
            f"{folder}: the run has no calibration, so probabilities are those of the network and "
            "no image is referred as unsure; "
        )
        if config_lib.split_source(member.config, "validation").fraction == 0:
            return found + "it has no validation split to fit one on"
        return found + f"to fit one: bloodjax evaluate --workdir={folder} --calibrate"
    return None
