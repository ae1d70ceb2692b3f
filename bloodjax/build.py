"""From a config to its network, its variables and its compiled steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bloodjax import models
from bloodjax.models.head import Network
from bloodjax.pretrained import load
from bloodjax.pretrained.catalogue import Source
from bloodjax.settings import Config
from bloodjax.steps import JitSteps, PmapSteps, Recipe


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of computations: `name`, or for "auto" float32 on CPU and bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def source(config: Config) -> Source | None:
    """Where the initial weights come from; None for random ones.

    Raises:
      UserError: the network has no default source.
    """
    model = config.model
    return load.source(model.name, model.weights, model.flavour) if model.weights else None


def normalisation(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the pictures: the config's, else those that the weights expect."""
    known = source(config) or Source("", "", "")
    return tuple(config.model.mean) or known.mean, tuple(config.model.std) or known.std


def network(config: Config, num_classes: int, axis_name: str | None = None) -> Network:
    """The network that `config.model` describes; `axis_name` is pmap's axis, or None under jit."""
    head = config.model.head
    known = source(config)
    return models.build(
        config.model.name,
        num_classes,
        flavour=config.model.flavour or (known.flavour if known else ""),
        drop_path=config.model.drop_path,
        axis_name=axis_name,
        dtype=compute_dtype(config.dtype),
        hidden=tuple(head.hidden),
        batch_norm=head.batch_norm,
        dropout=tuple(head.dropout),
        activation=head.activation,
    )


def variables(config: Config, num_classes: int) -> dict[str, PyTree]:
    """Random weights `{"params": ..., "batch_stats": ...}`, drawn from the config's seed."""
    size = config.data.image_size

    @jax.jit
    def init():
        blank = jnp.zeros((1, size, size, 3), jnp.float32)
        return network(config, num_classes).init(jax.random.key(config.seed), blank)

    drawn = init()
    return {"params": drawn["params"], "batch_stats": drawn.get("batch_stats", {})}


def pretrained(config: Config, variables: dict[str, PyTree]) -> dict[str, PyTree]:
    """`variables` with the source's weights in the backbone, and the head as it was drawn.

    Raises:
      UserError: the weights cannot be had, or are not this network's.
    """
    known = source(config)
    return load.load(config.model.name, known, variables) if known else variables


def steps(config: Config, num_classes: int) -> JitSteps | PmapSteps:
    """The training and prediction steps, under jit or pmap as `config.parallel` says."""
    wrapper = {"jit": JitSteps, "pmap": PmapSteps}[config.parallel]
    mean, std = normalisation(config)
    recipe = Recipe(
        model=network(config, num_classes, wrapper.axis_name),
        mean=mean,
        std=std,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=config.augment,
        label_smoothing=config.loss.label_smoothing,
        axis_name=wrapper.axis_name,
    )
    return wrapper(recipe)
