"""Mixes each image of a batch with its neighbour: MixUp and CutMix, and styles without labels.

The neighbour of example 2k is 2k + 1, and vice versa. Because the order of an epoch is random, this
is a random partner; and it is on the same device, for any number of devices.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key, Num

from bloodjax.augment import beta
from bloodjax.augment.policy import Mix

# The key of an example is folded with this number for the random numbers of its style.
_STYLE = 4
# Smallest deviation of an image's optical density, by which others are divided.
_FLATTEST = 0.02

Images = Float[Array, "batch height width 3"]
Targets = Float[Array, "batch classes"]


@jax.named_scope("augment")
def mix(
    spec: Mix,
    keys: Key[Array, " batch"],
    images: Num[Array, "batch height width 3"],
    targets: Targets,
) -> tuple[Images, Targets]:
    """Mixes styles (see `mix_styles`), and then applies MixUp, CutMix or neither to each example.

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
    if spec.styles:
        images = mix_styles(spec, keys, images.astype(jnp.float32))
    return _mix_labelled(spec, keys, images, targets) if spec.labelled else (images, targets)


def _mix_labelled(spec: Mix, keys, images, targets):
    """MixUp and CutMix."""
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


def mix_styles(spec: Mix, keys: Key[Array, " batch"], images: Images) -> Images:
    """Moves the style of each image towards its neighbour's, with the probabilities in `spec`.

    Labels do not change. `fourier` uses `mix_amplitudes`, with a weight that is uniform between 0
    and `spec.fourier_alpha` (Xu et al., "A Fourier-based framework for domain generalization",
    2021, arXiv:2105.11120). `mixstyle` uses `mix_densities`, with a weight from Beta(alpha, alpha)
    (Zhou et al., "Domain generalization with MixStyle", 2021, arXiv:2104.02008). If an image gets
    both, the amplitudes come first.

    Args:
      spec: Probabilities and distributions.
      keys: A random key for each example; the number of examples is even.
      images: Images in 0..255.
    """

    def sample(key):
        on, amount, share = jax.random.split(jax.random.fold_in(key, _STYLE), 3)
        by_fourier, by_mixstyle = jax.random.uniform(on, (2,))
        fourier = mixstyle = jnp.zeros(())
        if spec.fourier_p:
            drawn = spec.fourier_alpha * jax.random.uniform(amount)
            fourier = jnp.where(by_fourier < spec.fourier_p, drawn, 0.0)
        if spec.mixstyle_p:
            drawn = beta.beta(share, spec.mixstyle_alpha, spec.mixstyle_alpha)
            mixstyle = jnp.where(by_mixstyle < spec.mixstyle_p, drawn, 0.0)
        return fourier, mixstyle

    fourier, mixstyle = jax.vmap(sample)(keys)
    if spec.fourier_p:
        images = mix_amplitudes(images, fourier, spec.fourier_band)
    return mix_densities(images, mixstyle) if spec.mixstyle_p else images


def mix_amplitudes(images: Images, weights: Float[Array, " batch"], band: float) -> Images:
    """Mixes the amplitudes of low frequencies with the neighbour's, and keeps the phases.

    Amplitudes have colour and illumination, phases have shapes (Yang and Soatto, "FDA: Fourier
    domain adaptation for semantic segmentation", 2020, arXiv:2004.05498). Only the frequencies of
    the band are computed, by products with cosines and sines.

    Args:
      images: Images in 0..255.
      weights: The neighbour's share of the amplitudes; 0 changes nothing, 1 replaces.
      band: Highest frequency along each axis in cycles per pixel, 0 to 0.5: 0 mixes the mean of
        each channel only, 0.5 mixes all frequencies.
    """
    height, width = images.shape[1:3]
    # A TPU multiplies in bfloat16 by default.
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    down = np.fft.fftfreq(height, 1 / height)
    across = np.fft.rfftfreq(width, 1 / width)
    # The quotients of NumPy are integers up to rounding, and so may be the band's end.
    (cos_down, sin_down), (cos_across, sin_across) = (
        _waves(np.rint(k[np.abs(k) <= band * size + 1e-6]), size)
        for k, size in ((down, height), (across, width))
    )
    cosines, sines = (product("kw,bhwc->bhkc", w, images) for w in (cos_across, sin_across))
    real = product("rh,bhkc->brkc", cos_down, cosines) - product("rh,bhkc->brkc", sin_down, sines)
    imaginary = -product("rh,bhkc->brkc", sin_down, cosines) - product(
        "rh,bhkc->brkc", cos_down, sines
    )
    amplitude = jnp.sqrt(real**2 + imaginary**2)
    change = weights[:, None, None, None] * (neighbours(amplitude) - amplitude)
    change = change / jnp.maximum(amplitude, 1e-6)
    real, imaginary = change * real, change * imaginary
    # A column stands for its mirror image, too, unless it is its own.
    twice = np.full((len(cos_across), 1), 2.0, np.float32)
    twice[0] = 1
    if 2 * (len(twice) - 1) == width:
        twice[-1] = 1
    cosines = product("rh,brkc->bhkc", cos_down, real) - product(
        "rh,brkc->bhkc", sin_down, imaginary
    )
    sines = product("rh,brkc->bhkc", sin_down, real) + product("rh,brkc->bhkc", cos_down, imaginary)
    added = product("kw,bhkc->bhwc", twice * cos_across, cosines) - product(
        "kw,bhkc->bhwc", twice * sin_across, sines
    )
    return jnp.clip(images + added / (height * width), 0.0, 255.0)


def mix_densities(images: Images, weights: Float[Array, " batch"]) -> Images:
    """Mixes mean and deviation of each channel's optical density with the neighbour's.

    It is MixStyle of images instead of feature maps: the colour transfer of Reinhard et al. (2001),
    by a random share, in the space in which stains add up.

    Args:
      images: Images in 0..255. A channel value below 1 counts as 1.
      weights: The neighbour's share of mean and deviation; 0 changes nothing, 1 replaces.
    """
    density = -jnp.log(jnp.maximum(images, 1.0) / 255)
    mean = density.mean((1, 2), keepdims=True)
    deviation = density.std((1, 2), keepdims=True)
    weights = weights[:, None, None, None]
    stretched = weights * (neighbours(deviation) - deviation) / jnp.maximum(deviation, _FLATTEST)
    # Only the change of the density is computed, so that a weight of 0 changes nothing.
    added = (density - mean) * stretched + weights * (neighbours(mean) - mean)
    return jnp.clip(images * jnp.exp(-added), 0.0, 255.0)


def _waves(frequencies: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [frequencies, size] of frequencies in cycles per `size` pixels."""
    # Phases are reduced before they are multiplied, so that they are exact.
    angle = 2 * np.pi / size * np.mod(np.outer(frequencies, np.arange(size)), size)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


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
