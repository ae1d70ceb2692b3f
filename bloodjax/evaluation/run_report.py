"""Collects the data for a run's report, and writes `report/index.html`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from bloodjax import distributed
from bloodjax.attribution import overlay
from bloodjax.cli import console
from bloodjax.config import PHASES, Config
from bloodjax.data import statement
from bloodjax.data.dataset import Dataset, label_texts
from bloodjax.evaluation import label_review
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io.files import atomic_write, make_folder, read_json
from bloodjax.profiling import recorder
from bloodjax.report import (
    multi_label_page,
    picture_choice,
    run_content,
    run_page,
    site_page,
)
from bloodjax.training import class_balance, lr_range_test, metric_writer
from bloodjax.training.input_pipeline import Splits
from bloodjax.training.workdir import ADAPTATION_FILE

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")
_MAX_SUSPECTS = 60  # as images; label_review.csv has all
_AUDIT_LISTS = ("junk", "exact_duplicates", "near_duplicates", "label_conflicts", "leakage")


@dataclasses.dataclass(frozen=True)
class Headline:
    """The split that the report is about.

    Attributes:
      dataset: Its images.
      probabilities: Their class probabilities.
    """

    dataset: Dataset
    probabilities: Float[np.ndarray, "n classes"]


def write(
    config: Config,
    workdir: pathlib.Path,
    splits: Splits,
    model: Classifier | Ensemble,
    results: Mapping[str, dict],
    headline: Headline | None,
    review: label_review.Review | None = None,
) -> None:
    """Writes `report/index.html`; only the primary process does.

    Args:
      config: Config of the run.
      workdir: Folder of the run.
      splits: Splits of the run.
      model: The evaluated model.
      results: Split -> content of its `metrics.json`. The first split is the headline.
      headline: The images of the first split of `results`; None without evaluated splits.
      review: Labels to look at again, or None if they were not judged.
    """
    if not distributed.is_primary():
        return
    history = metric_writer.read_history(workdir, "epoch")
    counts = {
        name: dict(zip(model.classes, dataset.class_counts.tolist(), strict=True))
        for name, dataset in splits.items()
    }
    weights = {}
    if config.loss.class_weights != "none":
        values = class_balance.class_weights(config, splits.train.labels, len(model.classes))
        weights = dict(zip(model.classes, values.tolist(), strict=True))
    content = run_content.RunContent(
        name=workdir.resolve().name,
        config=config.to_dict(),
        history=history,
        evaluations=results,
        best_step=model.step,
        baselines={
            name: result["baseline"]["accuracy"]
            for name, result in results.items()
            if "baseline" in result
        },
        **(_pictures(model, headline) if headline is not None else {}),
        labels=_labels(splits, review) if review is not None else None,
        audit=_audit_counts(
            workdir,
            used=sum(len(dataset) for _, dataset in splits.items()),
            cleaned=config.data.clean == "drop",
        ),
        counts=counts,
        statement=statement.lines(dict(splits.items()), splits.left_out),
        class_weights=weights,
        versions=versions(),
        timings={"training": sum(entry["seconds"] for entry in history)} if history else {},
        profile=recorder.load(workdir),
        range_tests={
            phase: vars(found)
            for phase in PHASES
            if (found := lr_range_test.read(workdir, phase)) is not None
        },
        site_page=site_page.FILE if (workdir / ADAPTATION_FILE).exists() else "",
    )
    make_folder(workdir / "report")
    page = workdir / "report" / "index.html"
    build = multi_label_page.build if model.is_multi_label else run_page.build
    atomic_write(page, build(content))
    console.log_info(f"report: {page}")


def _pictures(model: Classifier | Ensemble, headline: Headline) -> dict[str, object]:
    """The images of the report, with heat maps unless several processes compute."""
    if headline.dataset.is_multi_label:
        return {"examples": _label_examples(model, headline)}
    dataset, probabilities = headline.dataset, headline.probabilities
    mistakes = picture_choice.confident_mistakes(probabilities, dataset.labels)
    cells = picture_choice.cells(probabilities, dataset.labels)
    examples = picture_choice.examples(probabilities, dataset.labels)
    explained = np.unique(
        np.concatenate([mistakes, *(i for both in examples.values() for i in both)])
    )
    overlays = _overlays(model, headline, explained)
    predicted, classes = probabilities.argmax(axis=1), dataset.classes

    def pictures(indices: Int[np.ndarray, " m"]) -> list[run_content.Picture]:
        return [
            run_content.Picture(
                image=dataset.images[i],
                name=dataset.names[i],
                label=classes[dataset.labels[i]],
                predicted=classes[predicted[i]],
                confidence=float(probabilities[i].max()),
                overlay=overlays.get(int(i)),
            )
            for i in indices
        ]

    return {
        "mistakes": pictures(mistakes),
        "cells": {
            (classes[label], classes[other]): pictures(indices)
            for (label, other), indices in cells.items()
        },
        "examples": {
            classes[label]: run_content.ClassExamples(pictures(typical), pictures(doubtful))
            for label, (typical, doubtful) in examples.items()
        },
    }


def _label_examples(
    model: Classifier | Ensemble, headline: Headline
) -> dict[str, run_content.LabelExamples]:
    """For each label: its clearest images, those that it was missed on, and those without it."""
    dataset, probabilities = headline.dataset, headline.probabilities
    predicted = model.judge(dataset.images, probabilities).has
    chosen = picture_choice.of_labels(probabilities, dataset.labels)
    classes = dataset.classes

    def pictures(label: int, indices: Int[np.ndarray, " m"]) -> list[run_content.Picture]:
        labels = label_texts(dataset.labels[indices], classes)
        found = label_texts(predicted[indices].astype(int), classes)
        return [
            run_content.Picture(
                image=dataset.images[i],
                name=dataset.names[i],
                label=labels[row] or "no label",
                predicted=found[row] or "no label",
                confidence=float(probabilities[i, label]),
            )
            for row, i in enumerate(indices)
        ]

    return {
        classes[label]: run_content.LabelExamples(*(pictures(label, each) for each in three))
        for label, three in chosen.items()
    }


def _overlays(
    model: Classifier | Ensemble, headline: Headline, indices: Int[np.ndarray, " m"]
) -> dict[int, UInt8[np.ndarray, "h w 3"]]:
    """The images at `indices` under the heat maps of their predicted classes."""
    # Of several processes only the primary one is here, and it cannot compute alone on all devices.
    if distributed.count() > 1 or not len(indices):
        return {}
    images = np.asarray(headline.dataset.images[indices])
    maps, _ = model.explain(images, headline.probabilities[indices].argmax(axis=1))
    return {
        int(i): overlay.overlay(image, heat)
        for i, image, heat in zip(indices, images, maps, strict=True)
    }


def _labels(splits: Splits, review: label_review.Review) -> run_content.LabelReview:
    """The labels to look at again, with the images of the most suspicious ones."""
    datasets = dict(splits.items())
    places: dict[str, dict[str, int]] = {}
    suspects = []
    for finding in review.findings[:_MAX_SUSPECTS]:
        dataset = datasets[finding.split]
        if finding.split not in places:
            places[finding.split] = {name: i for i, name in enumerate(dataset.names)}
        image = dataset.images[places[finding.split][finding.name]]
        suspects.append(run_content.Suspect(finding, image))
    return run_content.LabelReview(review.judged, suspects)


def _audit_counts(workdir: pathlib.Path, used: int, cleaned: bool) -> dict[str, int]:
    audit = read_json(workdir / "audit" / "audit.json", "an audit", dict)
    return {
        "n": audit["n"],
        **{name: len(audit[name]) for name in _AUDIT_LISTS},
        "dropped": audit["n"] - used,
        "cleaned": int(cleaned),
    }


def versions() -> dict[str, str]:
    """Versions of the software that a run's results depend on, the device and the system."""
    device = jax.devices()[0]
    return {
        "bloodjax": importlib.metadata.version("bloodjax"),
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    }
