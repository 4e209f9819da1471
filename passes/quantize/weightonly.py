"""Writes layers whose weights alone are integers: the file shrinks, the arithmetic stays float; it needs no data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value, owner
from graphopt.passes.quantize.writing import conversion, drop_unused, short_name
from graphopt.target.grid import weight_scales
from graphopt.target.numbers import INT8, Number

if TYPE_CHECKING:
    from graphopt.graph import Node, Rewriter, Tensor, Variable

SMALLEST_WEIGHT = 1024
"""Values below which a weight stays float: its scales and the operator that restores it would take more."""

WEIGHTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1,),
    "MatMul": (1,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
"""Operator to the positions of its weights."""


def stored_places(node: Node) -> list[int]:
    """Return the positions of the weights of a node that are worth storing as integers."""
    if node.domain not in {None, "", "ai.onnx"}:
        return []
    places = [place for place in WEIGHTS.get(node.op, ()) if place < len(node.inputs)]
    return [place for place in places if _is_large(node, place)]


def _is_large(node: Node, place: int) -> bool:
    value = constant_value(node.inputs[place])
    return value is not None and value.dtype == np.float32 and value.ndim >= 2 and value.size >= SMALLEST_WEIGHT


def are_finite(node: Node, places: list[int]) -> bool:
    """Tell whether the weights at these positions are numbers throughout."""
    values = (constant_value(node.inputs[place]) for place in places)
    return all(value is not None and bool(np.isfinite(value.astype(np.float32)).all()) for value in values)


class StoredWeights:
    """Weights stored as integers, each once however many nodes and bodies read it.

    Args:
        per_channel: One scale per output channel; needs opset 13.
        number: Type they are stored in.
    """

    def __init__(self, *, per_channel: bool, number: Number = INT8) -> None:
        self._per_channel = per_channel
        self._number = number
        self._restored: dict[tuple[Tensor, int | None], Variable] = {}

    def store(self, rw: Rewriter, node: Node, places: list[int]) -> None:
        """Let a node read the given weights out of their integers."""
        for place in places:
            source = node.inputs[place]
            value = constant_value(source)
            assert value is not None, "it is no stored place otherwise"
            axis = channel_axis(node, value.ndim) if self._per_channel else None
            key = (source, axis)
            if key not in self._restored:
                self._restored[key] = self._write(rw, node, source, axis)
            rw.set_input(node, place, self._restored[key])
            drop_unused(rw, [source])

    def _write(self, rw: Rewriter, node: Node, source: Tensor, axis: int | None) -> Variable:
        """Write the integers and what restores them in the graph that owns the weight: bodies capture the result."""
        near = in_graph_of(source, node)
        value = constant_value(source)
        assert value is not None
        weight = np.asarray(value, np.float32)
        number = self._number
        scales = weight_scales(weight, axis, number.top)
        name, one = short_name(source), axis is None
        spread = scales if one else scales.reshape([-1 if place == axis else 1 for place in range(weight.ndim)])
        codes, zero = number.cast(weight / spread), np.zeros(() if one else scales.shape).astype(number.dtype)
        values = rw.constant(codes, name=f"{name}_quantized", near=near, onnx_dtype=number.element)
        steps = rw.constant(scales.reshape(()) if one else scales, name=f"{name}_scale", near=near)
        zeros = rw.constant(zero, name=f"{name}_zero_point", near=near, onnx_dtype=number.element)
        attrs = {} if one else {"axis": axis}
        return conversion(rw, "DequantizeLinear", [values, steps, zeros], attrs=attrs, near=near)


def in_graph_of(source: Tensor, node: Node) -> Node:
    """Return the node that is or contains ``node`` in the graph that owns a tensor."""
    home = owner(source)
    while node.graph is not home and node.graph is not None and node.graph.parent_node is not None:
        node = node.graph.parent_node
    return node


def channel_axis(node: Node, rank: int) -> int:
    """Return the axis of a weight that counts output channels."""
    if node.op == "Conv":
        return 0
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    if node.op == "MatMul":
        return rank - 1
    return 1
