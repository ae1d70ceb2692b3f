"""Evaluates a classifier on labelled images, and a trained run on its splits."""

from __future__ import annotations

import json
import pathlib
import types
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from bloodjax import distributed, metrics
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.config.validation import WATCHED
from bloodjax.data import splits as splits_lib
from bloodjax.data.dataset import Dataset
from bloodjax.data.options import MULTI_LABEL
from bloodjax.errors import UserError
from bloodjax.evaluation import answers as answers_lib
from bloodjax.evaluation import (
    classifier,
    groups,
    histogram_baseline,
    label_review,
    multi_label,
    rejection,
    run_report,
    soup,
    tables,
    tta_selection,
    uncertainty,
)
from bloodjax.evaluation import results as results_lib
from bloodjax.evaluation.answers import Answers, LabelAnswers
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io.files import atomic_write, make_folder
from bloodjax.metrics import classification, conformal, grouped, selective, significance
from bloodjax.training.input_pipeline import Splits
from bloodjax.training.workdir import BASELINE_FILE, open_run

_PREDICTIONS = "predictions.csv"
# What `evaluate` writes.
FILES = (results_lib.METRICS_FILE, _PREDICTIONS, groups.FILE)


def finish(config: Config, workdir: pathlib.Path, splits: Splits) -> dict[str, dict]:
    """Evaluates a trained run on test and validation, and writes its report.

    Fits the colour-histogram baseline, makes the soup and selects the views if the config asks for
    them, fits calibration, detector and referral (`uncertainty.fit_run`), and evaluates the best
    weights; distorted copies of the splits are evaluated too. Writes `baseline.json`,
    `evaluate/<split>/` and `report/index.html`.

    Args:
      config: Config of the run.
      workdir: Folder of the run.
      splits: Splits of the run.

    Returns:
      The content of `metrics.json` of each split, test first.
    """
    if not splits.train.is_multi_label:
        write_baseline(workdir, splits.train)
    distributed.barrier()  # The other processes read the baseline.
    with open_run(workdir) as run:
        if config.soup:
            evaluated = splits.evaluated("validation")
            monitored = WATCHED[config.early_stopping.set] if evaluated else ()
            datasets = [evaluated[name] for name in monitored]
            soup.make(config, workdir, run.checkpoints, datasets)
            distributed.barrier()  # The other processes read the soup.
        model = classifier.from_run(run)
        comparisons = {}
        if soup.is_chosen(workdir):
            comparisons["best epoch alone"] = classifier.from_run(run, "epoch")
        if config.ema:
            comparisons["raw weights"] = classifier.from_run(run, "raw")
    options = config.evaluation
    if options.tta_select != "none" and splits.validation is not None:
        select_views(model, workdir, splits.validation, options.tta, options.tta_select)
        for other in comparisons.values():  # Their predictions are averaged over the same views.
            other.selected = model.selected
    fitted = uncertainty.fit_run(model, workdir, splits.train, splits.validation)
    results, headline, known = {}, None, {}
    for name, dataset in splits.evaluated("test", "validation").items():
        out = workdir / "evaluate" / name
        source = results_lib.of_run(name, dataset.reading.spec)
        result, probabilities = evaluate(
            model,
            dataset,
            out,
            tta=model.tta,
            source=source,
            comparisons=comparisons,
            trained_groups=splits_lib.in_groups_of(dataset, splits.train),
            raw=fitted.raw if name == "validation" else None,
        )
        headline = headline or run_report.Headline(dataset, probabilities)
        results[name], known[name] = result, probabilities
        for line in lines(name, result):
            console.log_info(line)
    review = None
    if options.label_review and not model.is_multi_label:
        review = label_review.review(model, workdir, splits, known, fitted.described)
    run_report.write(config, workdir, splits, model, results, headline, review)
    return results


