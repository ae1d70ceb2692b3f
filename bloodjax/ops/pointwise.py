"""Pointwise convolution: a matrix product over channels whose gradient is fast on CPU too.

The kernel gradient contracts over all pixels. XLA's CPU backend transposes the output gradient to
[channels, pixels] for it, inside the loop that computes the output gradient, and so writes with the
stride of a full map. For a 48x48 map with 96 channels this takes longer than the rest of the step.
An optimization barrier prevents it, and the matrix product reads the gradient transposed.
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
    """Returns `x @ kernel`: a 1x1 convolution, or a dense layer without bias.

    Args:
      x: input.
      kernel: kernel, in `x`'s dtype.

    Returns:
      The output, in `x`'s dtype.
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
    return jnp.tensordot(grad, x, (pixels, pixels)).T  # XLA transposes the left operand


pointwise_conv.defvjp(_forward, _backward)
