"""Collects the data for a run's report, and writes `report/index.html`."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from bloodjax import distributed
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.data import statement
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.io.files import atomic_write, make_folder, read_json
from bloodjax.profiling import recorder
from bloodjax.report import run_page
from bloodjax.training import class_balance, metric_writer
from bloodjax.training.input_pipeline import Splits

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")
_AUDIT_LISTS = ("junk", "exact_duplicates", "near_duplicates", "label_conflicts", "leakage")


def write(
    config: Config,
    workdir: pathlib.Path,
    splits: Splits,
    model: Classifier | Ensemble,
    results: Mapping[str, dict],
    mistakes: Sequence[run_page.Mistake],
) -> None:
    """Writes `report/index.html`; only the primary process does.

    Args:
      config: Config of the run.
      workdir: Folder of the run.
      splits: Splits of the run.
      model: The evaluated model.
      results: Split -> content of its `metrics.json`. The first split is the headline.
      mistakes: Misclassified images of the headline split.
    """
    if not distributed.is_primary():
        return
    history = metric_writer.read_history(workdir, "epoch")
    counts = {
        name: {c: int(np.sum(dataset.labels == i)) for i, c in enumerate(model.classes)}
        for name, dataset in splits.items()
    }
    weights = {}
    if config.loss.class_weights != "none":
        values = class_balance.class_weights(config, splits.train.labels, len(model.classes))
        weights = dict(zip(model.classes, values.tolist(), strict=True))
    content = run_page.build(
        name=workdir.resolve().name,
        config=config.to_dict(),
        history=history,
        evaluations=results,
        best_step=model.step,
        baselines={name: result["baseline"]["accuracy"] for name, result in results.items()},
        mistakes=mistakes,
        audit=_audit_counts(
            workdir,
            used=sum(sum(by_class.values()) for by_class in counts.values()),
            cleaned=config.data.clean == "drop",
        ),
        counts=counts,
        statement=statement.lines(dict(splits.items()), splits.left_out),
        class_weights=weights,
        versions=versions(),
        timings={"training": sum(entry["seconds"] for entry in history)} if history else {},
        profile=recorder.load(workdir),
    )
    make_folder(workdir / "report")
    page = workdir / "report" / "index.html"
    atomic_write(page, content)
    console.log_info(f"report: {page}")


def confident_mistakes(
    dataset: Dataset, probabilities: Float[np.ndarray, "n classes"]
) -> list[run_page.Mistake]:
    """The misclassified images of `dataset` with the highest confidence."""
    return [
        run_page.Mistake(
            image=dataset.images[i],
            name=dataset.names[i],
            true=dataset.classes[dataset.labels[i]],
            predicted=dataset.classes[int(probabilities[i].argmax())],
            confidence=float(probabilities[i].max()),
        )
        for i in run_page.most_confident_mistakes(probabilities, dataset.labels)
    ]


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
