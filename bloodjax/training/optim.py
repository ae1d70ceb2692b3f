"""Optimisers and schedules, and what is trained, decayed, slowed or frozen by parameter path."""

from __future__ import annotations

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from bloodjax.config import Config
from bloodjax.models.layer_depth import depths


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


def wsd(
    peak: float, steps: int, *, warmup_steps: int = 0, decay_steps: int = 0, alpha: float = 0.0
) -> optax.Schedule:
    """Linear warm-up, a stable rate, and linear decay at the end (Hu et al., 2024, 2404.06395).

    Args:
      peak: the stable rate.
      steps: at which the decay has come to its end.
      warmup_steps: steps over which the rate grows from 0.
      decay_steps: steps over which it falls; 0 for a rate that stays.
      alpha: the lowest rate, as a part of `peak`.
    """

    def schedule(count):
        step = jnp.asarray(count, jnp.float32)
        warm = step / max(warmup_steps, 1)
        left = jnp.clip((steps - step) / max(decay_steps, 1), 0.0, 1.0) if decay_steps else 1.0
        return peak * jnp.where(step < warmup_steps, warm, alpha + (1.0 - alpha) * left)

    return schedule


def phase_schedule(phase: Config, steps_per_epoch: int, rate: float = 1.0) -> optax.Schedule:
    """`rate` times the learning rate over one phase's steps; `phase` is a `config.phases.*`."""
    options, peak = phase.schedule, rate * phase.learning_rate
    warmup = round(options.warmup * steps_per_epoch)
    total = phase.epochs * steps_per_epoch
    after = max(total - warmup, 1)
    if options.name == "sgdr":
        first = round(options.first_cycle * steps_per_epoch) or after
        return sgdr(
            peak,
            first,
            warmup_steps=warmup,
            t_mul=options.t_mul,
            m_mul=options.m_mul,
            alpha=options.alpha,
        )
    if options.name == "cosine":
        return sgdr(peak, after, warmup_steps=warmup, alpha=options.alpha)
    decay = min(round(options.decay * total), after) if options.name == "wsd" else 0
    return wsd(peak, total, warmup_steps=warmup, decay_steps=decay, alpha=options.alpha)


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


def layerwise_lr_decay(params: PyTree, decay: float) -> optax.GradientTransformation:
    """Multiplies updates by `decay^(D - d)` at depth d of D: by 1 in the head, least in the stem.

    Layer-wise learning rates (Howard and Ruder, 2018, arXiv:1801.06146; Bao et al., 2021,
    arXiv:2106.08254), when it stands after an optimiser: weight decay is slowed as well.

    Args:
      params: a `models.head.Network`'s parameters, for their paths alone.
      decay: in (0, 1].
    """
    depth = dict(jax.tree_util.tree_leaves_with_path(depths(params)))
    deepest = max(depth.values())

    def update(updates, _):
        # Frozen leaves are missing here.
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * decay ** (deepest - depth[path]), updates
        )

    return optax.stateless(update)


def trainable_grad_norm(grads: PyTree, batch_stats: PyTree, freeze: str) -> Float[Array, ""]:
    """The global norm of the gradients of what is trained; the rest as in `freeze_labels`."""
    labels = jax.tree.leaves(freeze_labels(grads, batch_stats, freeze))
    pairs = zip(jax.tree.leaves(grads), labels, strict=True)
    return optax.tree.norm([leaf for leaf, label in pairs if label == "train"])


def clip_by_precomputed_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` that may be handed the global norm, as `update`'s `norm`.

    A step needs it for itself, to see whether it is finite, and would read all gradients again.
    """

    def update(updates, state, params=None, *, norm=None, **_):
        del params
        norm = optax.tree.norm(updates) if norm is None else norm

        def clip(leaf):
            return lax.select(norm < max_norm, leaf, leaf / norm.astype(leaf.dtype) * max_norm)

        return jax.tree.map(clip, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _rule(phase: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW, Lion or SGD, each with decoupled weight decay: `rate * weight_decay * parameter`."""
    options = {"weight_decay": phase.weight_decay, "mask": decay_mask}
    if phase.optimizer == "adamw":
        return optax.adamw(schedule, mu_dtype=phase.mu_dtype, **options)
    if phase.optimizer == "lion":
        return optax.lion(schedule, mu_dtype=phase.mu_dtype, **options)
    return optax.chain(
        optax.trace(0.9, nesterov=True, accumulator_dtype=phase.mu_dtype),
        optax.add_decayed_weights(**options),
        optax.scale_by_learning_rate(schedule),
    )


def optimizer(
    phase: Config, steps_per_epoch: int, params: PyTree, batch_stats: PyTree, rate: float = 1.0
) -> optax.GradientTransformation:
    """The optimiser of one phase: clipping, its rule, and frozen leaves left bit-identical.

    The rule is AdamW (Loshchilov and Hutter, 2019), Lion (Chen et al., 2023, arXiv:2302.06675), or
    SGD with Nesterov's momentum of 0.9. All decay weights apart from the gradient, SGD too (in
    contrast to PyTorch's), so that `weight_decay` means the same to each.

    Frozen leaves get zero updates and keep no moments, and do not count in the clipped norm.

    Args:
      phase: a `config.phases.*`.
      steps_per_epoch: the unit of the schedule's lengths.
      params: the parameters, for their paths alone.
      batch_stats: the running averages, likewise.
      rate: what the schedule is multiplied by.
    """
    clip = clip_by_precomputed_norm(phase.clip_norm) if phase.clip_norm else optax.identity()
    parts = [clip, _rule(phase, phase_schedule(phase, steps_per_epoch, rate))]
    if phase.layer_decay < 1:
        parts.append(layerwise_lr_decay(params, phase.layer_decay))
    return optax.partition(
        {"train": optax.chain(*parts), "freeze": optax.set_to_zero()},
        freeze_labels(params, batch_stats, phase.freeze),
    )
