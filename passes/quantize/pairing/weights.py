"""Writes the weights and biases of operators that are declared quantized, on the grids that their target takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import constant_value
from graphopt.passes.quantize.integers import IntegerWeight
from graphopt.passes.quantize.weighing import least_error, least_error_grid
from graphopt.passes.quantize.writing import drop_unused, mean_shift, short_name
from graphopt.target.grid import (
    Grid,
    GridKind,
    activation_grid,
    fit_bias,
    quantize_bias,
    quantize_weight,
    weight_scales,
)
from graphopt.target.operators import output_axis
from graphopt.target.rules import BiasForm, WeightForm, WeightKind
from graphopt.target.stored import StoredWeight, stored_weight, weight_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor, Variable
    from graphopt.passes.quantize.pairing.writing import PairWriter
    from graphopt.target.numbers import Number
    from graphopt.target.rules import OpRule, Target

    PerChannel = Callable[[Tensor], NDArray[np.float64] | None]


class PairWeights:
    """Declares weights, one operator after the other.

    Args:
        target: The rules.
        writer: What writes the conversions.
        number: Type of activations; weights are of it too where it is a float.
        means_of: The mean per channel of a float tensor, where it is known; with it biases make up for what rounding
            the weights adds to the mean of each output.
        powers_of: The mean square per channel, where it is known: scales of weights are those of least error then; None
            lets them reach to the largest weight.
        per_channel: One scale per output channel where the target takes it; needs opset 13.
    """

    def __init__(
        self,
        target: Target,
        writer: PairWriter,
        number: Number,
        means_of: PerChannel,
        powers_of: PerChannel | None,
        *,
        per_channel: bool,
    ) -> None:
        self._target = target
        self._writer = writer
        self._number = number
        self._means_of = means_of
        self._powers_of = powers_of
        self._per_channel = per_channel

    def declare(self, rw: Rewriter, node: Node, rule: OpRule, data: Tensor, step: np.float32) -> None:
        """Write the weight, and the bias with it, on the grids that the target takes.

        Args:
            rw: The rewriter.
            node: A weighted operator.
            rule: Its rule.
            data: The float tensor that it computes on.
            step: Scale of the grid of that.
        """
        place = rule.weight
        assert place is not None
        old = node.inputs[place]
        value = weight_value(old)
        assert value is not None
        factor = self._factor(rw, node)
        weight = np.asarray(np.asarray(value, np.float32) * factor, np.float32)
        kind = self._weight_kind(rule)
        bias = self._bias(node, rule, weight)
        axis = output_axis(node, weight.ndim) if self._has_channels(node, kind) else None
        grid, scales = self._weight_grid(weight, kind, axis)
        if self._powers_of is not None and kind.symmetric and not kind.number.real:
            nearest = IntegerWeight(weight, quantize_weight(weight, axis, scales, kind.limit).values, scales, axis)
            scales = least_error(node, nearest, self._powers_of(data), kind.limit).scales
            grid = Grid(scales[0], grid.zero_point, grid.top, grid.bottom, grid.number)
        elif self._powers_of is not None and not kind.number.real:
            grid = least_error_grid(node, weight, self._powers_of(data), GridKind(kind.number))
            scales = np.asarray([grid.scale], np.float32)
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
        self._write_bias(rw, node, rule, data, bias, error, step, scales)
        drop_unused(rw, [old])

    def describe(self, rule: OpRule) -> str:
        """Return how weight and activations of an operator are rounded, for the per-layer table."""
        kind, number = self._target.weight_kind(rule), self._number
        weights = number.name if number.real else kind.number.name
        shared = "channel" if kind.channels and self._per_channel else "tensor"
        return f"{weights} weights per {shared}, {number.name} activations"

    def _weight_kind(self, rule: OpRule) -> WeightKind:
        kind, number = self._target.weight_kind(rule), self._number
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
            restored = self._writer.pair(rw, node, source, grid, None if axis is None else steps, axis or 0)
        else:
            restored = self._writer.integers(rw, node, old, codes, kind.number, steps, grid.zero_point, axis)
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
        data: Tensor,
        bias: NDArray[np.float32] | None,
        error: NDArray[np.float64],
        step: np.float32,
        scales: NDArray[np.float32],
    ) -> None:
        """Write the bias, less what rounding the weight adds to the mean of each output."""
        if rule.bias is None:
            return
        means = self._means_of(data)
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
