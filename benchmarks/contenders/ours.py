"""bloodjax's own steps, as a run takes them, and answers, as a trained classifier gives them.

`lower` has the step of a run's second phase for compilers.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.tasks import CLASSES, Task
from bloodjax import config as config_lib
from bloodjax.augment.tta import TTAConfig
from bloodjax.checkpoints.state import TrainState
from bloodjax.data.batches import DeviceDataset, epoch_order
from bloodjax.evaluation.predictor import Predictor
from bloodjax.planning.images import ImageCounts
from bloodjax.planning.machines import Machine
from bloodjax.planning.steps import RunSteps
from bloodjax.training import factory, optim
from bloodjax.training.step_config import Phase

# Steps of an epoch, the images of all of which lie on the device.
_EPOCH = 16
_VIEWS = {"predict": TTAConfig("none"), "predict_d4": TTAConfig("d4")}


def config(task: Task) -> config_lib.Config:
    """A run's config that does the task and nothing besides."""
    changed = config_lib.defaults()
    changed.update_from_flattened_dict(
        {
            "data.image_size": task.size,
            "batch_size": task.batch,
            "dtype": task.dtype,
            "augment": "d4" if task.kind == "epoch" else "none",
            "model.name": task.network,
            "model.weights": "",
            "model.mean": (0.5, 0.5, 0.5),
            "model.std": (0.5, 0.5, 0.5),
            "model.head.hidden": (),
            "model.head.batch_norm": False,
            "model.head.dropout": (0.0, 0.0),
            "phases.finetune.clip_norm": 0.0,
            "phases.finetune.freeze": "backbone" if task.kind == "head" else "none",
        }
    )
    return config_lib.validate(changed)


class Contender:
    """One task, ready to run."""

    def __init__(self, task: Task, _: str):
        chosen = config(task)
        rng = np.random.default_rng(0)
        shape = (_EPOCH * task.batch, task.size, task.size, 3)
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        self._images = images[: task.batch]
        self._views = _VIEWS.get(task.kind)
        if self._views:
            variables = factory.variables(chosen, CLASSES)
            self._predictor = Predictor(factory.executor(chosen, CLASSES), variables)
            return
        labels = np.arange(len(images), dtype=np.int32) % CLASSES
        self._steps = factory.executor(chosen, CLASSES)
        variables = factory.variables(chosen, CLASSES)
        tx = optim.optimizer(
            chosen.phases.finetune, _EPOCH, variables["params"], variables["batch_stats"]
        )
        self._phase = Phase(chosen.phases.finetune.freeze, tx)
        self._state = self._steps.replicate(TrainState.create(variables, tx))
        self._data = self._steps.replicate(DeviceDataset.of(images, labels))
        self._taken, self._order = 0, None
        self._weights = self._steps.replicate(np.ones(CLASSES, np.float32))

    def run(self, steps: int) -> None:
        """Takes steps, and waits for the last."""
        if self._views:
            for _ in range(steps):
                self._predictor.predict(self._images, self._views)
            return
        for _ in range(steps):
            epoch, step = divmod(self._taken, _EPOCH)
            if step == 0:
                self._order = self._steps.replicate(epoch_order(0, epoch, len(self._data.labels)))
            self._state, _ = self._steps.train(
                self._phase, 1, self._state, self._data, self._order, self._weights
            )
            self._taken += 1
        jax.block_until_ready(self._state)


def lower(
    task: Task, machine: Machine, devices: Sequence[jax.Device], freeze: str = "batchnorm"
) -> jax.stages.Lowered:
    """The training step of a run with the default head, lowered for a device that need not exist.

    Args:
      task: A task of the kind "train".
      machine: A machine of one chip.
      devices: Its device.
      freeze: What stays in inference mode; by default that of the phase "finetune".

    Returns:
      The step, which gathers its batch from a dataset of `_EPOCH` batches on the device. Its state
      is donated.
    """
    return _steps(task, machine, devices, freeze).lower_train("finetune")


def resident_bytes(task: Task) -> int:
    """Bytes of the dataset's images on the device, in a step that `lower` returns."""
    return _EPOCH * task.batch * task.size**2 * 3


def _steps(task, machine, devices, freeze) -> RunSteps:
    chosen = config_lib.defaults()
    changes = {
        "data.image_size": task.size,
        "data.on_device": "always",
        "batch_size": task.batch,
        "dtype": task.dtype,
        "augment": "none",
        "model.name": task.network,
        "model.weights": "",
        "model.mean": (0.5, 0.5, 0.5),
        "model.std": (0.5, 0.5, 0.5),
        "phases.finetune.freeze": freeze,
        "steps_per_call": 1,
    }
    chosen.update_from_flattened_dict(changes)
    images = ImageCounts(_EPOCH * task.batch, 0, 0, CLASSES, "the benchmark's")
    return RunSteps(config_lib.validate(chosen), machine, devices, images)


def about() -> dict[str, str]:
    """Versions, and the device."""
    device = jax.devices()[0]
    return {"jax": jax.__version__, "device": device.device_kind, "platform": device.platform}
