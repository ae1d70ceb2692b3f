"""What a run has left, for tests that compare two of them."""

import functools

import jax

from bloodjax import build, logs, optim, settings
from bloodjax.checkpoint import Checkpoints
from bloodjax.state import TrainState


def last_state(workdir, config):
    """All of the last checkpoint: progress, and the state as a tree of numpy arrays."""
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        progress, step = checkpoints.progress(), checkpoints.latest_step
        shapes = build.shapes(config, len(progress.classes))
        name = settings.PHASES[progress.phase]
        tx = optim.optimizer(config.phases[name], 7, shapes["params"], shapes["batch_stats"])
        like = jax.eval_shape(functools.partial(TrainState.create, tx=tx), shapes)
        return progress, jax.device_get(checkpoints.restore(step, like))


def history(workdir):
    """The history without its timings."""
    entries = logs.read_history(workdir)
    for entry in entries:
        del entry["seconds"], entry["train"]["images_per_second"]
    return entries
