"""A JAX function as a graph, with constants folded.

`trace` walks the function's jaxpr. It inlines calls, takes the form that every platform can run
where an operation has one per platform (`lax.platform_dependent`), computes what depends on
constants alone, and has `primitives` and `products` translate the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bloodjax.exporting.graph import Graph, Tensor, is_symbolic
from bloodjax.exporting.primitives import BATCH, Aval, Value, constant, dimensions
from bloodjax.exporting.products import Products

_IDENTITIES = (
    "copy",
    "copy_p",
    "optimization_barrier",
    "stop_gradient",
    "name",
    "reduce_precision",
)
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
# What NumPy computes at once; for anything else JAX compiles a program.
_NUMPY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "square": np.square,
    "rsqrt": lambda x: (1.0 / np.sqrt(x.astype(np.float64))).astype(x.dtype),
    "sqrt": np.sqrt,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "gt": np.greater,
}


def trace(function: Callable, variables: PyTree, shape: Sequence[int], dtype: Any) -> Graph:
    """The graph of `function(variables, x)` for any batch, with the variables as constants.

    Args:
      function: Returns a tuple of arrays.
      variables: Arrays.
      shape: Shape of an example; `x` is [batch, *shape].
      dtype: Dtype of `x`.

    Raises:
      UnsupportedError: The function has an operation that has no translation.
    """
    # JAX slices arrays of a symbolic size by gathers, so the batch is a number that is no other
    # dimension. Nothing of that size is computed.
    spec = jax.ShapeDtypeStruct((BATCH, *shape), dtype)
    closed = jax.make_jaxpr(function)(variables, spec)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]
    inputs = [Tensor(dimensions(spec.shape), spec.dtype)]
    graph = Graph(inputs, [], [])
    values = [constant(leaf) for leaf in leaves] + [Value(t, t.shape) for t in inputs]
    tracer = _Tracer(graph)
    results = tracer.run(closed.jaxpr, [np.asarray(c) for c in closed.consts], values, "")
    graph.outputs = [tracer.full(value) for value in results]
    graph.prune()
    return graph


class _Tracer(Products):
    """Walks a jaxpr and the jaxprs that it calls."""

    def run(self, jaxpr, consts, values: Sequence[Value], scope: str) -> list[Value]:
        """The values of the jaxpr's results."""
        env = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
        env |= dict(zip(jaxpr.invars, values, strict=True))
        # The platform that a program runs on is not known: variable -> its platforms.
        platforms: dict[Any, Any] = {}

        def read(atom) -> Value:
            if hasattr(atom, "val"):  # a literal
                return constant(np.asarray(atom.val, atom.aval.dtype))
            return env[atom]

        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            self._scope = _scope(scope, str(eqn.source_info.name_stack))
            if name == "platform_index":
                platforms[eqn.outvars[0]] = eqn.params["platforms"]
                continue
            if name == "cond" and eqn.invars[0] in platforms:
                branch = eqn.params["branches"][_default(platforms[eqn.invars[0]])]
                operands = [read(atom) for atom in eqn.invars[1:]]
                results = self.run(branch.jaxpr, branch.consts, operands, self._scope)
            elif name in _CALLS:
                inner = eqn.params[_CALLS[name]]
                jaxpr_, consts_ = (
                    (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
                )
                operands = [read(atom) for atom in eqn.invars]
                results = self.run(jaxpr_, consts_, operands, self._scope)
            else:
                results = self._equation(eqn, [read(atom) for atom in eqn.invars])
            env |= dict(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn, values: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        avals = [Aval(dimensions(var.aval.shape), var.aval.dtype) for var in eqn.outvars]
        if name in _IDENTITIES:
            return values
        is_constant = all(value.tensor.const is not None for value in values)
        static = not any(is_symbolic(n) for aval in avals for n in aval.shape)
        if is_constant and (static or name == "broadcast_in_dim"):
            return _folded(eqn, values, avals)
        return self.translate(eqn, values, avals)


def _scope(*names: str) -> str:
    """Names of modules, joined by "/", without those of their methods."""
    parts = "/".join(names).split("/")
    return "/".join(part for part in parts if part and "." not in part)


def _default(platforms) -> int:
    """The branch for platforms that have no form of their own."""
    for index, names in enumerate(platforms):
        if names is None:
            return index
    return len(platforms) - 1


def _folded(eqn, values: list[Value], avals) -> list[Value]:
    """The results of an equation whose operands are constants."""
    name, params = eqn.primitive.name, eqn.params
    arrays = [value.tensor.const for value in values]
    if name == "broadcast_in_dim":
        placed = [1] * len(avals[0].shape)
        for axis, n in zip(params["broadcast_dimensions"], arrays[0].shape, strict=True):
            placed[axis] = n
        return [constant(arrays[0].reshape(placed), avals[0].shape)]
    if name in _NUMPY:
        # Constants stay as small as they are, and are broadcast where they are used.
        return [constant(_NUMPY[name](*arrays).astype(avals[0].dtype), avals[0].shape)]
    arrays = [np.broadcast_to(a, value.shape) for a, value in zip(arrays, values, strict=True)]
    if name in ("reshape", "squeeze", "expand_dims"):
        return [constant(arrays[0].reshape(avals[0].shape))]
    if name == "transpose":
        return [constant(arrays[0].transpose(params["permutation"]))]
    if name == "convert_element_type":
        return [constant(arrays[0].astype(avals[0].dtype))]
    results = eqn.primitive.bind(*map(jnp.asarray, arrays), **params)
    results = results if eqn.primitive.multiple_results else [results]
    return [constant(np.asarray(result)) for result in results]
