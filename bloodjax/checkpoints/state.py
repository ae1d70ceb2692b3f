"""What a checkpoint holds: `TrainState`, which a step updates, and `RunProgress`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

# Keys of progress files in format 1 -> the present field.
_OLD_KEYS = {"waited": "epochs_without_improvement", "leaders": "top_k"}


@flax.struct.dataclass
class Metrics:
    """Sums over the steps of one epoch so far. They stay on the device, so no step waits for them.

    Attributes:
      loss: Sum of the examples' losses, float32.
      correct: Number of examples classified correctly, float32.
      count: Number of examples, float32.
      bad_step: First of the latest consecutive skipped steps, or -1 if the latest step was applied,
        int32. Skipped steps are in none of the sums.
    """

    # As a pytree, each field may also hold a shape, a sharding or a stack of copies.
    loss: PyTree
    correct: PyTree
    count: PyTree
    bad_step: PyTree

    @classmethod
    def zeros(cls) -> Metrics:
        """Metrics before the first step."""
        return cls(jnp.float32(0), jnp.float32(0), jnp.float32(0), jnp.int32(-1))

    def next_epoch(self, zeros: Metrics) -> Metrics:
        """Metrics at the start of the next epoch: `zeros`, but with the present `bad_step`."""
        return zeros.replace(bad_step=self.bad_step)


@flax.struct.dataclass
class Average:
    """An exponential moving average (EMA) of a network's variables.

    Attributes:
      params: Average of the parameters, float32.
      batch_stats: Average of BatchNorm's running statistics, float32.
      count: Updates since the phase began, int32.
    """

    params: PyTree
    batch_stats: PyTree
    count: PyTree

    @classmethod
    def of(cls, variables: PyTree) -> Average:
        """A new average: a copy of `variables`, because the state's own arrays are donated."""
        start = jax.tree.map(jnp.array, variables)
        return cls(start["params"], start.get("batch_stats", {}), jnp.int32(0))

    def updated(self, params: PyTree, batch_stats: PyTree, decay: float) -> Average:
        """The average after another step; its decay is `min(decay, (1 + count) / (10 + count))`."""
        count = self.count.astype(jnp.float32)
        part = 1.0 - jnp.minimum(decay, (1.0 + count) / (10.0 + count))

        def move(old, new):
            # In this form, values that do not change (frozen parameters) stay bit-identical.
            return old + part * (new - old)

        return Average(
            jax.tree.map(move, self.params, params),
            jax.tree.map(move, self.batch_stats, batch_stats),
            self.count + 1,
        )

    @property
    def variables(self) -> dict[str, PyTree]:
        """The average as variables for `model.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class TrainState:
    """Everything that a training step reads and writes.

    Attributes:
      step: Steps since the run began, over all phases, int32.
      params: The network's parameters, float32.
      batch_stats: BatchNorm's running statistics, float32.
      opt_state: Optimizer state of the present phase.
      metrics: `Metrics` of the present epoch.
      ema: `Average` of the variables, or None if the run keeps none.
    """

    step: PyTree
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    metrics: PyTree
    ema: PyTree = None

    @classmethod
    def create(
        cls, variables: PyTree, tx: optax.GradientTransformation, *, ema: bool = False
    ) -> TrainState:
        """The state before the first step.

        Args:
          variables: `{"params": ..., "batch_stats": ...}` as `model.init` returns them.
          tx: Optimizer of the first phase.
          ema: Whether to keep an average of the variables.
        """
        params = variables["params"]
        stats = variables.get("batch_stats", {})
        average = Average.of(variables) if ema else None
        return cls(jnp.int32(0), params, stats, tx.init(params), Metrics.zeros(), average)

    def begin_phase(self, variables: PyTree, tx: optax.GradientTransformation) -> TrainState:
        """The state at the start of a phase: the same step, `variables` and a new optimizer."""
        fresh = TrainState.create(variables, tx, ema=self.ema is not None)
        return fresh.replace(step=self.step)

    @property
    def variables(self) -> dict[str, PyTree]:
        """Variables for `model.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def averaged(self) -> dict[str, PyTree]:
        """The averaged variables, or the network's own if the run keeps no average."""
        return self.variables if self.ema is None else self.ema.variables


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """How far a run is, beside its state: what early stopping and the best checkpoint depend on.

    Attributes:
      classes: Class names in label order.
      phase: Index of the present phase.
      phase_epochs: Number of completed epochs of the phase.
      epochs_without_improvement: Number of latest epochs of the phase in which early stopping's
        metric did not improve.
      phase_best: Best value of the metric in the phase so far, or None.
      best: Best value of the metric in the run so far, or None.
      best_step: Step with the value `best`, or None.
      source: `pretrained.pretrained_cfg.PretrainedCfg` of the initial weights; {} for random ones.
      top_k: Step and value of the best epochs so far, the best first; as many as the run keeps.
      trained: Whether the epoch after `phase_epochs` is trained to its end, but not yet validated.
    """

    classes: tuple[str, ...]
    phase: int = 0
    phase_epochs: int = 0
    epochs_without_improvement: int = 0
    phase_best: float | None = None
    best: float | None = None
    best_step: int | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    top_k: tuple[tuple[int, float], ...] = ()
    trained: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RunProgress:
        """The progress in a checkpoint of any format; `dataclasses.asdict` is the inverse."""
        values = {_OLD_KEYS.get(key, key): value for key, value in content.items()}
        values["classes"] = tuple(values["classes"])
        values["top_k"] = tuple((step, value) for step, value in values.get("top_k", ()))
        return cls(**values)

    def after_epoch(
        self, value: float | None, larger_is_better: bool, step: int, keep: int = 0
    ) -> RunProgress:
        """The progress after an epoch.

        Args:
          value: The epoch's value of the metric, or None without a validation split.
          larger_is_better: Whether a larger value is an improvement.
          step: Step at which the epoch ended.
          keep: Length of `top_k`. Of equal values, the earlier is better.
        """
        after = dataclasses.replace(self, phase_epochs=self.phase_epochs + 1, trained=False)
        if value is None:
            return after

        def improves(old: float | None) -> bool:
            return old is None or (value > old if larger_is_better else value < old)

        if improves(self.phase_best):
            after = dataclasses.replace(after, phase_best=value, epochs_without_improvement=0)
        else:
            waited = self.epochs_without_improvement + 1
            after = dataclasses.replace(after, epochs_without_improvement=waited)
        if improves(self.best):
            after = dataclasses.replace(after, best=value, best_step=step)
        sign = -1 if larger_is_better else 1
        best = sorted((*self.top_k, (step, value)), key=lambda entry: sign * entry[1])
        return dataclasses.replace(after, top_k=tuple(best[:keep]))

    def next_phase(self) -> RunProgress:
        """The progress at the start of the next phase."""
        return dataclasses.replace(
            self,
            phase=self.phase + 1,
            phase_epochs=0,
            epochs_without_improvement=0,
            phase_best=None,
        )

    @property
    def needs(self) -> set[int]:
        """Steps of earlier checkpoints that the run may still need."""
        return {self.best_step, *(step for step, _ in self.top_k)} - {None}

    def without(self, lost: Set[int]) -> RunProgress:
        """The progress of a run whose checkpoints of the steps `lost` are lost.

        If the best one is, the first of `top_k` that is left takes its place. If none is left, the
        next epoch will be the best.
        """
        top_k = tuple(entry for entry in self.top_k if entry[0] not in lost)
        progress = dataclasses.replace(self, top_k=top_k)
        if self.best_step not in lost:
            return progress
        best_step, best = top_k[0] if top_k else (None, None)
        return dataclasses.replace(progress, best_step=best_step, best=best)
