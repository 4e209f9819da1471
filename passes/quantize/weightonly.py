"""Writes layers whose weights alone are integers: the file shrinks, the arithmetic stays float; it needs no data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value
from graphopt.passes.quantize.static import conversion, drop_unused, short_name
from graphopt.target.grid import quantize_weight, weight_scales

if TYPE_CHECKING:
    from graphopt.graph import Node, Rewriter

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


def store_as_integers(rw: Rewriter, node: Node, places: list[int], *, per_channel: bool) -> None:
    """Let a node read the given weights out of int8."""
    for place in places:
        source = node.inputs[place]
        value = constant_value(source)
        assert value is not None
        weight = np.asarray(value, np.float32)
        axis = channel_axis(node, weight.ndim) if per_channel else None
        scales = weight_scales(weight, axis)
        name, one = short_name(source), axis is None
        values = rw.constant(quantize_weight(weight, axis, scales).values, name=f"{name}_quantized", near=node)
        steps = rw.constant(scales.reshape(()) if one else scales, name=f"{name}_scale", near=node)
        zeros = rw.constant(np.zeros(() if one else scales.shape, np.int8), name=f"{name}_zero_point", near=node)
        attrs = {} if one else {"axis": axis}
        rw.set_input(node, place, conversion(rw, "DequantizeLinear", [values, steps, zeros], attrs=attrs, near=node))
        drop_unused(rw, [source])


def channel_axis(node: Node, rank: int) -> int:
    """Return the axis of a weight that counts output channels."""
    if node.op == "Conv":
        return 0
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    if node.op == "MatMul":
        return rank - 1
    return 1
