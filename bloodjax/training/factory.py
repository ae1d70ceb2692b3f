"""From a config to its network, its variables and its compiled steps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bloodjax import config as config_lib
from bloodjax import models
from bloodjax.augment.geometry import VIEWS
from bloodjax.augment.policy import parse
from bloodjax.config import Config
from bloodjax.models.head import Network
from bloodjax.pretrained import load
from bloodjax.training.executor import JitExecutor, PmapExecutor
from bloodjax.training.train_step import StepConfig

# Of the features that are kept unasked.
_CACHE_BYTES = 2**30
_WRAPPERS = {"jit": JitExecutor, "pmap": PmapExecutor}


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of computations: `name`, or for "auto" float32 on CPU and bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def normalisation(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the images: the config's, else those that the weights expect."""
    model = config.model
    return tuple(model.mean or model.source.mean), tuple(model.std or model.source.std)


def network(config: Config, num_classes: int, axis_name: str | None = None) -> Network:
    """The network that `config.model` describes; `axis_name` is pmap's axis, or None under jit."""
    head = config.model.head
    return models.build(
        config.model.name,
        num_classes,
        flavour=config.model.flavour or config.model.source.flavour,
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
    """A run's weights at its start: the `backbone` that `pretrained` gave, the rest drawn."""
    model = network(config, num_classes)
    return models.draw(model, config.data.image_size, config.seed, backbone)


def shapes(config: Config, num_classes: int) -> dict[str, PyTree]:
    """The shapes and dtypes of a run's weights."""
    return jax.eval_shape(lambda: variables(config, num_classes))


def pretrained(config: Config) -> tuple[Config, PyTree]:
    """The backbone's weights, and the config with their terms filled in.

    Returns:
      The config, and `{"params": {"backbone": ...}, ...}`, which `variables` takes; for a run
      from scratch, the config as it is and {}.

    Raises:
      UserError: the weights cannot be had, or are not this network's.
    """
    model = config.model
    if not model.weights:
        return config, {}
    weights = load.read(model.name, model.source.location or model.weights, model.flavour)
    return config_lib.with_source(config, weights.source), load.backbone(weights)


def origin(config: Config) -> str:
    """Where the initial weights come from, in a line; `config` as `pretrained` returned it."""
    if not config.model.weights:
        return "from random weights"
    source = config.model.source
    mean, std = ("/".join(f"{v:.3g}" for v in values) for values in normalisation(config))
    return (
        f"from {source.location} ({source.licence or 'licence not known'}): "
        f"flavour {source.flavour}, mean {mean}, std {std}"
    )


def caches_features(config: Config, name: str, images: int, num_classes: int) -> bool:
    """Whether the phase `name` trains its head on features that are computed once.

    "auto" does where that takes fewer passes through the backbone, and at most `_CACHE_BYTES`.
    """
    phase, policy = config.phases[name], parse(config.augment)
    views = len(VIEWS[policy.views])
    if phase.freeze != "backbone" or config.parallel != "jit" or phase.cache_features == "never":
        return False
    if not policy.only_views:
        return False
    if phase.cache_features == "always":
        return True

    model, size = network(config, num_classes), config.data.image_size
    blank = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    features = functools.partial(model.apply, method="features")
    one = jax.eval_shape(features, shapes(config, num_classes), blank)
    size = images * views * one.size * one.dtype.itemsize
    return phase.epochs > views and size <= _CACHE_BYTES


def recipe(config: Config, num_classes: int, logit_shift: tuple[float, ...] = ()) -> StepConfig:
    """What of a step is fixed for the run; `logit_shift` is `class_balance.logit_shift`'s."""
    axis_name = _WRAPPERS[config.parallel].axis_name
    mean, std = normalisation(config)
    return StepConfig(
        model=network(config, num_classes, axis_name),
        mean=mean,
        std=std,
        batch_size=config.batch_size,
        accumulate_steps=config.accumulate_steps,
        seed=config.seed,
        augment=parse(config.augment),
        label_smoothing=config.loss.label_smoothing,
        focal_gamma=config.loss.gamma if config.loss.name == "focal" else 0.0,
        logit_shift=logit_shift,
        ema=config.ema,
        skip=config.divergence.skip,
        axis_name=axis_name,
    )


def steps(
    config: Config, num_classes: int, logit_shift: tuple[float, ...] = ()
) -> JitExecutor | PmapExecutor:
    """The training and prediction steps, under jit or pmap as `config.parallel` says."""
    fixed = recipe(config, num_classes, logit_shift)
    return _WRAPPERS[config.parallel](fixed, layout=config.sharding)
