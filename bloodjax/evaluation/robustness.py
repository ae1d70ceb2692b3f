"""Robustness benchmark: BloodMNIST-C's corruptions, and further ones, on any labelled dataset.

Definitions (Di Salvo et al. 2024, arXiv:2406.17536, and its package medmnistc):
  * The balanced error is 1 - balanced accuracy. A corruption has one for each severity s.
  * `be` of a corruption is sum_s error(s) / sum_s AlexNet's error(s); 1 is as bad as AlexNet.
  * `rbe` is sum_s (error(s) - clean error) / sum_s (AlexNet's error(s) - AlexNet's clean error):
    the increase of the error, relative to AlexNet's.
  * `BE` and `rBE` are their means over the eleven corruptions; None if some were not measured.
AlexNet's errors were measured on BloodMNIST-C's images, so only ratios on these are comparable.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bloodjax import metrics
from bloodjax.cli import console
from bloodjax.corruptions import alexnet_reference, registry
from bloodjax.corruptions.base import SEVERITIES
from bloodjax.data.dataset import Dataset
from bloodjax.distributed import preemption
from bloodjax.errors import Stopped
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.evaluation.referral import Referral
from bloodjax.io.files import atomic_write, make_folder
from bloodjax.metrics import selective
from bloodjax.report import corruptions_page

# Minimum number of images in a chunk. After each chunk, progress and signals are handled.
_AT_ONCE = 256
# What `benchmark` writes.
FILES = ("corruptions.json", "corruptions.html")


def benchmark(
    model: Classifier | Ensemble,
    dataset: Dataset,
    out: pathlib.Path,
    *,
    names: Mapping[str, Sequence[int]],
    tta: str | None,
) -> dict:
    """Scores `dataset` clean and distorted; writes `corruptions.json` and `corruptions.html`.

    Args:
      model: The classifier or ensemble. Its config's seed is the seed of the distortions.
      dataset: Labelled images of the same classes.
      out: Folder to write to; it is created if needed.
      names: Distortion -> severities, as `corruptions.registry.parse` returns them.
      tta: Views to average over; by default those of the model.

    Returns:
      The content of `corruptions.json`.

    Raises:
      UserError: `out` cannot be written to.
      Stopped: SIGINT or SIGTERM came; nothing was written.
    """
    make_folder(out)
    clean, errors, answered = _measure(model, dataset, names, tta)
    result = {
        "n": len(dataset),
        "image_size": int(dataset.images.shape[1]),
        "step": model.step,
        "seed": model.config.seed,
        "tta": tta or model.tta,
        **relative(clean, errors),
        **({} if model.referral is None else {"selective": _selective(model.referral, answered)}),
        "baseline": {"source": alexnet_reference.SOURCE, "image_size": alexnet_reference.SIZE},
    }
    content, page = FILES
    atomic_write(out / content, json.dumps(result, indent=2) + "\n")
    atomic_write(out / page, corruptions_page.build(out.name, result))
    return result


def relative(clean: float, errors: Mapping[str, Mapping[int, float]]) -> dict:
    """The errors, their means, and both ratios to AlexNet's errors.

    Args:
      clean: Balanced error on clean images, 0..1.
      errors: Distortion -> severity -> balanced error.

    Returns:
      Part of the content of `corruptions.json`. The ratios are None for a distortion that lacks a
      severity or is not in BloodMNIST-C.
    """
    rows = {name: _row(name, clean, by_severity) for name, by_severity in errors.items()}
    complete = all(name in rows for name in alexnet_reference.CORRUPTED)
    return {
        "clean_balanced_error": clean,
        "BE": _mean_of(rows, "be") if complete else None,
        "rBE": _mean_of(rows, "rbe") if complete else None,
        "corruptions": rows,
    }


def summary(result: Mapping) -> str:
    """One line that summarises the content of `corruptions.json`."""
    rows = result["corruptions"]
    worst = max(rows, key=lambda name: rows[name]["mean_balanced_error"])
    mean = np.mean([row["mean_balanced_error"] for row in rows.values()])
    line = (
        f"balanced error: clean {result['clean_balanced_error']:.4f}, distorted {mean:.4f} on "
        f"average; worst under {worst}, {rows[worst]['mean_balanced_error']:.4f}"
    )
    if result["rBE"] is not None:
        line += f"; BE {result['BE']:.3f}, rBE {result['rBE']:.3f} (AlexNet on BloodMNIST-C: 1)"
    if point := result.get("selective"):
        line += f"; refers {100 * (1 - point['mean_coverage']):.1f} % of the distorted"
        if point["mean_error"] is not None:
            line += f", error on the rest {100 * point['mean_error']:.2f} %"
    return line


def _selective(referral: Referral, answered: Mapping[str, Mapping[str, dict]]) -> dict:
    """The entry "selective" of `corruptions.json`: what the run's threshold does under each.

    Args:
      referral: The threshold.
      answered: "clean" or distortion -> severity -> `selective.operating_point`.
    """
    rows = [point for name in answered if name != "clean" for point in answered[name].values()]
    errors = [point["error"] * point["coverage"] for point in rows if point["coverage"]]
    coverage = float(np.mean([point["coverage"] for point in rows]))
    return {
        "target_error": referral.target_error,
        "threshold": referral.threshold,
        "mean_coverage": coverage,
        # Of the answered images of all distortions together.
        "mean_error": float(np.sum(errors) / len(rows) / coverage) if coverage else None,
        **answered,
    }


def _row(name: str, clean: float, errors: Mapping[int, float]) -> dict:
    mean, ratio, added = float(np.mean(list(errors.values()))), None, None
    if name in alexnet_reference.CORRUPTED and set(errors) == set(SEVERITIES):
        theirs = alexnet_reference.CORRUPTED[name]
        ratio, added = mean / theirs, (mean - clean) / (theirs - alexnet_reference.CLEAN)
    return {
        "balanced_error": {str(severity): error for severity, error in errors.items()},
        "mean_balanced_error": mean,
        "be": ratio,
        "rbe": added,
    }


def _mean_of(rows: Mapping[str, Mapping], ratio: str) -> float | None:
    values = [rows[name][ratio] for name in alexnet_reference.CORRUPTED]
    return None if None in values else float(np.mean(values))


def _measure(
    model: Classifier | Ensemble,
    dataset: Dataset,
    names: Mapping[str, Sequence[int]],
    tta: str | None,
) -> tuple[float, dict[str, dict[int, float]], dict[str, dict[str, dict]]]:
    """The balanced error on clean images, and for each distortion and severity.

    Returns:
      The balanced errors, and for a model with a threshold of confidence, what it answers: "clean"
      or distortion -> severity -> `selective.operating_point`.
    """
    seed, n = model.config.seed, len(dataset)
    answered: dict[str, dict[str, dict]] = {}
    total = n * (1 + sum(map(len, names.values())))
    errors: dict[str, dict[int, float]] = {}
    with preemption.graceful_shutdown() as stop, console.ProgressBar("clean", total, 0) as bar:

        def error(done: int, distort: Callable, name: str, severity: int) -> float:
            predictions, refer = [], []
            for rows in _chunks(n, model.config.batch_size):
                images = np.stack([distort(dataset.images[i], dataset.names[i]) for i in rows])
                answers = model.answer(images, tta)
                predictions.append(answers.probabilities)
                refer.append(answers.refer)
                bar.advance(done + rows.stop)
                if stop.signal:
                    raise Stopped(
                        "stopped; the results of the corruptions were not written", stop.signal
                    )
            probabilities = np.concatenate(predictions)
            if model.referral is not None:
                correct = probabilities.argmax(axis=1) == dataset.labels
                point = selective.operating_point(~np.concatenate(refer), correct)
                answered.setdefault(name, {})[str(severity)] = point
            return 1 - metrics.quick(probabilities, dataset.labels)["balanced_accuracy"]

        clean = error(0, lambda image, _: image, "clean", 0)
        done = n
        for name, severities in names.items():
            errors[name] = {}
            for severity in severities:
                bar.describe(f"{name} {severity}")
                distort = _distortion(name, severity, seed)
                errors[name][severity] = error(done, distort, name, severity)
                done += n
    return clean, errors, answered


def _distortion(name: str, severity: int, seed: int) -> Callable:
    return lambda image, image_name: registry.distort(
        image, name, severity, seed=seed, image_name=image_name
    )


def _chunks(n: int, batch_size: int) -> list[range]:
    """Splits the indices of `n` images into chunks of full batches."""
    size = batch_size * max(1, _AT_ONCE // batch_size)
    return [range(start, min(start + size, n)) for start in range(0, n, size)]
