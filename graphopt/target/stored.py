"""Weights that stand in the model as integers already: what an earlier pass rounded is kept, not rounded again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value, producer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Tensor

STANDARD = (None, "", "ai.onnx")
INTEGERS = frozenset(("int2", "int4", "int8"))
NOT_FINITE = "its weight holds NaN or infinite values, which spread over all that shares a scale"
MOST_STEPS = 8
"""Operators between constants and a restored weight at most, in all forms that are written."""


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight behind a DequantizeLinear, in a form that integer kernels multiply.

    Attributes:
        node: The DequantizeLinear.
        integers: Its first input, a constant.
        codes: The integers, int8, in the shape of the weight.
        scales: float32, one per channel, or one element where the weight has a single scale.
        axis: Axis of the channels; None for a single scale.
    """

    node: Node
    integers: Tensor
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int | None

    def restore(self) -> NDArray[np.float32]:
        """Return the weights that the integers stand for."""
        shape = [1] * self.codes.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return (self.codes.astype(np.float32) * self.scales.reshape(shape)).astype(np.float32)


def stored_weight(tensor: Tensor) -> StoredWeight | str | None:
    """Return a weight that stands on a grid, why integer kernels cannot use that grid, or None where it is on none.

    Args:
        tensor: What an operator reads as its weight.
    """
    node = producer(tensor)
    if node is None or not restores_constant(node):
        return None
    if node.op != "DequantizeLinear":
        return "its weight is looked up in a code book"
    codes, scale = constant_value(node.inputs[0]), constant_value(node.inputs[1])
    if codes is None or scale is None:
        return "its weight is stored in single bits"
    if codes.dtype.name not in INTEGERS:
        return f"its weight is stored in {codes.dtype.name}; the integer kernels multiply signed weights"
    if node.attrs.get("block_size", 0):
        return "its weight has a scale per block; the integer kernels have one per output channel"
    zero = constant_value(node.inputs[2]) if len(node.inputs) > 2 and not node.inputs[2].is_empty() else np.zeros(1)
    if zero is None or zero.astype(np.int64).any():
        return "its weight has zero points; the integer kernels have none"
    if scale.dtype != np.float32:
        return f"its weight is restored to {scale.dtype.name}"
    axis = None if scale.size == 1 else int(node.attrs.get("axis", 1)) % codes.ndim
    return StoredWeight(node, node.inputs[0], codes.astype(np.int8), scale.reshape(-1), axis)


def weight_value(tensor: Tensor) -> NDArray[np.generic] | None:
    """Return the values of a weight, restored where it stands on a grid that integer kernels multiply, or None."""
    value = constant_value(tensor)
    if value is not None:
        return value
    stored = stored_weight(tensor)
    return stored.restore() if isinstance(stored, StoredWeight) else None


def weight_shape(tensor: Tensor) -> tuple[int, ...] | None:
    """Return the shape of a weight, of one that is restored too: what restores it need not declare any."""
    value = constant_value(tensor)
    if value is not None:
        return tuple(value.shape)
    stored = stored_weight(tensor)
    return tuple(stored.codes.shape) if isinstance(stored, StoredWeight) else None


def restores_constant(node: Node) -> bool:
    """Tell whether a node computes a weight from constants alone: a DequantizeLinear, or a Gather from a code book."""
    if node.domain not in STANDARD or node.op not in {"DequantizeLinear", "Gather"}:
        return False
    waiting, steps = [node], 0
    while waiting:
        if steps > MOST_STEPS:
            return False
        steps += 1
        for tensor in waiting.pop().inputs:
            if tensor.is_empty() or constant_value(tensor) is not None:
                continue
            made = producer(tensor)
            if made is None or made.domain not in STANDARD:
                return False
            waiting.append(made)
    return True
