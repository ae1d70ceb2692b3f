"""Depthwise convolution on TPUs: XLA's own form, or kernels for the vector unit, by shape.

`TPU_FORMS` lists the cases in which the kernels (`depthwise_mosaic`) take fewer cycles than XLA's
grouped convolution, by the TPU compiler's schedule. All others are native.

The kernels are behind a primitive (`tpu_kernel`). Of several devices, each uses them on its own
images inside `jax.shard_map`, and the native form elsewhere.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from bloodjax.ops import tpu_kernel
from bloodjax.ops.depthwise_gpu import NATIVE, Form, gradients
from bloodjax.ops.devices import on_one_device

# (direction, kernel size, stride, dtype) -> ((largest side of the input map, form), ...), in
# increasing order; the last form also applies to larger maps. Cases that are not listed are native.
# The cycles are those of a v5e, in benchmarks/results/compiled/v5e_1/ as
# depthwise_2026-11-28_222253.json, from `python -m benchmarks.depthwise_compiled`. XLA fuses the
# layers around the native form, and repeats some for the kernel gradient. In a block, kernels for
# one or two of the directions gained nothing, so all three have the same form: kernels where they
# gain in a block or in the steps of ConvNeXt-T and EfficientNet-B0.
_STEPS: dict[tuple[int, int], tuple[tuple[int, str], ...]] = {
    (3, 1): ((12, "native"), (24, "mosaic")),
    (3, 2): ((24, "native"), (48, "mosaic")),
    (5, 1): ((12, "mosaic"),),
    (5, 2): ((24, "mosaic"),),
    (7, 1): ((24, "mosaic"),),
}
TPU_FORMS: dict[tuple[str, int, int, str], tuple[tuple[int, str], ...]] = {
    (direction, *case, "bfloat16"): steps
    for direction in Form._fields
    for case, steps in _STEPS.items()
}


IMAGES = 8  # per register; the kernels need a batch that is a multiple of it
# With fewer channels XLA has the images in a register's 128 lanes, which neighbours gain by, too.
_FEWEST_CHANNELS = 64
_VMEM_BYTES = 40 * 2**20  # of a program, at most; a v5e and a v6e have 128 MiB


def fits(size, window, stride: int, dtype) -> bool:
    """Whether a program for maps of `size` (height, width) fits a TPU's vector memory."""
    pixels = size[0] * size[1]
    outputs = pixels // stride**2
    margins = 2 * window[0] * size[1]
    # Both maps twice, because the next block is copied meanwhile; and both in float32.
    values = jnp.dtype(dtype).itemsize * 2 * (pixels + outputs) + 4 * (pixels + outputs + margins)
    return values * IMAGES * 128 <= _VMEM_BYTES


@dataclasses.dataclass(frozen=True)
class _Call:
    """The static arguments of a kernel: those of `Form`'s functions."""

    direction: str
    stride: int
    padding: tuple[tuple[int, int], tuple[int, int]]
    size: tuple[int, int] | None = None  # of the input gradient
    window: tuple[int, int] | None = None  # of the kernel gradient

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the form's function."""
        extra = {"input_grad": {"size": self.size}, "kernel_grad": {"window": self.window}}
        return {"stride": self.stride, "padding": self.padding, **extra.get(self.direction, {})}


def _lowered(*operands, call: _Call):
    from bloodjax.ops import depthwise_mosaic as mosaic  # slow to import

    return [getattr(mosaic, call.direction)(*operands, **call.arguments)]


def _abstract(a, b, *added, call):
    del added
    if call.direction == "kernel_grad":
        shape = (*call.window, a.shape[-1])
        return [a.update(shape=shape, dtype=jnp.dtype(jnp.float32), sharding=None)]
    if call.direction == "input_grad":
        out = call.size
    else:
        out = (
            (size + sum(pads) - k) // call.stride + 1
            for size, k, pads in zip(a.shape[1:3], b.shape[:2], call.padding, strict=True)
        )
    return [a.update(shape=(a.shape[0], *out, a.shape[3]))]


def _joined(operands, axes, *, call):
    """One larger batch if the kernel is the same for all."""
    if axes[1] is not None or call.direction == "kernel_grad" or len(operands) > 2:
        return None
    maps = jnp.moveaxis(operands[0], axes[0], 0)
    result = _bind(maps.reshape(-1, *maps.shape[2:]), operands[1], call=call)
    return [result.reshape(len(maps), -1, *result.shape[1:])]


_kernel_p = tpu_kernel.primitive("depthwise_mosaic", _lowered, _abstract, _joined)


def _bind(*operands, call):
    return _kernel_p.bind(*operands, call=call)[0]


def _forward(x, kernel, *, stride, padding):
    return _bind(x, kernel, call=_Call("forward", stride, padding))


def _input_grad(grad, kernel, *, size, stride, padding):
    return _bind(grad, kernel, call=_Call("input_grad", stride, padding, size=tuple(size)))


def _kernel_grad(x, grad, *, window, stride, padding):
    return _bind(x, grad, call=_Call("kernel_grad", stride, padding, window=tuple(window)))


_FORMS = {"native": NATIVE, "mosaic": Form(_forward, _input_grad, _kernel_grad)}


def tpu_form(direction: str, window: tuple[int, int], stride: int, shape: tuple, dtype) -> str:
    """Returns the name of the form that TPUs use: native or mosaic.

    Args:
      direction: "forward", "input_grad" or "kernel_grad".
      window: (rows, columns) of the kernel.
      stride: stride of both axes.
      shape: the input map's [batch, height, width, channels]; the batch may be symbolic.
      dtype: dtype of the input.
    """
    batch, *size, channels = shape
    if window[0] != window[1] or batch % IMAGES or channels < _FEWEST_CHANNELS:
        return "native"
    if not fits(size, window, stride, dtype):
        return "native"
    if not on_one_device():
        return "native"
    steps = TPU_FORMS.get((direction, window[0], stride, jnp.dtype(dtype).name), ())
    name = next((name for side, name in steps if max(size) <= side), steps[-1][1] if steps else "")
    return name or "native"


def forward(x, kernel, *, stride, padding):
    """The convolution, in the form that TPUs use."""
    name = tpu_form("forward", kernel.shape[:2], stride, x.shape, x.dtype)
    return _FORMS[name].forward(x, kernel, stride=stride, padding=padding)


def backward_added(x, kernel, grad, added, *, stride, padding):
    """`backward`, with `added` added to the input's gradient by the kernel, if it is one."""
    if tpu_form("input_grad", kernel.shape[:2], stride, x.shape, x.dtype) != "mosaic":
        x_grad, kernel_grad = backward(x, kernel, grad, stride=stride, padding=padding)
        return x_grad + added, kernel_grad
    call = _Call("input_grad", stride, padding, size=tuple(x.shape[1:3]))
    kernel_grad = _kernel_grad(x, grad, window=kernel.shape[:2], stride=stride, padding=padding)
    return _bind(grad, kernel, added, call=call), kernel_grad.astype(kernel.dtype)


def backward(x, kernel, grad, *, stride, padding):
    """Gradients of input and kernel, in the forms that TPUs use."""
    forms = (
        _FORMS[tpu_form(direction, kernel.shape[:2], stride, x.shape, x.dtype)]
        for direction in ("input_grad", "kernel_grad")
    )
    return gradients(*forms, x, kernel, grad, stride=stride, padding=padding)
