"""Optimizers and schedules; which parameters are trained, decayed or frozen, by their path."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from bloodjax.config import Config
from bloodjax.models.head import parse_freeze
from bloodjax.models.layer_depth import depths, stages
from bloodjax.ops.depthwise_gpu import on_one_device

# For the norm on a GPU, this many leaves with fewer elements are joined. XLA fuses a concatenation
# of 60 leaves with the sum, but not one of 200.
_SMALL, _JOINED = 8192, 60
_MOST_STEPS = 2**31 - 1


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

    After a linear warm-up it equals Keras's `CosineDecayRestarts` at every step, including its
    float32 rounding at the restarts.

    Args:
      peak: Learning rate at the start of the first cycle.
      first_cycle_steps: Length of the first cycle.
      warmup_steps: Steps of linear warm-up from 0, before the first cycle.
      t_mul: Factor between the lengths of successive cycles.
      m_mul: Factor between the highest rates of successive cycles.
      alpha: Lowest rate, as a fraction of `peak`.
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
    """Warmup-stable-decay: linear warm-up, a constant rate, linear decay (Hu et al., 2404.06395).

    `optax.join_schedules` of linear pieces has the same values except for rounding (1.5e-6
    relative), and needs non-strict dtype promotion. This form keeps runs bit-identical.

    Args:
      peak: The constant rate.
      steps: Step at which the decay ends.
      warmup_steps: Steps of linear warm-up from 0.
      decay_steps: Steps of linear decay; 0 for none.
      alpha: Lowest rate, as a fraction of `peak`.
    """

    def schedule(count):
        step = jnp.asarray(count, jnp.float32)
        warm = step / max(warmup_steps, 1)
        left = jnp.clip((steps - step) / max(decay_steps, 1), 0.0, 1.0) if decay_steps else 1.0
        return peak * jnp.where(step < warmup_steps, warm, alpha + (1.0 - alpha) * left)

    return schedule


def milestones(
    peak: float,
    steps: Sequence[int],
    factor: float,
    *,
    warmup_steps: int = 0,
    alpha: float = 0.0,
) -> optax.Schedule:
    """A constant rate that is multiplied by a factor at some steps, after a linear warm-up.

    Args:
      peak: The first rate.
      steps: Steps from which on the rate is multiplied by `factor` once more.
      factor: The factor.
      warmup_steps: Steps of linear warm-up from 0.
      alpha: Lowest rate, as a fraction of `peak`.
    """

    def schedule(count):
        step = jnp.asarray(count, jnp.float32)
        warm = step / max(warmup_steps, 1)
        passed = sum((step >= each).astype(jnp.float32) for each in steps)
        lowered = jnp.maximum(jnp.float32(factor) ** passed, alpha)
        return peak * jnp.where(step < warmup_steps, warm, lowered)

    return schedule


def phase_schedule(phase: Config, steps_per_epoch: int, lr_scale: float = 1.0) -> optax.Schedule:
    """The learning rate over the steps of one phase.

    Args:
      phase: `config.phases.head` or `config.phases.finetune`.
      steps_per_epoch: Steps in an epoch, the unit of the schedule's lengths.
      lr_scale: Factor of the learning rate.
    """
    options, peak = phase.schedule, lr_scale * phase.learning_rate
    # A run counts its steps in int32, so a phase has at most as many, whatever its epochs.
    warmup = min(round(options.warmup * steps_per_epoch), _MOST_STEPS)
    total = min(phase.epochs * steps_per_epoch, _MOST_STEPS)
    after = max(total - warmup, 1)
    if options.name == "sgdr":
        first = after
        if options.first_cycle > 0:
            first = min(max(round(options.first_cycle * steps_per_epoch), 1), _MOST_STEPS)
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
    if options.name == "step":
        steps = [round(share * total) for share in options.milestones]
        return milestones(peak, steps, options.factor, warmup_steps=warmup, alpha=options.alpha)
    decay = min(round(options.decay * total), after) if options.name == "wsd" else 0
    return wsd(peak, total, warmup_steps=warmup, decay_steps=decay, alpha=options.alpha)


def freeze_labels(params: PyTree, batch_stats: PyTree, freeze: str) -> PyTree:
    """Labels every parameter "train" or "freeze".

    Args:
      params: Parameters of a `models.head.Network`.
      batch_stats: Its running statistics, which tell a BatchNorm from a LayerNorm.
      freeze: What is frozen; see `models.head.parse_freeze`.
    """
    norms = {path[:-1] for path in flax.traverse_util.flatten_dict(batch_stats)}
    frozen = parse_freeze(freeze)
    # Where stages do not count, names of modules are free.
    stage = flax.traverse_util.flatten_dict(stages(params)) if frozen.stages else {}

    def label(path, _):
        is_frozen = (
            (frozen.backbone and path[0] == "backbone")
            or (frozen.norms and path[:-1] in norms)
            or (frozen.stages > 0 and stage[path] < frozen.stages)
        )
        return "freeze" if is_frozen else "train"

    return flax.traverse_util.path_aware_map(label, params)


def decay_mask(params: PyTree) -> PyTree:
    """True for parameters with weight decay: kernels, but not biases, norms or layer scales."""
    return flax.traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", params)


def layerwise_lr_decay(params: PyTree, decay: float) -> optax.GradientTransformation:
    """Layer-wise learning-rate decay: multiplies updates by `decay^(D - d)` at depth d of D.

    The factor is 1 in the head and smallest in the stem (Howard and Ruder, 2018, arXiv:1801.06146;
    Bao et al., 2021, arXiv:2106.08254). Chained after an optimizer, it scales weight decay too.

    Args:
      params: Parameters of a `models.head.Network`; only their paths matter.
      decay: Factor between successive depths, in (0, 1].
    """
    depth = dict(jax.tree_util.tree_leaves_with_path(depths(params)))
    deepest = max(depth.values())

    def update(updates, _):
        # Frozen leaves are masked out here.
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * decay ** (deepest - depth[path]), updates
        )

    return optax.stateless(update)


def trainable_grad_norm(grads: PyTree, batch_stats: PyTree, freeze: str) -> Float[Array, ""]:
    """Global norm of the gradients of trained parameters; arguments as for `freeze_labels`."""
    labels = jax.tree.leaves(freeze_labels(grads, batch_stats, freeze))
    pairs = zip(jax.tree.leaves(grads), labels, strict=True)
    trained = [leaf for leaf, label in pairs if label == "train"]
    if not trained or not on_one_device():
        return optax.tree.norm(trained)
    return lax.platform_dependent(trained, cuda=_norm_of_few, default=optax.tree.norm)


def _norm_of_few(leaves: list[Array]) -> Float[Array, ""]:
    """`optax.tree.norm` with small leaves joined, for a GPU, which would start a kernel for each.

    Leaves of several devices are not joined: that could send them to other devices.
    """
    small = [leaf.ravel() for leaf in leaves if leaf.size < _SMALL and leaf.dtype == jnp.float32]
    large = [leaf for leaf in leaves if leaf.size >= _SMALL or leaf.dtype != jnp.float32]
    joined = [jnp.concatenate(small[i : i + _JOINED]) for i in range(0, len(small), _JOINED)]
    return optax.tree.norm(joined + large)


def clip_by_precomputed_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, whose `update` may be given the global norm as `norm`.

    The step computes the norm to check that it is finite; computing it again would read all
    gradients again.

    Args:
      max_norm: Norm above which gradients are scaled down.
    """

    def update(updates, state, params=None, *, norm=None, **_):
        del params
        norm = optax.tree.norm(updates) if norm is None else norm
        # CPU keeps the rounding of `optax.clip_by_global_norm`.
        clipped = lax.platform_dependent(
            updates,
            norm,
            cpu=partial(_clip_by_quotient, max_norm),
            default=partial(_clip_by_product, max_norm),
        )
        return clipped, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _clip_by_quotient(max_norm: float, updates: PyTree, norm: Float[Array, ""]) -> PyTree:
    def clip(leaf):
        return lax.select(norm < max_norm, leaf, leaf / norm.astype(leaf.dtype) * max_norm)

    return jax.tree.map(clip, updates)


