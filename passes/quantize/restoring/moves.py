"""Data movement on integers, as movement of the real values between conversions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.tensor_grid import MICROSOFT, STANDARD, TensorGrid, grid_of, restored_values
from graphopt.graph import constant_value
from graphopt.passes.quantize.restoring.conversions import restore, round_to

if TYPE_CHECKING:
    from graphopt.graph import Node, Rewriter, Tensor

DATA: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity"), (0,)),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"), (0,)),
    **dict.fromkeys(("MaxPool", "Resize", "ReduceMax", "ReduceMin"), (0,)),
    "Pad": (0, 2),
    "Clip": (0, 1, 2),
    "Concat": None,
    "Max": None,
    "Min": None,
    "Where": (1, 2),
}
"""Operator to the inputs that hold what it moves; None for all. Each computes on codes what it does on real values,
as long as all of them lie on one grid with a positive scale."""

BYTES = frozenset(("int8", "uint8", "int16", "uint16", "int4", "uint4"))


def moves_codes(node: Node) -> bool:
    """Tell whether a node moves integers that stand for real values."""
    if node.op not in DATA or not (node.domain in STANDARD or node.domain == MICROSOFT):
        return False
    return bool(node.inputs) and common_grid(node) is not None


def common_grid(node: Node) -> TensorGrid | None:
    """Return the grid that everything a node moves lies on, or None where there is none, or no common one."""
    found: TensorGrid | None = None
    for tensor in _moved(node):
        if constant_value(tensor) is not None:
            continue
        grid = grid_of(tensor) if _is_code(tensor) else None
        if grid is None or grid.values is None or grid.values[0].size != 1:
            return None
        if found is not None and not found.is_same_as(grid):
            return None
        found = grid
    return found


def expand_move(rw: Rewriter, node: Node, opset: int) -> None:
    """Replace data movement on integers by the same on their real values, rounded again behind it.

    Args:
        rw: The rewriter.
        node: What `moves_codes` accepts.
        opset: Of the model.
    """
    grid = common_grid(node)
    assert grid is not None
    inputs: list[Tensor | None] = [None if tensor.is_empty() else tensor for tensor in node.inputs]
    moved = set(_moved(node))
    for place, tensor in enumerate(node.inputs):
        if tensor not in moved:
            continue
        value = constant_value(tensor)
        if value is None:
            inputs[place] = restore(rw, node, tensor, grid, opset=opset)
        else:
            inputs[place] = rw.constant(_real(value, grid), name=f"{tensor.name}_real", near=node)
    if node.op == "Pad" and _is_padded(node) and (len(inputs) < 3 or inputs[2] is None):
        # Codes are padded with 0, which stands for 0.0 only where that is the zero point.
        filled = _real(np.zeros((), node.inputs[0].dtype or np.uint8), grid)
        inputs[2:3] = [rw.constant(filled, name="padding", near=node)]
    old = list(node.outputs)
    attrs: dict[str, Any] = dict(node.attrs)
    made = rw.op(node.op, inputs, attrs=attrs, domain=node.domain, outputs=len(old), near=node, origin=(node,))
    for before, real in zip(old, made if isinstance(made, tuple) else (made,), strict=True):
        if before.is_empty():
            continue
        rw.set_type(real, grid.scale.dtype or np.dtype(np.float32), before.shape)
        rw.replace_tensor(before, round_to(rw, node, real, grid, before))
    rw.erase([node])


def _real(value: np.ndarray[Any, Any], grid: TensorGrid) -> np.ndarray[Any, Any]:
    real = restored_values(value, grid)
    assert real is not None
    return real


def _is_padded(node: Node) -> bool:
    return node.attrs.get("mode", "constant") in {"constant", b"constant"}


def _moved(node: Node) -> list[Tensor]:
    places = DATA[node.op]
    chosen = range(len(node.inputs)) if places is None else [place for place in places if place < len(node.inputs)]
    return [node.inputs[place] for place in chosen if not node.inputs[place].is_empty()]


def _is_code(tensor: Tensor) -> bool:
    """Tell whether a tensor holds integers of few bits, as far as its type is known."""
    dtype = tensor.dtype
    return not isinstance(dtype, type | np.dtype) or np.dtype(dtype).name in BYTES
