"""TrainState: everything that a training step reads and writes."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree


@flax.struct.dataclass
class Metrics:
    """Sums over one epoch's steps so far, kept on the device so that nothing waits for them.

    Attributes:
      loss: sum of the examples' losses, float32.
      correct: number of examples classified correctly, float32.
      count: number of examples, float32.
      bad_step: the first of the steps that were skipped in a row up to now, or -1 where the last
        one was taken, int32. A skipped step is in none of the sums.
    """

    # As a tree, each field may hold a shape, a sharding or a stack of copies as well.
    loss: PyTree
    correct: PyTree
    count: PyTree
    bad_step: PyTree

    @classmethod
    def zeros(cls) -> Metrics:
        """No steps yet."""
        return cls(jnp.float32(0), jnp.float32(0), jnp.float32(0), jnp.int32(-1))

    def next_epoch(self, zeros: Metrics) -> Metrics:
        """The start of the next epoch's sums from `zeros`; steps skipped in a row go on."""
        return zeros.replace(bad_step=self.bad_step)


@flax.struct.dataclass
class Average:
    """An exponential moving average (EMA) of a network's variables.

    Attributes:
      params: of the parameters, float32.
      batch_stats: of BatchNorm's running averages, float32.
      count: updates since the phase began, int32.
    """

    params: PyTree
    batch_stats: PyTree
    count: PyTree

    @classmethod
    def of(cls, variables: PyTree) -> Average:
        """The average at its start: a copy of `variables`, for the state's arrays are donated."""
        start = jax.tree.map(jnp.array, variables)
        return cls(start["params"], start.get("batch_stats", {}), jnp.int32(0))

    def updated(self, params: PyTree, batch_stats: PyTree, decay: float) -> Average:
        """After one more step; `min(decay, (1 + count) / (10 + count))` of the old one is kept."""
        count = self.count.astype(jnp.float32)
        part = 1.0 - jnp.minimum(decay, (1.0 + count) / (10.0 + count))

        def move(old, new):
            # In this form, what stays the same (as frozen parameters do) does so to the bit.
            return old + part * (new - old)

        return Average(
            jax.tree.map(move, self.params, params),
            jax.tree.map(move, self.batch_stats, batch_stats),
            self.count + 1,
        )

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds.

    Attributes:
      step: steps taken since the run began, over all its phases, int32.
      params: the network's parameters, float32.
      batch_stats: BatchNorm's running averages, float32.
      opt_state: the present phase's optimiser state.
      metrics: `Metrics`, sums over the epoch under way.
      ema: an `Average`, or None where none is kept.
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
          tx: the first phase's optimiser.
          ema: whether an average of the variables is kept.
        """
        params = variables["params"]
        stats = variables.get("batch_stats", {})
        average = Average.of(variables) if ema else None
        return cls(jnp.int32(0), params, stats, tx.init(params), Metrics.zeros(), average)

    def begin_phase(self, variables: PyTree, tx: optax.GradientTransformation) -> TrainState:
        """The same run, going on from `variables` with a fresh optimiser."""
        fresh = TrainState.create(variables, tx, ema=self.ema is not None)
        return fresh.replace(step=self.step)

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def averaged(self) -> dict[str, PyTree]:
        """The average's variables; the network's own where none is kept."""
        return self.variables if self.ema is None else self.ema.variables
