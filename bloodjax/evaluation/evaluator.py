"""A classifier on labelled images: metrics, predictions, and the report of a run."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import types
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from bloodjax import distributed, metrics
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.config.validation import WATCHED
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import classifier, histogram_baseline, soup, tta_selection
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io.files import atomic_write, make_folder, read_json
from bloodjax.metrics import significance
from bloodjax.profiling import recorder
from bloodjax.report import run_page
from bloodjax.training import class_balance, metric_writer
from bloodjax.training.input_pipeline import Parts
from bloodjax.training.workdir import BASELINE_FILE, CHECKPOINTS


def evaluate(
    model: Classifier | Ensemble,
    dataset: Dataset,
    out: pathlib.Path,
    *,
    tta: str | None,
    beside: Mapping[str, Classifier] = types.MappingProxyType({}),
) -> tuple[dict, Float[np.ndarray, "n classes"]]:
    """Scores `dataset` and writes `metrics.json` and `predictions.csv` to `out`.

    Args:
      model: the classifier, or an ensemble of them.
      dataset: labelled images, their classes those of `model`.
      out: a folder, made if need be.
      tta: views to average over, or None for what the model itself says.
      beside: other classifiers by name, whose figures (`metrics.quick`) are written too.

    Raises:
      UserError: `out` cannot be written to, or `tta` is not known.

    Returns:
      The content of `metrics.json` (that of `metrics.evaluate`; under "baseline" the
      colour-histogram regression's accuracy, under "tta_effect" what the views changed, as
      `significance.compare` has it, under "members" an ensemble's members, under "beside" what others
      come to), and the probabilities.
    """
    make_folder(out)
    members = []
    if isinstance(model, Ensemble):
        each = model.predict_members(dataset.images, tta)
        both, members = each.mean(axis=0), model.figures(each[:, :, 0], dataset.labels)
    else:
        both = model.predict_beside(dataset.images, tta)
    probabilities, plain = both[:, 0], both[:, 1]
    result = score(probabilities, dataset, model.config)
    result |= {"step": model.step, "tta": tta or model.tta}
    if result["tta"] != "none":
        result["tta_effect"] = _effect(model.config, probabilities, plain, dataset.labels)
    if members:
        result["members"] = members
    if model.baseline is not None:
        guesses = model.baseline.predict(dataset.images).argmax(axis=1)
        result["baseline"] = {"accuracy": float(np.mean(guesses == dataset.labels))}
    if beside:
        result["beside"] = {
            name: metrics.quick(other.predict(dataset.images, tta), dataset.labels)
            for name, other in beside.items()
        }
    write(out, result, dataset, probabilities)
    return result, probabilities


def score(
    probabilities: Float[np.ndarray, "n classes"], dataset: Dataset, config: Config
) -> dict[str, object]:
    """What `metrics.evaluate` gives for predictions on `dataset`, with a run's own bootstrap."""
    return metrics.evaluate(
        probabilities,
        dataset.labels,
        dataset.classes,
        bootstrap=config.evaluation.bootstrap,
        seed=config.seed,
    )


def write(
    out: pathlib.Path,
    result: dict[str, object],
    dataset: Dataset,
    probabilities: Float[np.ndarray, "n classes"],
) -> None:
    """Writes `metrics.json` and `predictions.csv` to the folder `out`."""
    atomic_write(out / "metrics.json", json.dumps(result, indent=2) + "\n")
    labels = [dataset.classes[label] for label in dataset.labels]
    table = predictions_csv(dataset.names, dataset.classes, probabilities, labels)
    atomic_write(out / "predictions.csv", table)


def _effect(config, probabilities, plain, labels) -> dict[str, object]:
    bootstrap, seed = config.evaluation.bootstrap, config.seed
    return significance.compare(probabilities, plain, labels, bootstrap=bootstrap, seed=seed)


def select_views(
    model: Classifier, workdir: pathlib.Path, validation: Dataset, tta: str, method: str
) -> None:
    """Chooses the weights of the views `tta` on `validation`; `tta.json` and `model` keep them."""
    average = model.config.evaluation.tta_average
    each = model.predict_views(validation.images, tta)
    model.selected, content = tta_selection.select(each, validation.labels, tta, average, method)
    tta_selection.write(workdir, content)
    losses = content["nll"]
    console.log_info(
        f"views of {tta} by {method}: {len(content['weights'])} of {len(each)} count; validation "
        f"loss {losses['picture']:.4f} without, {losses['mean']:.4f} with all, "
        f"{losses['selected']:.4f} with these"
    )


