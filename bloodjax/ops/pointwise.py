"""Pointwise convolution: a matrix product over channels whose gradient is fast on CPU too.

The kernel's gradient contracts over all pixels. XLA's CPU back end lays the output's gradient out
anew for it, [channels, pixels], in the loop that computes that gradient, and so writes with a
stride of the whole map: of a 48x48 map with 96 channels, more time than everything else there.
A barrier keeps the gradient as it is, and the matrix product reads it transposed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_vjp
def pointwise_conv(
    x: Float[Array, "*batch channels"], kernel: Float[Array, "channels features"]
) -> Float[Array, "*batch features"]:
    """`x @ kernel`: a 1x1 convolution, or a dense layer without its bias.

    Args:
      x: input.
      kernel: in `x`'s dtype.
    """
    return x @ kernel


def _forward(x, kernel):
    return x @ kernel, (x, kernel)


def _backward(residuals, grad):
    x, kernel = residuals
    return lax.platform_dependent(x, kernel, grad, cpu=_backward_cpu, default=_backward_native)


def _backward_native(x, kernel, grad):
    return grad @ kernel.T, _kernel_grad(x, grad)


def _backward_cpu(x, kernel, grad):
    x, grad = lax.optimization_barrier((x, grad))
    return _backward_native(x, kernel, grad)


def _kernel_grad(x, grad):
    pixels = tuple(range(x.ndim - 1))
    if x.shape[-1] <= grad.shape[-1]:
        return jnp.tensordot(x, grad, (pixels, pixels))
    return jnp.tensordot(grad, x, (pixels, pixels)).T  # the left one is laid out anew


pointwise_conv.defvjp(_forward, _backward)
