"""All layers of a network, trained for a short time on labelled cells of a site.

Half of each batch are cells of the site, half are training cells. Without these (rehearsal; Robins
1995, Catastrophic forgetting, rehearsal and pseudorehearsal) the network would soon be wrong at
home. Both are augmented as in training. The steps are those of a run, compiled once for all calls.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32, PyTree, UInt8

from bloodjax import config as config_lib
from bloodjax.augment.tta import TTAConfig
from bloodjax.checkpoints.state import TrainState
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.data.batches import DeviceDataset
from bloodjax.evaluation.classifier import Classifier
from bloodjax.training import factory

Images = UInt8[np.ndarray, "_ size size 3"]
Labels = Int32[np.ndarray, " _"]

# Steps in all, and images of a step: a minute or two for a small network on two cores.
_STEPS, _BATCH = 120, 32
_LEARNING_RATE = 3e-4
# Both ends of the schedule: linear warm-up, as a share of the steps, then a cosine to 0.
_WARMUP = 0.1
# Keys of the run's config that its steps follow here too.
_AS_IN_TRAINING = ("augment", "dtype", "model", "parallel", "sharding")


class FineTuning:
    """Trains copies of a run's network, each on other cells of the site."""

    def __init__(self, model: Classifier, images: Images, labels: Labels, seed: int):
        """Compiles nothing yet.

        Args:
          model: The classifier of the run.
          images: Training cells as the network takes them, for rehearsal.
          labels: Their class indices.
          seed: Random seed.
        """
        self._config = _config(model.config, seed)
        self._num_classes = len(model.classes)
        self._images, self._labels = images, labels
        self._seed = seed
        self._start = jax.device_get(model.predictor.variables)
        self._executor = factory.executor(self._config, self._num_classes)
        self._phase = factory.phase(
            self._config,
            "finetune",
            variables=self._start,
            num_images=_STEPS * self._config.batch_size,
            num_classes=self._num_classes,
        )

    def train(self, images: Images, labels: Labels, name: str) -> PyTree:
        """The variables after training on these cells of the site.

        Args:
          images: At least one cell, as the network takes it.
          labels: Class indices.
          name: What is trained, for the progress bar.
        """
        executor = self._executor
        order = _order(len(labels), len(self._labels), self._config.batch_size, self._seed)
        data = DeviceDataset.of(
            np.concatenate([images, self._images]), np.concatenate([labels, self._labels])
        )
        data, order = executor.replicate(data), executor.replicate(order)
        weights = executor.replicate(np.ones(self._num_classes, np.float32))
        # The step donates the state, so it gets a copy of the variables.
        state = TrainState.create(jax.tree.map(jnp.array, self._start), self._phase.tx)
        state = executor.shard_state(state)
        with console.ProgressBar(name, _STEPS, 0) as bar:
            for step in range(_STEPS):
                state, sums = executor.train(self._phase, 1, state, data, order, weights)
                jax.block_until_ready(sums)
                bar.update(step + 1, accuracy=float(sums.correct / sums.count))
        return jax.device_get(executor.unreplicate(state).variables)

    def predict(
        self, variables: PyTree, images: Images, views: TTAConfig
    ) -> Float[np.ndarray, "n *answers classes"]:
        """Uncalibrated class probabilities; see `augment.tta.probabilities`."""
        return self._executor.predict(self._executor.shard_state(variables), images, views)


def _config(run: Config, seed: int) -> Config:
    """The config of the steps: that of a short phase in which the run's whole network learns."""
    content, own = config_lib.defaults().to_dict(), run.to_dict()
    content |= {key: own[key] for key in _AS_IN_TRAINING}
    devices = jax.device_count()
    content |= {"seed": seed, "batch_size": -(-_BATCH // (2 * devices)) * 2 * devices}
    content["data"] |= {key: own["data"][key] for key in ("train", "image_size")}
    content["loss"]["label_smoothing"] = own["loss"]["label_smoothing"]
    phase = content["phases"]["finetune"]
    phase |= {"epochs": 1, "learning_rate": _LEARNING_RATE, "freeze": "none", "layer_decay": 1.0}
    phase["schedule"] |= {"name": "cosine", "warmup": _WARMUP, "alpha": 0.0}
    return config_lib.validate(content)


def _order(site: int, home: int, batch: int, seed: int) -> Int32[np.ndarray, " n"]:
    """Indices of the cells of each batch, one batch after another; those of the site come first.

    Args:
      site: Number of cells of the site.
      home: Number of training cells.
      batch: Size of a batch, of which half are cells of the site.
      seed: Random seed.
    """
    rng = np.random.default_rng(seed)
    halves = []
    for first, n in ((0, site), (site, home)):
        rounds = -(-_STEPS * batch // 2 // n)
        index = np.concatenate([rng.permutation(n) for _ in range(rounds)])
        halves.append(first + index[: _STEPS * batch // 2].reshape(_STEPS, -1))
    # Each device gets cells of both.
    mixed = np.stack(halves, axis=2).reshape(-1)
    return mixed.astype(np.int32)
