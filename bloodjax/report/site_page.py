"""The page "Another laboratory" of a run that was adapted to a site: `report/site.html`."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from bloodjax.io.files import atomic_write, make_folder
from bloodjax.report import html, numbers
from bloodjax.report.pictures import Pictures

FILE = "site.html"
MAX_PICTURES = 18  # of each kind
_PICTURE_BYTES = 1_500_000
_SIDE = 80  # Pixels.
# Name of a remedy -> how the page calls it; others keep their names.
_REMEDIES = {
    "frame": "Images read in one frame, so that cells of different size are in proportion",
    "size": "Cells brought to the size of the training cells",
    "stain": "Stains that are denser than in the training images thinned to theirs",
    "colour": "Background brought to the colour of the training images",
    "self_training": "Training on the site's images with the classes that the run predicts",
    "shares": "Probabilities corrected for the shares of the classes",
}
# Method that learns from labelled cells -> how the page calls it.
_METHODS = {
    "temperature": "Temperature of the calibration",
    "vector": "Calibration with a scale and a bias of each class",
    "head": "A new last layer",
    "layers": "All layers, with training cells rehearsed",
}
_WORDS = {"like": "like", "different": "different", "far": "far off"}


@dataclasses.dataclass(frozen=True)
class SitePictures:
    """Images for the page, of which it shows at most `MAX_PICTURES` of each kind.

    Attributes:
      training: Images that the run was trained on.
      site: Images of the site.
      after: The images of `site`, in the same order, as the network sees them after the remedies;
        None if they stay as they are.
    """

    training: UInt8[np.ndarray, "_ _ _ 3"]
    site: UInt8[np.ndarray, "n _ _ 3"]
    after: UInt8[np.ndarray, "n _ _ 3"] | None = None


def write(
    workdir: pathlib.Path, about: Mapping[str, Any], pictures: SitePictures, name: str = ""
) -> pathlib.Path:
    """Writes the page to `report/site.html` of a run, and returns its path.

    Args:
      workdir: Folder of the adapted run.
      about: The content of its `adaptation.json`.
      pictures: Images for the page.
      name: Name of the adapted run; by default that of its folder.

    Raises:
      UserError: The folder cannot be written to.
    """
    folder = workdir / "report"
    make_folder(folder)
    has_report = (folder / "index.html").exists()
    atomic_write(folder / FILE, build(name or workdir.resolve().name, about, pictures, has_report))
    return folder / FILE


def build(
    name: str, about: Mapping[str, Any], pictures: SitePictures, has_report: bool = False
) -> str:
    """Builds the page, a self-contained HTML file.

    Args:
      name: Name of the adapted run.
      about: The content of its `adaptation.json`; parts that are missing or null are left out.
      pictures: Images for the page.
      has_report: Whether the run's report, `index.html`, is in the same folder.
    """
    estimate, referral = (about.get(key) or {} for key in ("accuracy_estimate", "referral"))
    return html.render(
        "site.html",
        name=name,
        has_report=has_report,
        site=about["site"],
        verdict=_verdict(estimate, referral),
        estimate=_steps(estimate),
        referral=_steps(referral),
        distance=_distance(about.get("distance")),
        shown=_shown(pictures),
        shares=_shares(about.get("shares")),
        remedies=[_remedy(remedy) for remedy in about.get("remedies") or ()],
        labelled=_labelled(about.get("labelled")),
        percent=numbers.percent,
    )


def _steps(both: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What is known "before" and "after" the adaptation."""
    return {when: both[when] for when in ("before", "after") if both.get(when)}


