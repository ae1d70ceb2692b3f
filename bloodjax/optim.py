"""Optimisers: AdamW under SGDR, and what is trained, decayed or frozen by parameter path."""

from __future__ import annotations

import flax.traverse_util
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from bloodjax.settings import Config


def sgdr(
    peak: float,
    first_cycle_steps: int,
    *,
    warmup_steps: int = 0,
    t_mul: float = 2.0,
    m_mul: float = 1.0,
    alpha: float = 0.0,
) -> optax.Schedule:
    """Cosine decay with warm restarts (Loshchilov and Hutter, 2017, arXiv:1608.03983).

    After a linear warm-up it equals Keras's `CosineDecayRestarts` at every step, float32 rounding
    at the restarts included.

    Args:
      peak: the learning rate at the start of the first cycle.
      first_cycle_steps: length of the first cycle.
      warmup_steps: steps over which the rate grows from 0, before the first cycle.
      t_mul: each cycle is this many times as long as the one before.
      m_mul: each cycle starts at this many times the rate that the one before started at.
      alpha: the lowest rate, as a part of `peak`.
    """

    def decayed(step: Float[Array, ""]) -> Float[Array, ""]:
        progress = step / first_cycle_steps
        if t_mul == 1.0:
            cycle = jnp.floor(progress)
            progress = progress - cycle
        else:
            cycle = jnp.floor(jnp.log(1.0 - progress * (1.0 - t_mul)) / jnp.log(t_mul))
            earlier = (1.0 - t_mul**cycle) / (1.0 - t_mul)
            progress = (progress - earlier) / t_mul**cycle
        cosine = 0.5 * m_mul**cycle * (1.0 + jnp.cos(jnp.pi * progress))
        return peak * ((1.0 - alpha) * cosine + alpha)

    def schedule(count):
        step = jnp.asarray(count, jnp.float32)
        warm = peak * step / max(warmup_steps, 1)
        return jnp.where(step < warmup_steps, warm, decayed(jnp.maximum(step - warmup_steps, 0.0)))

    return schedule


def phase_schedule(phase: Config, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate over one phase's steps; `phase` is a `config.phases.*`."""
    warmup = round(phase.schedule.warmup * steps_per_epoch)
    total = phase.epochs * steps_per_epoch
    first = round(phase.schedule.first_cycle * steps_per_epoch) or max(total - warmup, 1)
    return sgdr(
        phase.learning_rate,
        first,
        warmup_steps=warmup,
        t_mul=phase.schedule.t_mul,
        m_mul=phase.schedule.m_mul,
        alpha=phase.schedule.alpha,
    )


def freeze_labels(params: PyTree, batch_stats: PyTree, freeze: str) -> PyTree:
    """Labels every parameter "train" or "freeze".

    Args:
      params: a `models.head.Network`'s parameters.
      batch_stats: its running averages, by which a BatchNorm is known from a LayerNorm.
      freeze: "none", "batchnorm" (every BatchNorm's scale and bias) or "backbone".
    """
    norms = {path[:-1] for path in flax.traverse_util.flatten_dict(batch_stats)}

    def label(path, _):
        frozen = (freeze == "backbone" and path[0] == "backbone") or (
            freeze == "batchnorm" and path[:-1] in norms
        )
        return "freeze" if frozen else "train"

    return flax.traverse_util.path_aware_map(label, params)


def decay_mask(params: PyTree) -> PyTree:
    """True where weight decay applies: kernels, and not biases, norms or layer scales."""
    return flax.traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", params)


def optimizer(
    phase: Config, steps_per_epoch: int, params: PyTree, batch_stats: PyTree
) -> optax.GradientTransformation:
    """The optimiser of one phase: clipping, AdamW under SGDR, and frozen leaves left bit-identical.

    Frozen leaves get zero updates and keep no moments, and do not count in the clipped norm.

    Args:
      phase: a `config.phases.*`.
      steps_per_epoch: the unit of the schedule's lengths.
      params: the parameters, for their paths alone.
      batch_stats: the running averages, likewise.
    """
    adamw = optax.adamw(
        phase_schedule(phase, steps_per_epoch),
        mu_dtype=phase.mu_dtype,
        weight_decay=phase.weight_decay,
        mask=decay_mask,
    )
    clip = optax.clip_by_global_norm(phase.clip_norm) if phase.clip_norm else optax.identity()
    return optax.partition(
        {"train": optax.chain(clip, adamw), "freeze": optax.set_to_zero()},
        freeze_labels(params, batch_stats, phase.freeze),
    )
