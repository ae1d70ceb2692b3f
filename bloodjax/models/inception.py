"""Inception-v3 (Szegedy et al., 2015, arXiv:1512.00567), without its auxiliary classifier.

Block names are those of the authors' TensorFlow release, which torchvision and timm also use. The
reference implementations are torchvision's and `keras.applications`'.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.backbone import STEM, Backbone
from bloodjax.models.layers import Conv, max_pool, maybe_remat
from bloodjax.models.norms import BatchNorm, conv_norm
from bloodjax.ops.elementwise import relu
from bloodjax.ops.pooling import spatial_mean


class Unit(NamedTuple):
    """Configuration of a convolution with BatchNorm and ReLU; see `layers.Conv` for the fields."""

    name: str
    features: int
    size: int | tuple[int, int]
    stride: int = 1
    padding: str = "symmetric"


# A branch is a sequence of steps: a unit, two parallel units, or a pooling ("avg" or "max").
Step = Unit | tuple[Unit, Unit] | str
Branches = tuple[tuple[Step, ...], ...]


def _chain(name: str, *layers: tuple) -> tuple[Unit, ...]:
    return tuple(Unit(f"{name}_{i}", *layer) for i, layer in enumerate(layers, 1))


def _fork(name: str, features: int) -> tuple[Unit, Unit]:
    return (Unit(f"{name}a", features, (1, 3)), Unit(f"{name}b", features, (3, 1)))


def _block_a(pool: int) -> Branches:
    return (
        (Unit("branch1x1", 64, 1),),
        _chain("branch5x5", (48, 1), (64, 5)),
        _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        ("avg", Unit("branch_pool", pool, 1)),
    )


def _block_b() -> Branches:
    return (
        (Unit("branch3x3", 384, 3, 2, "valid"),),
        _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3, 2, "valid")),
        ("max",),
    )


def _block_c(width: int) -> Branches:
    row, column = (width, (1, 7)), (width, (7, 1))
    return (
        (Unit("branch1x1", 192, 1),),
        _chain("branch7x7", (width, 1), row, (192, (7, 1))),
        _chain("branch7x7dbl", (width, 1), column, row, column, (192, (1, 7))),
        ("avg", Unit("branch_pool", 192, 1)),
    )


def _block_d() -> Branches:
    return (
        _chain("branch3x3", (192, 1), (320, 3, 2, "valid")),
        _chain("branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2, "valid")),
        ("max",),
    )


def _block_e() -> Branches:
    return (
        (Unit("branch1x1", 320, 1),),
        (*_chain("branch3x3", (384, 1)), _fork("branch3x3_2", 384)),
        (*_chain("branch3x3dbl", (448, 1), (384, 3)), _fork("branch3x3dbl_3", 384)),
        ("avg", Unit("branch_pool", 192, 1)),
    )


# A max pool follows each of the two.
STEMS = (
    (
        Unit("stem_1a", 32, 3, 2, "valid"),
        Unit("stem_2a", 32, 3, 1, "valid"),
        Unit("stem_2b", 64, 3),
    ),
    (Unit("stem_3b", 80, 1), Unit("stem_4a", 192, 3, 1, "valid")),
)
BLOCKS = {
    "mixed_5b": _block_a(32),
    "mixed_5c": _block_a(64),
    "mixed_5d": _block_a(64),
    "mixed_6a": _block_b(),
    "mixed_6b": _block_c(128),
    "mixed_6c": _block_c(160),
    "mixed_6d": _block_c(160),
    "mixed_6e": _block_c(192),
    "mixed_7a": _block_d(),
    "mixed_7b": _block_e(),
    "mixed_7c": _block_e(),
}
# The last block of each resolution, where a stage ends.
_STAGES = ("mixed_5d", "mixed_6e", "mixed_7c")

NETWORKS = {"inception_v3": {}}
MIN_IMAGE_SIZE = 75
VARIANTS = {"timm": {}, "torchvision": {}, "keras": {"count_padding": False, "norm_scale": False}}


def _pixels_in_window(size: int) -> Float[np.ndarray, " size"]:
    """For each position along an axis: how many pixels a window of 3 around it covers."""
    centre = np.arange(size)
    return (np.minimum(centre + 1, size - 1) - np.maximum(centre - 1, 0) + 1).astype(np.float32)


class Units(nn.Module, kw_only=True):
    """Base of the modules that apply units and poolings.

    Attributes:
      count_padding: average pooling divides by 9 everywhere, so that it counts the zeros outside
        the map; otherwise by the number of pixels inside the map.
      norm_scale: BatchNorm has a learnable scale.
      axis_name: pmap axis name; None under jit.
      dtype: compute dtype.
    """

    count_padding: bool = True
    norm_scale: bool = True
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    def run(self, unit: Unit, x: Float[Array, "b h w c"], update_stats: bool) -> Array:
        """Applies a unit, with parameters under the unit's name."""
        conv = Conv(
            unit.features, unit.size, unit.stride, unit.padding, dtype=self.dtype, name=unit.name
        )
        norm = BatchNorm(
            update_stats,
            axis_name=self.axis_name,
            dtype=self.dtype,
            epsilon=1e-3,
            use_scale=self.norm_scale,
            name=f"{unit.name}_norm",
        )
        return relu(conv_norm(conv, norm, x))

    def pool(self, reduction: str, x: Float[Array, "b h w c"]) -> Array:
        """Applies 3x3 pooling: "max" with stride 2, or "avg" with stride 1."""
        if reduction == "max":
            return max_pool(x, 3, 2, "valid")
        # With a Python 0.0, JAX recognises the reduction as a sum, which it can differentiate.
        total = nn.pooling.pool(x, 0.0, lax.add, (3, 3), (1, 1), ((1, 1), (1, 1)))
        if self.count_padding:
            return total / 9.0
        rows, columns = (_pixels_in_window(n) for n in x.shape[1:3])
        return total / jnp.asarray(np.outer(rows, columns), x.dtype)[None, :, :, None]


