"""Depthwise convolution between two SiLUs, as in an inverted residual block of EfficientNet.

On a TPU the depthwise convolution's kernels compute the activations, their gradients and the mean
over the pixels too (`depthwise_silu_mosaic`). XLA fuses nothing with a kernel: each of them would
be a pass of its own. The other platforms compute layer by layer.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float32

from bloodjax.ops import tpu_kernel
from bloodjax.ops.depthwise import Padding, depthwise_conv
from bloodjax.ops.depthwise_tpu import IMAGES, fits
from bloodjax.ops.devices import on_one_device
from bloodjax.ops.elementwise import precise, silu, written

# With fewer channels most of a register's 128 lanes are empty.
_FEWEST_CHANNELS = 64


@dataclasses.dataclass(frozen=True)
class _Call:
    """The static arguments of a convolution."""

    stride: int
    padding: Padding
    activated: bool  # whether the input goes through SiLU

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the kernels."""
        return {"stride": self.stride, "padding": self.padding, "silu": self.activated}


def silu_depthwise_silu(
    x: BFloat16[Array, "batch height width channels"],
    shift: Float32[Array, " channels"] | None,
    kernel: BFloat16[Array, "rows columns channels"],
    offset: Float32[Array, " channels"],
    *,
    stride: int,
    padding: Padding,
) -> tuple[
    BFloat16[Array, "batch out_height out_width channels"], Float32[Array, "batch channels"]
]:
    """Returns `y = silu(depthwise_conv(silu(x + shift), kernel) + offset)` and its spatial mean.

    Args:
      x: input.
      shift: added to the input before its SiLU; if None, `x` is convolved itself.
      kernel: one filter per channel.
      offset: added to the convolution.
      stride: stride of both axes.
      padding: zeros ((top, bottom), (left, right)).
    """
    call = _Call(stride, padding, shift is not None)
    shift = jnp.zeros_like(offset) if shift is None else shift
    return _activated(x, shift, kernel, offset, call)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _activated(x, shift, kernel, offset, call):
    return _forward(x, shift, kernel, offset, call)[0]


def _plus(x, offset):
    return (precise(x) + offset[None, None, None]).astype(x.dtype)


def _convolved(x, shift, kernel, offset, *, call):
    x = silu(_plus(x, shift)) if call.activated else x
    return _plus(depthwise_conv(x, kernel, stride=call.stride, padding=call.padding), offset)


def _active(shifted):
    active = written(silu(shifted))
    return active, precise(active).mean((1, 2))


def _forward(x, shift, kernel, offset, call):
    def plain(*operands):
        shifted = _convolved(*operands, call=call)
        return shifted, *_active(shifted)

    def by_kernel(*operands):
        return tuple(_kernel_p.bind(*operands, call=call, direction="forward"))

    forms = {"tpu": by_kernel} if uses_kernels(x, kernel, call.stride) else {}
    shifted, *results = lax.platform_dependent(x, shift, kernel, offset, default=plain, **forms)
    return tuple(results), (x, shift, kernel, offset, shifted)


def _backward(call, residuals, grads):
    x, _, kernel, *_ = residuals

    def plain(x, shift, kernel, offset, shifted, *grads):
        (shifted_grad,) = jax.vjp(_active, shifted)[1](tuple(grads))
        convolved = functools.partial(_convolved, call=call)
        return jax.vjp(convolved, x, shift, kernel, offset)[1](shifted_grad)

    def by_kernel(x, shift, kernel, offset, shifted, *grads):
        operands = (shifted, *grads, x, shift, kernel)
        x_grad, shift_grad, kernel_grad, offset_grad = _kernel_p.bind(
            *operands, call=call, direction="backward"
        )
        return x_grad, shift_grad, kernel_grad.astype(kernel.dtype), offset_grad

    forms = {"tpu": by_kernel} if uses_kernels(x, kernel, call.stride) else {}
    return lax.platform_dependent(*residuals, *grads, default=plain, **forms)


_activated.defvjp(_forward, _backward)


def uses_kernels(x: Array, kernel: Array, stride: int) -> bool:
    """Whether a TPU computes the convolution of `x` by the kernels."""
    batch, *size, channels = x.shape
    return (
        x.dtype == jnp.bfloat16
        and batch % IMAGES == 0
        and channels >= _FEWEST_CHANNELS
        and fits(size, kernel.shape[:2], stride, x.dtype)
        and on_one_device()
    )


def _lowered(*operands, call: _Call, direction: str):
    from bloodjax.ops import depthwise_silu_mosaic as mosaic  # slow to import

    return getattr(mosaic, direction)(*operands, **call.arguments)


def _abstract(*operands, call, direction):
    wide = jnp.dtype(jnp.float32)
    if direction == "backward":
        x, shift, kernel = (a.update(sharding=None) for a in operands[3:])
        return [x, shift, kernel.update(dtype=wide), shift]
    x, _, kernel, _ = operands
    out = (
        (size + sum(pads) - k) // call.stride + 1
        for size, k, pads in zip(x.shape[1:3], kernel.shape[:2], call.padding, strict=True)
    )
    out = x.update(shape=(x.shape[0], *out, x.shape[3]), sharding=None)
    return [out, out, x.update(shape=(x.shape[0], x.shape[3]), dtype=wide, sharding=None)]


_kernel_p = tpu_kernel.primitive("depthwise_silu_mosaic", _lowered, _abstract)
