"""TrainState: everything that a training step reads and writes."""

from __future__ import annotations

import flax.struct
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
      bad_step: the first step whose loss was not finite, or -1, int32.
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


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds.

    Attributes:
      step: steps taken since the run began, over all its phases, int32.
      params: the network's parameters, float32.
      batch_stats: BatchNorm's running averages, float32.
      opt_state: the present phase's optimiser state.
      metrics: `Metrics`, sums over the epoch under way.
    """

    step: PyTree
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    metrics: PyTree

    @classmethod
    def create(cls, variables: PyTree, tx: optax.GradientTransformation) -> TrainState:
        """The state before the first step.

        Args:
          variables: `{"params": ..., "batch_stats": ...}` as `model.init` returns them.
          tx: the first phase's optimiser.
        """
        params = variables["params"]
        stats = variables.get("batch_stats", {})
        return cls(jnp.int32(0), params, stats, tx.init(params), Metrics.zeros())

    def begin_phase(self, variables: PyTree, tx: optax.GradientTransformation) -> TrainState:
        """The same run, going on from `variables` with a fresh optimiser."""
        return TrainState.create(variables, tx).replace(step=self.step)

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}
