"""What a network costs: its parameters, and the multiplications of one forward pass."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from bloodjax.models import registry


def parameters(name: str, num_classes: int = 1000) -> int:
    """Trainable parameters under a linear head of `num_classes`."""
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(name, num_classes, 96)[1]["params"]))


def flops(name: str, size: int, num_classes: int = 1000) -> int:
    """Floating-point operations of one picture's forward pass, two a multiply-add.

    Those of convolutions and matrix products, which are nearly all; by tracing, nothing is run.

    Args:
      name: one of `registry.names()`.
      size: pixels a side of the picture.
      num_classes: of the linear head.
    """
    model, variables = _shapes(name, num_classes, size)
    picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return _count(jax.make_jaxpr(model.apply)(variables, picture).jaxpr)


def _shapes(name, num_classes, size):
    model = registry.linear(name, num_classes, top=True)
    picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return model, jax.eval_shape(model.init, jax.random.key(0), picture)


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
