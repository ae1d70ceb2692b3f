"""A JAX function as a graph of array operations with constants folded, for other formats.

`trace` walks the function's jaxpr. It inlines calls, takes the form that every platform can run
where an operation has one per platform (`lax.platform_dependent`), computes what depends on
constants alone, and leaves a list of nodes named by ONNX's operators. Maps are still channels-last.
Convolutions and products with constant weights become the nodes `Conv` and `Linear`, which have
their weights as attributes, so that `fusion` can change them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

# A prime that is far larger than every other dimension.
_BATCH = 10_000_019


class UnsupportedError(Exception):
    """An operation that has no translation; the message names it."""


class Tensor:
    """The result of a node, an input, or a constant.

    Attributes:
      shape: Integers, and symbolic dimensions such as the batch.
      dtype: NumPy's dtype.
      const: The values of a constant, else None.
      node: The node that computes it; None for constants and inputs.
    """

    def __init__(self, shape: Sequence[Any], dtype: Any, const: np.ndarray | None = None):
        self.shape, self.dtype, self.const = tuple(shape), np.dtype(dtype), const
        self.node: Node | None = None

    @property
    def is_scalar(self) -> bool:
        """Whether it is a constant with one value."""
        return self.const is not None and self.const.size == 1


@dataclasses.dataclass(eq=False)
class Node:
    """An operation.

    Attributes:
      op: ONNX's name, or "Rsqrt", "Square", "Conv", "Linear", "MaxPool", "AveragePool", "Reverse",
        whose attributes are those of `_Tracer`'s methods.
      inputs: Its operands.
      output: Its result.
      attrs: Attributes.
      scope: Name of the module that it is part of.
    """

    op: str
    inputs: list[Tensor]
    output: Tensor
    attrs: dict[str, Any]
    scope: str = ""


@dataclasses.dataclass
class Graph:
    """Nodes in an order in which they can be computed.

    Attributes:
      inputs: Operands of the function.
      nodes: Its operations.
      outputs: Its results.
    """

    inputs: list[Tensor]
    nodes: list[Node]
    outputs: list[Tensor]

    def add(
        self, op: str, inputs: Sequence[Tensor], shape: Sequence[Any], dtype: Any, **attrs: Any
    ) -> Tensor:
        """Appends a node, and returns its result."""
        output = Tensor(shape, dtype)
        output.node = Node(op, list(inputs), output, attrs)
        self.nodes.append(output.node)
        return output

    def prune(self) -> None:
        """Removes nodes that no output depends on."""
        needed = {id(tensor) for tensor in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if id(node.output) in needed:
                kept.append(node)
                needed.update(map(id, node.inputs))
        self.nodes = kept[::-1]

    def uses(self) -> dict[int, int]:
        """Counts by id of a tensor how many nodes and outputs read it."""
        counts: dict[int, int] = {}
        for tensor in [*(t for node in self.nodes for t in node.inputs), *self.outputs]:
            counts[id(tensor)] = counts.get(id(tensor), 0) + 1
        return counts


@dataclasses.dataclass
class _Value:
    """A jaxpr's variable: a tensor, which may still have to be broadcast to `shape`."""

    tensor: Tensor
    shape: tuple


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
    spec = jax.ShapeDtypeStruct((_BATCH, *shape), dtype)
    closed = jax.make_jaxpr(function)(variables, spec)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]
    inputs = [Tensor(_shape(spec.shape), spec.dtype)]
    graph = Graph(inputs, [], [])
    values = [_constant(leaf) for leaf in leaves] + [_Value(t, t.shape) for t in inputs]
    tracer = _Tracer(graph)
    results = tracer.run(closed.jaxpr, [np.asarray(c) for c in closed.consts], values, "")
    graph.outputs = [tracer.full(value) for value in results]
    graph.prune()
    return graph


def _constant(array: Any, shape: tuple | None = None) -> _Value:
    array = np.asarray(array)
    return _Value(Tensor(array.shape, array.dtype, array), array.shape if shape is None else shape)


@dataclasses.dataclass(frozen=True)
class Batch:
    """A dimension of `multiple` times the number of images."""

    multiple: int


def is_symbolic(dimension: Any) -> bool:
    """Whether a dimension is not a number."""
    return isinstance(dimension, Batch)


def _shape(sizes: Sequence[Any]) -> tuple:
    """Sizes of a traced array as dimensions of a tensor.

    Raises:
      UnsupportedError: A size depends on the batch, but is no multiple of it.
    """
    dimensions = []
    for n in sizes:
        if not is_symbolic(n) and n > _BATCH // 2:
            multiple, rest = divmod(int(n), _BATCH)
            if rest:
                raise UnsupportedError("a part of the batch")
            n = Batch(multiple)
        dimensions.append(n if is_symbolic(n) else int(n))
    return tuple(dimensions)


