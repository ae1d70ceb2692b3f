"""What a network is made of and costs: kinds of modules, parameters, operations."""

from __future__ import annotations

import math

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from bloodjax.models import layers, registry
from bloodjax.models.head import Network
from bloodjax.models.norms import BatchNorm, LayerNorm


def parameters(name: str, num_classes: int = 1000) -> int:
    """Trainable parameters under a linear head of `num_classes`."""
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(name, num_classes, 96)[1]["params"]))


def flops(name: str, size: int, num_classes: int = 1000) -> int:
    """Floating-point operations of one image's forward pass, two a multiply-add.

    Those of convolutions and matrix products, which are nearly all; by tracing, nothing is run.

    Args:
      name: one of `registry.names()`.
      size: pixels a side of the image.
      num_classes: of the linear head.
    """
    return _forward(*_shapes(name, num_classes, size), size)


def training_flops(network: Network, size: int, freeze: str = "none", cached: bool = False) -> int:
    """Floating-point operations of one image's training step, two a multiply-add.

    By the usual convention (Chowdhery et al., 2022, arXiv:2204.02311, appendix B) three times a
    forward pass for what is trained: forward, and the gradients of inputs and of weights. A frozen
    backbone runs forward only. What is computed twice to save memory counts once.

    Args:
      network: with its head.
      size: pixels a side of the image.
      freeze: see `Network.__call__`.
      cached: the backbone's features are at hand.
    """
    variables = jax.eval_shape(network.init, jax.random.key(0), _image(size))
    leaves = flax.traverse_util.flatten_dict(variables["params"]["head"])
    head = sum(2 * leaf.size for path, leaf in leaves.items() if path[-1] == "kernel")
    if cached:
        return 3 * head
    forward = _forward(network, variables, size)
    return forward + 2 * head if freeze == "backbone" else 3 * forward


def kinds(network: nn.Module, size: int) -> dict[str, str]:
    """Path of a module, such as "backbone/stage_0_block_1/dwconv" -> its kind, in a reader's words.

    Only modules of a kind stand there, not the blocks made of them.

    Args:
      network: any; it is traced, not run.
      size: pixels a side of the image.
    """
    found = {}

    def note(call, args, kwargs, context):
        kind = _kind(context.module)
        if kind:
            found["/".join(context.module.path)] = kind
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(network.init, jax.random.key(0), _image(size))
    return found


def _kind(module: nn.Module) -> str | None:
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
            # A depthwise convolution in one form a platform: the plain one does only what it must.
            counts = [_count(branch.jaxpr) for branch in equation.params["branches"]]
            total += max(counts) if 0 in counts else min(counts)
        else:
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    total += _count(inner)
    return total
