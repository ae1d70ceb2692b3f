"""All layers of a network, trained for a short time on labelled cells of a site.

Half of each batch are cells of the site, half are training cells. Without these (rehearsal; Robins
1995, Catastrophic forgetting, rehearsal and pseudorehearsal) the network would soon be wrong at
home. Both are augmented as in training. The steps are those of a run, compiled once for all calls.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Int32, PyTree, UInt8

from bloodjax import config as config_lib
from bloodjax.augment.tta import TTAConfig
from bloodjax.checkpoints.state import TrainState
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.data.batches import DeviceDataset
from bloodjax.evaluation.classifier import Classifier
from bloodjax.training import factory

# Steps in all, and images of a step: a minute or two for a small network on two cores.
_STEPS, _BATCH = 120, 32
_LEARNING_RATE = 3e-4
# Both ends of the schedule: linear warm-up, as a share of the steps, then a cosine to 0.
_WARMUP = 0.1
# Keys of the run's config that its steps follow here too.
_AS_IN_TRAINING = ("augment", "dtype", "model", "parallel", "sharding")


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images as the network takes them, with labels.

    Attributes:
      images: RGB images of the network's size.
      labels: Class index of each.
    """

    images: UInt8[np.ndarray, "n size size 3"]
    labels: Int32[np.ndarray, " n"]


class FineTuning:
    """Trains copies of a run's network, each on some of the labelled cells of a site."""

    def __init__(self, model: Classifier, site: LabelledImages, home: LabelledImages, seed: int):
        """Copies the images to the device, and compiles nothing yet.

        Args:
          model: The classifier of the run.
          site: All labelled cells of the site.
          home: Training cells, for rehearsal.
          seed: Random seed.
        """
        config = _config(model.config, seed)
        self._batch, self._seed = config.batch_size, seed
        self._sizes = len(site.labels), len(home.labels)
        self._start = jax.device_get(model.predictor.variables)
        self._executor = factory.executor(config, len(model.classes))
        self._phase = factory.phase(
            config,
            "finetune",
            variables=self._start,
            num_images=_STEPS * self._batch,
            num_classes=len(model.classes),
        )
        both = DeviceDataset.of(
            np.concatenate([site.images, home.images]), np.concatenate([site.labels, home.labels])
        )
        # One array for all calls, because steps are compiled for its shape.
        self._data = self._executor.replicate(both)
        self._weights = self._executor.replicate(np.ones(len(model.classes), np.float32))

    def train(self, known: Bool[np.ndarray, " n"], name: str) -> PyTree:
        """The variables after training on some of the cells of the site.

        Args:
          known: Mask of the cells of the site to train on, at least one.
          name: What is trained, for the progress bar.
        """
        executor, (site, home) = self._executor, self._sizes
        order = _order(np.flatnonzero(known), np.arange(site, site + home), self._batch, self._seed)
        order = executor.replicate(order)
        # The step donates the state, so it gets a copy of the variables.
        state = TrainState.create(jax.tree.map(jnp.array, self._start), self._phase.tx)
        state = executor.shard_state(state)
        with console.ProgressBar(name, _STEPS, 0) as bar:
            for step in range(_STEPS):
                state, sums = executor.train(
                    self._phase, 1, state, self._data, order, self._weights
                )
                jax.block_until_ready(sums)
                bar.advance(step + 1)
        return jax.device_get(executor.unreplicate(state).variables)

    def predict(
        self, variables: PyTree, images: UInt8[np.ndarray, "n size size 3"], views: TTAConfig
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


def _order(
    site: Int[np.ndarray, " n"], home: Int[np.ndarray, " m"], batch: int, seed: int
) -> Int32[np.ndarray, " steps_by_batch"]:
    """The images of each batch, one batch after another; half of each are cells of the site.

    Args:
      site: Indices of the cells of the site.
      home: Indices of the training cells.
      batch: Size of a batch.
      seed: Random seed.
    """
    rng, halves = np.random.default_rng(seed), []
    for index in (site, home):
        rounds = -(-_STEPS * batch // 2 // len(index))
        shuffled = np.concatenate([rng.permutation(index) for _ in range(rounds)])
        halves.append(shuffled[: _STEPS * batch // 2].reshape(_STEPS, -1))
    # They alternate, so that each device gets both.
    return np.stack(halves, axis=2).reshape(-1).astype(np.int32)