def _clip_by_product(max_norm: float, updates: PyTree, norm: Float[Array, ""]) -> PyTree:
    """`_clip_by_quotient` with one division in all. A TPU has no instruction for a division."""
    factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), updates)


def _rule(phase: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW, Lion or SGD, with decoupled weight decay: `rate * weight_decay * parameter`."""
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
    phase: Config,
    steps_per_epoch: int,
    params: PyTree,
    batch_stats: PyTree,
    lr_scale: float = 1.0,
    schedule: optax.Schedule | None = None,
) -> optax.GradientTransformation:
    """The optimizer of one phase: gradient clipping, then AdamW, Lion or SGD.

    AdamW: Loshchilov and Hutter, 2019. Lion: Chen et al., 2023, arXiv:2302.06675. SGD has Nesterov
    momentum 0.9. Weight decay is decoupled from the gradient in all three (in PyTorch's SGD it is
    not), so that `weight_decay` means the same.

    Frozen parameters get zero updates, so they stay bit-identical, have no moments, and do not
    count in the clipped norm.

    Args:
      phase: `config.phases.head` or `config.phases.finetune`.
      steps_per_epoch: Steps in an epoch, the unit of the schedule's lengths.
      params: Parameters of a `models.head.Network`; only their paths matter.
      batch_stats: Its running statistics; only their paths matter.
      lr_scale: Factor of the learning rate.
      schedule: Learning rate by step; by default `phase_schedule`.
    """
    schedule = schedule or phase_schedule(phase, steps_per_epoch, lr_scale)
    clip = clip_by_precomputed_norm(phase.clip_norm) if phase.clip_norm else optax.identity()
    chain = [clip, _rule(phase, schedule)]
    if phase.layer_decay < 1:
        chain.append(layerwise_lr_decay(params, phase.layer_decay))
    return optax.partition(
        {"train": optax.chain(*chain), "freeze": optax.set_to_zero()},
        freeze_labels(params, batch_stats, phase.freeze),
    )