def predictions_csv(
    names: Sequence[str],
    classes: Sequence[str],
    probabilities: Float[np.ndarray, "n classes"],
    labels: Sequence[str] | None = None,
) -> str:
    """A table `name[,label],predicted,<class>,...`, one probability column for each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *(["label"] if labels else []), "predicted", *classes])
    for i, row in enumerate(probabilities):
        known = [labels[i]] if labels else []
        numbers = [f"{p:.6f}" for p in row]
        writer.writerow([names[i], *known, classes[int(row.argmax())], *numbers])
    return text.getvalue()


def finish(config: Config, workdir: pathlib.Path, parts: Parts) -> dict[str, dict]:
    """Evaluates a trained run's best checkpoint on test and validation, and reports.

    Distorted twins of the two, where `parts` has them, are evaluated too.

    The best may be a soup, which is made here. Writes `baseline.json`, `evaluate/<part>/` and
    `report/index.html`.

    Returns:
      The content of `metrics.json` of each part, test first.
    """
    train = parts.train
    baseline = histogram_baseline.HistogramBaseline.fit(
        train.images, train.labels, len(train.classes)
    )
    atomic_write(workdir / BASELINE_FILE, json.dumps(baseline.to_dict()))
    distributed.barrier()  # the other processes read it
    if config.soup:
        with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
            evaluated = parts.evaluated("validation")
            watched = WATCHED[config.early_stopping.set] if evaluated else ()
            soup.make(config, workdir, checkpoints, [evaluated[name] for name in watched])
        distributed.barrier()
    model = classifier.load(workdir)
    beside = {}
    if soup.is_chosen(workdir):
        beside["best epoch alone"] = classifier.load(workdir, "epoch")
    if config.ema:
        beside["raw weights"] = classifier.load(workdir, "raw")
    if config.evaluation.tta_select != "none" and parts.validation is not None:
        chosen = config.evaluation
        select_views(model, workdir, parts.validation, chosen.tta, chosen.tta_select)
    results, mistakes = {}, None
    for name, dataset in parts.evaluated("test", "validation").items():
        out = workdir / "evaluate" / name
        results[name], probabilities = evaluate(model, dataset, out, tta=model.tta, beside=beside)
        if mistakes is None:
            mistakes = confident_mistakes(model, dataset, probabilities)
        console.log_info(summary(name, results[name]))
    write_report(config, workdir, parts, model, results, mistakes or ())
    return results


def write_report(
    config: Config,
    workdir: pathlib.Path,
    parts: Parts,
    model: Classifier | Ensemble,
    results: dict[str, dict],
    mistakes: Sequence[run_page.Mistake],
) -> None:
    """Writes `report/index.html`; `results` are each set's `metrics.json`, first the headline."""
    if not distributed.is_primary():
        return
    make_folder(workdir / "report")
    page = workdir / "report" / "index.html"
    atomic_write(page, _report(config, workdir, parts, model, results, mistakes))
    console.log_info(f"report: {page}")


def summary(name: str, result: dict) -> str:
    """One line on an evaluated part; `result` is its `metrics.json`."""
    low, high = result["ci95"]["accuracy"]
    line = (
        f"{name}: accuracy {result['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}, "
        f"n = {result['n']:,})"
    )
    if "baseline" in result:
        line += f"; colour histogram alone {result['baseline']['accuracy']:.4f}"
    for other, figures in result.get("beside", {}).items():
        line += f"; {other} {figures['accuracy']:.4f}"
    if "tta_effect" in result:
        effect = result["tta_effect"]
        low, high = effect["ci95"]
        line += f"; views ({result['tta']}) change {effect['difference']:+.4f}"
        line += f" ({low:+.4f} to {high:+.4f})"
    return line


def confident_mistakes(
    model: Classifier | Ensemble, dataset: Dataset, probabilities: Float[np.ndarray, "n classes"]
) -> list[run_page.Mistake]:
    """What of `dataset` the model got wrong, for the report."""
    return [
        run_page.Mistake(
            image=dataset.images[i],
            name=dataset.names[i],
            true=model.classes[dataset.labels[i]],
            predicted=model.classes[int(probabilities[i].argmax())],
            confidence=float(probabilities[i].max()),
        )
        for i in run_page.most_confident_mistakes(probabilities, dataset.labels)
    ]


def _report(config, workdir, parts, model, results, mistakes) -> str:
    history = metric_writer.read_history(workdir, "epoch")
    counts = {
        name: {c: int(np.sum(dataset.labels == i)) for i, c in enumerate(model.classes)}
        for name, dataset in parts.items()
    }
    weights = {}
    if config.loss.class_weights != "none":
        found = class_balance.class_weights(config, parts.train.labels, len(model.classes))
        weights = dict(zip(model.classes, found.tolist(), strict=True))
    return run_page.build(
        name=workdir.resolve().name,
        config=config.to_dict(),
        history=history,
        evaluations=results,
        best_step=model.step,
        baselines={name: result["baseline"]["accuracy"] for name, result in results.items()},
        mistakes=mistakes,
        audit=_audit_counts(
            workdir,
            sum(map(sum, (c.values() for c in counts.values()))),
            cleaned=config.data.clean == "drop",
        ),
        counts=counts,
        class_weights=weights,
        versions=versions(),
        timings={"training": sum(entry["seconds"] for entry in history)} if history else {},
        profile=recorder.read(workdir),
    )


def _audit_counts(workdir: pathlib.Path, kept: int, cleaned: bool) -> dict[str, int]:
    found = read_json(workdir / "audit" / "audit.json", "an audit", dict)
    lists = ("junk", "exact_duplicates", "near_duplicates", "label_conflicts", "leakage")
    return {
        "n": found["n"],
        **{name: len(found[name]) for name in lists},
        "dropped": found["n"] - kept,
        "cleaned": int(cleaned),
    }


def versions() -> dict[str, str]:
    """Names and versions of what a run's numbers depend on."""
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")
    return {
        "bloodjax": importlib.metadata.version("bloodjax"),
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    }