def evaluate(
    model: Classifier | Ensemble,
    dataset: Dataset,
    out: pathlib.Path,
    *,
    tta: str | None,
    source: Mapping[str, object],
    comparisons: Mapping[str, Classifier] = types.MappingProxyType({}),
    trained_groups: Bool[np.ndarray, " n"] | None = None,
    raw: Float[np.ndarray, "n 2 classes"] | None = None,
) -> tuple[dict[str, object], Float[np.ndarray, "n classes"]]:
    """Evaluates a model on `dataset`, and writes `metrics.json` and `predictions.csv`.

    Args:
      model: The classifier or ensemble.
      dataset: Labelled images of the same classes.
      out: Folder to write to; it is created if needed.
      tta: Views to average over; by default those of the model.
      source: What the images are, from `results.of_run` or `results.of_data`.
      comparisons: Other classifiers by name, whose metrics are written too.
      trained_groups: Whether each image is of a group, such as a patient, that the model was
        trained on; None if there is no such image.
      raw: The result of `predict_with_plain` without calibration, of a classifier, if it is known.

    Returns:
      The content of `metrics.json`, and the class probabilities. The content is that of
      `metrics.evaluate` for calibrated probabilities, and in addition
      "calibration": the calibration, and scores before it;
      "groups": figures by group, such as patient, if the images have groups (`grouped.evaluate`);
      "selective": the risk-coverage curve, its area, and the operating point;
      "rejection": the detector of unlike images, and the share of the images that it rejects;
      "conformal": coverage and size of the conformal sets;
      "source": the source of the images;
      "site_classes": the classes that can occur, if not all can;
      "step" and "tta": step and views of the model;
      "tta_effect": the effect of the views (`significance.compare`);
      "members": metrics of an ensemble's members (`Ensemble.member_metrics`);
      "baseline": accuracy of the colour-histogram baseline;
      "beside": metrics of the `comparisons` (`metrics.quick`), which have no calibration.
    What the model has no thresholds or calibration for is left out.

    Raises:
      UserError: `out` cannot be written to, or `tta` is invalid.
    """
    if dataset.is_multi_label != model.is_multi_label:
        several, one = "any number of labels", "one class each"
        found, expected = (several, one) if dataset.is_multi_label else (one, several)
        raise UserError(
            f"{dataset.reading.spec}: its images have {found}, expected {expected}, as the run's"
        )
    make_folder(out)
    members = []
    if isinstance(model, Ensemble):
        raw = model.predict_members(dataset.images, tta, calibrated=False)
        each = model.calibrate(raw, tta)
        before, both = model.adjust(raw).mean(axis=0)[:, 0], each.mean(axis=0)
        members = model.member_metrics(each[:, :, 0], dataset.labels)
    else:
        if raw is None:
            raw = model.predict_with_plain(dataset.images, tta, calibrated=False)
        before, both = model.adjust(raw[:, 0]), model.calibrate(raw, tta)
    probabilities, plain = both[:, 0], both[:, 1]
    config, answers = model.config, model.judge(dataset.images, probabilities)
    result = score(probabilities, dataset, config, trained_groups)
    if model.is_calibrated:
        result["calibration"] = _calibration(model, tta, before, dataset.labels)
    result |= judged(model, answers, dataset.labels)
    result |= {"source": dict(source), "step": model.step, "tta": tta or model.tta}
    if result["tta"] != "none" and not model.is_multi_label:
        result["tta_effect"] = significance.compare(
            probabilities,
            plain,
            dataset.labels,
            bootstrap=config.evaluation.bootstrap,
            seed=config.seed,
        )
    if len(model.possible_classes) < len(model.classes):
        result["site_classes"] = list(model.possible_classes)
    if members:
        result["members"] = members
    if model.baseline is not None:
        predicted = model.baseline_predict(dataset.images).argmax(axis=1)
        result["baseline"] = {"accuracy": float(np.mean(predicted == dataset.labels))}
    if comparisons:
        result["beside"] = {
            name: metrics.quick(other.predict(dataset.images, tta), dataset.labels)
            for name, other in comparisons.items()
        }
    write(out, result, dataset, probabilities, answers)
    return result, probabilities


