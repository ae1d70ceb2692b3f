"""Makes a run fit for another site, from images of the site: the command `adapt`.

In this order: how far the site is from the training images, the accuracy and the error behind the
referral threshold as they stand, the remedies, and what labelled cells are worth. The accuracy is
estimated again after the remedies that change the images, and the error after everything. The
result is the workdir of an adapted run, with `adaptation.json` and the page `report/site.html`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import PyTree, UInt8

from bloodjax.adaptation import (
    adapted_run,
    labelled,
    remedies,
    self_training,
    site_distance,
    site_images,
    site_look,
    site_promises,
)
from bloodjax.adaptation.fine_tuning import LabelledImages
from bloodjax.adaptation.labelled import Labelled
from bloodjax.adaptation.remedies import Remedy
from bloodjax.adaptation.site_distance import SiteDistance
from bloodjax.adaptation.site_images import SiteImages
from bloodjax.cli import console
from bloodjax.data import lazy, spec
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import columns as columns_lib
from bloodjax.data.lazy import Images
from bloodjax.errors import UserError
from bloodjax.evaluation import (
    calibration,
    classifier,
    multi_label,
    referral,
    rejection,
    uncertainty,
)
from bloodjax.evaluation import site as site_lib
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.site import Site
from bloodjax.metrics import label_shift
from bloodjax.report import site_page
from bloodjax.report.site_page import SitePictures
from bloodjax.training import class_balance, saved_splits
from bloodjax.training.workdir import open_run

_REHEARSED = 1600  # training cells that self-training rehearses
_CHECKED = 600  # validation cells that it, and the shares of the classes, are checked on


def adapt(
    workdir: pathlib.Path,
    data: str,
    out: pathlib.Path,
    *,
    labelled_data: str | None = None,
    classes: str | None = None,
    columns: str | None = None,
    images: str | None = None,
) -> dict[str, Any]:
    """Adapts a run to a site, and writes the adapted run.

    Args:
      workdir: Folder of the run.
      data: Images of the site, as `sources.load_images` reads them. Their labels are not looked at.
      out: Folder of the adapted run; it must not exist.
      labelled_data: SPEC of labelled images of the site, other than those of `data`.
      classes: Classes that occur at the site, joined by ","; by default those of the run's site.
      columns: What the columns of tables mean, as `config.data.columns`; by default as the run's.
      images: Folder of the images of tables; by default the table's own.

    Returns:
      The content of `adaptation.json`.

    Raises:
      UserError: An argument or a file is invalid. Nothing is written then.
    """
    adapted_run.check(out, workdir)
    spec.check_images(filter(None, (data, labelled_data)), images)
    with open_run(workdir) as run:
        model = classifier.from_run(run)
    multi_label.refuse(model.config, "adapt")
    # Of a run that was adapted before, the look and the shares are those of other images.
    model.site = Site(model.possible_classes) if model.site else None
    if classes is not None:
        model.restrict(site_lib.parse_classes(classes, model.classes, "--classes"))
    if not model.is_calibrated:
        raise UserError(
            f"--workdir={workdir}: the run has no calibration, which estimates at another site "
            f"need; to fit one: bloodjax evaluate --workdir={workdir} --calibrate"
        )
    reading = {"columns": columns_lib.check_flag(columns), "images": images or ""}
    if labelled_data is None:
        of_site, of_labels = SiteImages.read(model, data, reading), None
    else:
        of_site, of_labels = site_images.read_with_labelled(model, data, labelled_data, reading)
    splits = {
        name: saved_splits.recall(
            model.config,
            workdir / saved_splits.SPLITS_FILE,
            model.classes,
            name,
            lazy=name == "train",
        )
        for name in ("train", "validation")
    }
    with adapted_run.create(out) as folder:
        result = _adapt(model, of_site, of_labels, splits, folder, labelled_data)
        adapted_run.fill(
            folder,
            workdir,
            variables=result.variables,
            site=result.model.site,
            about=result.about,
            labelled=result.labelled,
        )
        if result.is_fitted:
            _write_fitted(result.model, folder)
        site_page.write(folder, result.about, result.pictures, out.name)
        about = result.about
    console.log_info(f"written to {out}; the page is {out / 'report' / site_page.FILE}")
    return about


@dataclasses.dataclass(frozen=True)
class _Result:
    """An adapted classifier.

    Attributes:
      model: The classifier, with its site.
      variables: New variables of the network; None if they are the run's.
      labelled: Labelled images that were learned, as the network reads them; None for none.
      about: The content of `adaptation.json`.
      pictures: Images for the page.
      is_fitted: Whether calibration, threshold or detector are not those of the run.
    """

    model: Classifier
    variables: PyTree | None
    labelled: Dataset | None
    about: dict[str, Any]
    pictures: SitePictures
    is_fitted: bool


def _adapt(
    model: Classifier,
    images: SiteImages,
    of_labels: Dataset | None,
    splits: dict[str, Dataset],
    folder: pathlib.Path,
    labelled_data: str | None,
) -> _Result:
    train, validation = splits["train"], splits["validation"]
    before, possible = images, model.possible_classes
    distance = site_distance.measure(model, images.dataset.images, train, possible)
    _say_distance(distance)
    estimate, promise = {}, {}
    estimate["before"] = site_promises.accuracy("before", model, images, validation)
    promise["before"] = site_promises.referral(model, images, validation)
    tried, images = site_look.change(model, images, train)
    # Before the network learns from its own answers, which makes it surer of them, right or wrong.
    estimate["after"], promise["after"] = estimate["before"], promise["before"]
    if any(one.applied for one in tried):
        estimate["after"] = site_promises.accuracy("after", model, images, validation)
    variables, remedy = self_training.fit(
        model,
        images.measured(),
        _cells(train, _REHEARSED),
        _cells(validation, _CHECKED),
        model.config.seed,
    )
    remedy.log()
    tried.append(remedy)
    if variables is not None:
        model = _refitted(model, variables, train, validation, folder)
    shares, tried_shares = _shares(model, images, train, validation)
    tried_shares.log()
    found = None
    if of_labels is not None:
        of_labels = site_images.read_labelled(model, labelled_data, images.reading)
        found = labelled.fit(
            model,
            of_labels,
            train,
            validation,
            model.config.seed,
            progress=folder / adapted_run.PROGRESS,
        )
        if found.variables is not None:
            variables = found.variables
            model = _refitted(model, variables, train, validation, folder)
        _calibrate(model, found, validation)
    if of_labels is not None or any(one.applied for one in (*tried, tried_shares)):
        promise["after"] = site_promises.referral(model, images, validation)
    about = {
        "site": {"source": images.path, "n": len(images.dataset), "classes": list(possible)},
        "distance": json.loads(json.dumps(distance.to_dict())),
        "accuracy_estimate": estimate,
        "referral": promise,
        "shares": shares,
        "remedies": [remedy.to_dict() for remedy in (*tried, tried_shares)],
        "labelled": None if found is None else _described(found),
    }
    pictures = _pictures(model, before, images, train)
    fitted = variables is not None or found is not None
    return _Result(model, variables, of_labels, about, pictures, fitted)


def _shares(
    model: Classifier, images: SiteImages, train: Dataset, validation: Dataset
) -> tuple[dict[str, Any], Remedy]:
    """Estimates the shares of the classes; if they are believed, `model` corrects for them."""
    classes = len(model.classes)
    training = np.bincount(train.labels, minlength=classes) / len(train)
    expected = training
    # A bias of each class has brought the probabilities to the shares of the validation images.
    if model.calibrations[calibration.DEFAULT].method != "vector":
        expected = class_balance.implied_shares(model.config, train.labels, classes)
    known = _cells(validation, _CHECKED)
    home = model.at_home().predict(known.images)
    answers = model.answer(images.dataset.images)
    found = label_shift.estimate(answers.probabilities, expected, home, known.labels)
    remedy = remedies.judge_shares(found, site_promises.share_unlike(answers))
    if remedy.applied:
        ratio = np.clip(found.ratio, 1e-3, 1e3)
        model.change_site(share_ratio=tuple(float(value) for value in ratio))
    columns = {"training": training, "site": found.site, "low": found.low, "high": found.high}
    return {"classes": list(model.classes)} | {k: v.tolist() for k, v in columns.items()}, remedy


def _cells(dataset: Dataset, most: int) -> LabelledImages:
    """At most `most` of the cells, with their labels."""
    rows = np.sort(np.random.default_rng(0).permutation(len(dataset))[:most])
    return LabelledImages(np.asarray(lazy.take(dataset.images, rows)), dataset.labels[rows])


def _refitted(
    model: Classifier, variables: PyTree, train: Dataset, validation: Dataset, folder: pathlib.Path
) -> Classifier:
    """The classifier with new variables; what is fitted to its answers at home is fitted anew."""
    other = Classifier(
        model.config, model.classes, variables, model.step, model.baseline, model.selected
    )
    uncertainty.fit_run(other, folder, train, validation)
    other.site = model.site
    return other


def _calibrate(model: Classifier, found: Labelled, validation: Dataset) -> None:
    """Gives the classifier the calibration of the labelled cells, and a threshold to go with it."""
    model.calibrations = dict(found.calibration)
    options = model.config.evaluation
    model.referral = referral.fit(
        model.at_home().predict(validation.images),
        validation.labels,
        options.target_error,
        options.conformal,
    )


def _write_fitted(model: Classifier, folder: pathlib.Path) -> None:
    """Writes what was fitted anew to the folder of the adapted run."""
    calibration.write(folder, model.calibrations, {"tta": model.tta})
    if model.referral is not None:
        referral.write(folder, model.referral)
    if model.detector is not None:
        rejection.write(folder, model.detector)


def _described(found: Labelled) -> dict[str, Any]:
    return {
        "method": found.method,
        "cross_validation": found.cross_validation,
        "home": found.home,
    }


def _pictures(
    model: Classifier, before: SiteImages, after: SiteImages, train: Dataset
) -> SitePictures:
    def spread(images: Images) -> UInt8[np.ndarray, "n size size 3"]:
        # Folders of classes come one after another.
        rows = np.linspace(0, len(images) - 1, min(site_page.MAX_PICTURES, len(images)))
        return np.asarray(lazy.take(images, rows.astype(int)))

    site, changed = model.site or Site(), None
    if site.fit or site.appearance is not None:
        changed = np.asarray(site.prepare(spread(after.dataset.images)))
    return SitePictures(spread(train.images), spread(before.dataset.images), changed)


def _say_distance(distance: SiteDistance) -> None:
    for one in (*distance.shares, *distance.measures):
        if one.state == site_distance.FAR:
            console.log_info(one.sentence)
