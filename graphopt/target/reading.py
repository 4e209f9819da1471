"""Reads quantized tensors out of a model, whoever quantized it: what restores a tensor, and on which grid it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import constant_value, producer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Tensor

DOMAINS = frozenset((None, "", "ai.onnx", "com.microsoft"))
MOST_STEPS = 4
"""Operators between a constant and its DequantizeLinear at most: a rounding, a cast, a reshape."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A tensor that a DequantizeLinear restores.

    Attributes:
        node: The DequantizeLinear.
        integers: What it reads.
        number: Type of the integers, as numpy names it; "" where it is unknown.
        scale: Its scales, or None where they are no constant.
        zero: Its zero points, or None where none is written.
        axis: Axis of several scales; None for one scale.
        block: Values that share a scale along the axis; 0 where there are no blocks.
        values: The integers, where they are a constant or rounded from one, else None.
        rounding: The QuantizeLinear that makes the integers, or None.
    """

    node: Node
    integers: Tensor
    number: str
    scale: NDArray[Any] | None
    zero: NDArray[Any] | None
    axis: int | None
    block: int
    values: NDArray[Any] | None
    rounding: Node | None

    @property
    def is_constant(self) -> bool:
        """Whether it is a weight, not an activation."""
        return self.values is not None

    def grid(self) -> tuple[bytes, int] | None:
        """Return scale and zero point for comparison; None where they are not one constant each."""
        if self.scale is None or self.scale.size != 1:
            return None
        zero = 0 if self.zero is None or not self.zero.size else int(self.zero.reshape(-1)[0])
        return np.asarray(self.scale, np.float32).tobytes(), zero


def is_conversion(node: Node, op: str | None = None) -> bool:
    """Tell whether a node is a QuantizeLinear or DequantizeLinear, of either domain.

    Args:
        node: The node.
        op: One of the two; None for either.
    """
    return node.domain in DOMAINS and node.op in ((op,) if op else ("QuantizeLinear", "DequantizeLinear"))


def restored(tensor: Tensor) -> Restored | None:
    """Return how a tensor is restored, or None where no DequantizeLinear makes it."""
    node = producer(tensor)
    if node is None or not is_conversion(node, "DequantizeLinear"):
        return None
    integers = node.inputs[0]
    scale = constant_value(node.inputs[1])
    zero = None
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        zero = constant_value(node.inputs[2])
    rounding = producer(integers)
    if rounding is not None and not is_conversion(rounding, "QuantizeLinear"):
        rounding = None
    values = _constant_integers(integers)
    found = values if values is not None else zero
    number = np.dtype(found.dtype).name if found is not None else _declared(integers)
    several = scale is not None and scale.ndim > 0 and scale.size > 1
    return Restored(
        node=node,
        integers=integers,
        number=number,
        scale=scale,
        zero=zero,
        axis=int(node.attrs.get("axis", 1)) if several else None,
        block=int(node.attrs.get("block_size", 0) or 0),
        values=values,
        rounding=rounding,
    )


def _declared(tensor: Tensor) -> str:
    return np.dtype(tensor.dtype).name if isinstance(tensor.dtype, type | np.dtype) else ""


def _constant_integers(tensor: Tensor) -> NDArray[Any] | None:
    """Return integers that are a constant, or what a QuantizeLinear makes of one; shapes may change on the way."""
    value = constant_value(tensor)
    if value is not None:
        return value
    node = producer(tensor)
    for _ in range(MOST_STEPS):
        if node is None or not node.inputs:
            return None
        source = constant_value(node.inputs[0])
        if is_conversion(node, "QuantizeLinear") and source is not None:
            return _rounded(node, source)
        if node.op == "Cast" and source is not None:
            return source.astype(np.int8)
        if node.op not in {"Cast", "Reshape", "Transpose"}:
            return None
        node = producer(node.inputs[0])
    return None


def _rounded(node: Node, values: NDArray[Any]) -> NDArray[Any] | None:
    """Return what a QuantizeLinear makes of a constant, or None where its parameters are none."""
    scale = constant_value(node.inputs[1])
    if scale is None:
        return None
    zero = constant_value(node.inputs[2]) if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    dtype = np.dtype(np.uint8) if zero is None else np.dtype(zero.dtype)
    block = int(node.attrs.get("block_size", 0) or 0)
    axis = int(node.attrs.get("axis", 1))
    steps = _spread(np.asarray(scale, np.float32), values, axis, block)
    shift = np.float32(0) if zero is None else _spread(np.asarray(zero, np.float32), values, axis, block)
    q = np.asarray(values, np.float32) / steps
    if dtype.kind in "iu":
        ends = np.iinfo(dtype)
        q = np.clip(np.rint(q) + shift, ends.min, ends.max)
    found: NDArray[Any] = q.astype(dtype)
    return found


def _spread(found: NDArray[np.float32], values: NDArray[Any], axis: int, block: int) -> NDArray[np.float32]:
    """Return parameters in a shape that broadcasts against the values."""
    if found.size == 1:
        return found.reshape(())
    if block:
        return np.repeat(found, block, axis=axis)[tuple(slice(0, size) for size in values.shape)]
    shape = [1] * values.ndim
    shape[axis] = -1
    return found.reshape(shape)


def shape_of(tensor: Tensor) -> tuple[int, ...] | None:
    """Return the shape of a weight, in whatever form it is written, or None where it is no constant."""
    value = constant_value(tensor)
    if value is not None:
        return tuple(value.shape)
    found = restored(tensor)
    return None if found is None or found.values is None else tuple(found.values.shape)


def source_of(tensor: Tensor) -> Node | None:
    """Return what makes a tensor, or what makes the tensor that a pair of conversions stands behind."""
    node = producer(tensor)
    while node is not None and is_conversion(node):
        node = producer(node.inputs[0])
    return node