@dataclasses.dataclass(frozen=True)
class _Aval:
    """Shape and dtype of a result."""

    shape: tuple
    dtype: Any


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


class _Tracer:
    """Walks a jaxpr and appends nodes to a graph; `_NAME` translates the primitive NAME."""

    def __init__(self, graph: Graph):
        self._graph, self._scope = graph, ""

    def run(self, jaxpr, consts, values: Sequence[_Value], scope: str) -> list[_Value]:
        """The values of the jaxpr's results."""
        env = dict(zip(jaxpr.constvars, map(_constant, consts), strict=True))
        env |= dict(zip(jaxpr.invars, values, strict=True))
        # The platform that a program runs on is not known: variable -> its platforms.
        platforms: dict[Any, Any] = {}

        def read(atom) -> _Value:
            if hasattr(atom, "val"):  # a literal
                return _constant(np.asarray(atom.val, atom.aval.dtype))
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

    def _equation(self, eqn, values: list[_Value]) -> list[_Value]:
        name = eqn.primitive.name
        avals = [_Aval(_shape(var.aval.shape), var.aval.dtype) for var in eqn.outvars]
        if name in _IDENTITIES:
            return values
        constant = all(value.tensor.const is not None for value in values)
        static = not any(is_symbolic(n) for aval in avals for n in aval.shape)
        if constant and (static or name == "broadcast_in_dim"):
            return _folded(eqn, values, avals)
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

    def _node(self, op: str, inputs: Sequence[Tensor], aval, **attrs) -> _Value:
        return _Value(self._add(op, inputs, aval.shape, aval.dtype, **attrs), aval.shape)

    def full(self, value: _Value) -> Tensor:
        """The tensor of a value, broadcast."""
        tensor = value.tensor
        if tensor.shape == tuple(value.shape):
            return tensor
        if any(is_symbolic(n) for n in value.shape if n not in tensor.shape):
            raise UnsupportedError("an array of the batch's size that does not depend on it")
        if tensor.const is not None:
            return _constant(np.broadcast_to(tensor.const, value.shape)).tensor
        # Broadcasting against 1 in the dimensions that grow; Expand leaves the others.
        target = [1 if is_symbolic(n) else n for n in value.shape]
        return self._add("Expand", [tensor], value.shape, tensor.dtype, target=target)

    def _elementwise(self, op: str, values: list[_Value], aval, **attrs) -> _Value:
        tensors = [value.tensor for value in values]
        rank = len(aval.shape)
        # A scalar literal has no dimensions.
        shape = functools.reduce(
            _broadcast, [(1,) * (rank - len(t.shape)) + t.shape for t in tensors]
        )
        return _Value(self._add(op, tensors, shape, aval.dtype, **attrs), aval.shape)

    def _reduction(self, op: str, value: _Value, aval, axes) -> _Value:
        if not axes:
            return value
        return self._node(op, [self.full(value)], aval, axes=tuple(axes), keepdims=False)

    def _ne(self, avals, x, y):
        return self._elementwise("Not", [self._elementwise("Equal", [x, y], avals[0])], avals[0])

    def _integer_pow(self, avals, x, *, y, **_):
        if y == 2:
            return self._elementwise("Square", [x], avals[0])
        return self._elementwise("Pow", [x, _constant(np.asarray(y, x.tensor.dtype))], avals[0])

    def _log1p(self, avals, x, **_):
        one = _constant(np.ones((), x.tensor.dtype))
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
            return _Value(x.tensor, shape)
        return _Value(self._reshaped(x.tensor, placed), shape)

    def _reshaped(self, tensor: Tensor, shape) -> Tensor:
        if tuple(shape) == tensor.shape:
            return tensor
        if tensor.const is not None:
            return _constant(tensor.const.reshape(shape)).tensor
        if sum(map(is_symbolic, shape)) > 1:
            raise UnsupportedError("an array with two symbolic dimensions")
        return self._add("Reshape", [tensor], shape, tensor.dtype)

    def _reshape(self, avals, x, **_):
        return _Value(self._reshaped(self.full(x), avals[0].shape), avals[0].shape)

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
        tensor, limit_indices = self.full(x), _shape(limit_indices)
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
        slice_sizes = _shape(slice_sizes)
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

    def _dot_general(self, avals, x, y, *, dimension_numbers, **_):
        (over_x, over_y), (batch_x, batch_y) = dimension_numbers
        if batch_x or batch_y:
            return self._product(avals[0], self.full(x), self.full(y), dimension_numbers)
        if y.tensor.const is None:
            if x.tensor.const is None:
                return self._product(avals[0], self.full(x), self.full(y), dimension_numbers)
            # The constant comes second: its free dimensions are then the last of the result.
            free = [n for i, n in enumerate(y.shape) if i not in over_y]
            fixed = [n for i, n in enumerate(x.shape) if i not in over_x]
            aval = _Aval((*free, *fixed), avals[0].dtype)
            value = self._linear(aval, y, x, over_y, over_x)
            order = (*range(len(free), len(free) + len(fixed)), *range(len(free)))
            return self._transpose(avals, value, permutation=order)
        return self._linear(avals[0], x, y, over_x, over_y)

    def _linear(self, aval, x: _Value, y: _Value, over_x, over_y) -> _Value:
        """The product of an array with a constant."""
        weights = np.broadcast_to(y.tensor.const, y.shape)
        free = [i for i in range(weights.ndim) if i not in over_y]
        patches = self._patches(aval, x, weights, over_x, over_y, free)
        if patches is not None:
            return patches
        order = np.argsort(over_x)
        weights = weights.transpose([*(over_y[i] for i in order), *free])
        inner = int(np.prod(weights.shape[: len(over_x)]))
        matrix = weights.reshape(inner, -1)
        tensor = self.full(x)
        kept = [i for i in range(len(x.shape)) if i not in over_x]
        moved = (*kept, *sorted(over_x))
        if moved != tuple(range(len(moved))):
            shape = [tensor.shape[i] for i in moved]
            tensor = self._add("Transpose", [tensor], shape, tensor.dtype, perm=moved)
        rows = [x.shape[i] for i in kept]
        tensor = self._reshaped(tensor, (*rows, inner))
        out = self._add(
            "Linear", [tensor], (*rows, matrix.shape[1]), aval.dtype, kernel=matrix, bias=None
        )
        return _Value(self._reshaped(out, aval.shape), aval.shape)

    def _patches(self, aval, x: _Value, weights, over_x, over_y, free) -> _Value | None:
        """A product of patches of a map, as `layers.PatchConv` has it, as a convolution."""
        node = x.tensor.node
        if node is None or node.op != "Reshape" or len(x.shape) != 6 or len(free) != 1:
            return None
        source = node.inputs[0].shape
        _, rows, size, columns, width, channels = x.shape
        if sorted(over_x) != [2, 4, 5] or len(source) != 4 or size != width:
            return None
        if source[1:] != (rows * size, columns * size, channels):
            return None
        order = [over_y[list(over_x).index(axis)] for axis in (2, 4, 5)]
        kernel = weights.transpose([*order, *free]).transpose(3, 2, 0, 1)
        return _Value(
            self._convolution(node.inputs[0], kernel, aval, (size, size), ((0, 0), (0, 0))),
            aval.shape,
        )

    def _product(self, aval, x: Tensor, y: Tensor, dimension_numbers) -> _Value:
        """The product of two computed arrays, of which the last dimensions are contracted."""
        (over_x, over_y), (batch_x, batch_y) = dimension_numbers
        if len(over_x) != 1:
            raise UnsupportedError("a product over several dimensions of computed arrays")
        free_x = [i for i in range(len(x.shape)) if i not in (*over_x, *batch_x)]
        free_y = [i for i in range(len(y.shape)) if i not in (*over_y, *batch_y)]
        if len(free_x) > 1 or len(free_y) > 1:
            raise UnsupportedError("a product of computed arrays of many dimensions")

        def arranged(tensor, order, insert):
            shape = [tensor.shape[i] for i in order]
            if list(order) != list(range(len(order))):
                tensor = self._add("Transpose", [tensor], shape, tensor.dtype, perm=tuple(order))
            if insert is not None:
                shape.insert(insert, 1)
                tensor = self._reshaped(tensor, shape)
            return tensor

        batch = len(batch_x)
        left = arranged(x, (*batch_x, *free_x, *over_x), None if free_x else batch)
        right = arranged(y, (*batch_y, *over_y, *free_y), None if free_y else batch + 1)
        shape = (*left.shape[:-1], right.shape[-1])
        out = self._add("MatMul", [left, right], shape, aval.dtype)
        return _Value(self._reshaped(out, aval.shape), aval.shape)

    def _conv_general_dilated(
        self,
        avals,
        x,
        kernel,
        *,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        **_,
    ):
        numbers = dimension_numbers
        dense = all(n == 1 for n in lhs_dilation) and batch_group_count == 1
        if kernel.tensor.const is None or not dense or len(window_strides) != 2:
            raise UnsupportedError("a convolution with a computed kernel, or a transposed one")
        if any(n < 0 for pair in padding for n in pair):
            raise UnsupportedError("a convolution that crops its input")
        weights = np.broadcast_to(kernel.tensor.const, kernel.shape).transpose(numbers.rhs_spec)
        tensor = self.full(x)
        # From the order in `lhs_spec` (batch, channels, rows, columns) to channels-last, and back.
        to_last = [numbers.lhs_spec[i] for i in (0, 2, 3, 1)]
        if to_last != [0, 1, 2, 3]:
            shape = [tensor.shape[i] for i in to_last]
            tensor = self._add("Transpose", [tensor], shape, tensor.dtype, perm=tuple(to_last))
        out_last = [numbers.out_spec[i] for i in (0, 2, 3, 1)]
        aval = _Aval(tuple(avals[0].shape[i] for i in out_last), avals[0].dtype)
        result = self._convolution(
            tensor, weights, aval, window_strides, padding, rhs_dilation, feature_group_count
        )
        if out_last == [0, 1, 2, 3]:
            return _Value(result, avals[0].shape)
        back = tuple(int(i) for i in np.argsort(out_last))
        return self._node("Transpose", [result], avals[0], perm=back)

    def _convolution(self, x, kernel, aval, strides, padding, dilations=(1, 1), group=1) -> Tensor:
        """A convolution of a map in channels-last order; the kernel is [out, in, rows, columns]."""
        return self._add(
            "Conv",
            [x],
            aval.shape,
            aval.dtype,
            kernel=kernel,
            bias=None,
            strides=tuple(strides),
            padding=tuple(map(tuple, padding)),
            dilations=tuple(dilations),
            group=group,
        )

    def _reduce_window_max(self, avals, x, **params):
        return self._pool("MaxPool", avals[0], x, **params)

    def _reduce_window_sum(self, avals, x, **params):
        mean = self._pool("AveragePool", avals[0], x, **params)
        count = _constant(np.asarray(np.prod(params["window_dimensions"]), x.tensor.dtype))
        return self._elementwise("Mul", [mean, count], avals[0])

    def _reduce_window(self, avals, x, initial, *, jaxpr, consts=(), **params):
        names = [eqn.primitive.name for eqn in jaxpr.eqns]
        if names == ["max"] and initial.tensor.is_scalar and initial.tensor.const == -np.inf:
            return self._reduce_window_max(avals, x, **params)
        if names == ["add"] and initial.tensor.is_scalar and initial.tensor.const == 0:
            return self._reduce_window_sum(avals, x, **params)
        raise UnsupportedError("a reduction over windows that is no maximum and no sum")

    def _pool(
        self,
        op,
        aval,
        x,
        *,
        window_dimensions,
        window_strides,
        padding,
        base_dilation=None,
        window_dilation=None,
    ):
        along = [axis for axis, n in enumerate(window_dimensions) if n > 1]
        plain = all(n == 1 for d in (base_dilation, window_dilation) for n in d or ())
        outside = any(
            padding[axis] != (0, 0) or window_strides[axis] != 1 for axis in (0, len(padding) - 1)
        )
        if len(x.shape) != 4 or not plain or outside or not set(along) <= {1, 2}:
            raise UnsupportedError("pooling over other dimensions than height and width")
        return self._node(
            op,
            [self.full(x)],
            aval,
            kernel_shape=tuple(window_dimensions[1:3]),
            strides=tuple(window_strides[1:3]),
            padding=tuple(map(tuple, padding[1:3])),
        )


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


