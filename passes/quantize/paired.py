"""Writes pairs of QuantizeLinear and DequantizeLinear for targets that compile quantized models themselves.

Operators stay as they are; what they read and make is declared to lie on grids. Each method is the body of one patch;
the model computes legally after each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.passes.quantize.static import drop_unused, mean_shift, short_name
from graphopt.target.grid import (
    Grid,
    GridKind,
    activation_grid,
    fit_bias,
    quantize_bias,
    quantize_weight,
    weight_scales,
)
from graphopt.target.operators import activation_bounds, output_axis
from graphopt.target.rules import BiasForm, Pairs, Role, WeightForm, WeightKind
from graphopt.target.stored import StoredWeight, stored_weight, weight_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor, Variable
    from graphopt.passes.quantize.grids import GridOf
    from graphopt.target.numbers import Number
    from graphopt.target.pairs import PairPlacement
    from graphopt.target.placement import Group
    from graphopt.target.rules import OpRule, Target

CONTRIBUTED = "com.microsoft"


class PairForm:
    """Turns the operators of a placement into their declared form, one after the other, in graph order.

    Args:
        target: The rules.
        placement: Which tensors carry pairs.
        grid_of: The grid of a group of tensors.
        means_of: The mean per channel of a float tensor, where it is known; with it biases make up for what rounding
            the weights adds to the mean of each output.
        per_channel: One weight scale per output channel where the target takes it; needs opset 13.
        opset: Of the model.
    """

    def __init__(
        self,
        target: Target,
        placement: PairPlacement,
        grid_of: GridOf,
        means_of: Callable[[Tensor], NDArray[np.float64] | None],
        *,
        per_channel: bool,
        opset: int,
    ) -> None:
        self._target = target
        self._placement = placement
        self._grid_of = grid_of
        self._means_of = means_of
        self._per_channel = per_channel
        self._opset = opset
        self._everywhere = target.pairs is Pairs.EVERYTHING
        self._grids: dict[int, Grid] = {}
        self._restored: dict[Tensor, Variable] = {}
        self._origins: dict[Tensor, Tensor] = {}

    # ------------------------------------------------------------------------------------------------- operators

    def declare(self, rw: Rewriter, node: Node, rule: OpRule) -> None:
        """Give a node the pairs that the placement says."""
        if rule.role is Role.ABSORBED and self._is_redundant(node):
            self._take_out(rw, node)
            return
        for place in self._placement.edges[node]:
            self._read(rw, node, place)
        if rule.role is Role.WEIGHTED:
            self._declare_weight(rw, node, rule)
        elif self._everywhere:
            self._declare_constants(rw, node, rule)
        if self._everywhere:
            for tensor in list(node.outputs):
                self._declare_output(rw, node, tensor)

    def describe(self, rule: OpRule) -> str:
        """Return how weight and activations of an operator are rounded, for the per-layer table."""
        kind, number = self._target.weight_kind(rule), self._grid_of.kind.number
        weights = number.name if number.real else kind.number.name
        shared = "channel" if kind.channels and self._per_channel else "tensor"
        return f"{weights} weights per {shared}, {number.name} activations"

    def grid(self, group: Group) -> Grid:
        """Return the grid of a group; equal on every call."""
        if id(group) not in self._grids:
            number = self._grid_of.kind.number
            exact = group.exact.get(number.name)
            if exact is None:
                self._grids[id(group)] = self._grid_of(group)
            else:
                self._grids[id(group)] = Grid(np.float32(exact[0]), exact[1], number.top, number.bottom, number)
        return self._grids[id(group)]

    # ----------------------------------------------------------------------------------------------- activations

    def _original(self, tensor: Tensor) -> Tensor:
        return self._origins.get(tensor, tensor)

    def _group(self, tensor: Tensor) -> Group:
        return self._placement.groups[self._original(tensor)]

    def _read(self, rw: Rewriter, node: Node, place: int) -> None:
        """Let an input read the restored form of its tensor."""
        tensor = self._original(node.inputs[place])
        if tensor not in self._restored:
            restored = self._pair(rw, node, tensor, self.grid(self._placement.groups[tensor]))
            self._remember(tensor, restored)
            if self._everywhere:
                rounding = self._rounding(restored)
                rw.replace_uses(tensor, restored, where=lambda use: use.node is not rounding)
        rw.set_input(node, place, self._restored[tensor])

    def _declare_output(self, rw: Rewriter, node: Node, tensor: Tensor) -> None:
        """Round what a node makes, and let everything read the restored form, callers too."""
        if tensor in self._restored or tensor not in self._placement.groups:
            return
        readers = uses(tensor)
        if not readers and not is_graph_output(tensor):
            return
        if self._waits(tensor):
            return
        restored = self._pair(rw, node, tensor, self.grid(self._placement.groups[tensor]))
        rounding = self._rounding(restored)
        rw.replace_uses(tensor, restored, where=lambda use: use.node is not rounding)
        self._remember(tensor, restored)
        if is_graph_output(tensor):
            rw.replace_tensor(tensor, restored)
            rw.set_input(rounding, 0, tensor)

    def _waits(self, tensor: Tensor) -> bool:
        """Tell whether the one reader of a tensor is an activation that its grid makes redundant."""
        readers = uses(tensor)
        if len(readers) != 1 or is_graph_output(tensor) or not self._target.absorbs:
            return False
        reader = readers[0].node
        rule = self._placement.nodes.get(reader)
        return rule is not None and rule.role is Role.ABSORBED and self._is_redundant(reader)

    def _is_redundant(self, node: Node) -> bool:
        """Tell whether the grid of what an activation makes cuts off all that it cuts off."""
        bounds = activation_bounds(node)
        source = self._group(node.inputs[0])
        behind = self._placement.groups.get(node.outputs[0])
        if bounds is None or not self._target.absorbs or source is not behind:
            return False
        return self.grid(source).makes_clip_redundant(*bounds)

    def _take_out(self, rw: Rewriter, node: Node) -> None:
        """Remove an activation; the pair then stands behind the operator before it."""
        before, after = node.inputs[0], node.outputs[0]
        source = producer(before)
        assert source is not None
        if is_graph_output(after):
            place = next(index for index, tensor in enumerate(source.outputs) if tensor is before)
            rw.replace_tensor(after, before)
            rw.erase([node])
            made = source.outputs[place]
        else:
            rw.replace_uses(after, before)
            rw.erase([node])
            made = before
        self._declare_output(rw, source, made)

    def _remember(self, tensor: Tensor, restored: Variable) -> None:
        self._restored[tensor] = restored
        self._origins[restored] = tensor

    def _rounding(self, restored: Variable) -> Node:
        source = producer(restored)
        assert source is not None
        rounding = producer(source.inputs[0])
        assert rounding is not None
        return rounding

    def _pair(
        self,
        rw: Rewriter,
        node: Node,
        tensor: Tensor,
        grid: Grid,
        scales: NDArray[np.float32] | None = None,
        axis: int = 0,
    ) -> Variable:
        """Write a QuantizeLinear and a DequantizeLinear behind a tensor."""
        steps = np.asarray(grid.scale, np.float32) if scales is None else scales
        zeros = np.full(steps.shape, grid.zero_point).astype(grid.number.dtype)
        name = short_name(tensor)
        scale = rw.constant(steps, name=f"{name}_scale", near=node)
        zero = rw.constant(zeros, name=f"{name}_zero_point", near=node, onnx_dtype=grid.number.element)
        attrs: dict[str, Any] = {} if scales is None else {"axis": axis}
        rounded = self._convert(rw, "QuantizeLinear", [tensor, scale, zero], grid.number, node, attrs)
        rw.set_type(rounded, grid.number.dtype, tensor.shape)
        return self._convert(rw, "DequantizeLinear", [rounded, scale, zero], grid.number, node, attrs, like=tensor)

    def _convert(
        self,
        rw: Rewriter,
        op: str,
        inputs: list[Tensor],
        number: Number,
        near: Node,
        attrs: Mapping[str, Any],
        like: Tensor | None = None,
    ) -> Variable:
        """Write one conversion, in the domain of ONNX Runtime where the opset of the model has not the type."""
        domain = None if self._opset >= number.since else CONTRIBUTED
        name = f"{short_name(inputs[0])}_{op}"
        made: Variable = rw.op(op, inputs, attrs=dict(attrs), domain=domain, near=near, name=name, like=like)
        source = producer(made)
        assert source is not None
        source.metadata.clear()  # exporters note a stack trace there, larger than a small layer
        return made

    def _restored_constant(self, rw: Rewriter, node: Node, tensor: Tensor) -> Variable:
        """Write a constant that is no weight as integers."""
        value = np.asarray(constant_value(tensor), np.float32)
        low, high = float(value.min(initial=0.0)), float(value.max(initial=0.0))
        grid = activation_grid(low, high, kind=self._grid_of.kind)
        return self._integers(
            rw, node, tensor, grid.quantize(value), grid.number, np.asarray(grid.scale), grid.zero_point
        )

    def _integers(
        self,
        rw: Rewriter,
        node: Node,
        tensor: Tensor,
        codes: NDArray[Any],
        number: Number,
        scales: NDArray[np.float32],
        zero_point: int = 0,
        axis: int | None = None,
    ) -> Variable:
        """Write constant integers and what restores them."""
        name = short_name(tensor)
        values = rw.constant(codes, name=f"{name}_quantized", near=node, onnx_dtype=number.element)
        scale = rw.constant(np.asarray(scales, np.float32), name=f"{name}_scale", near=node)
        zeros = np.full(scales.shape, zero_point).astype(number.dtype)
        zero = rw.constant(zeros, name=f"{name}_zero_point", near=node, onnx_dtype=number.element)
        attrs = {} if axis is None else {"axis": axis}
        return self._convert(rw, "DequantizeLinear", [values, scale, zero], number, node, attrs, like=tensor)

    def _declare_constants(self, rw: Rewriter, node: Node, rule: OpRule) -> None:
        for place in rule.data_positions(node):
            if place >= len(node.inputs) or constant_value(node.inputs[place]) is None:
                continue
            tensor = node.inputs[place]
            if np.dtype(tensor.dtype) == np.float32:
                rw.set_input(node, place, self._restored_constant(rw, node, tensor))
                drop_unused(rw, [tensor])

    # --------------------------------------------------------------------------------------------------- weights

    def _declare_weight(self, rw: Rewriter, node: Node, rule: OpRule) -> None:
        """Write the weight, and the bias with it, on the grids that the target takes."""
        place = rule.weight
        assert place is not None
        old = node.inputs[place]
        value = weight_value(old)
        assert value is not None
        factor = self._factor(rw, node)
        weight = np.asarray(np.asarray(value, np.float32) * factor, np.float32)
        kind = self._weight_kind(rule)
        step = self.grid(self._group(node.inputs[0])).scale
        bias = self._bias(node, rule, weight)
        axis = output_axis(node, weight.ndim) if self._has_channels(node, kind) else None
        grid, scales = self._weight_grid(weight, kind, axis)
        stored = stored_weight(old)
        kept = isinstance(stored, StoredWeight) and kind.symmetric and self._suits(stored, kind, axis) and factor == 1
        if kept and isinstance(stored, StoredWeight):
            scales, axis = stored.scales, stored.axis
        if bias is not None and self._target.bias_form is BiasForm.INT32 and not kept:
            fitted = fit_bias(bias, step, scales)
            scales = fitted if axis is not None else fitted.max(keepdims=True)
            if axis is None:
                grid = Grid(scales[0], grid.zero_point, grid.top, grid.bottom, grid.number)
        restored, error = self._write_weight(rw, node, old, weight, kind, grid, scales, axis, kept=kept)
        if restored is not None:
            rw.set_input(node, place, restored)
        self._write_bias(rw, node, rule, bias, error, step, scales)
        drop_unused(rw, [old])

    def _weight_kind(self, rule: OpRule) -> WeightKind:
        kind, number = self._target.weight_kind(rule), self._grid_of.kind.number
        return WeightKind(number=number, channels=kind.channels) if number.real else kind

    def _has_channels(self, node: Node, kind: WeightKind) -> bool:
        grouped = node.op == "ConvTranspose" and int(node.attrs.get("group", 1)) > 1
        return kind.channels and self._per_channel and not grouped

    @staticmethod
    def _suits(stored: StoredWeight, kind: WeightKind, axis: int | None) -> bool:
        """Tell whether the grid that a weight stands on already is one that the target takes."""
        if np.dtype(stored.integers.dtype).name != kind.number.name:
            return False
        return stored.axis is None or stored.axis == axis

    def _factor(self, rw: Rewriter, node: Node) -> np.float32:
        """Return the factor of a Gemm, taken out of it where its bias is to be integers."""
        factor = np.float32(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else np.float32(1.0)
        if factor != 1.0:
            rw.set_attr(node, "alpha", None)
        return factor

    def _weight_grid(
        self, weight: NDArray[np.float32], kind: WeightKind, axis: int | None
    ) -> tuple[Grid, NDArray[np.float32]]:
        if kind.number.real:
            scales = weight_scales(weight, axis, kind.number.top)
            return Grid(scales[0], 0, kind.number.top, kind.number.bottom, kind.number), scales
        if kind.symmetric:
            scales = weight_scales(weight, axis, kind.limit)
            return Grid(scales[0], 0, kind.limit, -kind.limit, kind.number), scales
        low, high = float(weight.min(initial=0.0)), float(weight.max(initial=0.0))
        grid = activation_grid(low, high, kind=GridKind(kind.number))
        return grid, np.asarray([grid.scale], np.float32)

    def _write_weight(
        self,
        rw: Rewriter,
        node: Node,
        old: Tensor,
        weight: NDArray[np.float32],
        kind: WeightKind,
        grid: Grid,
        scales: NDArray[np.float32],
        axis: int | None,
        *,
        kept: bool,
    ) -> tuple[Variable | None, NDArray[np.float64]]:
        """Write a weight; return its restored form, None where it stays as it is, and what rounding adds to it."""
        if kept:
            return None, np.zeros(weight.shape)
        shape = [1] * weight.ndim
        if axis is not None:
            shape[axis] = -1
        spread = scales.reshape(shape)
        if kind.symmetric and not kind.number.real:
            codes: NDArray[Any] = quantize_weight(weight, axis, scales, kind.limit).values
            real = codes.astype(np.float64) * spread
        elif kind.number.real:
            codes = kind.number.cast(weight / spread)
            real = codes.astype(np.float64) * spread
        else:
            codes = grid.quantize(weight)
            real = (codes.astype(np.float64) - grid.zero_point) * float(grid.scale)
        steps = scales if axis is not None else scales.reshape(())
        if self._target.weight_form is WeightForm.PAIRS:
            plain = constant_value(old)
            source = old if plain is not None and np.array_equal(weight, plain) else None
            if source is None:
                source = rw.constant(weight, name=short_name(old), near=node)
            restored = self._pair(rw, node, source, grid, None if axis is None else steps, axis or 0)
        else:
            restored = self._integers(rw, node, old, codes, kind.number, steps, grid.zero_point, axis)
        return restored, real - weight.astype(np.float64)

    # ---------------------------------------------------------------------------------------------------- biases

    def _bias(self, node: Node, rule: OpRule, weight: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return the bias, one value per output, or None."""
        if rule.bias is None or len(node.inputs) <= rule.bias or node.inputs[rule.bias].is_empty():
            return None
        value = constant_value(node.inputs[rule.bias])
        if value is None:
            return None
        if node.op == "Gemm":
            count = weight.shape[output_axis(node, 2)]
            beta = np.float32(node.attrs.get("beta", 1.0))
            return np.ascontiguousarray(np.broadcast_to(np.asarray(value, np.float32).reshape(-1) * beta, (count,)))
        return np.asarray(value, np.float32)

    def _write_bias(
        self,
        rw: Rewriter,
        node: Node,
        rule: OpRule,
        bias: NDArray[np.float32] | None,
        error: NDArray[np.float64],
        step: np.float32,
        scales: NDArray[np.float32],
    ) -> None:
        """Write the bias, less what rounding the weight adds to the mean of each output."""
        if rule.bias is None:
            return
        means = self._means_of(self._original(node.inputs[0]))
        shift = None if means is None or node.op == "ConvTranspose" else mean_shift(node, error, means)
        if shift is not None and error.any():
            bias = (-shift if bias is None else bias - shift).astype(np.float32)
        if bias is None:
            return
        old = node.inputs[rule.bias] if len(node.inputs) > rule.bias else None
        name = f"{short_name(node.outputs[0])}_bias"
        if self._target.bias_form is BiasForm.FLOAT:
            made: Tensor = rw.constant(bias, name=name, near=node)
        else:
            values, steps = quantize_bias(bias, step, scales)
            one = steps.size == 1
            rounded = rw.constant(values, name=f"{name}_quantized", near=node)
            scale = rw.constant(steps.reshape(()) if one else steps, name=f"{name}_scale", near=node)
            attrs: dict[str, Any] = {} if one else {"axis": 0}
            made = rw.op("DequantizeLinear", [rounded, scale], attrs=attrs, near=node, name=f"{name}_DequantizeLinear")
        rw.set_input(node, rule.bias, made)
        if node.attrs.get("beta", 1.0) != 1.0:
            rw.set_attr(node, "beta", None)
        if old is not None:
            drop_unused(rw, [old])
