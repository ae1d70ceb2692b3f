"""Pointwise convolution: a matrix product over channels whose gradient is fast on CPU too.

The kernel gradient contracts over all pixels, and XLA's CPU backend transposes one operand to
[channels, pixels] for it. It fuses the transposition with the operations that compute the operand,
such as the gradient of a BatchNorm, and so reads several maps with the stride of a pixel. This
takes longer than the matrix product. An optimization barrier does not prevent it, because the
backend removes barriers before it fuses. Here a loop adds the products of tiles of pixels. XLA
fuses nothing across a loop's boundary, and a tile is transposed within the cache.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Pixels of a tile. Measured on x86: a quarter or four times as many are slower on most shapes.
_TILE = 1152


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


def _kernel_grad(x, grad):
    pixels = tuple(range(x.ndim - 1))
    if x.shape[-1] <= grad.shape[-1]:
        return jnp.tensordot(x, grad, (pixels, pixels))
    return jnp.tensordot(grad, x, (pixels, pixels)).T  # XLA transposes the left operand


def _backward_cpu(x, kernel, grad):
    return grad @ kernel.T, _kernel_grad_in_tiles(x, grad).astype(kernel.dtype)


def _kernel_grad_in_tiles(x, grad):
    maps = [a.reshape(-1, a.shape[-1]) for a in (x, grad)]
    swap = x.shape[-1] > grad.shape[-1]  # the map with fewer channels is the one to transpose
    pixels, wide = len(maps[0]), jnp.float64 if x.dtype == jnp.float64 else jnp.float32

    def product(start, size):
        left, right = (lax.dynamic_slice_in_dim(a, start, size) for a in maps[:: -1 if swap else 1])
        # Without the barrier the matrix product reads its left operand transposed, which is slower.
        left = lax.optimization_barrier(left.T)
        return jnp.matmul(left, right, preferred_element_type=wide)

    tiles, rest = divmod(pixels, _TILE)
    total = jnp.zeros(sorted((x.shape[-1], grad.shape[-1])), wide)
    if tiles:
        total = lax.fori_loop(0, tiles, lambda i, sums: sums + product(i * _TILE, _TILE), total)
    if rest:
        total = total + product(tiles * _TILE, rest)
    return total.T if swap else total


pointwise_conv.defvjp(_forward, _backward)
