"""What is fixed for a training step when it is compiled."""

from __future__ import annotations

import dataclasses

import optax

from bloodjax.augment.policy import Policy
from bloodjax.models.head import Network
from bloodjax.training.objectives import MULTI_CLASS, Objective
from bloodjax.training.online_teacher import TeacherNetwork


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The parts of a step that are fixed for the run.

    Attributes:
      model: The network, built for `axis_name`.
      mean: Per-channel mean in 0..1, subtracted from the images.
      std: Per-channel standard deviation in 0..1, by which the images are then divided.
      batch_size: Size of the global batch.
      accumulate_steps: Number of micro-batches that a training step splits its batch into.
      seed: Random seed.
      augment: Augmentation policy of training.
      label_smoothing: Label smoothing, in [0, 1).
      focal_gamma: Exponent of the focal loss; 0 for cross-entropy.
      logit_shift: Per-class shift of the logits in the loss (`losses.adjust_logits`); () for none.
      consistency: Weight of the divergence between three views of each image; 0 for one view.
      distill_weight: Share of the divergence from a teacher in the loss, in [0, 1]; 0 for none.
      distill_temperature: Temperature of that divergence.
      teachers: Networks of an online teacher; () if the batches have a teacher's probabilities.
      ema: Decay per step of the average of the variables, if the state has one.
      skip: Number of consecutive steps that may be skipped. After more, every step is skipped.
      axis_name: Name of the axis of devices under pmap and shard_map, or None under jit.
      objective: What the logits are trained to be.
    """

    model: Network
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    batch_size: int = 64
    accumulate_steps: int = 1
    seed: int = 0
    augment: Policy = dataclasses.field(default_factory=Policy)
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    logit_shift: tuple[float, ...] = ()
    consistency: float = 0.0
    distill_weight: float = 0.0
    distill_temperature: float = 1.0
    teachers: tuple[TeacherNetwork, ...] = ()
    ema: float = 0.0
    skip: int = 5
    axis_name: str | None = None
    objective: Objective = MULTI_CLASS


@dataclasses.dataclass(frozen=True)
class Phase:
    """The parts of a training step that differ between phases.

    Attributes:
      freeze: What is not trained; see `models.head.Network.__call__`.
      tx: Optimizer. It gives frozen parameters zero updates.
      cached: Whether the data are features of `predict_step.features_step` instead of images;
        `freeze` is "backbone" then.
      size: Side in pixels that images are resized to before they are augmented, or None for their
        own.
    """

    freeze: str
    tx: optax.GradientTransformation
    cached: bool = False
    size: int | None = None
