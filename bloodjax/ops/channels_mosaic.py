"""Layers over the channels of a map as Pallas kernels, which Mosaic compiles for TPUs.

They are layer normalisation (`map_norm`) and the residual MLP (`residual_mlp`). A program computes
a block of pixels with all their channels. The MLP's map of four times the channels stays in vector
memory: the forward pass does not write it, and the backward pass computes it again. Sums over the
channels are products with a matrix of ones on the matrix unit, which leaves the sum in every lane.
The vector unit would need several steps per register for it.

Height and width are outer dimensions, as in `depthwise_mosaic`. Maps and weights are filled up to
multiples of 128 channels: the weights with zeros, the maps with ones.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bloodjax.ops.elementwise import normal_cdf_by_tanh

_CHANNELS = 128  # lanes of a register


def _filled(channels: int) -> int:
    return pl.cdiv(channels, _CHANNELS) * _CHANNELS


def _fill(a, *shape):
    return jnp.pad(a, [(0, size - have) for have, size in zip(a.shape, shape, strict=True)])


def _product(a, b, contract=(1, 0)):
    """Matrix product with float32 sums over dimension `contract[0]` of a and `contract[1]` of b."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _loaded(ref, channels: int):
    """A block in float32, where lanes without a channel are 1: any number that is finite."""
    wide = ref[...].astype(jnp.float32)
    if channels == wide.shape[1]:
        return wide
    lanes = lax.broadcasted_iota(jnp.int32, wide.shape, 1)
    return jnp.where(lanes < channels, wide, jnp.ones((), jnp.float32))


def _mean(a, ones_ref, channels: int):
    return _product(a.astype(jnp.bfloat16), ones_ref[...]) * (1.0 / channels)


def _normalised(x, ones_ref, channels, epsilon):
    centred = x - _mean(x, ones_ref, channels)
    variance = _mean(centred * centred, ones_ref, channels)
    inverse = lax.rsqrt(variance + epsilon)
    return centred * inverse, inverse


def _forward_kernel(
    shortcut_ref,
    x_ref,
    keep_ref,
    offset_ref,
    w1_ref,
    b1_ref,
    w2_ref,
    b2_ref,
    ones_ref,
    out_ref,
    *,
    channels: int,
    epsilon: float,
):
    x = _loaded(x_ref, channels) + offset_ref[...]
    normal, _ = _normalised(x, ones_ref, channels, epsilon)
    hidden = _product(normal.astype(jnp.bfloat16), w1_ref[...]) + b1_ref[...]
    active = (hidden * normal_cdf_by_tanh(hidden)).astype(jnp.bfloat16)
    y = (_product(active, w2_ref[...]) + b2_ref[...]) * keep_ref[:, :1]
    out_ref[...] = (shortcut_ref[...].astype(jnp.float32) + y).astype(out_ref.dtype)


def _backward_kernel(
    grad_ref,
    x_ref,
    keep_ref,
    offset_ref,
    w1_ref,
    b1_ref,
    w2_ref,
    ones_ref,
    x_grad_ref,
    offset_grad_ref,
    w1_grad_ref,
    b1_grad_ref,
    w2_grad_ref,
    b2_grad_ref,
    *,
    channels: int,
    epsilon: float,
):
    sums = (offset_grad_ref, w1_grad_ref, b1_grad_ref, w2_grad_ref, b2_grad_ref)

    @pl.when(pl.program_id(0) == 0)
    def _():
        for ref in sums:
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    x = _loaded(x_ref, channels) + offset_ref[...]
    normal, inverse = _normalised(x, ones_ref, channels, epsilon)
    normal_in = normal.astype(jnp.bfloat16)
    hidden = _product(normal_in, w1_ref[...]) + b1_ref[...]
    cdf = normal_cdf_by_tanh(hidden)
    active = (hidden * cdf).astype(jnp.bfloat16)

    grad = _loaded(grad_ref, channels) * keep_ref[:, :1]
    grad_in = grad.astype(jnp.bfloat16)
    b2_grad_ref[...] += jnp.sum(grad, axis=0, keepdims=True)
    w2_grad_ref[...] += _product(grad_in, active, (0, 0))
    density = jnp.exp(-0.5 * (hidden * hidden)) * (1.0 / math.sqrt(2.0 * math.pi))
    hidden_grad = _product(grad_in, w2_ref[...], (1, 1)) * (cdf + hidden * density)
    hidden_grad_in = hidden_grad.astype(jnp.bfloat16)
    b1_grad_ref[...] += jnp.sum(hidden_grad, axis=0, keepdims=True)
    w1_grad_ref[...] += _product(normal_in, hidden_grad_in, (0, 0))

    scaled = _product(hidden_grad_in, w1_ref[...], (1, 1))
    along = _mean(scaled * normal, ones_ref, channels)
    x_grad = inverse * (scaled - _mean(scaled, ones_ref, channels) - normal * along)
    offset_grad_ref[...] += jnp.sum(x_grad, axis=0, keepdims=True)
    x_grad_ref[...] = x_grad.astype(x_grad_ref.dtype)


