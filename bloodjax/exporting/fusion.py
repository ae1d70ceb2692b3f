"""Rewrites a graph into fewer operations that compute the same values up to rounding.

Factors and offsets per channel, such as those of a BatchNorm in inference, go into the weights of
the convolution or product before them. Means, layer normalisations, activations and average pooling
become one operation each, for which runtimes have one kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bloodjax.exporting.graph import Graph, Node, Tensor, is_symbolic

_WEIGHTED = ("Conv", "Linear")


def fuse(graph: Graph) -> None:
    """Applies all rewrites to `graph`, in place."""
    _merge_equal(graph)
    for rewrite in (
        _without_effect,
        _keep_dimensions,
        _mean,
        _mean_of_blocks,
        _activation,
        _gelu,
        _average_pool,
        _layer_norm,
        _strided_product,
    ):
        _apply(graph, rewrite)
    # Each folded operation may bring the next one beside the weights.
    while _apply(graph, _fold):
        pass


def _merge_equal(graph: Graph) -> None:
    """Merges nodes that compute the same, such as the two differences of a layer normalisation."""
    merged: dict[int, Tensor] = {}
    known: dict[tuple, Tensor] = {}
    for node in graph.nodes:
        node.inputs = [merged.get(id(tensor), tensor) for tensor in node.inputs]
        if any(isinstance(value, np.ndarray) for value in node.attrs.values()):
            continue
        key = (node.op, *map(id, node.inputs), node.output.dtype, repr(sorted(node.attrs.items())))
        first = known.setdefault((*key, node.output.shape), node.output)
        if first is not node.output:
            merged[id(node.output)] = first
    graph.outputs = [merged.get(id(tensor), tensor) for tensor in graph.outputs]
    graph.prune()


def _apply(graph: Graph, rewrite: Callable[[Node, dict[int, int]], Node | None]) -> int:
    """Replaces nodes by what `rewrite` returns; None keeps a node. Returns how many changed.

    The replacement has the output of the node that it replaces. Nodes in between that nothing else
    reads are removed.
    """
    changed, uses = 0, graph.uses()
    for position, node in enumerate(graph.nodes):
        new = rewrite(node, uses)
        if new is not None:
            new.output.node = new
            graph.nodes[position] = new
            changed += 1
            uses = graph.uses()
    graph.prune()
    return changed


def _like(node: Node, op: str, inputs: list[Tensor], **attrs: object) -> Node:
    return Node(op, inputs, node.output, attrs, node.scope)


def _scalar(tensor: Tensor) -> float | None:
    return float(tensor.const.reshape(())) if tensor.is_scalar else None


def _split_constant(node: Node) -> tuple[Tensor, Tensor] | None:
    """The computed and the constant operand of a node that has one of each."""
    if len(node.inputs) != 2:
        return None
    constants = [tensor for tensor in node.inputs if tensor.const is not None]
    others = [tensor for tensor in node.inputs if tensor.const is None]
    return (others[0], constants[0]) if len(others) == 1 else None


def _made_by(tensor: Tensor, op: str) -> Node | None:
    return tensor.node if tensor.node is not None and tensor.node.op == op else None


def _keep_dimensions(node: Node, _: dict[int, int]) -> Node | None:
    """A reduction whose result is reshaped to keep the dimensions."""
    reduction = node.inputs[0].node if node.op == "Reshape" else None
    if reduction is None or not reduction.op.startswith("Reduce") or reduction.attrs["keepdims"]:
        return None
    source, axes = reduction.inputs[0], reduction.attrs["axes"]
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(source.shape))
    if node.output.shape != kept:
        return None
    return _like(node, reduction.op, [source], axes=axes, keepdims=True)


def _mean(node: Node, _: dict[int, int]) -> Node | None:
    """A sum divided by the number of its summands."""
    if node.op != "Div" or (total := _made_by(node.inputs[0], "ReduceSum")) is None:
        return None
    source, axes = total.inputs[0], total.attrs["axes"]
    sizes = [source.shape[axis] for axis in axes]
    if any(map(is_symbolic, sizes)) or _scalar(node.inputs[1]) != math.prod(sizes):
        return None
    return _like(node, "ReduceMean", [source], axes=axes, keepdims=total.attrs["keepdims"])


def _without_effect(node: Node, _: dict[int, int]) -> Node | None:
    """The operand of an operation whose operand has a maximum with -inf, as in a softmax."""
    for position, tensor in enumerate(node.inputs):
        largest = _made_by(tensor, "Max")
        found = None if largest is None else _split_constant(largest)
        if found is not None and _scalar(found[1]) == -math.inf:
            inputs = list(node.inputs)
            inputs[position] = found[0]
            return _like(node, node.op, inputs, **node.attrs)
    return None


def _mean_of_blocks(node: Node, _: dict[int, int]) -> Node | None:
    """Pooling as the mean over axes 2 and 4 of [batch, rows, k, columns, k, channels]."""
    if node.op != "ReduceMean" or node.attrs["axes"] != (2, 4) or node.attrs["keepdims"]:
        return None
    blocks = _made_by(node.inputs[0], "Reshape")
    if blocks is None or len(node.inputs[0].shape) != 6:
        return None
    source, (_, rows, height, columns, width, channels) = blocks.inputs[0], node.inputs[0].shape
    if source.shape[1:] != (rows * height, columns * width, channels):
        return None
    kernel = (height, width)
    return _like(
        node, "AveragePool", [source], kernel_shape=kernel, strides=kernel, padding=((0, 0), (0, 0))
    )


def _activation(node: Node, _: dict[int, int]) -> Node | None:
    """ReLU, and ReLU with a maximum."""
    found = _split_constant(node)
    if found is None:
        return None
    x, constant = found
    value = _scalar(constant)
    if node.op == "Max" and value == 0 and node.output.dtype == np.float32:
        return _like(node, "Relu", [x])
    if node.op == "Min" and value is not None and (relu := _made_by(x, "Relu")) is not None:
        return _like(node, "Clip", relu.inputs, low=0.0, high=value)
    return None


def _gelu(node: Node, _: dict[int, int]) -> Node | None:
    """The input times the normal distribution function, 0.5 (1 + erf(x / sqrt 2))."""
    if node.op != "Mul":
        return None
    x, cdf = node.inputs
    factors = [_made_by(cdf, "Mul")]
    if factors[0] is None or (half := _split_constant(factors[0])) is None:
        return None
    total = _made_by(half[0], "Add")
    one = None if total is None else _split_constant(total)
    erf = None if one is None else _made_by(one[0], "Erf")
    scaled = None if erf is None else _made_by(erf.inputs[0], "Mul")
    argument = None if scaled is None else _split_constant(scaled)
    if argument is None or argument[0] is not x:
        return None
    values = [_scalar(half[1]), _scalar(one[1]), _scalar(argument[1])]
    if None in values or not np.allclose(values, [0.5, 1.0, math.sqrt(0.5)], atol=1e-7):
        return None
    return _like(node, "Gelu", [x])


def _average_pool(node: Node, _: dict[int, int]) -> Node | None:
    """A sum over windows divided by the number of pixels in each."""
    if node.op != "Div" or node.inputs[1].const is None:
        return None
    product = _made_by(node.inputs[0], "Mul")
    if product is None or (found := _split_constant(product)) is None:
        return None
    pool = _made_by(found[0], "AveragePool")
    pixels = None if pool is None else math.prod(pool.attrs["kernel_shape"])
    if pool is None or _scalar(found[1]) != pixels:
        return None
    counts = node.inputs[1].const
    if np.all(counts == pixels):
        return _like(node, "AveragePool", pool.inputs, **pool.attrs)
    inside = _pixels_inside(pool)
    if inside.shape != counts.shape[1:3] or not np.all(counts == inside[None, :, :, None]):
        return None
    return _like(node, "AveragePool", pool.inputs, **pool.attrs, count_padding=False)


def _pixels_inside(pool: Node) -> np.ndarray:
    """How many pixels of the map each window of a pooling has, [rows, columns]."""
    axes = []
    for axis, size in enumerate(pool.inputs[0].shape[1:3]):
        results, kernel = pool.output.shape[1 + axis], pool.attrs["kernel_shape"][axis]
        first = np.arange(results) * pool.attrs["strides"][axis] - pool.attrs["padding"][axis][0]
        axes.append(np.minimum(first + kernel, size) - np.maximum(first, 0))
    return axes[0][:, None] * axes[1][None]


def _layer_norm(node: Node, _: dict[int, int]) -> Node | None:
    """Layer normalisation over the last dimension, as `ops.elementwise.layer_norm` writes it."""
    if node.op != "Add" or (outer := _split_constant(node)) is None:
        return None
    scaled = _made_by(outer[0], "Mul")
    inner = None if scaled is None else _split_constant(scaled)
    normal = None if inner is None else _made_by(inner[0], "Mul")
    if normal is None or (inverse := _made_by(normal.inputs[1], "Rsqrt")) is None:
        return None
    difference, shifted = _made_by(normal.inputs[0], "Sub"), _made_by(inverse.inputs[0], "Add")
    spread = None if shifted is None else _split_constant(shifted)
    variance = None if spread is None else _made_by(spread[0], "ReduceMean")
    if difference is None or variance is None:
        return None
    square, mean = (
        _made_by(variance.inputs[0], "Square"),
        _made_by(difference.inputs[1], "ReduceMean"),
    )
    x = difference.inputs[0]
    last = (len(x.shape) - 1,)
    if (
        square is None
        or square.inputs[0] is not difference.output
        or mean is None
        or mean.inputs[0] is not x
        or mean.attrs["axes"] != last
        or variance.attrs["axes"] != last
        or _scalar(spread[1]) is None
    ):
        return None
    channels = x.shape[-1]
    scale, bias = (np.broadcast_to(t.const.reshape(-1), (channels,)) for t in (inner[1], outer[1]))
    return _like(
        node, "LayerNormalization", [x], scale=scale, bias=bias, epsilon=_scalar(spread[1])
    )


def _strided_product(node: Node, _: dict[int, int]) -> Node | None:
    """A product of every second pixel, as a convolution with that stride."""
    if node.op != "Linear" or len(node.output.shape) != 4:
        return None
    part = _made_by(node.inputs[0], "Slice")
    if part is None or part.attrs["axes"] != (1, 2):
        return None
    source, ranges = part.inputs[0], part.attrs["ranges"]
    if any(
        start != 0 or limit != n
        for (start, limit, _), n in zip(ranges, source.shape[1:3], strict=True)
    ):
        return None
    kernel = node.attrs["kernel"].T[:, :, None, None]
    return _like(
        node,
        "Conv",
        [source],
        kernel=kernel,
        bias=node.attrs["bias"],
        strides=tuple(stride for *_, stride in ranges),
        padding=((0, 0), (0, 0)),
        dilations=(1, 1),
        group=1,
    )


def _fold(node: Node, uses: dict[int, int]) -> Node | None:
    """A factor or an offset per channel, in the weights of the convolution or product before it."""
    if node.op not in ("Add", "Sub", "Mul", "Div") or (found := _split_constant(node)) is None:
        return None
    x, constant = found
    before = x.node
    if before is None or before.op not in _WEIGHTED or uses[id(x)] > 1:
        return None
    if node.op in ("Sub", "Div") and node.inputs[0] is constant:
        return None
    channels = x.shape[-1]
    if any(n != 1 for n in constant.shape[:-1]) or node.output.shape != x.shape:
        return None
    values = np.broadcast_to(constant.const.reshape(-1), (channels,)).astype(np.float64)
    kernel, bias = before.attrs["kernel"], before.attrs["bias"]
    bias = np.zeros(channels) if bias is None else bias.astype(np.float64)
    if node.op in ("Mul", "Div"):
        values = values if node.op == "Mul" else 1.0 / values
        # The output channels are the first axis of a convolution's kernel, the last of a matrix.
        factor = values[:, None, None, None] if before.op == "Conv" else values
        kernel, bias = (kernel * factor).astype(kernel.dtype), bias * values
    else:
        bias = bias + values if node.op == "Add" else bias - values
    # Two offsets in a row are added in float64, and rounded when the file is written.
    return _like(node, before.op, before.inputs, **{**before.attrs, "kernel": kernel, "bias": bias})
