"""The text of a model card: what a classifier is, how good it is, and what it must not be used for.

The sections follow Mitchell et al. 2019, Model Cards for Model Reporting,
https://arxiv.org/abs/1810.03993.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from bloodjax.data.options import frame_side
from bloodjax.exporting import usage
from bloodjax.pretrained import hub

# Metric of metrics.json -> identifier on the Hub, name.
_ON_THE_HUB = {
    "accuracy": ("accuracy", "Accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy"),
    "f1_macro": ("f1", "F1, mean of the classes"),
    "auc_ovr": ("roc_auc", "ROC AUC, mean of one class against the rest"),
}
_NAMES = {
    **{metric: name for metric, (_, name) in _ON_THE_HUB.items()},
    "nll": "Negative log-likelihood",
    "ece": "Expected calibration error",
    "brier": "Brier score",
}
_SPLITS = ("train", "validation", "test")
_FITS = {
    "crop": "the square at its centre is cut out and resized",
    "pad": "it is resized until its longer side fits, and padded to a square",
    "squash": "it is resized to a square, whatever its proportions are",
}


@dataclasses.dataclass(frozen=True)
class Card:
    """The facts that a model card states.

    Attributes:
      name: Name of the model.
      metadata: Content of `config.json`.
      sources: Split -> name of the source of its images.
      sizes: Split -> number of images.
      counts: Split -> class -> number of images. A split whose images cannot be read is missing.
      split: The split that `metrics` are of.
      metrics: Content of its `metrics.json`; {} if the run was not evaluated.
      files: Name of each file -> what it contains.
      calibration: The classifier's calibration, as `Calibration.to_dict`.
      referral: The classifier's referral, as the fields of `Referral`; None if it has none.
      detector: The classifier's detector, as `Detector.summary`; None if it has none.
    """

    name: str
    metadata: Mapping
    sources: Mapping[str, str]
    sizes: Mapping[str, int]
    counts: Mapping[str, Mapping[str, int]]
    split: str
    metrics: Mapping
    files: Mapping[str, str]
    calibration: Mapping
    referral: Mapping | None = None
    detector: Mapping | None = None

    @property
    def classes(self) -> list[str]:
        """Class names in label order."""
        return self.metadata["classes"]

    @property
    def is_measured(self) -> bool:
        """Whether the metrics are of probabilities with the classifier's calibration."""
        return _is_of(self.metrics.get("calibration") or {"method": "none"}, self.calibration)

    @property
    def is_rendered(self) -> bool:
        """Whether the training images were drawn by a program."""
        return self.sources["train"].partition(":")[0] == "synthetic"


def render(card: Card) -> str:
    """The model card as Markdown with metadata."""
    weights = card.metadata["weights"]
    return hub.model_card(
        _text(card),
        name=card.name,
        licence=weights["licence"],
        base_model=weights["location"],
        tags=["bloodjax", "cytology", "microscopy", "medical", card.metadata["network"]],
        dataset=(card.sources["train"], card.split),
        metrics={
            identifier: (name, round(card.metrics[metric], 6))
            for metric, (identifier, name) in _ON_THE_HUB.items()
            if card.is_measured and card.metrics.get(metric) is not None
        },
    )


