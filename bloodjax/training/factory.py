"""From a config to its network, variables, step config, phases and executor."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from bloodjax import config as config_lib
from bloodjax import models
from bloodjax.augment.geometry import VIEWS
from bloodjax.config import PHASES, Config
from bloodjax.data.batches import steps_per_epoch
from bloodjax.data.options import MULTI_LABEL
from bloodjax.models.head import Network
from bloodjax.pretrained.load import load_weights
from bloodjax.training import objectives, optim
from bloodjax.training.executor import JitExecutor, PmapExecutor
from bloodjax.training.objectives import MULTI_CLASS
from bloodjax.training.online_teacher import TeacherNetwork
from bloodjax.training.step_config import Phase, StepConfig

# Most bytes of features that `cache_features` = "auto" keeps on the device.
_CACHE_BYTES = 2**30
_EXECUTORS = {"jit": JitExecutor, "pmap": PmapExecutor}


def compute_dtype(name: str) -> jnp.dtype:
    """Compute dtype: `name`, or for "auto" float32 on CPU and bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def normalisation(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and std: the config's, or by default those that the weights expect."""
    model = config.model
    return tuple(model.mean or model.source.mean), tuple(model.std or model.source.std)


def network(config: Config, num_classes: int, axis_name: str | None = None) -> Network:
    """The network that `config.model` describes; `axis_name` is pmap's axis, or None under jit."""
    head = config.model.head
    return models.build(
        config.model.name,
        num_classes,
        variant=config.model.variant or config.model.source.variant,
        drop_path=config.model.drop_path,
        remat=config.model.remat,
        axis_name=axis_name,
        dtype=compute_dtype(config.dtype),
        hidden=tuple(head.hidden),
        batch_norm=head.batch_norm,
        dropout=tuple(head.dropout),
        activation=head.activation,
    )


def variables(
    config: Config, num_classes: int, backbone: PyTree | None = None
) -> dict[str, PyTree]:
    """Initial variables: the `backbone` from `pretrained`, and random values for the rest."""
    model = network(config, num_classes)
    return models.init_variables(model, config.data.image_size, config.seed, backbone)


def shapes(config: Config, num_classes: int) -> dict[str, PyTree]:
    """Shapes and dtypes of a run's variables."""
    return jax.eval_shape(lambda: variables(config, num_classes))


def pretrained(config: Config) -> tuple[Config, PyTree]:
    """Loads the backbone's pretrained weights.

    Returns:
      The config, with the licence and preprocessing of the weights filled in, and
      `{"params": {"backbone": ...}, ...}`, which `variables` takes. For a run from scratch, the
      unchanged config and {}.

    Raises:
      UserError: The weights cannot be read, or are not this network's.
    """
    model = config.model
    if not model.weights:
        return config, {}
    location = model.source.location or model.weights
    weights = load_weights(model.name, location, model.variant)
    return config_lib.with_source(config, weights.pretrained_cfg), weights.backbone()


def origin(config: Config) -> str:
    """One line on where the initial weights come from; `config` is the one from `pretrained`."""
    if not config.model.weights:
        first = next(name for name in PHASES if config.phases[name].epochs)
        frozen = config.phases[first].freeze
        if frozen == "none":
            return "from random weights"
        return (
            f"from random weights, which config.phases.{first}.freeze={frozen} leaves as they are; "
            "to train from scratch: --config.phases.head.epochs=0 "
            "--config.phases.finetune.freeze=none"
        )
    source = config.model.source
    mean, std = ("/".join(f"{v:.3g}" for v in values) for values in normalisation(config))
    return (
        f"from {source.location} ({source.licence or 'licence not known'}): "
        f"variant {source.variant}, mean {mean}, std {std}"
    )


def caches_features(config: Config, name: str, images: int, num_classes: int) -> bool:
    """Whether phase `name` trains the head on features that are computed once per image and view.

    With `cache_features` = "auto" it does if that needs fewer passes through the backbone, and the
    features take at most 1 GiB.

    Args:
      config: Config of the run.
      name: "head" or "finetune".
      images: Number of training images.
      num_classes: Number of classes.
    """
    options, policy = config.phases[name], config_lib.augmentation(config)
    views = len(VIEWS[policy.views])
    if (
        options.freeze != "backbone"
        or config.parallel != "jit"
        or options.cache_features == "never"
    ):
        return False
    if not policy.only_views or options.sizes or config.distill.online:
        return False
    if options.cache_features == "always":
        return True

    model, size = network(config, num_classes), config.data.image_size
    blank = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    features = functools.partial(model.apply, method="features")
    one = jax.eval_shape(features, shapes(config, num_classes), blank)
    size = images * views * one.size * one.dtype.itemsize
    return options.epochs > views and size <= _CACHE_BYTES


def phase(
    config: Config,
    name: str,
    *,
    variables: PyTree,
    num_images: int,
    num_classes: int,
    lr_scale: float = 1.0,
    size: int | None = None,
    schedule: optax.Schedule | None = None,
) -> Phase:
    """The freeze policy and the optimizer of phase `name`.

    The executor compiles once per `Phase` object, so a caller keeps the one that it got.

    Args:
      config: Config of the run.
      name: "head" or "finetune".
      variables: The network's variables, or their shapes; only their paths count.
      num_images: Number of training images.
      num_classes: Number of classes.
      lr_scale: Factor of the learning rate.
      size: Side of the training images in pixels, or None for that of the run.
      schedule: Learning rate by step of the phase; by default that of the config.
    """
    options = config.phases[name]
    per_epoch = steps_per_epoch(num_images, config.batch_size)
    params, batch_stats = variables["params"], variables["batch_stats"]
    tx = optim.optimizer(options, per_epoch, params, batch_stats, lr_scale, schedule)
    cached = caches_features(config, name, num_images, num_classes)
    return Phase(options.freeze, tx, cached, size)


def step_config(
    config: Config,
    num_classes: int,
    logit_shift: tuple[float, ...] = (),
    teachers: tuple[TeacherNetwork, ...] = (),
) -> StepConfig:
    """The parts of a step that are fixed for the run.

    Args:
      config: Config of the run.
      num_classes: Number of classes.
      logit_shift: Per-class shift of the logits, from `class_balance.logit_shift`.
      teachers: Networks of an online teacher.
    """
    axis_name = _EXECUTORS[config.parallel].axis_name
    mean, std = normalisation(config)
    return StepConfig(
        model=network(config, num_classes, axis_name),
        mean=mean,
        std=std,
        batch_size=config.batch_size,
        accumulate_steps=config.accumulate_steps,
        seed=config.seed,
        augment=config_lib.augmentation(config),
        label_smoothing=config.loss.label_smoothing,
        focal_gamma=config.loss.gamma if config.loss.name == "focal" else 0.0,
        logit_shift=logit_shift,
        consistency=config.loss.consistency,
        distill_weight=config.distill.weight if config.distill.workdir else 0.0,
        distill_temperature=config.distill.temperature,
        teachers=teachers,
        ema=config.ema,
        skip=config.divergence.skip,
        axis_name=axis_name,
        objective=objectives.MULTI_LABEL if config.data.task == MULTI_LABEL else MULTI_CLASS,
    )


def executor(
    config: Config,
    num_classes: int,
    logit_shift: tuple[float, ...] = (),
    teachers: tuple[TeacherNetwork, ...] = (),
) -> JitExecutor | PmapExecutor:
    """The executor that `config.parallel` names, with arguments as for `step_config`."""
    fixed = step_config(config, num_classes, logit_shift, teachers)
    return _EXECUTORS[config.parallel](fixed, layout=config.sharding)
