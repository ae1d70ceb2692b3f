"""`simple_cnn`: small convolutional networks, the baseline to train from scratch.

VGG-style (Simonyan and Zisserman, 2014, arXiv:1409.1556) with BatchNorm (Ioffe and Szegedy, 2015,
arXiv:1502.03167): stages of 3x3 convolutions that halve the map, then global average pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from bloodjax.models.backbone import Backbone
from bloodjax.models.layers import Dropout, maybe_remat
from bloodjax.models.norms import BatchNorm
from bloodjax.ops.elementwise import relu
from bloodjax.ops.pooling import spatial_mean

# "050" has half the channels, as in MobileNet's names.
NETWORKS = {"simple_cnn": {}, "simple_cnn_050": {"widths": (16, 32, 64, 128)}}
MIN_IMAGE_SIZE = 16
VARIANTS = {"bloodjax": {}}


class SimpleCNN(Backbone):
    """Stages of 3x3 convolutions, BatchNorm and ReLU.

    `drop_path` is the dropout rate of the pooled features, as there are no residual branches.

    Attributes:
      depths: convolutions per stage; the first of a stage has stride 2.
      widths: channels per stage.
    """

    depths: Sequence[int] = (1, 2, 2, 2)
    widths: Sequence[int] = (32, 64, 128, 256)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False, update_stats: bool = False
    ) -> Float[Array, "b features"]:
        """Returns features of `widths[-1]` channels; see `Backbone`."""
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            run_stage = maybe_remat(SimpleCNN._stage, self.remat)
            updates = self.in_stage(stage, update_stats)
            x = run_stage(self, x, stage, depth, width, updates)
            x = self.end_stage(stage, x)
        x = spatial_mean(x)
        return Dropout(self.drop_path, axis_name=self.axis_name)(x, train)

    def _stage(self, x, stage, depth, width, update_stats):
        for layer in range(depth):
            name = f"stage_{stage}_conv_{layer}"
            x = nn.Conv(
                width,
                (3, 3),
                strides=2 if layer == 0 else 1,
                padding=1,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),
                name=name,
            )(x)
            norm = BatchNorm(
                update_stats, axis_name=self.axis_name, dtype=self.dtype, name=f"{name}_norm"
            )
            x = relu(norm(x))
        return x