def _calibration(
    model: Classifier | Ensemble,
    tta: str | None,
    before: Float[np.ndarray, "n classes"],
    labels: np.ndarray,
) -> dict[str, object]:
    """The entry "calibration" of `metrics.json`, given uncalibrated class probabilities."""
    members = model.members.values() if isinstance(model, Ensemble) else [model]
    found = [member.calibration(tta) for member in members]
    scores = metrics.quick(before, labels)
    return {
        "method": " and ".join(sorted({one.method for one in found})),
        "temperature": found[0].temperature if len(found) == 1 else None,
        "ece_before": scores["ece"],
        "nll_before": scores["loss"],
        "accuracy_before": scores["accuracy"],
        "reliability_before": metrics.reliability(before, labels),
    }


def judged(
    model: Classifier | Ensemble, answers: Answers, labels: Int[np.ndarray, "n ..."]
) -> dict[str, dict]:
    """The entries "selective", "rejection" and "conformal" of `metrics.json`.

    If an image can have several labels, it is the entry "thresholds" instead.

    Args:
      model: The model that gave the answers.
      answers: Answers to at least one image.
      labels: True labels, as in `Dataset`.
    """
    if isinstance(answers, LabelAnswers):
        return multi_label.judged(model, answers, labels)
    correct, options = answers.predicted == labels, model.config.evaluation
    area = selective.aurc_interval(
        answers.confidence, correct, bootstrap=options.bootstrap, seed=model.config.seed
    )
    content = {
        "selective": {
            "aurc": selective.aurc(answers.confidence, correct),
            "aurc_ci95": list(area),
            "curve": selective.curve(answers.confidence, correct),
        }
    }
    if model.referral is not None:
        content["selective"]["operating_point"] = {
            "target_error": model.referral.target_error,
            "threshold": model.referral.threshold,
            **selective.operating_point(~answers.refer, correct),
            "unsure": float(answers.unsure.mean()),
            "unlike": float(answers.unlike.mean()),
        }
    if answers.distance is not None:
        detectors = rejection.detectors(model)
        vote = {"method": "vote of the members", "threshold": 0.5}
        rate, n_validation = rejection.usual(detectors)
        content["rejection"] = {
            **(detectors[0].summary() if len(detectors) == 1 else vote),
            "expected": rate,
            "n_validation": n_validation,
            "rejected": float(answers.unlike.mean()),
        }
    if answers.sets is not None:
        content["conformal"] = {
            "alpha": model.referral.alpha,
            "threshold": model.referral.set_threshold,
            **conformal.coverage(answers.sets, labels),
        }
    return content


def score(
    probabilities: Float[np.ndarray, "n classes"],
    dataset: Dataset,
    config: Config,
    trained_groups: Bool[np.ndarray, " n"] | None = None,
) -> dict[str, object]:
    """`metrics.evaluate`, and "groups" if there are any, with the resamples of a run's config.

    There are no "groups" if an image can have several labels.
    """
    scored = {"bootstrap": config.evaluation.bootstrap, "seed": config.seed}
    result = metrics.evaluate(probabilities, dataset.labels, dataset.classes, **scored)
    if dataset.is_multi_label:
        return result
    by_group = grouped.evaluate(
        probabilities,
        dataset.labels,
        dataset.groups,
        dataset.classes,
        trained_on=trained_groups,
        **scored,
    )
    return result | ({} if by_group is None else {"groups": by_group})