def _as_rows(a):
    """A map [batch, height, width, channels] as [height * width * batch, channels]."""
    return a.transpose(1, 2, 0, 3).reshape(-1, a.shape[-1])


def _as_map(rows, like):
    batch, height, width, channels = like.shape
    return rows.reshape(height, width, batch, channels).transpose(2, 0, 1, 3)


def _ones(channels: int):
    """Matrix whose product with a map gives the sums over the channels."""
    filled = _filled(channels)
    wide = jnp.zeros((filled, filled), jnp.bfloat16)
    return wide.at[:channels].set(jnp.ones((), jnp.bfloat16))


def _operands(size, x, offset, w1, b1, w2, keep):
    """Arguments that both kernels share, filled up, and their specifications."""
    batch, channels = x.shape[0], x.shape[-1]
    hidden, filled, rows = w1.shape[1], _filled(channels), x.size // channels
    column = jnp.tile(keep, max(1, size // batch))[:, None]
    periods = len(column) // size
    arrays = {
        "x": _as_rows(x),
        "keep": jnp.broadcast_to(column, (len(column), _CHANNELS)),
        "offset": _fill(offset.astype(jnp.float32)[None], 1, filled),
        "w1": _fill(w1, filled, hidden),
        "b1": b1.astype(jnp.float32)[None],
        "w2": _fill(w2, hidden, filled),
        "ones": _ones(channels),
    }
    specs = {name: pl.BlockSpec(a.shape, lambda i: (0, 0)) for name, a in arrays.items()}
    specs["x"] = pl.BlockSpec((size, filled), lambda i: (i, 0))
    specs["keep"] = pl.BlockSpec((size, _CHANNELS), lambda i: (i % periods, 0))
    return arrays, specs, rows // size


def _parameters(size: int, filled: int, hidden: int, fixed, buffers: int) -> pltpu.CompilerParams:
    """Parameters of a kernel with the vector memory that it needs."""
    # Weights and sums are held twice, because the next program's blocks are copied meanwhile.
    used = 2 * sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in fixed)
    used += size * (2 * 4 * 2 * filled + 4 * 8 * filled + 4 * buffers * hidden)
    return pltpu.CompilerParams(
        dimension_semantics=("arbitrary",), vmem_limit_bytes=max(16 * 2**20, used)
    )


def _cost(rows: int, channels: int, hidden: int, products: int, maps: int) -> pl.CostEstimate:
    return pl.CostEstimate(
        flops=2 * products * rows * channels * hidden,
        bytes_accessed=2 * (maps * rows * channels + products * channels * hidden),
        transcendentals=rows * hidden,
    )


def forward(shortcut, x, offset, w1, b1, w2, b2, keep, *, epsilon, block, interpret=False):
    """The output; arguments as in `residual_mlp.residual_mlp`, `block` as in `block_rows`."""
    arrays, specs, programs = _operands(block, x, offset, w1, b1, w2, keep)
    channels, (filled, hidden) = x.shape[-1], arrays["w1"].shape
    arrays |= {"b2": _fill(b2.astype(jnp.float32)[None], 1, filled)}
    specs |= {"b2": pl.BlockSpec((1, filled), lambda i: (0, 0))}
    names = ("x", "keep", "offset", "w1", "b1", "w2", "b2", "ones")
    fixed = [arrays[name] for name in names if name != "x"]
    rows = pl.pallas_call(
        functools.partial(_forward_kernel, channels=channels, epsilon=epsilon),
        out_shape=jax.ShapeDtypeStruct(arrays["x"].shape, x.dtype),
        grid=(programs,),
        in_specs=[specs["x"], *(specs[name] for name in names)],
        out_specs=specs["x"],
        compiler_params=_parameters(block, filled, hidden, fixed, 4),
        cost_estimate=_cost(len(arrays["x"]), channels, hidden, products=2, maps=3),
        interpret=interpret,
        name="residual_mlp",
    )(_as_rows(shortcut), *(arrays[name] for name in names))
    return _as_map(rows, x)


def backward(grad, x, offset, w1, b1, w2, keep, *, epsilon, block, interpret=False):
    """Gradients of `x`, `offset`, `w1`, `b1`, `w2` and `b2`, the last five in float32."""
    arrays, specs, programs = _operands(block, x, offset, w1, b1, w2, keep)
    channels, (filled, hidden) = x.shape[-1], arrays["w1"].shape
    names = ("x", "keep", "offset", "w1", "b1", "w2", "ones")
    sums = [(1, filled), (filled, hidden), (1, hidden), (filled, hidden), (1, filled)]
    sums = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in sums]
    fixed = [*(arrays[name] for name in names if name != "x"), *sums]
    x_grad, *grads = pl.pallas_call(
        functools.partial(_backward_kernel, channels=channels, epsilon=epsilon),
        out_shape=[jax.ShapeDtypeStruct(arrays["x"].shape, x.dtype), *sums],
        grid=(programs,),
        in_specs=[specs["x"], *(specs[name] for name in names)],
        out_specs=[specs["x"], *(pl.BlockSpec(a.shape, lambda i: (0, 0)) for a in sums)],
        compiler_params=_parameters(block, filled, hidden, fixed, 8),
        cost_estimate=_cost(len(arrays["x"]), channels, hidden, products=5, maps=3),
        interpret=interpret,
        name="residual_mlp_grad",
    )(_as_rows(grad), *(arrays[name] for name in names))
    offset_grad, w1_grad, b1_grad, w2_grad, b2_grad = grads
    return (
        _as_map(x_grad, x),
        offset_grad[0, :channels],
        w1_grad[:channels],
        b1_grad[0],
        w2_grad[:channels].T,
        b2_grad[0, :channels],
    )


