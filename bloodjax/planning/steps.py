"""A run's own training and prediction steps, traced for devices that are not here."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from bloodjax import config as config_lib
from bloodjax.checkpoints.state import TrainState
from bloodjax.config import PHASES, Config
from bloodjax.data.batches import DeviceDataset, StackedBatches, steps_per_epoch
from bloodjax.data.options import MULTI_LABEL
from bloodjax.distributed import sharding
from bloodjax.errors import UserError
from bloodjax.models import summary
from bloodjax.planning.images import ImageCounts
from bloodjax.planning.machines import Machine
from bloodjax.pretrained.load import DEFAULT
from bloodjax.pretrained.pretrained_cfg import DEFAULTS, HALF, PretrainedCfg
from bloodjax.training import factory, optim
from bloodjax.training.executor import JitExecutor
from bloodjax.training.loader import stays_on_device
from bloodjax.training.step_config import Phase


def planned(config: Config, batch_size: int | None = None) -> Config:
    """The config that a run on an accelerator has before its first step.

    Its weights' preprocessing is filled in from the table of default weights, as far as it is
    there: it changes no cost. A run under pmap is planned as one under jit, of the same numbers.

    Args:
      config: The config that the user asked for.
      batch_size: Batch size in place of the config's.

    Raises:
      UserError: The run has an online teacher.
    """
    if config.distill.online:
        raise UserError(
            "config.distill.online is True, expected False: a plan does not count a teacher's "
            "networks"
        )
    changes = config.to_dict()
    changes["batch_size"] = batch_size or config.batch_size
    changes["parallel"] = "jit"
    if config.dtype == "auto":
        changes["dtype"] = "bfloat16"
    source = PretrainedCfg("", "", "", *HALF)
    if config.model.weights == DEFAULT:
        source = DEFAULTS.get(config.model.name, source)
    changes["model"]["source"] = dataclasses.asdict(source)
    return config_lib.validate(changes)


class RunSteps:
    """The steps of one run on one machine, to be lowered and compiled.

    Attributes:
      config: Config of the run.
      devices: The devices of the machine.
      network: The network with its head.
      on_device: Whether the training images stay on each device.
      phases: Names of the phases that have epochs.
      steps_per_epoch: Training steps in an epoch.
    """

    def __init__(
        self, config: Config, machine: Machine, devices: Sequence[jax.Device], images: ImageCounts
    ):
        """Traces nothing yet.

        Args:
          config: A config that `planned` returned.
          machine: The machine.
          devices: Its devices, which need not be here.
          images: The run's images.

        Raises:
          UserError: The batch cannot be divided among the devices, the training images are fewer
            than a batch, or they do not fit although `config.data.on_device` is "always".
        """
        # A range test finds other rates, which cost the same.
        rates = dict.fromkeys(config_lib.auto_rates(config), 1e-3)
        config = config_lib.with_learning_rates(config, rates)
        self.config, self.devices, self._images = config, devices, images
        self._check_batch(machine.chips)
        size = config.data.image_size
        self.on_device = stays_on_device(
            config.data.on_device, images.train * size * size * 3, machine.memory
        )
        self.steps_per_epoch = steps_per_epoch(images.train, config.batch_size)
        shift = (0.0,) * images.classes if config.loss.logit_adjustment else ()
        fixed = factory.step_config(config, images.classes, shift)
        self._executor = JitExecutor(fixed, devices=devices, layout=config.sharding)
        self.network = fixed.model
        mesh = sharding.mesh(devices)
        self._replicated = sharding.replicated(mesh)
        self._by_batch = sharding.by_batch(mesh)
        self._by_step = sharding.by_step_and_batch(mesh)
        self._chips = machine.chips
        self._shapes = factory.shapes(config, images.classes)
        self._made: dict[str, Phase] = {}
        self.phases = tuple(name for name in PHASES if config.phases[name].epochs)

    @functools.cached_property
    def layer_types(self) -> dict[str, str]:
        """Path of a module -> its layer type."""
        return summary.layer_types(self.network, self.config.data.image_size)

    @property
    def steps_per_call(self) -> int:
        """Training steps of a compiled program."""
        return min(self.config.steps_per_call, self.steps_per_epoch)

    def is_cached(self, name: str) -> bool:
        """Whether phase `name` trains the head on features that are computed once."""
        return self._phase(name).cached

    def model_flops(self, name: str) -> int:
        """Operations that phase `name` needs for an image; see `summary.training_flops`."""
        phase = self._phase(name)
        return summary.training_flops(
            self.network, self.config.data.image_size, phase.freeze, phase.cached
        )

    def lower_train(self, name: str) -> jax.stages.Lowered:
        """`steps_per_call` training steps of phase `name`."""
        return self._executor.lower(
            self._phase(name),
            self.steps_per_call,
            self._state(name),
            *self._data(name),
            self._placed(jax.ShapeDtypeStruct((self._images.classes,), jnp.float32)),
        )

    def lower_evaluation(self) -> jax.stages.Lowered:
        """The prediction of a batch, without test-time views."""
        return self._executor.lower_predict(self._variables(), self._batch(), "none")

    def lower_features(self) -> jax.stages.Lowered:
        """The features of a batch, for a phase that caches them."""
        return self._executor.lower_features(self._variables(), self._batch())

    def resident_bytes(self, name: str) -> int:
        """Memory on each device of the state and the images of phase `name`."""
        return _bytes_on_device((self._state(name), self._data(name)))

    def variables_bytes(self) -> int:
        """Memory on each device of the network's variables."""
        return _bytes_on_device(self._variables())

    def needed_collectives(self, name: str) -> int:
        """Bytes that a training step must combine between devices, whatever the compiler does.

        With "data" every gradient of a trained parameter is summed. With "fsdp" every array that is
        split is gathered, and its gradient summed and scattered. Bytes are those of full arrays in
        the compute dtype. Statistics of BatchNorm, the loss and the gradient's norm are left out.
        """
        if self._chips == 1:
            return 0
        params, stats = self._shapes["params"], self._shapes["batch_stats"]
        freeze = optim.freeze_labels(params, stats, self._phase(name).freeze)
        trained = [label != "freeze" for label in jax.tree.leaves(freeze)]
        split = [
            spec.shard_shape(leaf.shape) != leaf.shape
            for leaf, spec in zip(
                jax.tree.leaves(params),
                jax.tree.leaves(self._executor.layout.of(params)),
                strict=True,
            )
        ]
        leaves = zip(jax.tree.leaves(params), trained, split, strict=True)
        itemsize = factory.compute_dtype(self.config.dtype).itemsize
        return sum(itemsize * leaf.size * (trains + splits) for leaf, trains, splits in leaves)

    def _phase(self, name: str) -> Phase:
        if name not in self._made:
            self._made[name] = factory.phase(
                self.config,
                name,
                variables=self._shapes,
                num_images=self._images.train,
                num_classes=self._images.classes,
            )
        return self._made[name]

    def _state(self, name: str) -> PyTree:
        tx, ema = self._phase(name).tx, self.config.ema > 0
        state = jax.eval_shape(functools.partial(TrainState.create, tx=tx, ema=ema), self._shapes)
        return self._laid_out(state)

    def _variables(self) -> PyTree:
        return self._laid_out(self._shapes)

    def _laid_out(self, tree: PyTree) -> PyTree:
        return jax.tree.map(_struct, tree, self._executor.layout.of(tree))

    def _placed(self, tree: PyTree, where: NamedSharding | None = None) -> PyTree:
        return jax.tree.map(lambda x: _struct(x, where or self._replicated), tree)

    def _batch(self) -> PyTree:
        size = self.config.data.image_size
        shape = (self.config.batch_size, size, size, 3)
        return self._placed(jax.ShapeDtypeStruct(shape, jnp.uint8), self._by_batch)

    def _data(self, name: str) -> tuple[PyTree, PyTree]:
        """The images and their order, or the batches of a call."""
        size, n = self.config.data.image_size, self._images.train
        order = jax.ShapeDtypeStruct((n,), jnp.int32)
        if config_lib.sampling_exponent(self.config) != 1:
            length = self.steps_per_epoch * self.config.batch_size
            order = jax.ShapeDtypeStruct((length,), jnp.int32)
        images = jax.ShapeDtypeStruct((n, size, size, 3), jnp.uint8)
        # Shape of an image's labels.
        each = (self._images.classes,) if self.config.data.task == MULTI_LABEL else ()

        def taught(*lead: int) -> jax.ShapeDtypeStruct | None:
            if not self.config.distill.workdir:
                return None
            return jax.ShapeDtypeStruct((*lead, self._images.classes), jnp.float32)

        if self.is_cached(name):
            features = self.lower_features().out_info
            images = jax.ShapeDtypeStruct((n, *features.shape[1:]), features.dtype)
        elif not self.on_device:
            lead = (self.steps_per_call, self.config.batch_size)
            batches = StackedBatches(
                jax.ShapeDtypeStruct((*lead, size, size, 3), jnp.uint8),
                jax.ShapeDtypeStruct((*lead, *each), jnp.int32),
                taught(*lead),
            )
            return self._placed(batches, self._by_step), None
        labels = jax.ShapeDtypeStruct((n, *each), jnp.int32)
        data = jax.eval_shape(DeviceDataset.of, images, labels, taught(n))
        return self._placed(data), self._placed(order)

    def _check_batch(self, chips: int) -> None:
        config = self.config
        multiple = batch_multiple(config, chips)
        if config.batch_size % multiple:
            raise UserError(
                f"config.batch_size is {config.batch_size}, expected a multiple of {multiple}, for "
                f"{chips} chips"
            )


def batch_multiple(config: Config, chips: int) -> int:
    """The number that a batch is a multiple of: chips, micro-batches, pairs that are mixed."""
    pairs = 2 if config_lib.augmentation(config).mix else 1
    return math.lcm(chips * config.accumulate_steps, chips * pairs)


def _struct(x: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


def _bytes_on_device(tree: PyTree) -> int:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf is not None]
    shapes = [leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]
    return sum(
        math.prod(shape) * leaf.dtype.itemsize for shape, leaf in zip(shapes, leaves, strict=True)
    )
