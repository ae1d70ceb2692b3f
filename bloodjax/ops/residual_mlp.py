"""The second half of a ConvNeXt block: normalisation, MLP and addition to the block's input.

On a TPU one kernel computes it (`channels_mosaic`), and another one its gradients. XLA would
write the map of four times the channels, read it twice for the gradients, and sum over channels
and pixels in passes of their own. The other platforms compute it layer by layer.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float32

from bloodjax.ops import tpu_kernel
from bloodjax.ops.devices import on_one_device
from bloodjax.ops.elementwise import gelu, normalise, precise
from bloodjax.ops.pointwise import pointwise_conv

# Fewest and most channels of a map that the kernels compute. With more, weights and the sums of
# their gradients do not fit a TPU's vector memory.
_FEWEST_CHANNELS, _MOST_CHANNELS = 64, 512
# Values of the hidden map that a program computes, at most; for this number of rows there is space
# always.
_HIDDEN_VALUES, _FEW_ROWS = 2**19, 256


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def residual_mlp(
    shortcut: BFloat16[Array, "batch height width channels"],
    x: BFloat16[Array, "batch height width channels"],
    offset: Float32[Array, " channels"],
    w1: BFloat16[Array, "channels hidden"],
    b1: Float32[Array, " hidden"],
    w2: BFloat16[Array, "hidden channels"],
    b2: Float32[Array, " channels"],
    keep: Float32[Array, " batch"] | None,
    epsilon: float,
) -> BFloat16[Array, "batch height width channels"]:
    """Returns `shortcut + keep * (gelu(normalise(x + offset) @ w1 + b1) @ w2 + b2)`.

    Args:
      shortcut: the residual block's input.
      x: output of the layer before, without its bias.
      offset: bias of the layer before.
      w1: kernel of the first dense layer.
      b1: its bias.
      w2: kernel of the second dense layer.
      b2: its bias.
      keep: factor of each image's branch, for stochastic depth; None for 1. Its gradient is 0.
      epsilon: added to the variance over the channels, see `elementwise.normalise`.
    """
    return _forward(shortcut, x, offset, w1, b1, w2, b2, keep, epsilon)[0]


def _shifted(x, offset):
    return (precise(x) + offset[(None,) * (x.ndim - 1)]).astype(x.dtype)


def _expanded(x, offset, w1, b1, *, epsilon):
    normal = normalise(_shifted(x, offset), epsilon)
    return _shifted(pointwise_conv(normal, w1), b1)


def _projected(hidden, w2, b2, *, keep):
    y = _shifted(pointwise_conv(gelu(hidden), w2), b2)
    if keep is None:
        return y
    return (precise(y) * keep[:, None, None, None]).astype(y.dtype)


def _forward(shortcut, x, offset, w1, b1, w2, b2, keep, epsilon):
    def plain(shortcut, x, offset, w1, b1, w2, b2, keep):
        hidden = _expanded(x, offset, w1, b1, epsilon=epsilon)
        return shortcut + _projected(hidden, w2, b2, keep=keep), hidden

    def kernel(*operands):
        *operands, keep = operands
        (out,) = _bind("forward", operands, keep, epsilon)
        # The kernel of the gradients does not read the hidden map, and XLA does not write it.
        return out, jnp.zeros((*x.shape[:-1], w1.shape[1]), x.dtype)

    operands = (shortcut, x, offset, w1, b1, w2, b2, keep)
    forms = {"tpu": kernel} if uses_kernels(x.shape, w1.shape[1], x.dtype) else {}
    out, hidden = lax.platform_dependent(*operands, default=plain, **forms)
    return out, (x, offset, w1, b1, w2, b2, keep, hidden)


def _backward(epsilon, residuals, grad):
    x, offset, w1, b1, w2, b2, keep, hidden = residuals

    def plain(grad, x, offset, w1, b1, w2, keep, hidden):
        projected = functools.partial(_projected, keep=keep)
        hidden_grad, *second = jax.vjp(projected, hidden, w2, b2)[1](grad)
        expanded = functools.partial(_expanded, epsilon=epsilon)
        return *jax.vjp(expanded, x, offset, w1, b1)[1](hidden_grad), *second

    def kernel(*operands):
        *operands, keep, _ = operands
        grads = _bind("backward", operands, keep, epsilon)
        inputs = (x, offset, w1, b1, w2, b2)
        return tuple(a.astype(like.dtype) for a, like in zip(grads, inputs, strict=True))

    operands = (grad, x, offset, w1, b1, w2, keep, hidden)
    forms = {"tpu": kernel} if uses_kernels(x.shape, w1.shape[1], x.dtype) else {}
    grads = lax.platform_dependent(*operands, default=plain, **forms)
    return grad, *grads, None if keep is None else jnp.zeros_like(keep)


residual_mlp.defvjp(_forward, _backward)


def uses_kernels(shape: tuple[int, ...], hidden: int, dtype) -> bool:
    """Whether a TPU computes maps of `shape` [batch, height, width, channels] by the kernels."""
    channels = shape[-1]
    return (
        dtype == jnp.bfloat16
        and _FEWEST_CHANNELS <= channels <= _MOST_CHANNELS
        and hidden % 128 == 0
        and _block_rows(shape, hidden) > 0
        and on_one_device()
    )


def _block_rows(shape: tuple[int, ...], hidden: int) -> int:
    batch, height, width, _ = shape
    most = max(_FEW_ROWS, _HIDDEN_VALUES // hidden)
    return tpu_kernel.block_rows(batch * height * width, batch, most)


@dataclasses.dataclass(frozen=True)
class _Call:
    """The static arguments of a kernel."""

    direction: str
    block: int
    epsilon: float


def _lowered(*operands, call: _Call):
    from bloodjax.ops import channels_mosaic as mosaic  # slow to import

    result = getattr(mosaic, call.direction)(*operands, block=call.block, epsilon=call.epsilon)
    return [result] if call.direction == "forward" else result


def _abstract(*operands, call):
    x, offset, w1, b1, w2 = (a.update(sharding=None) for a in operands[1:6])
    if call.direction == "forward":
        return [x]
    return [x, *(a.update(dtype=jnp.dtype(jnp.float32)) for a in (offset, w1, b1, w2, offset))]


_kernel_p = tpu_kernel.primitive("residual_mlp_mosaic", _lowered, _abstract)


def _bind(direction, operands, keep, epsilon):
    x, w1 = operands[1], operands[3]
    keep = jnp.ones(x.shape[0], jnp.float32) if keep is None else keep
    call = _Call(direction, _block_rows(x.shape, w1.shape[1]), epsilon)
    return _kernel_p.bind(*operands, keep, call=call)
