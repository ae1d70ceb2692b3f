"""The names of the trackers, and what a run tells each of them about itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

# TensorBoard's events are written by `training.metric_writer`, and have no process.
TENSORBOARD = "tensorboard"
# Tracker -> (package, module of `bloodjax` that is the package's one door, class in it).
DOORS = {
    "wandb": ("wandb", "bloodjax.tracking.wandb_tracker", "WandbTracker"),
    "mlflow": ("mlflow", "bloodjax.tracking.mlflow_tracker", "MlflowTracker"),
}
TRACKERS = (TENSORBOARD, *DOORS)
# Used where neither the config nor the tracker's environment variable names a project.
PROJECT = "bloodjax"


@dataclasses.dataclass(frozen=True)
class TrackingOptions:
    """What a run tells a tracker about itself.

    Attributes:
      folder: Folder for the tracker's local files; it exists.
      project: W&B's project and MLflow's experiment; "" for that of the tracker's environment
        variable, or "bloodjax".
      run_name: Name of the run.
      tags: Tags, each a word or key=value.
      parameters: All config values, by dotted key.
    """

    folder: str
    project: str
    run_name: str
    tags: Sequence[str]
    parameters: Mapping[str, str | int | float | bool]
