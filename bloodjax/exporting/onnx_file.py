"""A graph as an ONNX model: channels-first maps, one node per operation. The one door to onnx.

Runtimes compute convolutions on channels-first maps [batch, channels, height, width]. Each map of
four dimensions is therefore kept in the order that the node which computes it prefers, and is
transposed where another node needs the other order. Operations on single elements take the order
of their operands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bloodjax.errors import UserError
from bloodjax.exporting.graph import Graph, Node, Tensor, UnsupportedError, is_symbolic

# Gelu is an operator from 20 on. onnxruntime has all of these since 1.17.
OPSET = 20
_IR_VERSION = 9
# A protocol buffer has at most 2 GiB.
_MOST_BYTES = 2**31 - 2**20
BATCH = "batch"

_FIRST, _LAST = "channels first", "channels last"
_TO_FIRST, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
# Where each axis of a channels-last map is in a channels-first one.
_AXIS = {0: 0, 1: 2, 2: 3, 3: 1}
_ELEMENTWISE = (
    *("Neg", "Exp", "Log", "Tanh", "Sigmoid", "Erf", "Sqrt", "Abs", "Sign", "Floor", "Ceil", "Not"),
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Equal", "Less", "LessOrEqual"),
    *("Greater", "GreaterOrEqual", "And", "Or", "Round", "Where", "Relu", "Gelu"),
)


def model_bytes(
    graph: Graph, inputs: Sequence[str], outputs: Sequence[str], metadata: Mapping[str, Any]
) -> bytes:
    """The content of an ONNX file.

    Args:
      graph: The graph, after `fusion.fuse`.
      inputs: Names of its inputs.
      outputs: Names of its outputs.
      metadata: JSON values by key, for the file's `metadata_props`; texts are stored as they are.

    Raises:
      UserError: The model has more than 2 GiB.
      UnsupportedError: The graph has an operation that has no translation.
    """
    writer = _Writer(graph)
    writer.write(inputs, outputs)
    if writer.bytes > _MOST_BYTES:
        raise UserError(
            f"the network has {writer.bytes / 2**30:.1f} GiB of weights, expected less than 2 GiB "
            "for an ONNX file"
        )
    infos = [
        [_info(name, tensor) for name, tensor in zip(names, tensors, strict=True)]
        for names, tensors in ((inputs, graph.inputs), (outputs, graph.outputs))
    ]
    onnx_graph = helper.make_graph(writer.nodes, "bloodjax", *infos, writer.initializers)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(onnx_graph, opset_imports=[opset], producer_name="bloodjax")
    model.ir_version = _IR_VERSION
    return _serialised(model, metadata)


def with_metadata(content: bytes, metadata: Mapping[str, Any]) -> bytes:
    """The ONNX file `content` with other metadata."""
    return _serialised(onnx.load_model_from_string(content), metadata)


def _serialised(model: onnx.ModelProto, metadata: Mapping[str, Any]) -> bytes:
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def node_names(content: bytes, prefixes: Sequence[str]) -> list[str]:
    """Names of the nodes of an ONNX file that start with one of `prefixes`."""
    graph = onnx.load_model_from_string(content).graph
    return [node.name for node in graph.node if node.name.startswith(tuple(prefixes))]


def operators(content: bytes) -> dict[str, int]:
    """Operator -> how many nodes of an ONNX file it has."""
    counts: dict[str, int] = {}
    for node in onnx.load_model_from_string(content).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _info(name: str, tensor: Tensor) -> onnx.ValueInfoProto:
    shape = [BATCH if is_symbolic(n) else int(n) for n in tensor.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(tensor.dtype), shape)


class _Writer:
    """Translates the nodes of a graph; a method `_NAME` translates those with the operator NAME."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.bytes = 0
        # id of a tensor -> order -> name.
        self._names: dict[int, dict[str, str]] = {}
        self._kept: list[Tensor] = []  # so that an id stays that of one tensor
        self._constants: dict[tuple, str] = {}
        self._scopes: dict[str, int] = {}

    def write(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Translates the whole graph."""
        for name, tensor in zip(inputs, self._graph.inputs, strict=True):
            self._names[id(tensor)] = {_LAST: name}
            if len(tensor.shape) == 4:
                # The order of the convolutions from the start: bytes are cheaper to move.
                self._scope = "input"
                name = self._emit("Transpose", [name], perm=_TO_FIRST)
                self._names[id(tensor)] = {_FIRST: name, _LAST: inputs[0]}
        for node in self._graph.nodes:
            self._scope = node.scope
            if node.op in _ELEMENTWISE:
                self._elementwise(node)
            elif node.op.startswith("Reduce"):
                self._reduce(node)
            else:
                method = getattr(self, f"_{node.op.lower()}", None)
                if method is None:
                    raise UnsupportedError(f"the operation {node.op}")
                method(node)
        self._scope = "output"
        for name, tensor in zip(outputs, self._graph.outputs, strict=True):
            self.nodes.append(helper.make_node("Identity", [self._read(tensor)], [name], name))

    def _emit(self, op: str, inputs: Sequence[str], **attrs: Any) -> str:
        """Appends a node, and returns the name of its result."""
        label = f"{self._scope}/{op}" if self._scope else op
        number = self._scopes[label] = self._scopes.get(label, -1) + 1
        name = f"{label}_{number}" if number else label
        attrs = {key: value for key, value in attrs.items() if value is not None}
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attrs))
        return name

    def _constant(self, array: np.ndarray, name: str = "constant") -> str:
        """The name of an initializer with the values of `array`."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size < 64 else (id(array),)
        if key not in self._constants or array.size >= 64:
            label = f"{self._scope}/{name}" if self._scope else name
            number = self._scopes[label] = self._scopes.get(label, -1) + 1
            label = f"{label}_{number}" if number else label
            self.initializers.append(numpy_helper.from_array(array, label))
            self.bytes += array.nbytes
            self._constants[key] = label
        return self._constants[key]

    def _integers(self, values: Sequence[Any]) -> str:
        return self._constant(np.asarray(values, np.int64), "integers")

    def _order(self, tensor: Tensor) -> str:
        """The order that a computed tensor is in."""
        return next(iter(self._names[id(tensor)])) if id(tensor) in self._names else _LAST

    def _read(self, tensor: Tensor, order: str = _LAST) -> str:
        """The name of a tensor in an order."""
        if tensor.const is not None:
            array = tensor.const
            if order == _FIRST and array.ndim == 4:
                array = array.transpose(_TO_FIRST)
            return self._constant(array)
        names = self._names[id(tensor)]
        if len(tensor.shape) != 4:
            return next(iter(names.values()))
        if order not in names:
            known, name = next(iter(names.items()))
            shape = tensor.shape
            if shape[1] == shape[2] == 1:
                target = [0, shape[3], 1, 1] if order == _FIRST else [0, 1, 1, shape[3]]
                names[order] = self._emit("Reshape", [name, self._integers(target)])
            else:
                perm = _TO_FIRST if known == _LAST else _TO_LAST
                names[order] = self._emit("Transpose", [name], perm=perm)
        return names[order]

    def _write(self, node: Node, name: str, order: str = _LAST) -> None:
        self._names[id(node.output)] = {order: name}
        self._kept.append(node.output)

    def _common_order(self, tensors: Sequence[Tensor]) -> str:
        """The order in which the fewest of the computed maps are transposed."""
        maps = [t for t in tensors if t.const is None and len(t.shape) == 4]
        large = [t for t in maps if (t.shape[1], t.shape[2]) != (1, 1)] or maps
        costs = {
            order: sum(order not in self._names[id(t)] for t in large) for order in (_FIRST, _LAST)
        }
        if costs[_FIRST] == costs[_LAST]:
            return self._order(large[0]) if large else _LAST
        return min(costs, key=costs.__getitem__)

    def _elementwise(self, node: Node) -> None:
        order = self._common_order(node.inputs) if len(node.output.shape) == 4 else _LAST
        names = [self._read(tensor, order) for tensor in node.inputs]
        self._write(node, self._emit(node.op, names), order)

    def _single(self, node: Node, op: str, *constants: str, **attrs: Any) -> None:
        """A node of one operand in the order of that operand."""
        order = self._order(node.inputs[0])
        name = self._read(node.inputs[0], order)
        self._write(node, self._emit(op, [name, *constants], **attrs), order)

    def _cast(self, node: Node) -> None:
        self._single(node, "Cast", to=helper.np_dtype_to_tensor_dtype(node.output.dtype))

    def _square(self, node: Node) -> None:
        order = self._order(node.inputs[0])
        name = self._read(node.inputs[0], order)
        self._write(node, self._emit("Mul", [name, name]), order)

    def _rsqrt(self, node: Node) -> None:
        order = self._order(node.inputs[0])
        root = self._emit("Sqrt", [self._read(node.inputs[0], order)])
        self._write(node, self._emit("Reciprocal", [root]), order)

    def _clip(self, node: Node) -> None:
        limits = [np.asarray(node.attrs[key], node.output.dtype) for key in ("low", "high")]
        self._single(node, "Clip", *(self._constant(limit) for limit in limits))

    def _reshape(self, node: Node) -> None:
        shape = node.output.shape
        target = [-1 if is_symbolic(n) else n for n in shape]
        order = _LAST
        if len(shape) == 4 and shape[1] == shape[2] == 1 and len(node.inputs[0].shape) != 4:
            # Values per channel, which a map is multiplied by.
            order, target = _FIRST, [target[i] for i in _TO_FIRST]
        name = self._read(node.inputs[0])
        self._write(node, self._emit("Reshape", [name, self._integers(target)]), order)

    def _expand(self, node: Node) -> None:
        order = self._order(node.inputs[0])
        target = node.attrs["target"]
        if order == _FIRST:
            target = [target[i] for i in _TO_FIRST]
        self._single(node, "Expand", self._integers(target))

    def _transpose(self, node: Node) -> None:
        x, perm = node.inputs[0], node.attrs["perm"]
        if len(perm) == 4 and self._order(x) == _FIRST and perm == (0, 2, 1, 3):
            name = self._emit("Transpose", [self._read(x, _FIRST)], perm=(0, 1, 3, 2))
            self._write(node, name, _FIRST)
            return
        self._write(node, self._emit("Transpose", [self._read(x)], perm=perm))

    def _axes(self, tensor: Tensor, axes: Sequence[int]) -> list[int]:
        """The axes of a tensor in the order that it is in."""
        is_first = len(tensor.shape) == 4 and self._order(tensor) == _FIRST
        return [_AXIS[axis] if is_first else axis for axis in axes]

    def _concat(self, node: Node) -> None:
        order = self._common_order(node.inputs)
        axis = node.attrs["axis"]
        axis = _AXIS[axis] if order == _FIRST else axis
        names = [self._read(tensor, order) for tensor in node.inputs]
        self._write(node, self._emit("Concat", names, axis=axis), order)

    def _slice(self, node: Node) -> None:
        starts, limits, steps = zip(*node.attrs["ranges"], strict=True)
        axes = self._axes(node.inputs[0], node.attrs["axes"])
        self._single(node, "Slice", *map(self._integers, (starts, limits, axes, steps)))

    def _reverse(self, node: Node) -> None:
        axes = self._axes(node.inputs[0], node.attrs["axes"])
        most = np.iinfo(np.int64).max
        ranges = [[-1] * len(axes), [-most] * len(axes), axes, [-1] * len(axes)]
        self._single(node, "Slice", *map(self._integers, ranges))

    def _pad(self, node: Node) -> None:
        low, high = node.attrs["low"], node.attrs["high"]
        if any(n < 0 for n in (*low, *high)):
            raise UnsupportedError("padding that crops")
        if len(low) == 4 and self._order(node.inputs[0]) == _FIRST:
            low, high = ([pads[i] for i in _TO_FIRST] for pads in (low, high))
        value = self._constant(np.asarray(node.attrs["value"], node.output.dtype).reshape(()))
        self._single(node, "Pad", self._integers([*low, *high]), value)

    def _reduce(self, node: Node) -> None:
        x, axes = node.inputs[0], node.attrs["axes"]
        keepdims = node.attrs["keepdims"]
        order = self._order(x)
        if (
            node.op == "ReduceMean"
            and len(x.shape) == 4
            and order == _FIRST
            and set(axes) == {1, 2}
        ):
            name = self._emit("GlobalAveragePool", [self._read(x, _FIRST)])
            if keepdims:
                self._write(node, name, _FIRST)
            else:
                self._write(node, self._emit("Flatten", [name], axis=1))
            return
        # A map without some of its dimensions has no channels-first order.
        order = order if keepdims or len(x.shape) != 4 or sorted(axes) == [1, 2] else _LAST
        name = self._read(x, order)
        moved = [_AXIS[axis] if order == _FIRST and len(x.shape) == 4 else axis for axis in axes]
        result = self._emit(node.op, [name, self._integers(moved)], keepdims=int(keepdims))
        self._write(node, result, order if len(node.output.shape) == 4 else _LAST)

    def _conv(self, node: Node) -> None:
        (top, bottom), (left, right) = node.attrs["padding"]
        kernel, bias = node.attrs["kernel"], node.attrs["bias"]
        names = [self._read(node.inputs[0], _FIRST), self._constant(kernel, "kernel")]
        if bias is not None:
            names.append(self._constant(bias.astype(kernel.dtype), "bias"))
        name = self._emit(
            "Conv",
            names,
            kernel_shape=kernel.shape[2:],
            strides=node.attrs["strides"],
            pads=[top, left, bottom, right],
            dilations=node.attrs["dilations"],
            group=node.attrs["group"],
        )
        self._write(node, name, _FIRST)

    def _linear(self, node: Node) -> None:
        x, kernel, bias = node.inputs[0], node.attrs["kernel"], node.attrs["bias"]
        bias = None if bias is None else bias.astype(kernel.dtype)
        if len(x.shape) == 4 and self._order(x) == _FIRST:
            names = [self._read(x, _FIRST), self._constant(kernel.T[:, :, None, None], "kernel")]
            names += [] if bias is None else [self._constant(bias, "bias")]
            self._write(node, self._emit("Conv", names, kernel_shape=(1, 1)), _FIRST)
            return
        names = [self._read(x), self._constant(kernel, "kernel")]
        if len(x.shape) == 2:
            names += [] if bias is None else [self._constant(bias, "bias")]
            self._write(node, self._emit("Gemm", names))
            return
        name = self._emit("MatMul", names)
        if bias is not None:
            name = self._emit("Add", [name, self._constant(bias, "bias")])
        self._write(node, name)

    def _matmul(self, node: Node) -> None:
        self._write(node, self._emit("MatMul", [self._read(tensor) for tensor in node.inputs]))

    def _maxpool(self, node: Node) -> None:
        self._pool(node, "MaxPool")

    def _averagepool(self, node: Node) -> None:
        count_padding = node.attrs.get("count_padding", True)
        self._pool(node, "AveragePool", count_include_pad=int(count_padding))

    def _pool(self, node: Node, op: str, **attrs: Any) -> None:
        (top, bottom), (left, right) = node.attrs["padding"]
        name = self._emit(
            op,
            [self._read(node.inputs[0], _FIRST)],
            kernel_shape=node.attrs["kernel_shape"],
            strides=node.attrs["strides"],
            pads=[top, left, bottom, right],
            **attrs,
        )
        self._write(node, name, _FIRST)

    def _layernormalization(self, node: Node) -> None:
        names = [
            self._read(node.inputs[0]),
            self._constant(node.attrs["scale"], "scale"),
            self._constant(node.attrs["bias"], "bias"),
        ]
        name = self._emit("LayerNormalization", names, axis=-1, epsilon=node.attrs["epsilon"])
        self._write(node, name)
