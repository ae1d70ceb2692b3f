"""Activations and layer normalisation that store as little as possible for the backward pass.

Automatic differentiation stores intermediate maps, each as large as the input. GELU and layer
normalisation store only their input here, and ReLU its output, which the next layer stores anyway.
The custom gradients take one pass over that map and the output gradient. These layers are limited
by memory bandwidth, so the number of passes is their cost.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

# Coefficients of `normal_cdf_by_tanh`, fitted to the least largest error, and the square of the
# argument from which on they are not extrapolated.
_TANH, _SQUARE_END = (0.79771783, 0.03679826, -0.00031580706), 16.0


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exact Gaussian error linear unit (Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    `x` times the cumulative distribution function of the standard normal distribution, as in
    `torch.nn.functional.gelu`. Computed in float32 at least, returned in `x`'s dtype.
    """
    return _gelu(x)


def _gelu(x):
    wide = precise(x)
    return (wide * _cdf(x)).astype(x.dtype)


def precise(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns `x` in float32, or in float64 if it is that already."""
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def written(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns `x`, a map that several operations read.

    XLA gives them the float32 values that a bfloat16 map was rounded from. Its GPU compiler then
    writes a float32 map. On a GPU, what reads the result of this function reads bfloat16.
    """
    return apart(x) if x.dtype == jnp.bfloat16 else x


@jax.custom_vjp
def apart(x: PyTree) -> PyTree:
    """Returns `x`, which a GPU computes apart from what reads it; gradients are not kept apart."""
    return lax.platform_dependent(x, cuda=lax.optimization_barrier, default=lambda x: x)


apart.defvjp(lambda x: (apart(x), None), lambda _, grad: (grad,))


def _cdf(x):
    """The normal distribution function in float32 at least."""
    wide = precise(x)
    if x.dtype != jnp.bfloat16:
        return _normal_cdf(wide)
    return lax.platform_dependent(wide, tpu=normal_cdf_by_tanh, default=_normal_cdf)


def _normal_cdf(x):
    return 0.5 * (1.0 + lax.erf(x * math.sqrt(0.5)))


def normal_cdf_by_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The normal distribution function, with an error of at most 2e-5.

    bfloat16 resolves less. A TPU has an instruction for tanh, but computes erf as a quotient of two
    polynomials.
    """
    square = jnp.minimum(jnp.square(x), _SQUARE_END)
    odd = x * (_TANH[0] + square * (_TANH[1] + square * _TANH[2]))
    return 0.5 + 0.5 * jnp.tanh(odd)


def _gelu_forward(x):
    return _gelu(x), x


def _gelu_backward(x, grad):
    wide = precise(x)
    density = jnp.exp(-0.5 * jnp.square(wide)) * (1.0 / math.sqrt(2.0 * math.pi))
    slope = _cdf(x) + wide * density
    return (written((precise(grad) * slope).astype(x.dtype)),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Sigmoid linear unit, `x` times its logistic function, as `jax.nn.silu`.

    In bfloat16 it is computed in float32, rounded once, and stores its input only.
    """
    return _silu(x) if x.dtype == jnp.bfloat16 else jax.nn.silu(x)


@jax.custom_vjp
def _silu(x):
    wide = precise(x)
    return (wide * _logistic(wide)).astype(x.dtype)


def _logistic(x):
    # A TPU has an instruction for tanh. The quotient 1 / (1 + exp(-x)) takes several.
    return lax.platform_dependent(
        x, tpu=lambda x: 0.5 + 0.5 * jnp.tanh(0.5 * x), default=lax.logistic
    )


def _silu_forward(x):
    return _silu(x), x


def _silu_backward(x, grad):
    wide = precise(x)
    logistic = _logistic(wide)
    slope = logistic * (1.0 + wide * (1.0 - logistic))
    return (written((precise(grad) * slope).astype(x.dtype)),)


_silu.defvjp(_silu_forward, _silu_backward)


@jax.custom_vjp
def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Rectified linear unit, as `jax.nn.relu`, whose gradient needs the output only.

    `jax.nn.relu` stores its input for the gradient. The compiler of a TPU then writes both maps.
    """
    return jnp.maximum(x, jnp.zeros((), x.dtype))


def _relu_forward(x):
    y = relu(x)
    return y, y


def _relu_backward(y, grad):
    # XLA would replace `y > 0` by the input's `x > 0`, and store that as well.
    return (jnp.where(y != 0, grad, jnp.zeros((), grad.dtype)),)


relu.defvjp(_relu_forward, _relu_backward)


@jax.custom_vjp
def relu6(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Rectified linear unit with a maximum of 6, as `jax.nn.relu6`; see `relu`."""
    return jnp.minimum(jnp.maximum(x, jnp.zeros((), x.dtype)), jnp.full((), 6, x.dtype))


def _relu6_forward(x):
    y = relu6(x)
    return y, y


def _relu6_backward(y, grad):
    return (jnp.where((y != 0) & (y != 6), grad, jnp.zeros((), grad.dtype)),)


relu6.defvjp(_relu6_forward, _relu6_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*batch channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    epsilon: float,
) -> Float[Array, "*batch channels"]:
    """Layer normalisation (Ba et al., 2016, arXiv:1607.06450) over the channels.

    Args:
      x: input.
      scale: per-channel scale, in `x`'s dtype or, if that is bfloat16, in float32.
      bias: per-channel bias, likewise.
      epsilon: added to the variance.

    Returns:
      The normalised input, in `x`'s dtype, computed in float32 at least.
    """
    return _layer_norm(x, scale, bias, epsilon)[0]


def _layer_norm(x, scale, bias, epsilon):
    every = (None,) * (x.ndim - 1)
    wide = precise(x)
    mean = wide.mean(-1, keepdims=True)
    # Two passes, because E[x^2] - E[x]^2 loses precision where the mean is large.
    inverse = lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    y = (wide - mean) * inverse * scale[every] + bias[every]
    return y.astype(x.dtype), mean, inverse


def _layer_norm_forward(x, scale, bias, epsilon):
    y, mean, inverse = _layer_norm(x, scale, bias, epsilon)
    return y, (x, scale, mean, inverse)


def _layer_norm_backward(_, residuals, grad):
    x, scale, mean, inverse = residuals
    pixels = tuple(range(x.ndim - 1))
    if x.dtype == jnp.bfloat16:
        # A GPU would compute them again, and write the normalised map in float32.
        mean, inverse = apart((mean, inverse))
    grad = precise(written(grad))
    normal = (precise(x) - mean) * inverse
    scaled = grad * scale[(None,) * len(pixels)]
    along = (scaled * normal).mean(-1, keepdims=True)
    x_grad = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    x_grad = written(x_grad.astype(x.dtype))
    return x_grad, (grad * normal).sum(pixels), grad.sum(pixels)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def normalise(
    x: Float[Array, "*batch channels"], epsilon: float
) -> Float[Array, "*batch channels"]:
    """Layer normalisation without scale and bias, in one pass; stores only its output.

    Mean and variance are those of `x` and of its square, so that both are summed where `x` is
    computed. Their difference loses no more than a bfloat16 input has lost already.

    Args:
      x: input, in bfloat16.
      epsilon: added to the variance.

    Returns:
      The input with mean 0 and variance 1 over the channels, in `x`'s dtype.
    """
    return _normalise(x, epsilon)[0]


def _normalise(x, epsilon):
    wide = precise(x)
    mean = wide.mean(-1, keepdims=True)
    square = jnp.square(wide).mean(-1, keepdims=True)
    # Rounding can make the difference negative.
    variance = jnp.maximum(square - jnp.square(mean), jnp.zeros((), wide.dtype))
    inverse = lax.rsqrt(variance + epsilon)
    y = ((wide - mean) * inverse).astype(x.dtype)
    return y, (y, inverse)


def _normalise_backward(_, residuals, grad):
    y, inverse = residuals
    normal, wide = precise(y), precise(grad)
    along = (wide * normal).mean(-1, keepdims=True)
    x_grad = inverse * (wide - wide.mean(-1, keepdims=True) - normal * along)
    return (written(x_grad.astype(grad.dtype)),)


normalise.defvjp(_normalise, _normalise_backward)
