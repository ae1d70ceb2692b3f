"""Backbone: the fields and the interface that the networks of all families share."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# Number of the stage that a stem counts as.
STEM = -1

# Collection of arrays that are added to the maps at the ends of stages, by the names of the stages.
# The gradient with respect to such an array is the gradient with respect to the map.
PERTURBATIONS = "perturbations"


class Backbone(nn.Module, kw_only=True):
    """A network without its classifier: images in, pooled features out.

    A subclass implements `__call__`, calls `end_stage` with the map at the end of each stage, and
    asks `in_stage` whether the modules of a stage are in training mode.

    Attributes:
      drop_path: stochastic depth's drop rate at the last block, in [0, 1). The rate grows linearly
        with depth, from 0 at the first block. Families without residual branches ignore it, unless
        they say otherwise.
      remat: recompute the activations within each block during the backward pass instead of storing
        them (see `layers.maybe_remat`).
      frozen_stages: number of stages, from the first on, that are frozen, and the stem with them:
        they stay in inference mode, and no gradient passes through them. 0 freezes nothing.
      axis_name: pmap axis name; None under jit.
      dtype: compute dtype; parameters are float32.
    """

    drop_path: float = 0.0
    remat: bool = False
    frozen_stages: int = 0
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns pooled features.

        Args:
          x: normalised RGB images, at least the family's `MIN_IMAGE_SIZE` pixels a side.
          train: apply dropout and stochastic depth; needs a "dropout" RNG.
          update_stats: BatchNorm normalises by the batch's statistics and, where the collection
            "batch_stats" is mutable, updates its running averages. Otherwise it uses the running
            averages.
        """
        raise NotImplementedError

    @property
    def num_stages(self) -> int:
        """Number of stages. Most families have a field `depths` with a number for each."""
        return len(self.depths)

    def in_stage(self, stage: int, flag: bool) -> bool:
        """Returns `train` or `update_stats` for the modules of a stage: False in a frozen one.

        Args:
          stage: number of the stage, or `STEM`.
          flag: the value for what is not frozen.
        """
        return flag and (self.frozen_stages == 0 or stage >= self.frozen_stages)

    def end_stage(self, stage: int, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Marks the map at the end of a stage, so that others can read and perturb it.

        The map is sown into the collection "intermediates" as `stage_0`, `stage_1`, ..., the
        largest first.

        Args:
          stage: number of the stage.
          x: the map.

        Returns:
          The map, without gradient if the stage is the last frozen one, plus the array of its name
          in the collection `PERTURBATIONS` if there is one.
        """
        if stage + 1 == self.frozen_stages:
            x = lax.stop_gradient(x)
        name = f"stage_{stage}"
        self.sow("intermediates", name, x)
        if self.has_variable(PERTURBATIONS, name):
            x = x + self.get_variable(PERTURBATIONS, name)
        return x


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Stochastic depth's drop rate of each block: linear from 0 at the first to `last`."""
    return [last * i / max(blocks - 1, 1) for i in range(blocks)]
