"""What a run has left, for tests that compare two of them."""

import functools

import jax

from bloodjax import config as config_lib
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.checkpoints.state import TrainState
from bloodjax.training import factory, metric_writer, optim


def last_state(workdir, config):
    """All of the last checkpoint: progress, and the state as a tree of numpy arrays."""
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        progress, step = checkpoints.progress(), checkpoints.latest_step
        shapes = factory.shapes(config, len(progress.classes))
        name = config_lib.PHASES[progress.phase]
        tx = optim.optimizer(config.phases[name], 7, shapes["params"], shapes["batch_stats"])
        like = jax.eval_shape(functools.partial(TrainState.create, tx=tx), shapes)
        return progress, jax.device_get(checkpoints.restore(step, like))


def history(workdir):
    """The history without its timings."""
    entries = metric_writer.read_history(workdir)
    for entry in entries:
        del entry["seconds"], entry["train"]["images_per_second"]
    return entries
