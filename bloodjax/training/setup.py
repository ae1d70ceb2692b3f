"""What a run needs before its first step: its config, weights, images and compiled steps."""

from __future__ import annotations

import dataclasses
import pathlib

from jaxtyping import PyTree

from bloodjax import config as config_lib
from bloodjax import distributed
from bloodjax.augment.policy import parse
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.distributed import sharding
from bloodjax.io.files import atomic_write
from bloodjax.training import class_balance, factory
from bloodjax.training.corrupted_splits import with_distorted
from bloodjax.training.input_pipeline import Parts, prepare
from bloodjax.training.loader import TrainLoader
from bloodjax.training.workdir import CONFIG_FILE


@dataclasses.dataclass(frozen=True)
class RunContext:
    """A run that may begin, or go on.

    Attributes:
      config: the run's own.
      parts: its images.
      feed: of the training images to its steps.
      backbone: the weights that a run without a checkpoint starts from; {} for one with.
    """

    config: Config
    parts: Parts
    feed: TrainLoader
    backbone: PyTree


def set_up(config: Config, stored: Config | None, workdir: pathlib.Path, fresh: bool) -> RunContext:
    """Reads all that the run needs, and writes its config into the workdir.

    Args:
      config: what is asked for.
      stored: the config that the workdir's run has, if there is one.
      workdir: the run's folder.
      fresh: whether there is no checkpoint.

    Raises:
      UserError: the weights or the images are not to be had, or do not go with the config.
    """
    config = stored or config
    distributed.barrier()  # only now may the primary process write to the workdir
    mixes = bool(parse(config.augment).mix)
    sharding.per_device(config.batch_size, config.accumulate_steps, pairs=mixes)
    backbone: PyTree = {}
    if fresh:
        # Before the data are read, which takes long: that weights are missing shows at once.
        config, backbone = factory.pretrained(config)
        console.log_info(factory.origin(config))
    parts = distributed.primary_first(
        # What the primary process has drawn, the others take from `splits.json`.
        lambda primary: prepare(config, workdir, resumes=not primary or stored is not None)
    )
    parts = with_distorted(config, parts, workdir)
    classes = len(parts.train.classes)
    shift = class_balance.logit_shift(config, parts.train.labels, classes)
    feed = TrainLoader(config, factory.steps(config, classes, shift), parts.train)
    if not feed.on_device:
        console.log_info("the training images stream from the host")
    atomic_write(workdir / CONFIG_FILE, config_lib.to_json(config))
    return RunContext(config, parts, feed, backbone)
