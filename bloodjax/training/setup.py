"""Everything that a run needs before its first step: config, weights, images and executor."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import PyTree

from bloodjax import config as config_lib
from bloodjax import distributed
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.config.validation import WATCHED
from bloodjax.data import bit_depth, statement
from bloodjax.data.options import MULTI_LABEL
from bloodjax.distributed import sharding
from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write
from bloodjax.training import class_balance, distillation, factory
from bloodjax.training.corrupted_splits import with_distorted
from bloodjax.training.distillation import Teacher
from bloodjax.training.input_pipeline import Splits, copy_sources, prepare_splits
from bloodjax.training.loader import TrainLoader
from bloodjax.training.workdir import CONFIG_FILE


@dataclasses.dataclass(frozen=True)
class RunContext:
    """A run that is ready to start or resume.

    Attributes:
      config: Config of the run.
      splits: Images of the run.
      loader: Feeds the training split to the executor, which it holds.
      backbone: Pretrained weights that a new run starts from; {} for random ones, and for a run
        that resumes.
      teacher: Variables of each network of an online teacher; () without one.
    """

    config: Config
    splits: Splits
    loader: TrainLoader
    backbone: PyTree
    teacher: tuple[PyTree, ...] = ()


def prepare_run(
    config: Config,
    stored: Config | None,
    workdir: pathlib.Path,
    fresh: bool,
    load_teacher: Callable[[Sequence[str], pathlib.Path], Teacher] | None = None,
    splits: Splits | None = None,
) -> RunContext:
    """Reads everything that the run needs, and writes its config to the workdir.

    Args:
      config: Config that the user asked for.
      stored: Config of the run in the workdir, or None if there is none.
      workdir: Folder of the run.
      fresh: Whether the workdir has no checkpoint.
      load_teacher: Loads the run's teacher, if it has one and needs it, from the teacher's workdirs
        and the workdir of the run.
      splits: The images in the run's `splits.json`, if the caller has read them; None to read them.

    Raises:
      UserError: The weights, the images or the teacher cannot be read, or do not match the
        config.
    """
    config = stored or config
    distributed.barrier()  # all processes have looked; now the primary one may write
    mixes = bool(config_lib.augmentation(config).mix)
    sharding.per_device(config.batch_size, config.accumulate_steps, pairs=mixes)
    backbone: PyTree = {}
    if fresh:
        # Before the images are read, which takes long, so that missing weights show at once.
        config, backbone = factory.pretrained(config)
    folders, teacher = config_lib.teacher_folders(config), None
    online = config.distill.online
    has_taught = distributed.exchange((workdir / distillation.FILE).exists())[0]
    if folders and (online or stored is None or (fresh and not has_taught)):
        teacher = load_teacher(folders, workdir)
    known = splits is not None
    if not known:
        copy_sources(config)
        splits = distributed.primary_first(
            # The primary process draws the splits; the others read them from `splits.json`.
            lambda primary: prepare_splits(config, workdir, not primary or stored is not None)
        )
    if fresh:
        console.log_info(factory.origin(config))
    for line in () if known else statement.lines(dict(splits.items()), splits.left_out):
        console.log_info(line)
    scale = bit_depth.widest([split.reading.tally.scale for _, split in splits.items()])
    first = splits.train.reading.first_label or config.data.first_label
    config = config_lib.with_values(
        config, {"data.scale": scale or config.data.scale, "data.first_label": first}
    )
    if splits.train.is_multi_label:
        config = config_lib.with_values(config, {"data.task": MULTI_LABEL})
    splits = with_distorted(config, splits, workdir)
    _check_monitored(config, splits)
    num_classes = len(splits.train.classes)
    logit_shift = class_balance.logit_shift(config, splits.train.labels, num_classes)
    taught, networks, weights = None, (), ()
    if online:
        networks, weights = distillation.networks(config, splits, workdir, teacher, fresh)
    elif folders:
        taught = distillation.soft_targets(config, splits, workdir, teacher)
    executor = factory.executor(config, num_classes, logit_shift, networks)
    loader = TrainLoader(config, executor, splits.train, taught)
    if line := class_balance.sampling_statement(config, splits.train.labels, splits.train.classes):
        console.log_info(line)
    if not loader.on_device:
        console.log_info("the training images stream from the host")
    atomic_write(workdir / CONFIG_FILE, config_lib.to_json(config))
    return RunContext(config, splits, loader, backbone, weights)


def _check_monitored(config: Config, splits: Splits) -> None:
    """Checks that the metric is defined where early stopping monitors it.

    Raises:
      UserError: It is not: no class, or label, is that of some of the images and not of others.
    """
    undefined = {"auc"} | ({"balanced_accuracy"} if splits.train.is_multi_label else set())
    metric = config.early_stopping.metric
    if metric not in undefined:
        return
    for name, dataset in splits.evaluated("validation").items():
        counts = dataset.class_counts
        if name in WATCHED[config.early_stopping.set] and not np.any(
            (counts > 0) & (counts < len(dataset))
        ):
            raise UserError(
                f"config.early_stopping.metric is {metric!r}, expected another, such as loss: the "
                f"{name} split has no class that some of its images have and others lack"
            )