def _last(both: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return both.get("after") or both.get("before")


def _verdict(estimate: Mapping[str, Any], referral: Mapping[str, Any]) -> dict[str, str]:
    """Whether the classifier is to be believed, as a kind of note, a word and sentences."""
    point = _last(referral)
    if point is None:
        return {
            "kind": "warn" if _last(estimate) else "",
            "word": "not known",
            "text": "This run has no referral threshold, so no error on the images that it "
            "answers was promised, and none can be checked.",
        }
    if point.get("holds") is None:
        return {
            "kind": "warn",
            "word": "not known",
            "text": "No validation image with the look of this site is answered with enough "
            "confidence, so the promised error cannot be checked: take no answer unchecked.",
        }
    found = f"{numbers.percent(point.get('referred'))} of the images are referred to a person, and "
    found += f"the estimated error on the rest is {numbers.percent(point.get('estimated_error'))}"
    if point.get("target_error") is not None:
        found += f" ({numbers.percent(point['target_error'])} was promised)"
    found += "."
    if point["holds"]:
        return {
            "kind": "good",
            "word": "holds",
            "text": f"The referral threshold keeps its promise at this site: {found}",
        }
    if point.get("unlike"):
        found += (
            f" {numbers.percent(point['unlike'])} of the images are unlike the training images, "
            "for which no error can be promised."
        )
    return {
        "kind": "bad",
        "word": "withdrawn",
        "text": f"The referral threshold does not keep its promise at this site: {found} "
        "Do not use unchecked answers. Label a few cells of each class and adapt again with "
        "--labelled.",
    }


def _distance(distance: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The sentences, far quantities first, and the rows of the table."""
    if not distance:
        return None
    found = [*distance["shares"], *distance["measures"]]
    by_state = {
        state: [x["sentence"] for x in found if x["state"] == state]
        for state in ("far", "different")
    }
    return {
        **distance,
        "sentences": [*by_state["far"], *by_state["different"]],
        "rows": [_row(measure) for measure in distance["measures"]],
        "share_rows": [
            share
            | {"word": _WORDS[share["state"]], "site": numbers.percent(share["site"])}
            | {"training": numbers.percent(share["training"])}
            for share in distance["shares"]
        ],
        "colours": {
            key: {
                "css": "rgb({})".format(", ".join(f"{round(value)}" for value in colour)),
                "text": ", ".join(f"{round(value)}" for value in colour),
            }
            for key, colour in distance["backgrounds"].items()
        },
    }


def _row(measure: Mapping[str, Any]) -> dict[str, Any]:
    """A measure with the places of its quantiles on a common axis, in percent."""
    spreads = {key: measure[key] for key in ("training", "site")}
    low = min(spread["low"] for spread in spreads.values())
    high = max(spread["high"] for spread in spreads.values())
    width = (high - low) or 1.0
    places = {
        key: {quantile: round(2 + 96 * (value - low) / width, 2) for quantile, value in of.items()}
        for key, of in spreads.items()
    }
    return {
        "title": measure["title"],
        "state": measure["state"],
        "word": _WORDS[measure["state"]],
        "places": places,
        "texts": {
            key: {quantile: _number(value) for quantile, value in of.items()}
            for key, of in spreads.items()
        },
    }


def _shown(pictures: SitePictures) -> list[dict[str, Any]]:
    """The panels of images: title and `src` of each."""
    panels = {"Training images": pictures.training, "Site": pictures.site}
    if pictures.after is not None:
        panels["Site, after the remedies"] = pictures.after
    # One image of each panel at a time, so that none is empty when the page is full.
    budget, sources = Pictures(_PICTURE_BYTES), {title: [] for title in panels}
    for i in range(MAX_PICTURES):
        for title, images in panels.items():
            if i < len(images) and (src := budget.add(images[i], _SIDE)):
                sources[title].append(src)
    return [{"title": title, "sources": found} for title, found in sources.items() if found]


def _shares(shares: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of the table of class shares."""
    if not shares:
        return []
    largest = max([*shares["training"], *shares["high"], 1e-6])
    columns = (shares[key] for key in ("classes", "training", "site", "low", "high"))
    return [
        {
            "name": name,
            "training": numbers.percent(training),
            "site": numbers.percent(site),
            "interval": _interval(low, high),
            "places": [round(100 * x / largest, 2) for x in (training, site, low, high)],
        }
        for name, training, site, low, high in zip(*columns, strict=True)
    ]


def _remedy(remedy: Mapping[str, Any]) -> dict[str, Any]:
    tried, applied = remedy["tried"], remedy["applied"]
    return {
        "title": _REMEDIES.get(remedy["name"], remedy["name"].replace("_", " ")),
        "kind": "good" if applied else "",
        "word": "applied" if applied else "tried, not applied" if tried else "not tried",
        "why": remedy["why"],
        "check": list(_numbers(remedy.get("check") or {})),
    }


def _labelled(labelled: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the labelled cells gave: how many, the figures of each method, accuracy at home."""
    if not labelled:
        return None
    found = labelled.get("cross_validation") or {}
    counts = {name: n for name, n in (found.get("classes") or {}).items() if n}
    home = labelled.get("home") or {}
    return {
        "method": _METHODS.get(labelled["method"], labelled["method"]),
        "why": found.get("why", ""),
        "n": found.get("n", 0),
        "counts": ", ".join(f"{n} {name}" for name, n in counts.items()),
        "rows": [
            {
                "title": _METHODS.get(name, name),
                "chosen": name == labelled["method"],
                "accuracy": numbers.percent(scores.get("accuracy")),
                "loss": f"{scores['loss']:.3f}",
                "worse": f"{scores['worse']:+.3f} ± {scores['se']:.3f}",
            }
            for name, scores in (found.get("methods") or {}).items()
        ],
        "home": home if home.get("before") is not None else None,
    }


def _numbers(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """The names and texts of numbers, those of nested mappings under a common name."""
    for key, value in values.items():
        name = f"{before}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}, ")
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif isinstance(value, float) and not math.isfinite(value):
            yield name, "–"
        elif isinstance(value, int | float):
            yield name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield name, ", ".join(text for _, text in _numbers(dict(enumerate(value))))
        elif value is not None:
            yield name, str(value)


def _number(value: float) -> str:
    """A number with three digits, and at most three decimal places."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{round(float(f'{value:.3g}'), 3):g}"


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.1f}–{100 * high:.1f}"