def select_views(
    model: Classifier, workdir: pathlib.Path, validation: Dataset, tta: str, method: str
) -> None:
    """Selects weights for views on the validation split; sets them in `model` and in `tta.json`.

    Args:
      model: The classifier of the run.
      workdir: Folder of the run.
      validation: Validation split of the run.
      tta: Sets of views to select from.
      method: "greedy" or "weights"; see `tta_selection.select`.
    """
    average = model.config.evaluation.tta_average
    each = model.at_home().predict_views(validation.images, tta)
    model.selected, content = tta_selection.select(each, validation.labels, tta, average, method)
    tta_selection.write(workdir, content)
    losses = content["nll"]
    console.log_info(
        f"selected {len(content['weights'])} of {len(each)} views ({tta}, {method}): validation "
        f"loss {losses['selected']:.4f}, {losses['mean']:.4f} with all views, "
        f"{losses['image']:.4f} without test-time augmentation"
    )


def lines(name: str, result: Mapping) -> list[str]:
    """What to log on the evaluation of a split: `summary`, and what it does not tell."""
    if result.get("task") == MULTI_LABEL:
        return multi_label.lines(name, result)
    found = [summary(name, result)]
    if few := classification.few_images(result["per_class"]):
        found.append(f"{name}: too few images to know the recall (95 % intervals): {few}")
    found += [f"{name}: {line}" for line in groups.lines(result)]
    if point := result.get("selective", {}).get("operating_point"):
        found.append(f"{name}: {referral_summary(point)}")
    if unlike := result.get("rejection"):
        count, usual = round(unlike["rejected"] * result["n"]), unlike.get("n_validation")
        rate = unlike.get("expected", 0.01)
        if remark := answers_lib.unlike_remark(count, result["n"], rate, usual):
            found.append(f"{name}: {remark}")
    return found


def referral_summary(point: Mapping) -> str:
    """One line on an operating point of `metrics.json`."""
    if point["error"] is None:
        return "refers every image"
    return (
        f"refers {100 * point['referred']:.1f} % of cells; error on the rest "
        f"{100 * point['error']:.2f} %, at most {100 * point['error_ci95'][1]:.2f} %"
    )


def summary(name: str, result: Mapping) -> str:
    """One line on the evaluation of a split, given the content of its `metrics.json`."""
    if result.get("task") == MULTI_LABEL:
        return multi_label.summary(name, result)
    low, high = result["ci95"]["accuracy"]
    line = (
        f"{name}: accuracy {result['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}, "
        f"n = {result['n']:,})"
    )
    if "baseline" in result:
        line += f"; colour histogram alone {result['baseline']['accuracy']:.4f}"
    for other, scores in result.get("beside", {}).items():
        line += f"; {other} {scores['accuracy']:.4f}"
    if "tta_effect" in result:
        effect = result["tta_effect"]
        low, high = effect["ci95"]
        line += f"; views ({result['tta']}) change {effect['difference']:+.4f}"
        line += f" ({low:+.4f} to {high:+.4f})"
    return line


def write(
    out: pathlib.Path,
    result: Mapping[str, object],
    dataset: Dataset,
    probabilities: Float[np.ndarray, "n classes"],
    answers: Answers | None = None,
) -> None:
    """Writes `metrics.json`, `predictions.csv` and, of groups, `groups.FILE` to the folder `out`.

    Args:
      out: The folder.
      result: Content of `metrics.json`.
      dataset: The images.
      probabilities: Their class probabilities.
      answers: Which of them to refer, and why; None if that is not known.
    """
    atomic_write(out / results_lib.METRICS_FILE, json.dumps(result, indent=2) + "\n")
    labels = dataset.label_texts()
    columns = tables.predictions(
        dataset.names,
        dataset.classes,
        probabilities,
        labels,
        groups=dataset.groups,
        **answers_lib.columns(answers),
    )
    tables.write(out / _PREDICTIONS, columns)
    if not dataset.is_multi_label:
        groups.write(out, dataset, probabilities)


def write_baseline(workdir: pathlib.Path, train: Dataset) -> None:
    """Fits the colour-histogram baseline to the training split and writes `baseline.json`."""
    baseline = histogram_baseline.HistogramBaseline.fit(
        train.images, train.labels, len(train.classes)
    )
    atomic_write(workdir / BASELINE_FILE, json.dumps(baseline.to_dict()))
