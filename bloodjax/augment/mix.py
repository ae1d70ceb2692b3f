"""MixUp and CutMix: an image mixed with its neighbour in the batch, and its label likewise.

The neighbour of example 2k is 2k + 1 and the other way round. An epoch's order is random, so that
this is a random partner, and it lies on the same device however many share the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from bloodjax.augment.policy import Mix

Images = Float[Array, "batch height width 3"]
Targets = Float[Array, "batch classes"]


@jax.named_scope("augment")
def mix(
    spec: Mix,
    keys: Key[Array, " batch"],
    images: Num[Array, "batch height width 3"],
    targets: Targets,
) -> tuple[Images, Targets]:
    """With the spec's probabilities, each example by MixUp, by CutMix or as it is.

    MixUp (Zhang et al., 2018, arXiv:1710.09412) blends images by a part drawn from
    Beta(alpha, alpha). CutMix (Yun et al., 2019, arXiv:1905.04899) puts a box of the neighbour in
    place, of that part of the area, less what lies outside. Labels are blended by the part of the
    image's own that is left. Each example has its own draw.

    Args:
      spec: which, and how often.
      keys: one an example; an even number of them.
      images: images.
      targets: what part of each image is of each class.
    """
    size = images.shape[1:3]

    def draw(key):
        which, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
        part = jax.random.uniform(which)
        blended = jax.random.beta(mixup_key, spec.mixup_alpha, spec.mixup_alpha)
        area = 1 - jax.random.beta(cutmix_key, spec.cutmix_alpha, spec.cutmix_alpha)
        top, bottom, left, right = _box(box_key, area, size)
        kept = 1 - (bottom - top) * (right - left) / (size[0] * size[1])
        by_mixup = part < spec.mixup_p
        by_cutmix = ~by_mixup & (part < spec.mixup_p + spec.cutmix_p)
        own = jnp.where(by_mixup, blended, jnp.where(by_cutmix, kept, 1.0))
        rows = jnp.arange(size[0], dtype=jnp.float32)
        columns = jnp.arange(size[1], dtype=jnp.float32)
        down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
        inside = down[:, None] & across[None]
        weights = jnp.where(by_cutmix, jnp.where(inside, 0.0, 1.0), own)
        return own, weights[..., None]

    own, weights = jax.vmap(draw)(keys)
    images = images.astype(jnp.float32)
    mixed = images * weights + neighbours(images) * (1 - weights)
    return mixed, targets * own[:, None] + neighbours(targets) * (1 - own[:, None])


def neighbours(x: Num[Array, batch * rest]) -> Num[Array, batch * rest]:
    """Each example's neighbour in its place."""
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def _box(key, area, size):
    """Top, bottom, left and right of a box of so much of the area, anywhere, cut at the border."""
    centre = jax.random.uniform(key, (2,))
    half = jnp.sqrt(area) / 2
    edges = []
    for middle, pixels in zip(centre, size, strict=True):
        edges += [jnp.round(jnp.clip(end, 0, 1) * pixels) for end in (middle - half, middle + half)]
    return edges
