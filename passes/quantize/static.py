"""Writes the integer form of placed operators: QuantizeLinear and DequantizeLinear pairs around them.

Each method is the body of one patch; the model computes legally after each. What reads a tensor that an integer
operator made reads its rounded form from then on, float operators too: a tensor that goes to a QuantizeLinear and to a
float operator is not fused. Data movement is written on the integers themselves: it cannot fail to fuse, Pad included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.passes.quantize.head import (
    MergedColumns,
    has_image_channels,
    merge,
    merged_columns,
    pool_first,
    take_apart,
)
from graphopt.passes.quantize.integers import IntegerWeight, describe, integer_weight
from graphopt.passes.quantize.weighing import least_error
from graphopt.passes.quantize.writing import conversion, drop_unused, mean_shift, short_name
from graphopt.target.grid import WEIGHT_LIMIT, Grid, activation_grid, fit_bias, quantize_bias
from graphopt.target.operators import output_axis

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from numpy.typing import NDArray

    from graphopt.analysis.types import Types
    from graphopt.graph import Constant, Node, Rewriter, Tensor, Variable
    from graphopt.passes.quantize.grids import GridOf
    from graphopt.target.numbers import Number
    from graphopt.target.placement import Group, Placement
    from graphopt.target.rules import OpRule


FEW_LEVELS = 16


class StaticForm:
    """Turns the operators of a placement into their integer form, one after the other, in graph order.

    Args:
        types: Types and shapes of the model before the first operator was turned.
        placement: What becomes integer.
        grid_of: The grid of a group of tensors.
        means_of: The mean per channel of a float tensor, where it is known; with it biases make up for what rounding
            the weights adds to the mean of each output.
        per_channel: One weight scale per output channel; needs opset 13.
        few_levels: Weighted operators whose input has 16 levels.
        limit: Largest magnitude of a weight.
        powers_of: The mean square per channel of a float tensor, where it is known: scales of weights are those of
            least error then, not those of the largest weight.
    """

    def __init__(
        self,
        types: Types,
        placement: Placement,
        grid_of: GridOf,
        means_of: Callable[[Tensor], NDArray[np.float64] | None],
        *,
        per_channel: bool = True,
        few_levels: Collection[Node] = (),
        limit: int = WEIGHT_LIMIT,
        powers_of: Callable[[Tensor], NDArray[np.float64] | None] | None = None,
    ) -> None:
        self._types = types
        self._powers_of = powers_of
        self._placement = placement
        self._grid_of = grid_of
        self._means_of = means_of
        self._per_channel = per_channel
        self._few_levels = few_levels
        self._limit = limit
        self._coarse: dict[Tensor, Variable] = {}
        self._parameters: dict[int, tuple[Constant, Constant]] = {}
        self._zero_points: dict[tuple[str, tuple[int, ...], bytes], Constant] = {}
        self._rounded: dict[Tensor, Variable] = {}
        self._restored: dict[Tensor, Variable] = {}
        self._origins: dict[Tensor, Tensor] = {}
        self._padded: dict[Tensor, Variable] = {}
        self._merged: dict[Node, MergedColumns] = {}
        self._weights: dict[tuple[int, tuple[int, ...], int | None, bytes], tuple[Variable, Tensor]] = {}

    # -------------------------------------------------------------------------------------------------- operators

    def weighted(self, rw: Rewriter, node: Node, rule: OpRule) -> None:
        """Make a Conv, Gemm or MatMul multiply integers."""
        x = self._original(node.inputs[0])
        grid = self._grid_of(self._placement.groups[x])
        if node in self._few_levels:
            grid = self._grid_of.few(self._placement.groups[x], x, FEW_LEVELS)
        weight = integer_weight(node, per_channel=self._per_channel, limit=self._limit)
        if self._powers_of is not None:
            weight = least_error(node, weight, self._powers_of(x), self._limit)
        bias = self._corrected(node, rule, x, weight, self._bias(node, rule, weight.codes.shape))
        if bias is not None:
            fitted = fit_bias(bias, grid.scale, weight.scales)
            weight = weight.with_scales(fitted if weight.axis is not None else fitted.max(keepdims=True))
        if node in self._few_levels:
            rw.set_input(node, 0, self._few(rw, node, x, grid))
        elif (columns := self._columns_of(node, x, weight.codes.shape)) is not None:
            self._merged[node] = columns
            weight = weight.repeated(columns.weight(weight.codes), columns.outputs)
            bias = None if bias is None else np.tile(bias, columns.outputs)
            self._read_merged(rw, node, x, columns)
        elif node.op == "Conv" and has_image_channels(node, weight.codes.shape) and not self._is_transposed(x):
            weight = weight.with_fourth_channel()
            rw.set_input(node, 0, self._four_channels(rw, node, x, weight.codes.ndim))
        else:
            self._read_rounded(rw, node, 0, x)
        old = list(node.inputs[1:])
        scales = weight.scales
        rw.set_input(node, 1, self._restored_weight(rw, node, weight))
        if bias is not None and rule.bias is not None:
            rw.set_input(node, rule.bias, self._restored_bias(rw, node, bias, grid.scale, scales))
        elif bias is not None:
            addition = uses(node.outputs[0])[0]
            place = 1 - addition.index
            old.append(addition.node.inputs[place])
            rw.set_input(addition.node, place, self._restored_bias(rw, node, bias, grid.scale, scales))
        for name in ("alpha", "beta"):
            if node.attrs.get(name, 1.0) != 1.0:
                rw.set_attr(node, name, None)
        drop_unused(rw, old)
        self._round_output(rw, node)

    @property
    def number(self) -> Number:
        """The type of activations."""
        return self._grid_of.kind.number

    def describe(self, node: Node) -> str:
        """Return how the weight of an operator is rounded, for the per-layer table."""
        return describe(node, per_channel=self._per_channel, limit=self._limit)

    def join(self, rw: Rewriter, node: Node, rule: OpRule) -> None:
        """Make an operator between weighted ones compute on integers, each tensor on its own grid."""
        for place in rule.data_positions(node):
            tensor = node.inputs[place]
            value = constant_value(tensor)
            if value is None:
                self._read_rounded(rw, node, place, self._original(tensor))
            else:
                rw.set_input(node, place, self._restored_constant(rw, node, np.asarray(value, np.float32), tensor))
                drop_unused(rw, [tensor])
        self._round_output(rw, node)

    def move(self, rw: Rewriter, node: Node, rule: OpRule) -> None:
        """Make a data movement move the integers."""
        inputs = list(node.inputs)
        sources = []
        for place in rule.data_positions(node):
            source = self._original(node.inputs[place])
            inputs[place] = self._round(rw, node, source)
            sources.append(source)
        if node.op == "Pad" and node.attrs.get("mode", b"constant") in {"constant", b"constant"}:
            # What stands for 0.0 among the integers is the zero point.
            zero = self._constants(rw, node, self._placement.groups[sources[0]])[1]
            inputs = [*inputs[:2], zero, *inputs[3:]]
        outputs = list(node.outputs)
        moved = rw.op(node.op, inputs, attrs=dict(node.attrs), outputs=len(outputs), near=node, origin=(node,))
        for old, new in zip(outputs, moved if isinstance(moved, tuple) else (moved,), strict=True):
            self._rounded[old] = new
            group = self._placement.groups[old]
            self._replace(rw, node, old, new, group)
        rw.erase([node])
        self._drop_idle(rw, sources)

    # ---------------------------------------------------------------------------------------------- activations

    def _original(self, tensor: Tensor) -> Tensor:
        """Return the float tensor whose restored form this is, or the tensor itself."""
        return self._origins.get(tensor, tensor)

    def _read_rounded(self, rw: Rewriter, node: Node, place: int, tensor: Tensor) -> None:
        """Let an input of an integer operator read the restored form of a tensor."""
        rounded = self._round(rw, node, tensor)
        if tensor not in self._restored:
            self._remember(tensor, self._restore(rw, node, tensor, rounded, self._placement.groups[tensor]))
        rw.set_input(node, place, self._restored[tensor])

    def _is_transposed(self, tensor: Tensor) -> bool:
        """Tell whether a tensor was brought to channels first, which the runtime undoes: it would pad the last axis."""
        rounded = self._rounded.get(tensor)
        source = producer(tensor if rounded is None else rounded)
        return source is not None and source.op == "Transpose"

    def _columns_of(self, node: Node, tensor: Tensor, shape: tuple[int, ...]) -> MergedColumns | None:
        """Return how a convolution reads an image that was given channels last, with columns merged; None otherwise."""
        rounded, result = self._rounded.get(tensor), self._placement.outputs.get(node)
        source = None if rounded is None else producer(rounded)
        if node.op != "Conv" or result is None or source is None or source.op != "Transpose":
            return None
        if source.attrs.get("perm") != [0, 3, 1, 2] or not has_image_channels(node, shape):
            return None
        if is_graph_output(result) or is_graph_output(node.outputs[0]):
            return None
        sizes = self._types.shape(tensor)
        if sizes is None or not all(isinstance(size, int) for size in sizes[1:]):
            return None
        return merged_columns(node, shape, (1, *(int(size) for size in sizes[1:])))  # type: ignore[arg-type]

    def _read_merged(self, rw: Rewriter, node: Node, tensor: Tensor, columns: MergedColumns) -> None:
        """Let a convolution read an image with merged columns; its weight and bias are merged already."""
        source = producer(self._rounded[tensor])
        assert source is not None
        merged = merge(rw, node, source.inputs[0], columns)
        rw.set_input(node, 0, self._restore(rw, node, tensor, merged, self._placement.groups[tensor]))
        rw.set_attr(node, "strides", [columns.rows, 1])
        rw.set_attr(node, "pads", [columns.above, columns.left, columns.below, columns.right])
        if "kernel_shape" in node.attrs:
            rw.set_attr(node, "kernel_shape", [int(node.attrs["kernel_shape"][0]), columns.columns])
        for each in dict.fromkeys((node.outputs[0], self._placement.outputs[node])):
            rw.set_type(each, np.dtype(np.float32), None)
        self._drop_idle(rw, [tensor])
        if not uses(source.outputs[0]):
            rw.erase([source])

    def _four_channels(self, rw: Rewriter, node: Node, tensor: Tensor, rank: int) -> Variable:
        """Return an image of three channels with a fourth that holds zeros, in restored form."""
        if tensor not in self._padded:
            rounded = self._round(rw, node, tensor)
            group = self._placement.groups[tensor]
            pads = np.zeros(2 * rank, np.int64)
            pads[rank + 1] = 1
            amounts = rw.constant(pads, name=f"{short_name(tensor)}_fourth_channel", near=node)
            wider = rw.op("Pad", [rounded, amounts, self._constants(rw, node, group)[1]], near=node)
            self._padded[tensor] = self._restore(rw, node, tensor, wider, group)
        return self._padded[tensor]

    def _few(self, rw: Rewriter, node: Node, tensor: Tensor, grid: Grid) -> Variable:
        """Return the restored form of a tensor on a grid of few levels.

        What an integer operator made was rounded to its own grid before: a residual branch keeps all levels of that.
        Rounding saturates at the end of the type, so the integers are cut off behind it.
        """
        if tensor not in self._coarse:
            name = short_name(tensor)
            scale = rw.constant(np.asarray(grid.scale, np.float32), name=f"{name}_few_scale", near=node)
            zero_point = self._zero_point(rw, node, np.asarray(grid.zero_point, grid.number.dtype))
            source = self._restored.get(tensor, tensor)
            rounded = conversion(rw, "QuantizeLinear", [source, scale, zero_point], near=node)
            ends = [self._zero_point(rw, node, np.asarray(end, grid.number.dtype)) for end in (grid.bottom, grid.top)]
            cut = rw.op("Clip", [rounded, *ends], near=node, name=f"{name}_few")
            rw.set_type(cut, grid.number.dtype, tensor.shape)
            self._coarse[tensor] = conversion(rw, "DequantizeLinear", [cut, scale, zero_point], near=node)
        return self._coarse[tensor]

    def _round(self, rw: Rewriter, node: Node, tensor: Tensor) -> Variable:
        """Return the integers of a tensor; a tensor that a float operator made is rounded before its first reader."""
        if tensor not in self._rounded:
            scale, zero_point = self._constants(rw, node, self._placement.groups[tensor])
            source = pool_first(rw, tensor)
            rounded = conversion(rw, "QuantizeLinear", [source, scale, zero_point], near=node)
            self._rounded[tensor] = rounded
        return self._rounded[tensor]

    def _restore(self, rw: Rewriter, node: Node, tensor: Tensor, rounded: Variable, group: Group) -> Variable:
        scale, zero_point = self._constants(rw, node, group)
        return conversion(rw, "DequantizeLinear", [rounded, scale, zero_point], near=node)

    def _round_output(self, rw: Rewriter, node: Node) -> None:
        """Round what an integer operator makes and let every reader read the rounded form."""
        tensor = self._placement.outputs.get(node)
        if tensor is None:
            return
        rounded, columns = self._round(rw, node, tensor), self._merged.get(node)
        rounding = producer(rounded)
        if columns is not None:
            rounded = self._rounded[tensor] = take_apart(rw, node, rounded, columns)
        self._replace(rw, node, tensor, rounded, self._placement.groups[tensor], rounding)

    def _replace(
        self,
        rw: Rewriter,
        node: Node,
        tensor: Tensor,
        rounded: Variable,
        group: Group,
        rounding: Node | None = None,
    ) -> None:
        """Let every reader of a tensor read what its integers stand for, but for what rounds it."""
        rounding = rounding or producer(rounded)
        restored = self._restore(rw, node, tensor, rounded, group)
        if is_graph_output(tensor):
            # What an integer operator reads must not be an output of the graph (G3): each gets its own restored form.
            answer = self._restore(rw, node, tensor, rounded, group)
            rw.replace_uses(tensor, restored, where=lambda use: use.node is not rounding)
            rw.replace_tensor(tensor, answer)
            if rounding is not None and answer in rounding.inputs:
                rw.set_input(rounding, 0, tensor)
        else:
            rw.replace_uses(tensor, restored, where=lambda use: use.node is not rounding)
        self._remember(tensor, restored)
        self._drop_idle(rw, [tensor])

    def _remember(self, tensor: Tensor, restored: Variable) -> None:
        self._restored[tensor] = restored
        self._origins[restored] = tensor

    def _drop_idle(self, rw: Rewriter, tensors: Iterable[Tensor]) -> None:
        """Remove restored forms that nothing reads any more."""
        for tensor in tensors:
            restored = self._restored.get(tensor)
            if restored is not None and not uses(restored) and not is_graph_output(restored):
                source = producer(restored)
                assert source is not None
                rw.erase([source])
                del self._restored[tensor], self._origins[restored]

    def _constants(self, rw: Rewriter, node: Node, group: Group) -> tuple[Constant, Constant]:
        """Return the scale and zero point of a group, written out once."""
        key = id(group)
        if key not in self._parameters:
            grid = self._grid_of(group)
            base = short_name(group.tensors[0])
            scale = rw.constant(np.asarray(grid.scale, np.float32), name=f"{base}_scale", near=node)
            self._parameters[key] = (scale, self._zero_point(rw, node, np.asarray(grid.zero_point, grid.number.dtype)))
        return self._parameters[key]

    def _zero_point(self, rw: Rewriter, node: Node, value: NDArray[np.generic]) -> Constant:
        """Return a zero point; equal ones are written once."""
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self._zero_points:
            self._zero_points[key] = rw.constant(value, name=f"zero_point_{value.dtype.name}", near=node)
        return self._zero_points[key]

    def _restored_constant(self, rw: Rewriter, node: Node, value: NDArray[np.float32], tensor: Tensor) -> Variable:
        low, high = float(value.min(initial=0.0)), float(value.max(initial=0.0))
        grid = activation_grid(low, high, kind=self._grid_of.kind)
        name = short_name(tensor)
        rounded = rw.constant(grid.quantize(value), name=f"{name}_quantized", near=node)
        scale = rw.constant(np.asarray(grid.scale, np.float32), name=f"{name}_scale", near=node)
        zero_point = self._zero_point(rw, node, np.asarray(grid.zero_point, grid.number.dtype))
        return conversion(rw, "DequantizeLinear", [rounded, scale, zero_point], near=node)

    # -------------------------------------------------------------------------------------------------- weights

    def _corrected(
        self,
        node: Node,
        rule: OpRule,
        tensor: Tensor,
        weight: IntegerWeight,
        bias: NDArray[np.float32] | None,
    ) -> NDArray[np.float32] | None:
        """Return the bias, less what rounding the weight adds to the mean of each output."""
        means = self._means_of(tensor)
        if means is None or rule.bias is None:
            return bias
        shift = mean_shift(node, weight.values.astype(np.float64) - weight.restore(), means)
        if shift is None:
            return bias
        return (shift if bias is None else bias + shift).astype(np.float32)

    def _bias(self, node: Node, rule: OpRule, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """Return the bias that is rounded to int32 with the weight of a shape, one value per output, or None."""
        if rule.bias is None:
            return self._added_bias(node, shape[-1])
        if len(node.inputs) <= rule.bias or node.inputs[rule.bias].is_empty():
            return None
        value = constant_value(node.inputs[rule.bias])
        if value is None:
            return None
        if node.op == "Gemm":
            count = shape[output_axis(node, 2)]
            beta = np.float32(node.attrs.get("beta", 1.0))
            return np.ascontiguousarray(np.broadcast_to(np.asarray(value, np.float32).reshape(-1) * beta, (count,)))
        return np.asarray(value, np.float32)

    def _added_bias(self, node: Node, count: int) -> NDArray[np.float32] | None:
        """Return the constant that an Add behind a MatMul adds, where ONNX Runtime would fuse both to a float Gemm.

        It does so for matrices, and for more axes where all sizes are known; a bias that comes out of a
        DequantizeLinear keeps the Gemm an integer one.
        """
        x = self._original(node.inputs[0])
        known = self._types.rank(x) == 2 or self._types.static_shape(x) is not None
        readers = uses(node.outputs[0])
        if not known or len(readers) != 1 or readers[0].node.op != "Add" or is_graph_output(node.outputs[0]):
            return None
        other = constant_value(readers[0].node.inputs[1 - readers[0].index])
        if other is None or other.shape not in {(count,), (1, count)} or other.dtype != np.float32:
            return None
        return np.asarray(other, np.float32).reshape(-1)

    def _restored_weight(self, rw: Rewriter, node: Node, weight: IntegerWeight) -> Variable:
        source = node.inputs[1]
        key = (id(source), weight.codes.shape, weight.axis, weight.scales.tobytes())
        if key not in self._weights:
            one, name = weight.axis is None, short_name(source)
            values = weight.write(rw, node, name)
            scales = weight.scales.reshape(()) if one else weight.scales
            steps = rw.constant(scales, name=f"{name}_scale", near=node)
            zero_point = self._zero_point(rw, node, np.zeros(scales.shape, np.int8))
            attrs = {} if one else {"axis": weight.axis}
            restored = conversion(rw, "DequantizeLinear", [values, steps, zero_point], attrs=attrs, near=node)
            self._weights[key] = (restored, source)
        return self._weights[key][0]

    def _restored_bias(
        self, rw: Rewriter, node: Node, bias: NDArray[np.float32], step: np.float32, scales: NDArray[np.float32]
    ) -> Variable:
        values, steps = quantize_bias(bias, step, scales)
        name = f"{short_name(node.outputs[0])}_bias"
        one = steps.size == 1
        rounded = rw.constant(values, name=f"{name}_quantized", near=node)
        scale = rw.constant(steps.reshape(()) if one else steps, name=f"{name}_scale", near=node)
        attrs: dict[str, object] = {} if one else {"axis": 0}
        return conversion(rw, "DequantizeLinear", [rounded, scale], attrs=attrs, near=node)