class Mixed(Units):
    """Inception block: parallel branches whose outputs are concatenated.

    Attributes:
      branches: the steps of each branch.
    """

    branches: Branches = ()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], update_stats: bool
    ) -> Float[Array, "b h2 w2 features"]:
        """Returns the concatenated outputs of all branches."""
        results = []
        for branch in self.branches:
            y = x
            for step in branch:
                if isinstance(step, str):
                    y = self.pool(step, y)
                elif isinstance(step, Unit):
                    y = self.run(step, y, update_stats)
                else:
                    pair = [self.run(unit, y, update_stats) for unit in step]
                    y = jnp.concatenate(pair, axis=-1)
            results.append(y)
        return jnp.concatenate(results, axis=-1)


class InceptionV3(Backbone, Units):
    """Inception-v3; attributes as in `Backbone` and `Units`.

    It has five stages, which end before the stem's two max pools and after the last block of each
    of three resolutions.
    """

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(STEMS) + len(_STAGES)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b 2048"]:
        """Returns features of 2048 channels; see `Backbone`."""
        del train
        for stage, stem in enumerate(STEMS):
            for unit in stem:
                x = self.run(unit, x, self.in_stage(STEM, update_stats))
            x = self.end_stage(stage, x)
            x = max_pool(x, 3, 2, "valid")
        stage = len(STEMS)
        for name, branches in BLOCKS.items():
            x = maybe_remat(Mixed, self.remat)(
                count_padding=self.count_padding,
                norm_scale=self.norm_scale,
                axis_name=self.axis_name,
                dtype=self.dtype,
                branches=branches,
                name=name,
            )(x, self.in_stage(stage, update_stats))
            if name in _STAGES:
                x = self.end_stage(stage, x)
                stage += 1
        return spatial_mean(x)
