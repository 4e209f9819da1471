"""Layers that read a tensor channel by channel: each channel meets weights of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, constant_value, is_graph_output, uses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Tensor

    Array = NDArray[Any]
    Vector = NDArray[np.float64]

FLOATS = {"float16", "float32", "float64", "bfloat16"}
STANDARD = {None, "", "ai.onnx"}
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@dataclass(frozen=True, slots=True)
class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight.

    Attributes:
        node: The node.
        value: The weight, in its own layout.
        inputs: Channels that it reads, over all groups.
        outputs: Channels that it writes, over all groups.
        spatial: Axes behind the channels of what it reads; -1 where the channels are the last axis of any rank.
    """

    node: Node
    value: Array
    inputs: int
    outputs: int
    spatial: int

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for everything else."""
        return int(self.node.attrs.get("group", 1)) if self.spatial >= 0 else 1

    def grouped(self) -> Array:
        """Return the weight as [groups, outputs of a group, inputs of a group, kernel places]; a view where it can."""
        groups = self.groups
        if self.node.op == "Conv":
            return self.value.reshape(groups, self.outputs // groups, self.inputs // groups, -1)
        if self.node.op == "ConvTranspose":
            parts = self.value.reshape(groups, self.inputs // groups, self.outputs // groups, -1)
            return np.swapaxes(parts, 1, 2)
        rows_first = self.node.op == "Gemm" and self.node.attrs.get("transB", 0)
        matrix = self.value if rows_first else self.value.T
        return matrix[None, :, :, None]

    def sizes(self) -> NDArray[np.float32]:
        """Return |w|, the largest over kernel places, [outputs, inputs]; 0 between groups."""
        found = np.zeros((self.outputs, self.inputs), np.float32)
        for group, part in enumerate(np.abs(self.grouped().astype(np.float32)).max(axis=3)):
            rows, columns = part.shape
            found[group * rows : (group + 1) * rows, group * columns : (group + 1) * columns] = part
        return found

    def read_with(self, scales: Vector) -> Array:
        """Return the weight with each input channel multiplied by its scale, in its type."""
        parts = self.grouped().astype(np.float64) * scales.reshape(self.groups, 1, -1, 1)
        return self._restored(parts)

    def written_with(self, scales: Vector) -> Array:
        """Return the weight with each output channel divided by its scale, in its type."""
        parts = self.grouped().astype(np.float64) / scales.reshape(self.groups, -1, 1, 1)
        return self._restored(parts)

    def _restored(self, parts: Array) -> Array:
        if self.node.op == "ConvTranspose":
            parts = np.swapaxes(parts, 1, 2)
        elif self.node.op != "Conv":
            matrix = parts[0, :, :, 0]
            rows_first = self.node.op == "Gemm" and self.node.attrs.get("transB", 0)
            parts = matrix if rows_first else matrix.T
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(parts).reshape(self.value.shape).astype(self.value.dtype)


def layer_of(node: Node) -> Layer | str:
    """Return a node as a layer, or why it is none whose channels can be scaled."""
    if node.domain not in STANDARD or node.op not in LAYERS:
        return f"{node.op} is no layer with a weight per channel"
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    value = None if weight is None else constant_value(weight)
    if weight is None or value is None:
        overridable = isinstance(weight, Constant)
        return "its weight is an input too, so callers may replace it" if overridable else "its weight is not constant"
    if value.dtype.name not in FLOATS or not np.isfinite(value).all():
        return "its weight is no finite float"
    if len(uses(weight)) > 1 or is_graph_output(weight):
        return "its weight is used elsewhere too"
    if node.op in {"Gemm", "MatMul"}:
        if value.ndim != 2 or node.attrs.get("transA", 0):
            return "its channels are not the last axis of its input"
        rows_first = node.op == "Gemm" and node.attrs.get("transB", 0)
        outputs, inputs = value.shape if rows_first else value.shape[::-1]
        return Layer(node, value, int(inputs), int(outputs), -1)
    if value.ndim < 3 or not value.size:
        return f"its weight has the shape {list(value.shape)}"
    groups, spatial = int(node.attrs.get("group", 1)), value.ndim - 2
    if node.op == "Conv":
        return Layer(node, value, int(value.shape[1]) * groups, int(value.shape[0]), spatial)
    return Layer(node, value, int(value.shape[0]), int(value.shape[1]) * groups, spatial)


def readers_of(tensor: Tensor) -> list[Layer] | str:
    """Return the layers that alone read a tensor as what their weights are multiplied with, or who else does.

    All of them read the same channels of the same axis.
    """
    if is_graph_output(tensor):
        return f"'{tensor.name}' is an output of the graph"
    found: list[Layer] = []
    for use in uses(tensor):
        label = use.node.name or use.node.outputs[0].name
        layer = layer_of(use.node) if use.index == 0 else f"{use.node.op} reads it as something else"
        if isinstance(layer, str):
            cost = ", and a scale there would take a node of its own"
            return f"'{tensor.name}' is also read by {use.node.op} '{label}': {layer}{cost if found else ''}"
        found.append(layer)
    if len({(layer.inputs, layer.spatial) for layer in found}) > 1:
        return f"the layers that read '{tensor.name}' see its channels differently"
    return found
