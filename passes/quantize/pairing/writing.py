"""Writes single pairs of QuantizeLinear and DequantizeLinear, and constants as integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import constant_value, producer
from graphopt.passes.quantize.writing import short_name
from graphopt.target.grid import Grid, GridKind, activation_grid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor, Variable
    from graphopt.target.numbers import Number

CONTRIBUTED = "com.microsoft"


class PairWriter:
    """Writes conversions in the domain that has their types.

    Args:
        opset: Of the model.
    """

    def __init__(self, opset: int) -> None:
        self._opset = opset

    def pair(
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
        rounded = self.convert(rw, "QuantizeLinear", [tensor, scale, zero], grid.number, node, attrs)
        rw.set_type(rounded, grid.number.dtype, tensor.shape)
        return self.convert(rw, "DequantizeLinear", [rounded, scale, zero], grid.number, node, attrs, like=tensor)

    def again(self, rw: Rewriter, node: Node, restored: Variable) -> Variable:
        """Restore the integers of a restored tensor a second time."""
        source = producer(restored)
        assert source is not None
        made: Variable = rw.op(
            source.op, list(source.inputs), attrs=dict(source.attrs), domain=source.domain, near=node, like=restored
        )
        return made

    def convert(
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

    def restored_constant(self, rw: Rewriter, node: Node, tensor: Tensor, kind: GridKind) -> Variable:
        """Write a constant that is no weight as integers."""
        value = np.asarray(constant_value(tensor), np.float32)
        low, high = float(value.min(initial=0.0)), float(value.max(initial=0.0))
        grid = activation_grid(low, high, kind=kind)
        return self.integers(
            rw, node, tensor, grid.quantize(value), grid.number, np.asarray(grid.scale), grid.zero_point
        )

    def integers(
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
        return self.convert(rw, "DequantizeLinear", [values, scale, zero], number, node, attrs, like=tensor)
