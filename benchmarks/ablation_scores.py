"""Scores of the variants of an ablation on each set of images, and the table of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from benchmarks.ablation_variants import Row
from bloodjax import metrics
from bloodjax.corruptions import registry
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import classifier
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.site import Site
from bloodjax.metrics import significance
from bloodjax.training import corrupted_splits, saved_splits
from bloodjax.training.saved_splits import SPLITS_FILE

CLEAN, DISTORTED = "clean", "distorted"


def own_classes(site: str) -> str:
    """Name of the set of a site's images when only the site's classes can be answered."""
    return f"{site}, its classes"


@dataclasses.dataclass(frozen=True)
class Answers:
    """Predictions on one set; those of the seeds are concatenated.

    Attributes:
      probabilities: Probabilities of all classes of the run.
      labels: True class indices.
      seeds: Seed of the run that predicted each image.
      classes: Class names in label order.
    """

    probabilities: Float[np.ndarray, "n classes"]
    labels: Int[np.ndarray, " n"]
    seeds: Int[np.ndarray, " n"]
    classes: tuple[str, ...]

    @classmethod
    def of(
        cls, seed: int, probabilities: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
    ) -> Answers:
        """The predictions of one seed."""
        return cls(probabilities, np.asarray(labels), np.full(len(labels), seed), classes)

    def joined(self, other: Answers) -> Answers:
        """Concatenates these predictions and those of `other`, which has the same classes."""
        names = ("probabilities", "labels", "seeds")
        joined = {n: np.concatenate([getattr(self, n), getattr(other, n)]) for n in names}
        return dataclasses.replace(self, **joined)


def answers(
    workdir: pathlib.Path,
    rows: Collection[Row],
    distortions: str,
    sites: Mapping[str, str],
) -> dict[Row, dict[str, Answers]]:
    """The predictions of one run for some rows, by set.

    The sets are `CLEAN` and `DISTORTED`, both of the run's test split, and two of each site: with
    all classes of the run, and with only those of which the site has images.

    Args:
      workdir: Folder of the run.
      rows: The rows, all of this run's variant.
      distortions: As for `--distortions`.
      sites: Name -> SPEC of labelled images.

    Raises:
      UserError: Images are missing, or a site has a class that the run does not have.
    """
    model = classifier.load(workdir, "epoch")
    test, elsewhere = _images(model, workdir, distortions, sites)
    models = {which: classifier.load(workdir, which) for which in {row.weights for row in rows}}
    seed = model.config.seed

    def of(images: Dataset, row: Row) -> Answers:
        probabilities = models[row.weights].predict(images.images, row.views)
        return Answers.of(seed, probabilities, images.labels, model.classes)

    found = {}
    for row in rows:
        found[row] = {name: of(images, row) for name, images in test.items()}
        for name, images in elsewhere.items():
            found[row][name] = of(images, row)
            found[row][own_classes(name)] = restricted(found[row][name])
    return found


def _images(
    model: Classifier, workdir: pathlib.Path, distortions: str, sites: Mapping[str, str]
) -> tuple[dict[str, Dataset], dict[str, Dataset]]:
    """The run's test split, clean and distorted; and the images of each site."""
    choice = registry.parse(distortions, "--distortions")
    about = model.config, workdir / SPLITS_FILE, model.classes
    clean = saved_splits.recall(*about, "test")
    images = corrupted_splits.distorted(clean, choice, 0, "test")
    test = {CLEAN: clean, DISTORTED: dataclasses.replace(clean, images=images)}
    selected = {name: saved_splits.select(*about, spec, None) for name, spec in sites.items()}
    return test, {name: dataset for name, (_, dataset) in selected.items()}


def restricted(found: Answers) -> Answers:
    """The predictions when only classes with labels can be answered, as `Classifier.restrict`."""
    names = tuple(found.classes[label] for label in np.unique(found.labels))
    return dataclasses.replace(
        found, probabilities=Site(names).adjust(found.probabilities, found.classes)
    )


def scores(
    found: Mapping[str, Answers], other: Mapping[str, Answers] | None
) -> dict[str, dict[str, Any]]:
    """Scores of one row on each set, with 95 % intervals and the gain over another row.

    Intervals are from bootstrap resamples of the images of all seeds. They do not include the
    variance between seeds, which the figures of each seed indicate. The images of a site are the
    same for every seed and count once for each, so that intervals there are too narrow if the
    seeds err on the same images. There is no gain on sets whose labels differ, because a variant
    was split or cleaned in another way.

    Args:
      found: Set -> predictions.
      other: The same for the other row, or None.
    """
    return {
        name: _scores_on_set(predicted, other and other[name]) for name, predicted in found.items()
    }


def _scores_on_set(found: Answers, other: Answers | None) -> dict[str, Any]:
    scored = metrics.evaluate(found.probabilities, found.labels, found.classes)
    by_seed = {}
    for seed in np.unique(found.seeds):
        own = found.seeds == seed
        by_seed[str(seed)] = metrics.quick(found.probabilities[own], found.labels[own])
    of_set = {
        "n": scored["n"],
        "accuracy": scored["accuracy"],
        "ci95": scored["ci95"]["accuracy"],
        "seeds": {seed: quick["accuracy"] for seed, quick in by_seed.items()},
        "mean_recall": scored["balanced_accuracy"],
        "mean_recall_ci95": scored["ci95"]["balanced_accuracy"],
        "mean_recall_of_seeds": {s: quick["balanced_accuracy"] for s, quick in by_seed.items()},
        "recall": {k: v["recall"] for k, v in scored["per_class"].items() if v["support"]},
    }
    if other is not None and np.array_equal(found.labels, other.labels):
        gain = significance.compare(found.probabilities, other.probabilities, found.labels)
        of_set["gain"] = {key: gain[key] for key in ("difference", "ci95", "mcnemar")}
    return of_set


def cumulative_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats rows that add to each other as Markdown.

    Args:
      rows: Name -> `scores`, each compared with the row above.
    """
    sets = list(next(iter(rows.values())))
    lines = [["training", *sets, "gain over the row above, distorted"]]
    for name, of_row in rows.items():
        cells = [f"{_interval(of_row[each])}; {_seeds(of_row[each])}" for each in sets]
        gain = of_row[DISTORTED].get("gain")
        lines.append([name, *cells, "" if gain is None else _gain(gain)])
    return _markdown(lines)


def one_change_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats rows that differ from the first one as Markdown.

    A cell is the accuracy; that of each seed; the difference to the first row with its interval.

    Args:
      rows: Name -> `scores`, each compared with the first row.
    """
    sets = list(next(iter(rows.values())))
    lines = [["training", *sets]]
    for name, of_row in rows.items():
        cells = []
        for each in sets:
            scored = of_row[each]
            gain = f"; {_gain(scored['gain'])}" if "gain" in scored else ""
            cells.append(f"{scored['accuracy']:.3f}; {_seeds(scored)}{gain}")
        lines.append([name, *cells])
    return _markdown(lines)


def _interval(scored: Mapping[str, Any]) -> str:
    low, high = scored["ci95"]
    return f"{scored['accuracy']:.3f} ({low:.3f} to {high:.3f})"


def _seeds(scored: Mapping[str, Any]) -> str:
    return ", ".join(f"{value:.3f}" for value in scored["seeds"].values())


def _gain(gain: Mapping[str, Any]) -> str:
    low, high = gain["ci95"]
    return f"{gain['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def _markdown(lines: list[list[str]]) -> str:
    header, *rows = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([header, "|" + "---|" * len(lines[0]), *rows])
