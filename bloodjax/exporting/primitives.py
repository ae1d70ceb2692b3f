"""JAX's elementwise operations, reductions and changes of shape as nodes of a graph."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bloodjax.exporting.graph import Batch, Graph, Tensor, UnsupportedError, is_symbolic

# What stands for the batch in a traced function: a prime far larger than every other dimension.
BATCH = 10_000_019
_UNARY = {
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "erf": "Erf",
    "sqrt": "Sqrt",
    "rsqrt": "Rsqrt",
    "square": "Square",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "not": "Not",
}
_BINARY = {
    "add": "Add",
    "add_any": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "pow": "Pow",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "and": "And",
    "or": "Or",
}
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


@dataclasses.dataclass
class Value:
    """A jaxpr's variable: a tensor, which may still have to be broadcast to `shape`."""

    tensor: Tensor
    shape: tuple


def constant(array: Any, shape: tuple | None = None) -> Value:
    """The value of an array, to be broadcast to `shape` if that is given."""
    array = np.asarray(array)
    return Value(Tensor(array.shape, array.dtype, array), array.shape if shape is None else shape)


def dimensions(sizes: Sequence[Any]) -> tuple:
    """Sizes of a traced array as dimensions of a tensor.

    Raises:
      UnsupportedError: A size depends on the batch, but is no multiple of it.
    """
    dimensions = []
    for n in sizes:
        if not is_symbolic(n) and n > BATCH // 2:
            multiple, rest = divmod(int(n), BATCH)
            if rest:
                raise UnsupportedError("a part of the batch")
            n = Batch(multiple)
        dimensions.append(n if is_symbolic(n) else int(n))
    return tuple(dimensions)


@dataclasses.dataclass(frozen=True)
class Aval:
    """Shape and dtype of a result."""

    shape: tuple
    dtype: Any


