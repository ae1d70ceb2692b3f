"""A network as a graph of array operations, named by ONNX's operators, for other formats.

Maps are channels-last. Convolutions and products with constant weights are the nodes `Conv` and
`Linear`, which have their weights as attributes, so that `fusion` can change them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


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
        whose attributes are those of the methods in `primitives` and `products`.
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


@dataclasses.dataclass(frozen=True)
class Batch:
    """A dimension of `multiple` times the number of images."""

    multiple: int


def is_symbolic(dimension: Any) -> bool:
    """Whether a dimension is not a number."""
    return isinstance(dimension, Batch)
