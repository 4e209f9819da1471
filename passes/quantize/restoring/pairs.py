"""Pairs of QuantizeLinear and DequantizeLinear, as the limits of their grid; integers at the model's border."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.tensor_grid import TensorGrid, grid_of, integer_type, is_conversion, written_grid
from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.passes.quantize.restoring.conversions import erase_idle
from graphopt.target.operators import activation_bounds

if TYPE_CHECKING:
    from graphopt.graph import Node, Rewriter, Tensor

Bounds = tuple[float, float]
EVERYTHING: Bounds = (-np.inf, np.inf)
RANGES: dict[str, Bounds] = {
    "Sigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
}
KEEPS_RANGE = frozenset(
    (
        *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Identity", "MaxPool", "GlobalMaxPool"),
        *("GlobalAveragePool", "AveragePool", "Gather", "Tile", "Expand", "DepthToSpace", "SpaceToDepth", "Split"),
    )
)
"""Operators whose results lie between the smallest and the largest value of their first input, or at 0."""
STEPS = 8
RELU6, RELU6_MARGIN = 6.0, 0.03
"""Where the activation function of many small nets ends, and how near a grid found on data comes to that."""

CLIP_TENSORS_SINCE = 11
"""The first opset whose Clip takes its bounds as inputs."""
ROUND_SINCE = 11


def readers_of(node: Node) -> list[Node]:
    """Return the DequantizeLinear nodes that restore what a QuantizeLinear made, on the same grid."""
    grid = written_grid(node)
    return [
        use.node
        for use in uses(node.outputs[0])
        if use.index == 0 and is_conversion(use.node, "DequantizeLinear") and grid.is_same_as(written_grid(use.node))
    ]


def known_bounds(tensor: Tensor, steps: int = STEPS) -> Bounds:
    """Return an interval that holds all values of a tensor, by the operators that made it."""
    node = producer(tensor)
    if node is None or steps == 0:
        return EVERYTHING
    if node.op in RANGES:
        return RANGES[node.op]
    found = activation_bounds(node) if node.op in {"Relu", "Clip"} else None
    if found is not None:
        low, high = known_bounds(node.inputs[0], steps - 1)
        return max(low, found[0]), min(high, found[1])
    if node.op in KEEPS_RANGE:
        low, high = known_bounds(node.inputs[0], steps - 1)
        return min(low, 0.0), max(high, 0.0)
    if node.op == "Concat":
        parts = [known_bounds(each, steps - 1) for each in node.inputs]
        return min(low for low, _ in parts), max(high for _, high in parts)
    return EVERYTHING


def drop_pair(rw: Rewriter, node: Node, opset: int, *, saturation: str) -> None:
    """Let what reads the restored form of a tensor read the tensor itself, within the limits of the grid.

    Args:
        rw: The rewriter.
        node: The QuantizeLinear.
        opset: Of the model.
        saturation: ``keep`` cuts values off where the grid ends; ``activations`` only below 0, where it begins there,
            and then above 6, where it ends there.
    """
    real = node.inputs[0]
    bounds = written_grid(node).bounds(integer_type(node.outputs[0]))
    if bounds is not None and constant_value(real) is None:
        real = _limited(rw, node, real, bounds, opset, saturation)
    found = readers_of(node)
    for reader in found:
        rw.replace_tensor(reader.outputs[0], real)
        rw.erase([reader])
    erase_idle(rw, [node.outputs[0]], frozenset(("QuantizeLinear",)))


def _limited(rw: Rewriter, node: Node, real: Tensor, bounds: Bounds, opset: int, saturation: str) -> Tensor:
    low, high = bounds
    step = (high - low) / 255
    least, most = known_bounds(real)
    below, above = least < low - step / 2, most > high + step / 2
    if saturation == "activations":
        positive_only = abs(low) < step / 2
        below, above = below and positive_only, above and positive_only and abs(high - RELU6) < RELU6_MARGIN
    if not (below or above):
        return real
    if not above and abs(low) < step / 2:
        positive: Tensor = rw.op("Relu", [real], like=real, near=node)
        return positive
    if opset < CLIP_TENSORS_SINCE:
        clipped: Tensor = rw.op("Clip", [real], attrs={"min": low, "max": high}, like=real, near=node)
        return clipped
    dtype = real.dtype or np.dtype(np.float32)
    ends = [rw.constant(np.asarray(end, dtype), name="limit", near=node) for end in (low, high)]
    limited: Tensor = rw.op("Clip", [real, *ends], like=real, near=node)
    return limited


# ------------------------------------------------------------------------------------------------------- the border


def is_plain_restoring(node: Node) -> bool:
    """Tell whether a DequantizeLinear restores integers on one constant scale: a caller's, for example."""
    values = written_grid(node).values
    return values is not None and values[0].size == 1 and values[1].size == 1


def restore_plainly(rw: Rewriter, node: Node) -> None:
    """Write the restoring of integers as arithmetic."""
    grid = written_grid(node)
    found = grid.values
    assert found is not None
    output = node.outputs[0]
    scale, zero = (each.reshape(()) for each in found)
    dtype = np.dtype(scale.dtype)
    real = rw.op("Cast", [node.inputs[0]], attrs={"to": _element(dtype)}, near=node)
    rw.set_type(real, dtype, output.shape)
    if zero.astype(np.float64).any():
        real = rw.op("Sub", [real, rw.constant(zero.astype(dtype), name="zero_point", near=node)], like=real, near=node)
    real = rw.op("Mul", [real, rw.constant(scale, name="scale", near=node)], like=real, near=node)
    rw.replace_tensor(output, real)
    rw.erase([node])


def is_border_output(node: Node) -> bool:
    """Tell whether a QuantizeLinear rounds what a caller gets as integers, on one constant scale."""
    grid = grid_of(node.outputs[0])
    limits = None if grid is None else grid.bounds(integer_type(node.outputs[0]))
    return is_graph_output(node.outputs[0]) and limits is not None and not uses(node.outputs[0])


def round_border(rw: Rewriter, node: Node) -> None:
    """Write the rounding of an integer output as arithmetic."""
    grid: TensorGrid = written_grid(node)
    found = grid.values
    assert found is not None
    element = integer_type(node.outputs[0])
    scale, zero = (each.reshape(()) for each in found)
    dtype = np.dtype(scale.dtype)
    limits = [(bound / np.float64(scale)) + float(zero) for bound in grid.bounds(element) or ()]
    like = node.inputs[0]
    real = rw.op("Div", [like, rw.constant(scale, name="scale", near=node)], like=like, near=node)
    real = rw.op("Round", [real], like=like, near=node)
    if zero.astype(np.float64).any():
        real = rw.op("Add", [real, rw.constant(zero.astype(dtype), name="zero_point", near=node)], like=like, near=node)
    ends = [rw.constant(np.asarray(round(end), dtype), name="limit", near=node) for end in limits]
    real = rw.op("Clip", [real, *ends], like=like, near=node)
    codes = rw.op("Cast", [real], attrs={"to": element}, like=node.outputs[0], near=node)
    rw.replace_tensor(node.outputs[0], codes)
    rw.erase([node])


def _element(dtype: np.dtype[np.generic]) -> int:
    from graphopt.graph.dtypes import onnx_dtype_of

    return onnx_dtype_of(dtype)