def _broadcast(left: tuple, right: tuple) -> tuple:
    return tuple(b if _is_one(a) else a for a, b in zip(left, right, strict=True))


def _is_one(dimension: Any) -> bool:
    return not is_symbolic(dimension) and dimension == 1


def _folded(eqn, values: list[_Value], avals) -> list[_Value]:
    """The results of an equation whose operands are constants."""
    name, params = eqn.primitive.name, eqn.params
    arrays = [value.tensor.const for value in values]
    if name == "broadcast_in_dim":
        placed = [1] * len(avals[0].shape)
        for axis, n in zip(params["broadcast_dimensions"], arrays[0].shape, strict=True):
            placed[axis] = n
        return [_constant(arrays[0].reshape(placed), avals[0].shape)]
    if name in _NUMPY:
        # Constants stay as small as they are, and are broadcast where they are used.
        return [_constant(_NUMPY[name](*arrays).astype(avals[0].dtype), avals[0].shape)]
    arrays = [np.broadcast_to(a, value.shape) for a, value in zip(arrays, values, strict=True)]
    if name in ("reshape", "squeeze", "expand_dims"):
        return [_constant(arrays[0].reshape(avals[0].shape))]
    if name == "transpose":
        return [_constant(arrays[0].transpose(params["permutation"]))]
    if name == "convert_element_type":
        return [_constant(arrays[0].astype(avals[0].dtype))]
    results = eqn.primitive.bind(*map(jnp.asarray, arrays), **params)
    results = results if eqn.primitive.multiple_results else [results]
    return [_constant(np.asarray(result)) for result in results]
