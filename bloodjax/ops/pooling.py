"""The mean over a map's pixels."""

from __future__ import annotations

from jax import lax
from jaxtyping import Array, Float

from bloodjax.ops.elementwise import apart, precise


def spatial_mean(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
    """Global average pooling: the mean over height and width, summed in float32 at least.

    For one sum over 64 pixels (though not over 9), XLA's GPU compiler moves the channels of `x`,
    and of the operations before it, outermost, and writes such maps in float32. On a GPU the rows
    are summed first.

    Raises:
      ValueError: The map is empty, because the network's images are too small.
    """
    height, width = x.shape[1:3]
    if not height or not width:
        raise ValueError(f"a map has {height}x{width} pixels, expected larger images")
    return lax.platform_dependent(x, cuda=_mean_by_rows, default=lambda x: x.mean(axis=(1, 2)))


def _mean_by_rows(x):
    columns = apart(precise(x).sum(1))
    return (columns.sum(1) / (x.shape[1] * x.shape[2])).astype(x.dtype)
