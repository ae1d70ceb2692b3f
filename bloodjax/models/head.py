"""`Network`: a backbone, and the head that computes logits from its features."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bloodjax.models.layers import Dropout
from bloodjax.models.norms import BatchNorm
from bloodjax.ops.elementwise import relu, silu

FREEZE = ("none", "batchnorm", "backbone")
_STAGES = re.compile(r"stages:([1-9][0-9]?)(\+batchnorm)?")
ACTIVATIONS = {"relu": relu, "gelu": jax.nn.gelu, "silu": silu}


@dataclasses.dataclass(frozen=True)
class Freeze:
    """What is not trained.

    Attributes:
      backbone: the whole backbone.
      norms: scale, bias and statistics of every BatchNorm.
      stages: number of the backbone's stages, from the first on, and the stem with them.
    """

    backbone: bool = False
    norms: bool = False
    stages: int = 0


@functools.cache
def parse_freeze(text: str) -> Freeze:
    """Parses one of `FREEZE`, or "stages:N" or "stages:N+batchnorm".

    Raises:
      ValueError: `text` is none of these.
    """
    if found := _STAGES.fullmatch(text):
        return Freeze(norms=bool(found[2]), stages=int(found[1]))
    if text not in FREEZE:
        raise ValueError(
            f"freeze is {text!r}, expected one of {FREEZE}, 'stages:N' or 'stages:N+batchnorm'"
        )
    return Freeze(backbone=text == "backbone", norms=text == "batchnorm")


class Head(nn.Module):
    """BatchNorm, dropout, dense layers with an activation, dropout, and a last dense layer.

    The default is the head of the report that this project reproduces. With `hidden=()` and
    `batch_norm=False` it is a linear head.

    Attributes:
      num_classes: number of logits.
      hidden: widths of the dense layers between features and logits.
      batch_norm: apply BatchNorm to the features first.
      dropout: dropout rates before the hidden layers and before the last layer, in [0, 1).
      activation: a key of `ACTIVATIONS`.
      axis_name: pmap axis name; None under jit.
      dtype: compute dtype of the hidden layers; logits are float32.
    """

    num_classes: int
    hidden: Sequence[int] = (512, 256, 128, 64)
    batch_norm: bool = True
    dropout: tuple[float, float] = (0.3, 0.3)
    activation: str = "relu"
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"], train: bool, update_stats: bool
    ) -> Float[Array, "batch classes"]:
        """Returns float32 logits.

        Args:
          x: features.
          train: apply dropout; needs a "dropout" RNG.
          update_stats: see `Backbone.__call__`.
        """
        if self.batch_norm:
            x = BatchNorm(update_stats, axis_name=self.axis_name, dtype=self.dtype, name="norm")(x)
        x = Dropout(self.dropout[0], axis_name=self.axis_name, name="dropout_in")(x, train)
        for i, size in enumerate(self.hidden):
            x = nn.Dense(size, dtype=self.dtype, name=f"dense_{i}")(x)
            x = ACTIVATIONS[self.activation](x)
        x = Dropout(self.dropout[1], axis_name=self.axis_name, name="dropout_out")(x, train)
        return nn.Dense(self.num_classes, name="logits")(x.astype(jnp.float32))


class Network(nn.Module):
    """A backbone and a head: normalised images in, logits out.

    Attributes:
      backbone: a `Backbone`, which maps images to features [batch, features].
      head: a `Head`.
    """

    backbone: nn.Module
    head: Head

    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool = False, freeze: str = "none"
    ) -> Float[Array, "batch classes"]:
        """Returns float32 logits.

        Args:
          x: RGB images, normalised as the weights expect.
          train: training mode: dropout and stochastic depth are applied, and BatchNorm that is not
            frozen uses the batch's statistics and updates its running averages. Apply it with
            `mutable=["batch_stats"]` and a "dropout" RNG. Otherwise inference mode.
          freeze: part that stays in inference mode during training. "none": nothing. "batchnorm":
            every BatchNorm. "backbone": the backbone, which also receives no gradient. "stages:N"
            and "stages:N+batchnorm": the stem and the first N stages, and every BatchNorm, of a
            network that `freezing` returned.

        Raises:
          ValueError: `freeze` is none of these, or the backbone freezes other stages.
        """
        frozen = parse_freeze(freeze)
        if train and frozen.stages != self.backbone.frozen_stages:
            raise ValueError(
                f"freeze is {freeze!r}, but the backbone freezes {self.backbone.frozen_stages} "
                "stages: expected a network that Network.freezing returned"
            )
        train_backbone = train and not frozen.backbone
        features = self.backbone(
            x, train=train_backbone, update_stats=train_backbone and not frozen.norms
        )
        if frozen.backbone:
            features = lax.stop_gradient(features)
        return self.classify(features, train, freeze)

    def freezing(self, freeze: str) -> Network:
        """Returns the network whose backbone freezes the stages that `freeze` names.

        Raises:
          ValueError: `freeze` is none of those of `__call__`, or names more stages than there are.
        """
        stages = parse_freeze(freeze).stages
        if stages > self.backbone.num_stages:
            raise ValueError(
                f"freeze is {freeze!r}, but the backbone has {self.backbone.num_stages} stages"
            )
        if stages == self.backbone.frozen_stages:
            return self
        return self.clone(backbone=self.backbone.clone(frozen_stages=stages))

    def features(self, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch features"]:
        """Returns the backbone's features in inference mode, in its compute dtype."""
        return self.backbone(x, train=False, update_stats=False)

    def classify(
        self, features: Float[Array, "batch features"], train: bool = False, freeze: str = "none"
    ) -> Float[Array, "batch classes"]:
        """Returns float32 logits for features; `train` and `freeze` as in `__call__`."""
        return self.head(
            features, train=train, update_stats=train and not parse_freeze(freeze).norms
        )
