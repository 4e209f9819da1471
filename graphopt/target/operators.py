"""What the placement asks about single operators: bounds, sizes, who may override a constant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import Constant, constant_value
from graphopt.target.stored import weight_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.graph import Model, Node

Bounds = tuple[float, float]
"""Smallest and largest value, in real units."""


def activation_bounds(node: Node) -> Bounds | None:
    """Return the values that a Relu or a Clip with constant bounds lets through, or None for anything else."""
    if node.op == "Relu":
        return 0.0, np.inf
    if node.op != "Clip":
        return None
    bounds = [float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))]
    for place, tensor in enumerate(node.inputs[1:3]):
        if tensor is None or tensor.is_empty():
            continue
        value = constant_value(tensor)
        if value is None or value.size != 1:
            return None
        bounds[place] = float(value.reshape(-1)[0])
    # 0.0 must lie on every grid, and a lower bound other than 0 or none would move the zero point.
    return (bounds[0], bounds[1]) if bounds[0] <= 0.0 < bounds[1] else None


def is_overridable(model: Model, node: Node) -> bool:
    """Tell whether a constant that a node reads is also an input of the model, which a caller may override."""
    return any(isinstance(tensor, Constant) and model.graph.is_overridable(tensor) for tensor in node.inputs)


def products_of(node: Node, sizes: Mapping[str, float]) -> float:
    """Return the products per sample that a weighted operator saves time on; a depthwise convolution saves none."""
    if is_depthwise(node):
        return 0.0
    shape = weight_shape(node.inputs[1])
    assert shape is not None, "its rule refuses it otherwise"
    if node.op == "Conv":
        return sizes.get(node.outputs[0].name, 0.0) * float(np.prod(shape[1:]))
    columns = shape[0] if node.op == "Gemm" and node.attrs.get("transB", 0) else shape[-1]
    return sizes.get(node.inputs[0].name, 0.0) * columns


def is_depthwise(node: Node) -> bool:
    """Tell whether a convolution has one filter per input channel."""
    group = int(node.attrs.get("group", 1))
    if node.op != "Conv" or group == 1:
        return False
    shape = weight_shape(node.inputs[1]) or node.inputs[1].shape
    return shape is not None and shape[1] == 1


def output_axis(node: Node, rank: int) -> int:
    """Return the axis of a weight that counts output channels: the only one with a scale per entry (never K)."""
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return rank - 1
