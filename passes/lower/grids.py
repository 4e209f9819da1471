"""The grids of bytes on which activations are rounded, each of one scale and one zero point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import constant_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node
    from graphopt.target.reading import Restored

Grid = tuple[float, int]
"""Scale and zero point."""
_LARGEST_BYTE = 255


def grid_of_restored(x: Restored) -> Grid | str:
    """Return the grid of activations that a DequantizeLinear restores, or why they are no bytes on one."""
    name = x.integers.name
    if x.number != "uint8":
        return f"its input '{name}' is {x.number or 'of unknown type'}, not uint8"
    if x.scale is None or x.scale.size != 1 or x.block or not is_usable(x.scale) or x.scale.dtype != np.float32:
        return f"its input '{name}' has no single constant scale"
    if x.zero is None and len(x.node.inputs) > 2 and x.node.inputs[2].name:
        return f"the zero point of its input '{name}' is not constant"
    return float(x.scale.reshape(-1)[0]), 0 if x.zero is None else int(x.zero.reshape(-1)[0])


def grid_of_rounding(node: Node) -> Grid | None:
    """Return the grid of a QuantizeLinear to bytes; None where it rounds to another type or on several grids."""
    scale = constant_value(node.inputs[1])
    written = len(node.inputs) > 2 and not node.inputs[2].is_empty()
    zero = constant_value(node.inputs[2]) if written else np.zeros((), np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.dtype != np.uint8 or scale.dtype != np.float32:
        return None
    other_type = not written and node.attrs.get("output_dtype", 0) not in {0, 2}
    if other_type or node.attrs.get("saturate", 1) != 1 or not is_usable(scale):
        return None
    return float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])


def only_rounds(grid: Grid, *, least: float, most: float) -> bool:
    """Return whether values between these bounds are rounded on a grid and not cut at zero, as by a Relu."""
    return (least >= 0 or grid[1] > 0) and (most <= 0 or grid[1] < _LARGEST_BYTE)


def is_usable(scale: NDArray[Any]) -> bool:
    """Return whether scales are positive numbers."""
    return bool(np.isfinite(scale).all() and (scale > 0).all())
