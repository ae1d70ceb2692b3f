"""Depthwise convolution that is fast on CPU too, with its own gradient.

On CPU it takes the forms of `depthwise_cpu`; elsewhere (GPU, TPU) everything is XLA's own grouped
convolution.
"""

from __future__ import annotations

import functools

import jax
from jax import lax
from jaxtyping import Array, Float

from bloodjax.ops import depthwise_cpu

Padding = tuple[tuple[int, int], tuple[int, int]]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def depthwise_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels"],
    *,
    stride: int = 1,
    padding: Padding | None = None,
) -> Float[Array, "batch out_height out_width channels"]:
    """Convolves every channel with its own kernel, as `torch.nn.Conv2d(groups=channels)` does.

    Args:
      x: input.
      kernel: one filter a channel, in `x`'s dtype.
      stride: the same in both directions.
      padding: zeros (before, after) the height and the width; by default half the kernel on either
        side, so that an odd kernel at stride 1 keeps the size.

    Returns:
      The output in `x`'s dtype, of size `(size + padding - kernel) // stride + 1`, summed in
      float32.
    """
    if padding is None:
        padding = tuple((k // 2, k // 2) for k in kernel.shape[:2])
    return _depthwise(x, kernel, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, padding):
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(depthwise_cpu.forward, stride=stride, padding=padding),
        default=functools.partial(_native, stride=stride, padding=padding),
    )


def _depthwise_fwd(x, kernel, stride, padding):
    return _depthwise(x, kernel, stride, padding), (x, kernel)


def _depthwise_bwd(stride, padding, residuals, grad):
    x, kernel = residuals
    return lax.platform_dependent(
        x,
        kernel,
        grad,
        cpu=functools.partial(depthwise_cpu.backward, stride=stride, padding=padding),
        default=functools.partial(_backward_native, stride=stride, padding=padding),
    )


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def _native(x, kernel, *, stride, padding):
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        padding,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=x.shape[-1],
    )


def _backward_native(x, kernel, grad, *, stride, padding):
    _, vjp = jax.vjp(functools.partial(_native, stride=stride, padding=padding), x, kernel)
    return vjp(grad)
