"""What to do next: rules over the content of a report, each with its evidence and an action."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from bloodjax.cli.console import counted
from bloodjax.metrics import classification, novelty, wilson_interval
from bloodjax.report import groups
from bloodjax.report.numbers import percent
from bloodjax.report.run_content import RunContent

# A class is mostly mistaken for one other if that one takes this share of its mistakes.
_MOSTLY = 0.6
_FEWEST_MISTAKES = 3
_WIDEST_INTERVAL = 0.15  # of a recall, from end to end
_POOR_CALIBRATION = 0.03
_OVERFITTED = 0.05  # training accuracy above validation accuracy
_NOT_ROBUST = 0.05  # accuracy lost under distortions
_PAIRS = 3
_MANY_REFERRED = 0.2
_RARE = 5  # classes of few training images that are named


@dataclasses.dataclass(frozen=True)
class NextStep:
    """A conclusion from the figures.

    Attributes:
      finding: What is the case, a sentence.
      evidence: The figures that show it.
      action: What to do about it.
      section: Id of the section of the report with the details.
    """

    finding: str
    evidence: str
    action: str
    section: str


def collect(content: RunContent) -> list[NextStep]:
    """The steps that the figures call for, the most important first."""
    if not content.evaluations:
        return []
    split, metrics = next(iter(content.evaluations.items()))
    return [step for rule in _RULES for step in rule(content, split, metrics)]


def _leakage(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    audit = content.audit or {}
    if audit.get("leakage") and not audit.get("cleaned"):
        yield NextStep(
            "Some images are in several splits, so the accuracy may be too high.",
            f"The audit found {counted(audit['leakage'], 'group')} of images across splits.",
            "Train with config.data.clean=drop, which leaves them out of the earlier split.",
            "data",
        )


def _baseline(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    if split not in content.baselines:
        return
    accuracy, n = content.baselines[split], metrics["n"]
    if wilson_interval(round(accuracy * n), n)[1] >= metrics["ci95"]["accuracy"][0]:
        yield NextStep(
            "The network is not clearly better than the colours of the images alone.",
            f"Accuracy {percent(metrics['accuracy'])}, colour histograms {percent(accuracy)}.",
            "Train for longer, or with a pretrained network. If that does not help, the classes "
            "may have been stained or photographed differently.",
            "summary",
        )


def _labels(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    review = content.labels
    if review is not None and review.found:
        yield NextStep(
            f"{counted(review.found, 'label')} may be wrong.",
            f"{percent(review.found / review.images)} of the {review.images:,} labels disagree "
            "with a confident prediction.",
            "Have an expert look at the images in label_review.csv, from the top. Correct the "
            "labels that are wrong, and train again.",
            "labels",
        )


def _confusions(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    counts = np.array(metrics["confusion_matrix"])
    classes = metrics["classes"]
    np.fill_diagonal(counts, 0)
    mistakes = counts.sum(axis=1)
    found = []
    for label, row in enumerate(counts):
        other = int(row.argmax())
        if mistakes[label] >= _FEWEST_MISTAKES and row[other] >= _MOSTLY * mistakes[label]:
            found.append((int(row[other]), label, other))
    for count, label, other in sorted(found, reverse=True)[:_PAIRS]:
        scores = metrics["per_class"][classes[label]]
        back = int(counts[other, label])
        both = f" The reverse happens {back}×." if back else " The reverse never happens."
        yield NextStep(
            f"Images of {classes[label]} are taken for {classes[other]} in {count} of "
            f"{mistakes[label]} mistakes.",
            f"{count} of {scores['support']:,} images of {classes[label]}; its recall is "
            f"{percent(scores['recall'])}.{both}",
            f"Have an expert look at these images. If the labels are right, add training images "
            f"of {classes[label]} that resemble {classes[other]}.",
            "confusion",
        )


def _rare_classes(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    counts = content.counts.get("train", {})
    rare = sorted((n, name) for name, n in counts.items() if n < classification.FEW_IMAGES)
    if not rare:
        return
    n, name = rare[0]
    shown = ", ".join(f"{each} ({images})" for images, each in rare[:_RARE])
    more = f" and {len(rare) - _RARE} more" if len(rare) > _RARE else ""
    scores = metrics["per_class"].get(name, {})
    recall = "no image of it tests that"
    if scores.get("recall") is not None:
        low, high = scores["recall_ci95"]
        recall = (
            f"its recall is {percent(scores['recall'])} of {counted(scores['support'], 'image')}, "
            f"95 % interval {percent(low)} to {percent(high)}"
        )
    yield NextStep(
        f"{counted(len(rare), 'class has', 'classes have')} fewer than {classification.FEW_IMAGES} "
        f"training images: {shown}{more}.",
        f"{n} of {sum(counts.values()):,} training images are of {name}; {recall}.",
        "Collect more images of rare classes. Until then train with --config=recipes/rare, and "
        "have a person look at every image in which such a class matters.",
        "classes",
    )


def _few_images(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    wide = []
    for name, scores in metrics["per_class"].items():
        if scores["recall"] is None:
            continue
        low, high = scores["recall_ci95"]
        if high - low > _WIDEST_INTERVAL:
            wide.append((high - low, name, scores, low, high))
    if wide:
        _, name, scores, low, high = max(wide, key=lambda entry: entry[:2])
        others = f", and of {counted(len(wide) - 1, 'more class', 'more classes')}" * bool(wide[1:])
        yield NextStep(
            f"The recall of {name}{others} is known only roughly.",
            f"{name}: {percent(scores['recall'])} of {counted(scores['support'], 'image')}, "
            f"95 % interval {percent(low)} to {percent(high)}.{_also_few(metrics, name)}",
            f"Label more {split} images of {'these classes' if wide[1:] else name}: about "
            f"{_needed(scores['recall']):,} of a class narrow its interval to ±5 points.",
            "classes",
        )


def _also_few(metrics: Mapping, name: str) -> str:
    """A sentence on the other classes of few images, each with the interval of its recall."""
    others = {other: row for other, row in metrics["per_class"].items() if other != name}
    few = classification.few_images(others)
    return f" Also of few images: {few}." if few else ""


def _needed(recall: float) -> int:
    """Images for an interval of ±5 points around a recall, rounded up to tens."""
    spread = max(recall * (1 - recall), 0.05 * 0.95)
    return int(np.ceil(1.96**2 * spread / 0.05**2 / 10) * 10)


def _groups(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    found = metrics.get("groups") or {}
    if "trained_on" in found:
        yield NextStep(
            "Some groups of images have training images too.",
            f"{groups.trained_on_remark(found)}.",
            "Test on groups, such as patients, that the run was not trained on.",
            "groups",
        )
    if worse := found.get("worse"):
        first = found["per_group"][worse[0]]
        yield NextStep(
            f"{counted(len(worse), 'group')} of images {'is' if len(worse) == 1 else 'are'} "
            f"classified worse than the rest: {groups.named(worse)}.",
            f"{worse[0]}: {percent(first['accuracy'])} of {counted(first['n'], 'image')}, "
            f"over all {percent(metrics['accuracy'])}.",
            "Compare their stain, focus and camera with the others', and add such images to "
            "training.",
            "groups",
        )


def _unlike(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    for name, result in content.evaluations.items():
        rejection = result.get("rejection") or {}
        rejected, rate = rejection.get("rejected"), rejection.get("expected", 0.01)
        known = rejection.get("n_validation")
        count = None if rejected is None else round(rejected * result["n"])
        if count is not None and novelty.are_unlike(count, result["n"], rate, known):
            yield NextStep(
                f"Many images of {name} are unlike the training images.",
                f"{percent(rejected)} are beyond the threshold; "
                f"{percent(novelty.expected_share(rate, known))} were expected.",
                "Check that they show the same kind of sample, stain and magnification.",
                "unlike",
            )


def _referral(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    point = (metrics.get("selective") or {}).get("operating_point")
    if not point or 1 - point["coverage"] <= _MANY_REFERRED:
        return
    kept = point["error"]
    rest = "no answer is left" if kept is None else f"the error on the rest is {percent(kept)}"
    yield NextStep(
        "The model refers many images to a person.",
        f"{percent(1 - point['coverage'])} of {split} are referred; {rest}. Without referral the "
        f"error is {percent(1 - metrics['accuracy'])}.",
        "A more accurate network refers fewer. If a higher error is acceptable, such as 2 %, run "
        "bloodjax evaluate --workdir=DIR --calibrate --target_error=0.02.",
        "referral",
    )


def _calibration(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    calibration = metrics.get("calibration")
    fitted = calibration is not None and calibration.get("method", "none") != "none"
    if not fitted and metrics["ece"] > _POOR_CALIBRATION:
        yield NextStep(
            "Confidence does not say how often the model is right.",
            f"The calibration error is {percent(metrics['ece'])}, and the run has no calibration.",
            "Fit one on the validation images: bloodjax evaluate --workdir=DIR --calibrate.",
            "calibration",
        )


def _training(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    validated = [line for line in content.history if line.get("validation")]
    if not validated:
        return
    best = next((line for line in validated if line["step"] == content.best_step), None)
    last = content.history[-1]
    if best is last and len(validated) > 1:
        before = validated[-2]["validation"]["loss"]
        if last["validation"]["loss"] < 0.95 * before:
            yield NextStep(
                "The network was still improving when training ended.",
                f"Validation loss {last['validation']['loss']:.3f} in the last epoch, "
                f"{before:.3f} in the one before.",
                "Train for more epochs.",
                "training",
            )
    gap = (best or last)["train"]["accuracy"] - (best or last)["validation"]["accuracy"]
    if gap > _OVERFITTED:
        yield NextStep(
            "The network overfits: it is better on the images that it was trained on.",
            f"Accuracy {percent((best or last)['train']['accuracy'])} on train, "
            f"{percent((best or last)['validation']['accuracy'])} on validation.",
            "Use more training images, more augmentation or fewer epochs.",
            "training",
        )


def _distortion(content: RunContent, split: str, metrics: Mapping) -> Iterator[NextStep]:
    distorted = content.evaluations.get(f"{split}_distorted")
    if distorted and metrics["accuracy"] - distorted["accuracy"] > _NOT_ROBUST:
        yield NextStep(
            "The network is sensitive to the quality of the images.",
            f"Accuracy {percent(metrics['accuracy'])} on {split}, "
            f"{percent(distorted['accuracy'])} on distorted copies.",
            "If images will come from another microscope or camera, train with "
            "--config=recipes/robust.",
            "sets",
        )


_RULES: Sequence[Callable[[RunContent, str, Mapping], Iterator[NextStep]]] = (
    _leakage,
    _baseline,
    _confusions,
    _labels,
    _unlike,
    _referral,
    _groups,
    _calibration,
    _rare_classes,
    _few_images,
    _training,
    _distortion,
)
