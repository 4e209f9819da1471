"""The grid that the integers of a tensor lie on, as the model itself writes it down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from graphopt.graph import constant_value, producer, uses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Tensor

STANDARD = (None, "", "ai.onnx")
MICROSOFT = "com.microsoft"

MOVEMENT = frozenset(
    (
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "Identity",
        "MaxPool",
        "Tile",
        "Expand",
    )
)
"""Operators whose results lie on the grid of their first input."""

MOST_MOVES = 8
"""Movements that are followed from where integers are given to where they are restored."""

_LIMITS: dict[int, tuple[float, float]] = {
    TensorProto.INT2: (-2, 1),
    TensorProto.UINT2: (0, 3),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
    TensorProto.FLOAT8E4M3FN: (-448, 448),
    TensorProto.FLOAT8E5M2: (-57344, 57344),
}


@dataclass(frozen=True, slots=True)
class TensorGrid:
    """Scale and zero point of a tensor, as tensors of the model: a code q stands for (q - zero) * scale.

    Attributes:
        scale: One element, one per index of ``axis``, or one per block of it.
        zero: Of the codes' type and the scale's shape; None for zeros.
        axis: Axis of the scales; it means nothing where there is one.
        block: Size of a block; 0 for none.
    """

    scale: Tensor
    zero: Tensor | None
    axis: int = 1
    block: int = 0

    @property
    def values(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Scales and zero points; None where either is computed at run time."""
        scale = constant_value(self.scale)
        zero = np.zeros((), np.int64) if self.zero is None else constant_value(self.zero)
        return None if scale is None or zero is None else (scale, zero)

    def is_same_as(self, other: TensorGrid) -> bool:
        """Tell whether both hold the same numbers."""
        one, two = self.values, other.values
        if one is None or two is None:
            return (self.scale, self.zero) == (other.scale, other.zero)
        if one[0].size > 1 and (self.axis, self.block) != (other.axis, other.block):
            return False
        scales = np.array_equal(one[0].reshape(-1), two[0].reshape(-1))
        zeros = [np.broadcast_to(each[1].astype(np.float64).reshape(-1), one[0].size) for each in (one, two)]
        return scales and np.array_equal(zeros[0], zeros[1])

    def bounds(self, element: int) -> tuple[float, float] | None:
        """Return the real values at both ends of a grid with one scale, or None where there are several scales.

        Args:
            element: ONNX element type of the codes.
        """
        found, limits = self.values, _LIMITS.get(element)
        if found is None or limits is None or found[0].size != 1 or found[1].size != 1:
            return None
        scale, zero = np.float32(found[0].reshape(-1)[0]), float(found[1].reshape(-1)[0])
        return float((limits[0] - zero) * scale), float((limits[1] - zero) * scale)


def written_grid(node: Node) -> TensorGrid:
    """Return the grid of a QuantizeLinear or DequantizeLinear."""
    zero = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    return TensorGrid(node.inputs[1], zero, int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0)))


def is_conversion(node: Node | None, op: str) -> bool:
    """Tell whether a node is a QuantizeLinear or DequantizeLinear, of the standard or of ONNX Runtime's own domain."""
    return node is not None and node.op == op and (node.domain in STANDARD or node.domain == MICROSOFT)


def grid_of(tensor: Tensor) -> TensorGrid | None:
    """Return the grid that the integers of a tensor lie on, by who rounds or who restores them; None if unknown.

    What is only moved before it is restored lies on the grid of what it becomes.
    """
    source = producer(tensor)
    if source is not None and is_conversion(source, "QuantizeLinear"):
        return written_grid(source)
    waiting, seen = [tensor], 0
    while waiting and seen < MOST_MOVES:
        seen += 1
        for use in uses(waiting.pop()):
            if use.index != 0:
                continue
            if is_conversion(use.node, "DequantizeLinear"):
                return written_grid(use.node)
            if use.node.op in MOVEMENT and use.node.domain in STANDARD:
                waiting += [each for each in use.node.outputs if not each.is_empty()]
    return None


def restored_values(codes: NDArray[Any], grid: TensorGrid) -> NDArray[Any] | None:
    """Return what constant codes stand for, in the type of the scale; None where the grid is no constant."""
    found = grid.values
    if found is None:
        return None
    scale, zero = found
    wide = (
        np.int64 if codes.dtype.kind in "iu" or codes.dtype.name in {"int4", "uint4", "int2", "uint2"} else np.float32
    )
    shifted = codes.astype(wide) - spread(zero.astype(wide), codes.shape, grid)
    step = spread(scale, codes.shape, grid)
    made: NDArray[Any] = (shifted.astype(np.float32) * step.astype(np.float32)).astype(scale.dtype)
    return made


def spread(values: NDArray[Any], shape: tuple[int, ...], grid: TensorGrid) -> NDArray[Any]:
    """Return scales or zero points in a shape that broadcasts against the codes."""
    if values.size == 1:
        return values.reshape(())
    axis = grid.axis % len(shape)
    if grid.block:
        repeated = np.repeat(values, grid.block, axis=axis)
        return repeated[tuple(slice(0, size) if place == axis else slice(None) for place, size in enumerate(shape))]
    return values.reshape([-1 if place == axis else 1 for place in range(len(shape))])


def integer_type(tensor: Tensor) -> int:
    """Return the ONNX element type of a tensor of codes, taken from its grid's zero point where it is not declared."""
    found = int(tensor.onnx_dtype or 0)
    if found:
        return found
    grid = grid_of(tensor)
    source = producer(tensor)
    if grid is not None and grid.zero is not None:
        return int(grid.zero.onnx_dtype or 0)
    stated = int(source.attrs.get("output_dtype", 0)) if source is not None else 0
    return stated or int(TensorProto.UINT8)
