"""JAX's matrix products, convolutions and pooling as nodes of a graph."""

from __future__ import annotations

import numpy as np

from bloodjax.exporting.graph import Tensor, UnsupportedError
from bloodjax.exporting.primitives import Aval, Primitives, Value, constant


class Products(Primitives):
    """The primitives that combine the values of a map with weights or within windows."""

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
            aval = Aval((*free, *fixed), avals[0].dtype)
            value = self._linear(aval, y, x, over_y, over_x)
            order = (*range(len(free), len(free) + len(fixed)), *range(len(free)))
            return self._transpose(avals, value, permutation=order)
        return self._linear(avals[0], x, y, over_x, over_y)

    def _linear(self, aval, x: Value, y: Value, over_x, over_y) -> Value:
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
        return Value(self._reshaped(out, aval.shape), aval.shape)

    def _patches(self, aval, x: Value, weights, over_x, over_y, free) -> Value | None:
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
        return Value(
            self._convolution(node.inputs[0], kernel, aval, (size, size), ((0, 0), (0, 0))),
            aval.shape,
        )

    def _product(self, aval, x: Tensor, y: Tensor, dimension_numbers) -> Value:
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
        return Value(self._reshaped(out, aval.shape), aval.shape)

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
        aval = Aval(tuple(avals[0].shape[i] for i in out_last), avals[0].dtype)
        result = self._convolution(
            tensor, weights, aval, window_strides, padding, rhs_dilation, feature_group_count
        )
        if out_last == [0, 1, 2, 3]:
            return Value(result, avals[0].shape)
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
        count = constant(np.asarray(np.prod(params["window_dimensions"]), x.tensor.dtype))
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
