"""Model summary: parameter counts, FLOPs and layer types."""

from __future__ import annotations

import math

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from bloodjax.models import layers, registry
from bloodjax.models.head import Network
from bloodjax.models.norms import BatchNorm, LayerNorm


def num_parameters(name: str, num_classes: int = 1000) -> int:
    """Returns the number of trainable parameters with a linear head of `num_classes`.

    Raises:
      UserError: `name` is unknown.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(name, num_classes, 96)[1]["params"]))


def flops(name: str, size: int, num_classes: int = 1000) -> int:
    """Returns the floating-point operations of one image's forward pass.

    A multiply-add counts as two operations. Only convolutions and matrix products are counted. The
    network is traced, not run.

    Args:
      name: name of the network, or an alias.
      size: side of the image in pixels.
      num_classes: number of classes of the linear head.

    Raises:
      UserError: `name` is unknown.
    """
    return _forward(*_shapes(name, num_classes, size), size)


def training_flops(network: Network, size: int, freeze: str = "none", cached: bool = False) -> int:
    """Returns the floating-point operations of one image's training step.

    By the usual convention (Chowdhery et al., 2022, arXiv:2204.02311, appendix B) trained layers
    count three times their forward pass: forward, and the gradients with respect to inputs and to
    weights. A frozen backbone counts once; frozen stages count like trained ones. Recomputation
    (`remat`) is not counted.

    Args:
      network: the network with its head.
      size: side of the image in pixels.
      freeze: see `Network.__call__`.
      cached: whether the step reads the backbone's features from a cache instead of computing them.
    """
    variables = jax.eval_shape(network.init, jax.random.key(0), _image(size))
    leaves = flax.traverse_util.flatten_dict(variables["params"]["head"])
    head = sum(2 * leaf.size for path, leaf in leaves.items() if path[-1] == "kernel")
    if cached:
        return 3 * head
    forward = _forward(network, variables, size)
    return forward + 2 * head if freeze == "backbone" else 3 * forward


def layer_types(network: nn.Module, size: int) -> dict[str, str]:
    """Returns the type of each layer, by the layer's path.

    For example "backbone/stage_0_block_1/norm" -> "LayerNorm". Blocks, which consist of layers, are
    not included. The network is traced, not run.

    Args:
      network: the network.
      size: side of the image in pixels.
    """
    types = {}

    def record(call, args, kwargs, context):
        layer_type = _layer_type(context.module)
        if layer_type:
            types["/".join(context.module.path)] = layer_type
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(network.init, jax.random.key(0), _image(size))
    return types


def _layer_type(module: nn.Module) -> str | None:
    match module:
        case layers.DepthwiseConv():
            return "depthwise convolution"
        case layers.Conv(size=1) | layers.Dense() | nn.Dense():
            return "pointwise convolution, dense"
        case layers.Conv() | layers.PatchConv() | nn.Conv():
            return "convolution"
        case BatchNorm():
            return "BatchNorm"
        case LayerNorm():
            return "LayerNorm"
        case layers.Dropout():
            return "dropout"
    return None


def _image(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def _shapes(name, num_classes, size):
    model = registry.linear(name, num_classes, top=True)
    return model, jax.eval_shape(model.init, jax.random.key(0), _image(size))


def _forward(model, variables, size) -> int:
    return _count(jax.make_jaxpr(model.apply)(variables, _image(size)).jaxpr)


def _count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in equation.invars if hasattr(v.aval, "shape")]
        out = equation.outvars[0].aval
        if equation.primitive.name == "conv_general_dilated":
            kernel_in = equation.params["dimension_numbers"].rhs_spec[1:]
            total += 2 * math.prod(out.shape) * math.prod(shapes[1][i] for i in kernel_in)
        elif equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            total += 2 * math.prod(out.shape) * math.prod(shapes[0][i] for i in contracted)
        elif equation.primitive.name == "cond":
            # A depthwise convolution has one implementation per platform. Take the one without
            # redundant operations.
            counts = [_count(branch.jaxpr) for branch in equation.params["branches"]]
            total += max(counts) if 0 in counts else min(counts)
        else:
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    total += _count(inner)
    return total
