"""A run's record in experiment trackers: TensorBoard's are files, W&B and MLflow have processes."""

from bloodjax.tracking.group import TrackerGroup, check_installed, open_trackers
from bloodjax.tracking.options import TENSORBOARD, TRACKERS, TrackingOptions

__all__ = [
    "TENSORBOARD",
    "TRACKERS",
    "TrackerGroup",
    "TrackingOptions",
    "check_installed",
    "open_trackers",
]