def _text(card: Card) -> str:
    sections = {
        "Results": _results(card),
        "Calibration, referral and rejection": _answers(card),
        "Input": _input(card),
        "Use": _usage(card),
        "Data": _data(card),
        "Intended use": _intended_use(card),
        "Limits": _limits(card),
        "Licence and citation": _licence(card),
        "Files": _files(card),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# {escape(card.name)}\n\n{_summary(card)}\n\n{body}\n"


def _summary(card: Card) -> str:
    names = ", ".join(map(escape, card.classes))
    trained = f"{card.sizes['train']:,}" if "train" in card.sizes else "an unknown number of"
    version = card.metadata["bloodjax"]
    return (
        f"A `{card.metadata['network']}` that classifies images of single cells under a microscope "
        f"into {len(card.classes)} classes: {names}. bloodjax {version} trained it on {trained} "
        f"images from {escape(card.sources['train'])}."
    )


def _results(card: Card) -> str:
    if not card.metrics:
        return "The run was not evaluated, so how good the classifier is is not known."
    intervals = card.metrics.get("ci95", {})
    rows = [
        [name, _number(card.metrics[metric]), _interval(intervals.get(metric))]
        for metric, name in _NAMES.items()
        if card.metrics.get(metric) is not None
    ]
    by_class = [
        [
            escape(name),
            f"{found['support']:,}",
            _with_interval(found, "recall"),
            _with_interval(found, "precision"),
        ]
        for name, found in card.metrics.get("per_class", {}).items()
    ]
    views = card.metrics.get("tta", "none")
    averaged = "" if views == "none" else f", averaged over the views `{views}`"
    return (
        f"On the {card.metrics['n']:,} images of the {card.split} split{averaged}:\n\n"
        f"{table(['metric', 'value', '95 % interval'], rows)}\n\n"
        f"{table(['class', 'images', 'recall', 'precision'], by_class)}\n\n"
        "The intervals say how much the figures would vary with other images of the same kind. "
        "They say nothing about images of another laboratory."
    )


def _answers(card: Card) -> str:
    lines = [
        f"- **Calibration**: {_calibration(card)}",
        f"- **Referral**: {_referral(card)}",
        f"- **Rejection**: {_rejection(card)}",
    ]
    if site := card.metadata.get("site"):
        lines.append(f"- **Site**: {_site(card, site)}")
    return "\n".join(lines)


def _calibration(card: Card) -> str:
    method = card.calibration["method"]
    if method == "none":
        text = "the probabilities are not calibrated."
        if card.metrics and not card.is_measured:
            text += " The metrics above are of calibrated ones."
        return text
    text = (
        f"the probabilities are calibrated by {method} scaling, which was fitted to the "
        "validation split."
    )
    if not card.metrics:
        return text
    if not card.is_measured:
        return f"{text} The metrics above are from before it was fitted."
    before = card.metrics["calibration"]
    return (
        f"{text} On the {card.split} split it changes the expected calibration error from "
        f"{_number(before.get('ece_before'))} to {_number(card.metrics.get('ece'))} and "
        f"the negative log-likelihood from {_number(before.get('nll_before'))} to "
        f"{_number(card.metrics.get('nll'))}."
    )


def _referral(card: Card) -> str:
    if card.referral is None:
        return "there is no threshold of confidence."
    threshold = card.referral["threshold"]
    if threshold > 1:
        return (
            "no threshold of confidence met the error that was asked for, so every image is "
            "referred to a person."
        )
    text = f"a person should look at an image whose confidence is below {_number(threshold)}."
    point = (card.metrics.get("selective") or {}).get("operating_point")
    if not point or point["threshold"] != threshold or not card.is_measured:
        return f"{text} How many images that are was not measured."
    return (
        f"{text} On the {card.split} split the classifier then answers "
        f"{_percent(point['coverage'])} of the images, and {_percent(point['error'])} of these "
        f"answers are wrong ({_interval(point.get('error_ci95'), _percent)})."
    )


def _rejection(card: Card) -> str:
    if card.detector is None:
        return "there is no detector of images unlike the training cells."
    measured = card.metrics.get("rejection") or {}
    share = (
        f" It rejects {_percent(measured['rejected'])} of the {card.split} split."
        if _is_of(measured, card.detector)
        else ""
    )
    return (
        "images that are unlike the training cells are found by the method "
        f"`{card.detector['method']}`.{share} `bloodjax.load` computes it; the exported programs "
        "do not."
    )


def _site(card: Card, site: Mapping) -> str:
    classes = ", ".join(map(escape, site["classes"] or card.metadata["classes"]))
    changes = [
        text
        for key, text in (
            ("appearance", "images get the look of the training images"),
            ("share_ratio", "probabilities follow the shares of the classes there"),
        )
        if site[key]
    ]
    return (
        f"the classifier is for one site, where the classes {classes} can occur"
        + "".join(f"; {text}" for text in changes)
        + "."
    )


def _is_of(measured: Mapping, own: Mapping) -> bool:
    """Whether an entry of `metrics.json` was measured with what the classifier has."""
    keys = {"method", *({"temperature", "threshold"} & measured.keys())}
    return all(measured.get(key) == own.get(key) for key in keys)


def _input(card: Card) -> str:
    meta = card.metadata
    mean, std = (", ".join(f"{value:.3f}" for value in meta[key]) for key in ("mean", "std"))
    size = meta["image_size"]
    return (
        "An image shows one cell, in RGB. "
        f"The network's input is {size} x {size} pixels. Of an image of another size, "
        f"{_fit(meta['fit'])} with Pillow's bicubic interpolation. Values in 0..1 are normalised "
        f"by the mean ({mean}) and the standard deviation ({std}). `bloodjax.load` and the "
        "exported programs do this themselves: they take uint8 images. The code below reads "
        "files of 8 bits per channel without transparency."
    )


def _fit(fit: str) -> str:
    """How an image becomes a square; see `config.data.fit`."""
    if side := frame_side(fit):
        return (
            f"the square of {side} pixels at its centre, with the median colour of its border "
            "outside the image, is resized"
        )
    return _FITS[fit]


def _usage(card: Card) -> str:
    return "\n\n".join(
        f"{heading}:\n\n```python\n{text.strip()}\n```"
        for heading, text in usage.snippets(card.metadata, card.files).items()
    )


def _data(card: Card) -> str:
    known = [split for split in _SPLITS if split in card.sizes]
    rows = [
        [escape(name), *(_count(card, split, name) for split in known)] for name in card.classes
    ]
    rows.append(["all", *(f"{card.sizes[split]:,}" for split in known)])
    sources = [f"{split}: {escape(card.sources[split])}" for split in known]
    drawn = (
        " A program drew these images; no person's cells are among them."
        if card.is_rendered
        else ""
    )
    return (
        f"Sources: {'; '.join(sources)}.{drawn} Images in each split:\n\n"
        f"{table(['class', *known], rows)}"
    )


def _count(card: Card, split: str, name: str) -> str:
    return f"{card.counts[split].get(name, 0):,}" if split in card.counts else "not known"


def _intended_use(card: Card) -> str:
    return (
        "Research, teaching and quality control on images that were taken, stained and cut out as "
        "the training images were. A person who knows these cells should look at the images that "
        "the classifier refers, and at a sample of the others."
    )


def _limits(card: Card) -> str:
    lines = [
        "- It is not a medical device. It must not be used for a diagnosis or for a decision about "
        "a patient.",
        "- Another laboratory's stain, microscope, camera or way of cutting out cells changes the "
        "images, and the accuracy can then be far lower than above. Measure it on your own "
        "labelled images before you rely on it.",
        f"- It knows {len(card.classes)} classes. A cell of another kind, several cells, or "
        "something that is no cell gets one of them too, with a confidence that means nothing.",
        "- The classes, their proportions and mistakes in their labels are those of the training "
        "images.",
    ]
    if card.is_rendered:
        lines.insert(
            0,
            "- A program drew the training images. The figures above say nothing about real cells.",
        )
    return "\n".join(lines)


def _licence(card: Card) -> str:
    weights = card.metadata["weights"]
    if not weights["location"]:
        return (
            "The network was trained from random weights, so no other weights' licence applies. "
            "The terms of the training images may restrict what can be done with the result."
        )
    licence = weights["licence"] or "a licence that is not known"
    cited = f" Paper: {escape(weights['citation'])}." if weights["citation"] else ""
    return (
        f"Training started from the weights {code(weights['location'])}, which are published "
        f"under {escape(licence)}.{cited} The terms of the training images may restrict what can "
        "be done with the result, too."
    )


def _files(card: Card) -> str:
    return table(
        ["file", "content"], [[code(name), content] for name, content in card.files.items()]
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the columns after the first are aligned to the right if numeric."""
    numeric = all(not row[1] or row[1][0].isdigit() for row in rows) and len(header) > 2
    line = ["---", *(["---:" if numeric else "---"] * (len(header) - 1))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, line, *rows])


def escape(text: str) -> str:
    """Text as Markdown shows it literally, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text as code on one line of Markdown, in a cell of a table too."""
    plain = " ".join(text.split()).replace("|", "\\|")
    return f"`` {plain} ``" if "`" in plain else f"`{plain}`"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _interval(ends: Sequence[float] | None, form=_number) -> str:
    return f"{form(ends[0])} to {form(ends[1])}" if ends else ""


def _with_interval(found: Mapping, metric: str) -> str:
    if found.get(metric) is None:
        return "not known"
    interval = _interval(found.get(f"{metric}_ci95"))
    return _number(found[metric]) + (f" ({interval})" if interval else "")
