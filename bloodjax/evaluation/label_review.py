"""Labels to look at again: WORKDIR/label_review.csv.

A label can only be judged by a prediction that was made without it. Validation and test images are
judged by the network itself. Training images are judged by the run of the fold that did not train
on them, or, in a run without folds, by linear heads on the network's features (`feature_heads`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from bloodjax.cli import console
from bloodjax.data import splits as splits_lib
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import feature_heads, rejection, tables
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io.files import atomic_write
from bloodjax.metrics import confident_learning
from bloodjax.report.run_content import Finding
from bloodjax.training.input_pipeline import Splits

FILE = "label_review.csv"
# Splits of a run that are judged, in the order of the messages.
SPLITS = ("train", "validation", "test")
# Training images of which linear heads judge at most so many: a random sample of more.
MAX_TRAIN = 50_000
BY_NETWORK = "the network, which was not trained on these images"
BY_FOLDS = "the run of the fold that was not trained on the image"
BY_HEADS = (
    f"{feature_heads.FOLDS} linear heads, each fitted without the images that it judges, on the "
    "features of the network, which was trained on them"
)
_COLUMNS = (
    *("name", "split", "label", "suggested", "label_probability", "suggested_probability"),
    *("score", "judged_by"),
)


@dataclasses.dataclass(frozen=True)
class Review:
    """The labels to look at again.

    Attributes:
      findings: The suspicious labels of all splits, the most suspicious first.
      judged: (split, number of labels judged, number of findings, what judged them).
    """

    findings: tuple[Finding, ...]
    judged: tuple[tuple[str, int, int, str], ...]


def review(
    model: Classifier | Ensemble,
    workdir: pathlib.Path,
    splits: Splits,
    probabilities: Mapping[str, Float[np.ndarray, "_ classes"]] | None = None,
    described: rejection.Described | None = None,
) -> Review:
    """Judges the labels of a run's images, and writes `label_review.csv` in its folder.

    Args:
      model: The trained run.
      workdir: Folder of the run.
      splits: Splits of the run.
      probabilities: Split -> class probabilities of its images that are known already. Those of
        "train" are out of fold.
      described: Features of some of the training images that are known already.
    """
    known = probabilities or {}
    findings, judged = [], []
    datasets = dict(splits.items())
    for split in (name for name in SPLITS if name in datasets):
        dataset = datasets[split]
        if split != "train":
            by = BY_NETWORK
            predicted = known[split] if split in known else model.predict(dataset.images)
        elif split in known:
            by, predicted = BY_FOLDS, known[split]
        elif isinstance(model, Ensemble):
            continue  # Each of its members was trained on images that the others judge.
        else:
            by, chosen = BY_HEADS, _sample(len(dataset), model.config.seed)
            predicted = _by_heads(model, dataset, chosen, described)
            if predicted is None:
                continue
            dataset = dataset.take(chosen)
        found = _findings(dataset, split, predicted, by)
        findings += found
        judged.append((split, len(dataset), len(found), by))
    findings.sort(key=lambda finding: -finding.score)
    result = Review(tuple(findings), tuple(judged))
    atomic_write(workdir / FILE, _csv(result.findings))
    console.log_info(_summary(result, workdir / FILE))
    return result


def _sample(n: int, seed: int) -> Int[np.ndarray, " m"]:
    """Indices of the images to judge: all, or a random part of many; ascending."""
    if n <= MAX_TRAIN:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, MAX_TRAIN, replace=False))


def _by_heads(
    model: Classifier,
    train: Dataset,
    chosen: Int[np.ndarray, " n"],
    described: rejection.Described | None,
) -> Float[np.ndarray, "n classes"] | None:
    """Out-of-fold probabilities of the chosen images; None, and a message, if there can be none."""
    dataset = train.take(chosen)
    groups = splits_lib.merge_groups(dataset.groups, [])
    fractions = {str(i): 1 / feature_heads.FOLDS for i in range(feature_heads.FOLDS)}
    fold_of = np.empty(len(dataset), int)
    parts = splits_lib.split(dataset.labels, fractions, groups, model.config.seed)
    for fold, index in enumerate(parts.values()):
        fold_of[index] = fold
    present = np.unique(dataset.labels)
    for fold in range(feature_heads.FOLDS):
        if len(np.unique(dataset.labels[fold_of != fold])) < len(present):
            _log_not_judged("a class has too few images or groups for folds")
            return None
    features = _features(model, train, chosen, described)
    if not np.isfinite(features).all():
        _log_not_judged("the network's features are not finite")
        return None
    return feature_heads.out_of_fold(features, dataset.labels, fold_of, len(dataset.classes))


def _features(
    model: Classifier,
    train: Dataset,
    chosen: Int[np.ndarray, " n"],
    described: rejection.Described | None,
) -> Float[np.ndarray, "n features"]:
    """Features of the chosen images, of which those that are not known are computed."""
    if described is None:
        return model.describe(train.take(chosen).images)[0]
    features = np.empty((len(chosen), described.features.shape[1]), np.float32)
    _, ours, theirs = np.intersect1d(chosen, described.index, return_indices=True)
    features[ours] = described.features[theirs]
    missing = np.delete(np.arange(len(chosen)), ours)
    if len(missing):
        features[missing] = model.describe(train.take(chosen[missing]).images)[0]
    return features


def _log_not_judged(reason: str) -> None:
    console.log_info(f"the labels of the training images are not judged: {reason}")


def _findings(
    dataset: Dataset, split: str, probabilities: Float[np.ndarray, "n classes"], by: str
) -> list[Finding]:
    suspects = confident_learning.find(probabilities, dataset.labels)
    found = []
    for index, suggested, score in zip(
        suspects.index.tolist(), suspects.suggested.tolist(), suspects.score.tolist(), strict=True
    ):
        label = int(dataset.labels[index])
        found.append(
            Finding(
                name=dataset.names[index],
                split=split,
                label=dataset.classes[label],
                suggested=dataset.classes[suggested],
                label_probability=float(probabilities[index, label]),
                suggested_probability=float(probabilities[index, suggested]),
                score=score,
                judged_by=by,
            )
        )
    return found


def _csv(findings: Sequence[Finding]) -> str:
    rows: list[Sequence[str]] = [_COLUMNS]
    for finding in findings:
        numbers = (finding.label_probability, finding.suggested_probability, finding.score)
        rows.append(
            [
                *(finding.name, finding.split, finding.label, finding.suggested),
                *(f"{value:.6f}" for value in numbers),
                finding.judged_by,
            ]
        )
    return tables.csv_text(rows)


def _summary(result: Review, file: pathlib.Path) -> str:
    parts = [f"{found:,} of {n:,} {split}" for split, n, found, _ in result.judged]
    return f"labels to look at again: {', '.join(parts) or 'none were judged'} ({file})"
