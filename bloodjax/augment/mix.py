"""MixUp and CutMix: an image and its label are mixed with those of its neighbour in the batch.

The neighbour of example 2k is 2k + 1, and vice versa. Because the order of an epoch is random, this
is a random partner; and it is on the same device, for any number of devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from bloodjax.augment import beta
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
    """Applies MixUp, CutMix or neither to each example, with the probabilities in `spec`.

    MixUp (Zhang et al., 2018, arXiv:1710.09412) blends two images with a weight from
    Beta(alpha, alpha). CutMix (Yun et al., 2019, arXiv:1905.04899) replaces a box with the
    neighbour's pixels; its share of the area is sampled likewise, and the box is clipped at the
    border. Labels are blended by the share of the image that is its own. The random numbers of
    the examples are independent.

    Args:
      spec: Probabilities and distributions.
      keys: A random key for each example; the number of examples is even.
      images: Images in 0..255.
      targets: Probability of each class for each image.

    Returns:
      The mixed images (float32) and targets.
    """
    size = images.shape[1:3]

    def sample(key):
        which, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
        uniform = jax.random.uniform(which)
        blended = beta.beta(mixup_key, spec.mixup_alpha, spec.mixup_alpha)
        area = 1 - beta.beta(cutmix_key, spec.cutmix_alpha, spec.cutmix_alpha)
        top, bottom, left, right = _box(box_key, area, size)
        kept = 1 - (bottom - top) * (right - left) / (size[0] * size[1])
        by_mixup = uniform < spec.mixup_p
        by_cutmix = ~by_mixup & (uniform < spec.mixup_p + spec.cutmix_p)
        own = jnp.where(by_mixup, blended, jnp.where(by_cutmix, kept, 1.0))
        rows = jnp.arange(size[0], dtype=jnp.float32)
        columns = jnp.arange(size[1], dtype=jnp.float32)
        down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
        inside = down[:, None] & across[None]
        weights = jnp.where(by_cutmix, jnp.where(inside, 0.0, 1.0), own)
        return own, weights[..., None]

    own, weights = jax.vmap(sample)(keys)
    images = images.astype(jnp.float32)
    mixed = images * weights + neighbours(images) * (1 - weights)
    return mixed, targets * own[:, None] + neighbours(targets) * (1 - own[:, None])


def neighbours(x: Num[Array, batch * rest]) -> Num[Array, batch * rest]:
    """Swaps each example with its neighbour."""
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def _box(key, area, size):
    """Top, bottom, left and right of a random box with this share of the area, clipped."""
    centre = jax.random.uniform(key, (2,))
    half = jnp.sqrt(area) / 2
    edges = []
    for middle, pixels in zip(centre, size, strict=True):
        edges += [jnp.round(jnp.clip(end, 0, 1) * pixels) for end in (middle - half, middle + half)]
    return edges