class Primitives:
    """Appends nodes to a graph; the method `_NAME` translates the primitive NAME.

    A method gets shape and dtype of each result, the operands, and the primitive's parameters.
    """

    def __init__(self, graph: Graph):
        self._graph, self._scope = graph, ""

    def translate(self, eqn, values: Sequence[Value], avals: Sequence[Aval]) -> list[Value]:
        """The results of an equation of a jaxpr.

        Raises:
          UnsupportedError: The operation has no translation.
        """
        name = eqn.primitive.name
        if name in _UNARY:
            return [self._elementwise(_UNARY[name], values, avals[0])]
        if name in _BINARY:
            return [self._elementwise(_BINARY[name], values, avals[0])]
        if name in _REDUCTIONS:
            return [self._reduction(_REDUCTIONS[name], values[0], avals[0], eqn.params["axes"])]
        method = getattr(self, f"_{name}", None)
        if method is None:
            raise UnsupportedError(f"the operation {name} (in {self._scope or 'the function'})")
        results = method(avals, *values, **eqn.params)
        return results if isinstance(results, list) else [results]

    def _add(self, op: str, inputs: Sequence[Tensor], shape, dtype, **attrs) -> Tensor:
        output = self._graph.add(op, inputs, shape, dtype, **attrs)
        output.node.scope = self._scope
        return output

    def _node(self, op: str, inputs: Sequence[Tensor], aval, **attrs) -> Value:
        return Value(self._add(op, inputs, aval.shape, aval.dtype, **attrs), aval.shape)

    def full(self, value: Value) -> Tensor:
        """The tensor of a value, broadcast."""
        tensor = value.tensor
        if tensor.shape == tuple(value.shape):
            return tensor
        if any(is_symbolic(n) for n in value.shape if n not in tensor.shape):
            raise UnsupportedError("an array of the batch's size that does not depend on it")
        if tensor.const is not None:
            return constant(np.broadcast_to(tensor.const, value.shape)).tensor
        # Broadcasting against 1 in the dimensions that grow; Expand leaves the others.
        target = [1 if is_symbolic(n) else n for n in value.shape]
        return self._add("Expand", [tensor], value.shape, tensor.dtype, target=target)

    def _elementwise(self, op: str, values: list[Value], aval, **attrs) -> Value:
        tensors = [value.tensor for value in values]
        rank = len(aval.shape)
        # A scalar literal has no dimensions.
        shape = functools.reduce(
            _broadcast, [(1,) * (rank - len(t.shape)) + t.shape for t in tensors]
        )
        return Value(self._add(op, tensors, shape, aval.dtype, **attrs), aval.shape)

    def _reduction(self, op: str, value: Value, aval, axes) -> Value:
        if not axes:
            return value
        return self._node(op, [self.full(value)], aval, axes=tuple(axes), keepdims=False)

    def _ne(self, avals, x, y):
        return self._elementwise("Not", [self._elementwise("Equal", [x, y], avals[0])], avals[0])

    def _integer_pow(self, avals, x, *, y, **_):
        if y == 2:
            return self._elementwise("Square", [x], avals[0])
        return self._elementwise("Pow", [x, constant(np.asarray(y, x.tensor.dtype))], avals[0])

    def _log1p(self, avals, x, **_):
        one = constant(np.ones((), x.tensor.dtype))
        return self._elementwise("Log", [self._elementwise("Add", [x, one], avals[0])], avals[0])

    def _round(self, avals, x, *, rounding_method):
        if int(rounding_method) != int(jax.lax.RoundingMethod.TO_NEAREST_EVEN):
            raise UnsupportedError("rounding halves away from zero")
        return self._elementwise("Round", [x], avals[0])

    def _clamp(self, avals, low, x, high):
        return self._elementwise(
            "Min", [self._elementwise("Max", [x, low], avals[0]), high], avals[0]
        )

    def _select_n(self, avals, which, *cases):
        if len(cases) != 2:
            raise UnsupportedError("a choice among more than two arrays")
        return self._elementwise("Where", [which, cases[1], cases[0]], avals[0])

    def _convert_element_type(self, avals, x, **_):
        if x.tensor.dtype == avals[0].dtype:
            return x
        return self._elementwise("Cast", [x], avals[0])

    def _broadcast_in_dim(self, avals, x, *, broadcast_dimensions, **_):
        shape = avals[0].shape
        placed = [1] * len(shape)
        for axis, n in zip(broadcast_dimensions, x.tensor.shape, strict=True):
            placed[axis] = n
        if tuple(placed) == x.tensor.shape:
            return Value(x.tensor, shape)
        return Value(self._reshaped(x.tensor, placed), shape)

    def _reshaped(self, tensor: Tensor, shape) -> Tensor:
        if tuple(shape) == tensor.shape:
            return tensor
        if tensor.const is not None:
            return constant(tensor.const.reshape(shape)).tensor
        if sum(map(is_symbolic, shape)) > 1:
            raise UnsupportedError("an array with two symbolic dimensions")
        return self._add("Reshape", [tensor], shape, tensor.dtype)

    def _reshape(self, avals, x, **_):
        return Value(self._reshaped(self.full(x), avals[0].shape), avals[0].shape)

    def _squeeze(self, avals, x, **_):
        return self._reshape(avals, x)

    def _expand_dims(self, avals, x, **_):
        return self._reshape(avals, x)

    def _transpose(self, avals, x, *, permutation):
        if tuple(permutation) == tuple(range(len(permutation))):
            return x
        return self._node("Transpose", [self.full(x)], avals[0], perm=tuple(permutation))

    def _concatenate(self, avals, *values, dimension):
        return self._node("Concat", [self.full(v) for v in values], avals[0], axis=dimension)

    def _slice(self, avals, x, *, start_indices, limit_indices, strides):
        strides = strides or (1,) * len(start_indices)
        tensor, limit_indices = self.full(x), dimensions(limit_indices)
        axes = [
            axis
            for axis, (start, limit, stride, n) in enumerate(
                zip(start_indices, limit_indices, strides, tensor.shape, strict=True)
            )
            if (start, limit, stride) != (0, n, 1)
        ]
        if not axes:
            return x
        if any(is_symbolic(tensor.shape[axis]) for axis in axes):
            raise UnsupportedError("a part of the batch")
        ranges = [(start_indices[a], limit_indices[a], strides[a]) for a in axes]
        return self._node("Slice", [tensor], avals[0], axes=tuple(axes), ranges=ranges)

    def _dynamic_slice(self, avals, x, *starts, slice_sizes):
        if any(start.tensor.const is None for start in starts):
            raise UnsupportedError("a slice at a computed position")
        slice_sizes = dimensions(slice_sizes)
        first = [int(start.tensor.const) for start in starts]
        first = [
            0 if is_symbolic(n) else min(max(0, f), n - k)
            for f, n, k in zip(first, x.shape, slice_sizes, strict=True)
        ]
        limits = [k if is_symbolic(k) else f + k for f, k in zip(first, slice_sizes, strict=True)]
        return self._slice(avals, x, start_indices=first, limit_indices=limits, strides=None)

    def _split(self, avals, x, *, sizes, axis):
        results, start = [], 0
        for aval, size in zip(avals, sizes, strict=True):
            first = [0] * len(x.shape)
            limits = list(x.shape)
            first[axis], limits[axis] = start, start + size
            results.append(
                self._slice([aval], x, start_indices=first, limit_indices=limits, strides=None)
            )
            start += size
        return results

    def _rev(self, avals, x, *, dimensions):
        return self._node("Reverse", [self.full(x)], avals[0], axes=tuple(dimensions))

    def _pad(self, avals, x, fill, *, padding_config):
        if fill.tensor.const is None or any(inner for *_, inner in padding_config):
            raise UnsupportedError("padding between the elements, or by a computed value")
        low, high = ([n for n, *_ in padding_config], [n for _, n, _ in padding_config])
        if not any(low) and not any(high):
            return x
        return self._node(
            "Pad", [self.full(x)], avals[0], low=low, high=high, value=fill.tensor.const
        )


def _broadcast(left: tuple, right: tuple) -> tuple:
    return tuple(b if _is_one(a) else a for a, b in zip(left, right, strict=True))


def _is_one(dimension: Any) -> bool:
    return not is_symbolic(dimension) and dimension == 1
