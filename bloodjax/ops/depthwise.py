"""Depthwise convolution with a custom gradient and an implementation per platform.

XLA's grouped convolution is slow on CPU, and its gradients are slow on GPU. `depthwise_cpu` and
`depthwise_gpu` implement alternatives and choose among them; TPUs use XLA's.
"""

from __future__ import annotations

import functools

import jax
from jax import lax
from jaxtyping import Array, Float

from bloodjax.ops import depthwise_cpu, depthwise_gpu, depthwise_tpu
from bloodjax.ops.depthwise_gpu import NATIVE

Padding = tuple[tuple[int, int], tuple[int, int]]


def depthwise_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels"],
    *,
    stride: int = 1,
    padding: Padding | None = None,
) -> Float[Array, "batch out_height out_width channels"]:
    """Convolves each channel with its own filter, as `torch.nn.Conv2d(groups=channels)`.

    Args:
      x: input.
      kernel: one filter per channel, in `x`'s dtype.
      stride: stride of both axes.
      padding: zeros ((top, bottom), (left, right)); by default half the kernel on both sides, so
        that an odd kernel at stride 1 preserves the size.

    Returns:
      The output in `x`'s dtype, of size `(size + padding - kernel) // stride + 1`, summed in
      float32.
    """
    if padding is None:
        padding = tuple((k // 2, k // 2) for k in kernel.shape[:2])
    return _depthwise(x, kernel, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, padding):
    return _forward(x, kernel, stride, padding, depthwise_cpu.forward_alone)


def _forward(x, kernel, stride, padding, on_cpu=depthwise_cpu.forward):
    shape = {"stride": stride, "padding": padding}
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(on_cpu, **shape),
        cuda=functools.partial(depthwise_gpu.forward, **shape),
        tpu=functools.partial(depthwise_tpu.forward, **shape),
        default=functools.partial(NATIVE.forward, **shape),
    )


def _depthwise_fwd(x, kernel, stride, padding):
    return _forward(x, kernel, stride, padding), (x, kernel)


def _depthwise_bwd(stride, padding, residuals, grad):
    shape = {"stride": stride, "padding": padding}
    return lax.platform_dependent(*residuals, grad, **_backward_forms(shape))


def _backward_forms(shape):
    return {
        "cpu": functools.partial(depthwise_cpu.backward, **shape),
        "cuda": functools.partial(depthwise_gpu.backward, **shape),
        "tpu": functools.partial(depthwise_tpu.backward, **shape),
        "default": functools.partial(depthwise_gpu.gradients, NATIVE, NATIVE, **shape),
    }


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def depthwise_branch(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels"],
    *,
    padding: Padding,
) -> tuple[
    Float[Array, "batch height width channels"],
    Float[Array, "batch out_height out_width channels"],
]:
    """Returns `x` for a residual block's shortcut, and its convolution of stride 1 for the branch.

    A TPU's kernel of the input gradient adds the shortcut's gradient to that of the branch.
    Arguments as in `depthwise_conv`.
    """
    return _branch(x, kernel, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _branch(x, kernel, padding):
    return x, _depthwise(x, kernel, 1, padding)


def _branch_fwd(x, kernel, padding):
    return (x, _forward(x, kernel, 1, padding)), (x, kernel)


def _branch_bwd(padding, residuals, grads):
    shape = {"stride": 1, "padding": padding}
    shortcut, grad = grads

    def summed(form):
        def backward(x, kernel, grad, shortcut):
            x_grad, kernel_grad = form(x, kernel, grad)
            return shortcut + x_grad, kernel_grad

        return backward

    forms = {name: summed(form) for name, form in _backward_forms(shape).items()}
    forms["tpu"] = functools.partial(depthwise_tpu.backward_added, **shape)
    return lax.platform_dependent(*residuals, grad, shortcut, **forms)


_branch.defvjp(_branch_fwd, _branch_bwd)
