"""Layer normalisation of a map in bfloat16, by kernels on a TPU (`channels_mosaic`).

XLA takes several passes for it there, and sums over the channels on the vector unit.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float32

from bloodjax.ops import tpu_kernel
from bloodjax.ops.devices import on_one_device
from bloodjax.ops.elementwise import layer_norm, normalise

_FEWEST_CHANNELS, _MOST_CHANNELS = 64, 1024
_VALUES = 2**17  # of a map that a program computes, at most


def map_norm(
    x: BFloat16[Array, "batch height width channels"],
    scale: Float32[Array, " channels"] | None,
    bias: Float32[Array, " channels"] | None,
    epsilon: float,
) -> BFloat16[Array, "batch height width channels"]:
    """`elementwise.layer_norm`, or `elementwise.normalise` if scale and bias are None."""
    if not _block(x):
        return _plain(x, scale, bias, epsilon)
    return _map_norm(x, scale, bias, epsilon)


def _plain(x, scale, bias, epsilon):
    return normalise(x, epsilon) if scale is None else layer_norm(x, scale, bias, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _map_norm(x, scale, bias, epsilon):
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    def kernel(x, scale, bias):
        factor, offset = scale, bias
        if scale is None:
            factor = jnp.ones(x.shape[-1], jnp.float32)
            offset = jnp.zeros_like(factor)
        parameters = {"direction": "norm_forward", "block": _block(x), "epsilon": epsilon}
        return _kernel_p.bind(x, factor, offset, **parameters)[0]

    plain = functools.partial(_plain, epsilon=epsilon)
    y = lax.platform_dependent(x, scale, bias, tpu=kernel, default=plain)
    return y, (x, scale, bias)


def _backward(epsilon, residuals, grad):
    def kernel(grad, x, scale, bias):
        del bias
        factor = jnp.ones(x.shape[-1], jnp.float32) if scale is None else scale
        parameters = {"direction": "norm_backward", "block": _block(x), "epsilon": epsilon}
        x_grad, *others = _kernel_p.bind(grad, x, factor, **parameters)
        return (x_grad, None, None) if scale is None else (x_grad, *others)

    def plain(grad, *operands):
        return jax.vjp(functools.partial(_plain, epsilon=epsilon), *operands)[1](grad)

    return lax.platform_dependent(grad, *residuals, tpu=kernel, default=plain)


_map_norm.defvjp(_forward, _backward)


def block_rows(rows: int, batch: int, channels: int) -> int:
    """Rows of a kernel's program, see `tpu_kernel.block_rows`."""
    return tpu_kernel.block_rows(rows, batch, _VALUES // channels)


def _block(x) -> int:
    """Rows of a program; 0 if no kernel computes the map."""
    batch, height, width, channels = x.shape
    if not _FEWEST_CHANNELS <= channels <= _MOST_CHANNELS or not on_one_device():
        return 0
    return block_rows(batch * height * width, batch, channels)


def _lowered(*operands, direction, block, epsilon):
    from bloodjax.ops import channels_mosaic as mosaic  # slow to import

    return getattr(mosaic, direction)(*operands, block=block, epsilon=epsilon)


def _abstract(*operands, direction, block, epsilon):
    del block, epsilon
    x, scale = (a.update(sharding=None) for a in operands[direction == "norm_backward" :][:2])
    return [x] if direction == "norm_forward" else [x, scale, scale]


_kernel_p = tpu_kernel.primitive("map_norm_mosaic", _lowered, _abstract)
