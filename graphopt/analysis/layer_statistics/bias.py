"""Finds where the bias of a layer lives, and changes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, constant_value, is_graph_output, uses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor


@dataclass(frozen=True, slots=True)
class Bias:
    """The bias of one layer.

    Attributes:
        node: The node that reads it: the layer, or the Add behind a MatMul.
        index: Which input it is.
        tensor: What holds it, or None where the layer has none yet.
        factor: What the layer multiplies it with, relative to its products.
    """

    node: Node
    index: int
    tensor: Tensor | None
    factor: float = 1.0

    def values(self, rows: int) -> NDArray[np.float64]:
        """Return it as one number per row."""
        value = None if self.tensor is None else constant_value(self.tensor)
        return np.zeros(rows) if value is None else value.astype(np.float64).reshape(-1)

    def write(self, rewriter: Rewriter, values: NDArray[np.float64], like: NDArray[Any], near: Node) -> None:
        """Replace it; a layer without one gets one, in the type of its weight."""
        if isinstance(self.tensor, Constant) and len(uses(self.tensor)) == 1 and not is_graph_output(self.tensor):
            old = self.tensor.array()
            rewriter.set_weight(self.tensor, values.reshape(old.shape).astype(old.dtype))
            return
        old_value = None if self.tensor is None else constant_value(self.tensor)
        shape = like.shape if old_value is None else old_value.shape
        name = self.tensor.name if self.tensor is not None else f"{near.outputs[0].name}_bias"
        added = rewriter.constant(values.reshape(shape).astype(like.dtype), name=name, near=self.node)
        rewriter.set_input(self.node, self.index, added)


def find_bias(layer: Node, rows: int) -> Bias | None:
    """Return the bias of a layer of so many output rows, or None where a bias has no place.

    A convolution or Gemm without a bias has a place for one; a MatMul only where an Add of a constant is its one
    reader; a recurrent layer has none of one number per row.
    """
    if layer.op == "MatMul":
        return _added(layer, rows)
    if layer.op not in {"Conv", "ConvTranspose", "Gemm"}:
        return None
    alpha, beta = float(layer.attrs.get("alpha", 1.0)), float(layer.attrs.get("beta", 1.0))
    if beta == 0.0:
        return None
    factor = alpha / beta
    if len(layer.inputs) < 3 or not layer.inputs[2].name:
        return Bias(layer, 2, None, factor)
    tensor = layer.inputs[2]
    return Bias(layer, 2, tensor, factor) if _one_per_row(tensor, rows) else None


def _added(layer: Node, rows: int) -> Bias | None:
    product = layer.outputs[0]
    readers = uses(product)
    if len(readers) != 1 or is_graph_output(product):
        return None
    node = readers[0].node
    if node.op != "Add" or node.domain not in {None, "", "ai.onnx"} or node.graph is not layer.graph:
        return None
    if constant_value(layer.inputs[1]) is None:  # W X: the last axis counts samples, not rows
        return None
    index = 1 - readers[0].index
    tensor = node.inputs[index]
    return Bias(node, index, tensor) if _one_per_row(tensor, rows) else None


def _one_per_row(tensor: Tensor, rows: int) -> bool:
    value = constant_value(tensor)
    return value is not None and value.ndim > 0 and value.size == rows == value.shape[-1]
