"""Depthwise convolution on accelerators: implementations, and the choice for CUDA devices.

- *native*: XLA's grouped convolution and its derivatives.
- *shifted*: a sum over kernel taps of the shifted input, which XLA fuses. The input gradient is
  computed in the same way, the kernel gradient with one reduction per tap.
- *pallas*: custom kernels (`depthwise_pallas`). Of several devices, each uses them on its own
  images inside `jax.shard_map`, and the native form elsewhere.

`CUDA_FORMS` lists the cases in which another form was measured to be faster than native. For
measurements, the environment variable `BLOODJAX_CUDA_DEPTHWISE` selects one form for all cases on
CUDA devices. It is read when a computation is traced, so set it before the process starts.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bloodjax.ops import depthwise_cpu
from bloodjax.ops.devices import on_one_device

FORCE = "BLOODJAX_CUDA_DEPTHWISE"

# (direction, kernel size, stride, dtype) -> ((largest side of the input map, form), ...), in
# increasing order; the last form also applies to larger maps. Cases that are not listed are native.
# `python -m benchmarks.depthwise` prints entries. An entry must name the file in benchmarks/results
# that contains its measurement.
CUDA_FORMS: dict[tuple[str, int, int, str], tuple[tuple[int, str], ...]] = {}

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Form(NamedTuple):
    """An implementation of the convolution and its gradients.

    Attributes:
      forward: function of (x, kernel, stride, padding).
      input_grad: function of (output gradient, kernel, size, stride, padding); `size` is the
        input's (height, width).
      kernel_grad: function of (x, output gradient, window, stride, padding); `window` is the
        kernel's (rows, columns). The result is in float32 or the input's dtype.
    """

    forward: Callable[..., jax.Array]
    input_grad: Callable[..., jax.Array]
    kernel_grad: Callable[..., jax.Array]


def _native(x, kernel, *, stride, padding):
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        padding,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=x.shape[-1],
    )


def _native_input_grad(grad, kernel, *, size, stride, padding):
    x = jax.ShapeDtypeStruct((grad.shape[0], *size, grad.shape[-1]), grad.dtype)
    function = functools.partial(_native, kernel=kernel, stride=stride, padding=padding)
    return jax.linear_transpose(function, x)(grad)[0]


def _native_kernel_grad(x, grad, *, window, stride, padding):
    kernel = jax.ShapeDtypeStruct((*window, x.shape[-1]), x.dtype)
    function = functools.partial(_native, x, stride=stride, padding=padding)
    return jax.linear_transpose(function, kernel)(grad)[0]


def _shifted(x, kernel, *, stride, padding):
    return depthwise_cpu.shifted(x, kernel, stride, padding)


def _shifted_input_grad(grad, kernel, *, size, stride, padding):
    zero = jnp.zeros((), grad.dtype)

    def spread(offset, axis):
        # Moves the gradients to the tap's input pixels, and crops those outside the input.
        low = offset - padding[axis][0]
        high = size[axis] - low - ((grad.shape[1 + axis] - 1) * stride + 1)
        return low, high, stride - 1

    total = jnp.zeros((), jnp.float32)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            moved = lax.pad(grad, zero, ((0, 0, 0), spread(i, 0), spread(j, 1), (0, 0, 0)))
            tap = kernel[i, j].astype(jnp.float32)
            total = total + moved.astype(jnp.float32) * tap[None, None, None]
    return total.astype(grad.dtype)


def _shifted_kernel_grad(x, grad, *, window, stride, padding):
    (height, width), _ = depthwise_cpu.geometry(x, *window, stride, padding)
    padded = depthwise_cpu.pad(x, padding)
    grad = grad.astype(jnp.float32)
    sums = []
    for i in range(window[0]):
        for j in range(window[1]):
            part = padded[
                :,
                i : i + stride * (height - 1) + 1 : stride,
                j : j + stride * (width - 1) + 1 : stride,
            ]
            sums.append(jnp.sum(part.astype(jnp.float32) * grad, (0, 1, 2)))
    return jnp.stack(sums).reshape(*window, x.shape[-1])


NATIVE = Form(_native, _native_input_grad, _native_kernel_grad)
_SHIFTED = Form(_shifted, _shifted_input_grad, _shifted_kernel_grad)


def form(name: str) -> Form:
    """Returns a form by name: native, shifted or pallas.

    Raises:
      ValueError: the name is unknown.
    """
    if name == "pallas":
        from bloodjax.ops import depthwise_pallas as pallas  # slow to import

        return Form(pallas.forward, pallas.input_grad, pallas.kernel_grad)
    forms = {"native": NATIVE, "shifted": _SHIFTED}
    if name not in forms:
        raise ValueError(f"form is {name!r}, expected one of native, shifted, pallas")
    return forms[name]


def cuda_form(
    direction: str, window: tuple[int, int], stride: int, size: tuple[int, int], dtype
) -> str:
    """Returns the name of the form that CUDA devices use.

    Args:
      direction: "forward", "input_grad" or "kernel_grad".
      window: (rows, columns) of the kernel.
      stride: stride of both axes.
      size: (height, width) of the input map.
      dtype: dtype of the input.
    """
    if dtype not in (jnp.float32, jnp.bfloat16):
        return "native"  # the others sum in float32
    if forced := os.environ.get(FORCE):
        return forced
    if window[0] != window[1]:
        return "native"
    steps = CUDA_FORMS.get((direction, window[0], stride, jnp.dtype(dtype).name), ())
    name = next((name for side, name in steps if max(size) <= side), steps[-1][1] if steps else "")
    # XLA cannot divide a kernel: each of several devices would compute the full batch.
    return name if name and (name != "pallas" or on_one_device()) else "native"


def forward(x, kernel, *, stride, padding):
    """The convolution, in the form that CUDA devices use."""
    name = cuda_form("forward", kernel.shape[:2], stride, x.shape[1:3], x.dtype)
    return form(name).forward(x, kernel, stride=stride, padding=padding)


def backward(x, kernel, grad, *, stride, padding):
    """Gradients of input and kernel, in the forms that CUDA devices use."""
    window, size = kernel.shape[:2], x.shape[1:3]
    forms = (
        form(cuda_form(direction, window, stride, size, x.dtype))
        for direction in ("input_grad", "kernel_grad")
    )
    return gradients(*forms, x, kernel, grad, stride=stride, padding=padding)


def gradients(input_form: Form, kernel_form: Form, x, kernel, grad, *, stride, padding):
    """Gradients of input and kernel, each in its own form."""
    window, size = kernel.shape[:2], x.shape[1:3]
    x_grad = input_form.input_grad(grad, kernel, size=size, stride=stride, padding=padding)
    kernel_grad = kernel_form.kernel_grad(x, grad, window=window, stride=stride, padding=padding)
    return x_grad, kernel_grad.astype(kernel.dtype)
