"""What trackers get of a run that has ended: its metrics, its report and its best weights."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from bloodjax import distributed, tracking
from bloodjax.config import Config
from bloodjax.evaluation import ensemble, model_folder
from bloodjax.io.files import make_folder
from bloodjax.tracking import TrackerGroup
from bloodjax.tracking.group import FOLDER


def log(
    config: Config, workdir: pathlib.Path, results: Mapping[str, Mapping], trackers: TrackerGroup
) -> None:
    """Gives the trackers the results of a run; all processes call it.

    Args:
      config: Config of the run.
      workdir: Folder of the run.
      results: Split -> content of its `metrics.json`.
      trackers: Trackers of the run.
    """
    if not set(config.trackers) - {tracking.TENSORBOARD}:
        return
    for split, result in results.items():
        figures = {
            f"evaluate/{split}/{name}": float(value)
            for name, value in result.items()
            if isinstance(value, (int, float)) and name not in ("n", "step")
        }
        trackers.log_results(figures, result["step"])
    trackers.log_report(workdir / "report" / "index.html")
    if not config.tracking.model:
        return
    model = ensemble.load(workdir)  # of several processes all read the weights
    if distributed.is_primary():
        folder = workdir / FOLDER / "model"
        make_folder(folder)
        model_folder.write(folder, model, workdir, {})
        trackers.log_model(folder)