def _norm_kernel(x_ref, scale_ref, bias_ref, ones_ref, out_ref, *, channels: int, epsilon: float):
    x = _loaded(x_ref, channels)
    normal, _ = _normalised(x, ones_ref, channels, epsilon)
    out_ref[...] = (normal * scale_ref[...] + bias_ref[...]).astype(out_ref.dtype)


def _norm_grad_kernel(
    grad_ref,
    x_ref,
    scale_ref,
    ones_ref,
    x_grad_ref,
    scale_grad_ref,
    bias_grad_ref,
    *,
    channels: int,
    epsilon: float,
):
    @pl.when(pl.program_id(0) == 0)
    def _():
        for ref in (scale_grad_ref, bias_grad_ref):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    x = _loaded(x_ref, channels)
    normal, inverse = _normalised(x, ones_ref, channels, epsilon)
    grad = _loaded(grad_ref, channels)
    scale_grad_ref[...] += jnp.sum(grad * normal, axis=0, keepdims=True)
    bias_grad_ref[...] += jnp.sum(grad, axis=0, keepdims=True)
    scaled = grad * scale_ref[...]
    along = _mean(scaled * normal, ones_ref, channels)
    x_grad = inverse * (scaled - _mean(scaled, ones_ref, channels) - normal * along)
    x_grad_ref[...] = x_grad.astype(x_grad_ref.dtype)


def _norm_call(kernel, operands, outs, sums: int, x, block, epsilon, interpret, name):
    """Calls a kernel whose first `outs` operands are maps, and whose first result is one."""
    batch, height, width, channels = x.shape
    rows, filled = batch * height * width, _filled(channels)
    map_spec = pl.BlockSpec((block, filled), lambda i: (i, 0))
    arrays = [_as_rows(a) for a in operands[:outs]]
    arrays += [_fill(a.astype(jnp.float32)[None], 1, filled) for a in operands[outs:]]
    arrays.append(_ones(channels))
    fixed = [pl.BlockSpec(a.shape, lambda i: (0, 0)) for a in arrays[outs:]]
    per_channel = jax.ShapeDtypeStruct((1, filled), jnp.float32)
    out, *found = pl.pallas_call(
        functools.partial(kernel, channels=channels, epsilon=epsilon),
        out_shape=[jax.ShapeDtypeStruct((rows, channels), x.dtype), *sums * [per_channel]],
        grid=(rows // block,),
        in_specs=[*outs * [map_spec], *fixed],
        out_specs=[map_spec, *sums * [pl.BlockSpec((1, filled), lambda i: (0, 0))]],
        compiler_params=_parameters(block, filled, filled, arrays[outs:], 4),
        cost_estimate=_cost(rows, channels, channels, products=2 * outs, maps=outs + 1),
        interpret=interpret,
        name=name,
    )(*arrays)
    return [_as_map(out, x), *(a[0, :channels] for a in found)]


def norm_forward(x, scale, bias, *, epsilon, block, interpret=False):
    """The normalised map; arguments as in `map_norm.map_norm`, `block` as in `forward`."""
    call = (x, block, epsilon, interpret, "layer_norm")
    return _norm_call(_norm_kernel, (x, scale, bias), 1, 0, *call)


def norm_backward(grad, x, scale, *, epsilon, block, interpret=False):
    """Gradients of `x`, `scale` and `bias`, the last two in float32."""
    call = (x, block, epsilon, interpret, "layer_norm_grad")
    return _norm_call(_norm_grad_kernel, (grad, x, scale), 2, 2, *call)
