"""Fits to a trained run what says when to believe it, on splits that it was not trained on.

The calibration of its probabilities, the detector of images that are unlike the training images,
and the threshold of confidence below which images are referred to a person. They are written to
the run's folder and set in its classifier.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from bloodjax import config as config_lib
from bloodjax import distributed, metrics
from bloodjax.cli import console
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import calibration, multi_label, referral, rejection
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io.files import make_folder
from bloodjax.metrics import calibration as scaling


def fit_run(
    model: Classifier, workdir: pathlib.Path, train: Dataset, validation: Dataset | None
) -> rejection.Described | None:
    """Fits all three and writes `calibration.json`, `referral.json` and the detector's files.

    The images are of the laboratory where the run was trained, so the classifier's site does not
    apply to them.

    Args:
      model: The classifier of the run; its views are final. It gets what is fitted.
      workdir: Folder of the run.
      train: Training split of the run.
      validation: Validation split of the run. Without one, nothing is fitted.

    Returns:
      Features of training images that the fit of the detector needed; None if it needed none.

    Raises:
      UserError: `workdir` cannot be written to.
    """
    make_folder(workdir)
    if model.is_multi_label:
        multi_label.fit_run(model, workdir, validation)
        return None
    home = model.at_home()
    described = _fit(home, workdir, train, validation)
    model.calibrations, model.referral = home.calibrations, home.referral
    model.detector = home.detector
    return described


def _fit(
    model: Classifier, workdir: pathlib.Path, train: Dataset, validation: Dataset | None
) -> rejection.Described | None:
    described = rejection.fit_run(model, workdir, train, validation)
    if validation is None:
        model.calibrations, model.referral = {}, None
        if distributed.is_primary():
            for name in (calibration.FILE, referral.FILE):
                (workdir / name).unlink(missing_ok=True)
        console.log_info(
            "no validation split: the probabilities are not calibrated, and no threshold of "
            "confidence is chosen"
        )
        return described
    options, labels = model.config.evaluation, validation.labels
    raw = model.predict_with_plain(validation.images, calibrated=False)
    found = {
        name: scaling.fit(raw[:, i], labels, options.calibration, model.config.seed)
        for i, name in enumerate((calibration.DEFAULT, calibration.NO_VIEWS))
    }
    if model.tta == "none":
        found[calibration.DEFAULT] = found[calibration.NO_VIEWS]
    model.calibrations = found
    calibrated = model.calibrate(raw)[:, 0]
    before, after = (metrics.quick(p, labels) for p in (raw[:, 0], calibrated))
    details = {"tta": model.tta, "n": len(validation)}
    for key in ("nll", "ece"):
        source = "loss" if key == "nll" else key
        details |= {f"{key}_before": before[source], key: after[source]}
    calibration.write(workdir, found, details)
    console.log_info(_calibration_line(found[calibration.DEFAULT], details))
    model.referral = referral.fit(calibrated, labels, options.target_error, options.conformal)
    referral.write(workdir, model.referral)
    if model.referral.answers_nothing:
        console.log_info(
            "no threshold of confidence has an error of at most "
            f"{100 * options.target_error:g} % on validation: every image is referred"
        )
    return described


def _calibration_line(found: scaling.Calibration, details: Mapping[str, object]) -> str:
    if found.method == "none":
        return "calibration: none, as the config says"
    return (
        f"calibration: {found.method} scaling, temperature {found.temperature:.3f}; validation "
        f"loss {details['nll_before']:.4f} -> {details['nll']:.4f}, calibration error "
        f"{100 * details['ece_before']:.2f} % -> {100 * details['ece']:.2f} %"
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
