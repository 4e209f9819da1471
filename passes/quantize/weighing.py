"""Scales of int8 weights by the error of the outputs instead of by the largest weight."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from graphopt.solve.calibrators import weight_scales
from graphopt.target.grid import activation_grid, quantize_weight
from graphopt.target.operators import output_axis

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node
    from graphopt.passes.quantize.integers import IntegerWeight
    from graphopt.target.grid import Grid, GridKind

    Matrix = NDArray[np.float64]
    Vector = NDArray[np.float64]


SHARES = np.linspace(1.0, 0.4, 31)
"""Shares of a weight's range that a grid with any zero point may reach to; the whole range is the first."""


def least_error(node: Node, weight: IntegerWeight, powers: Vector | None, limit: int) -> IntegerWeight:
    """Return a weight on the scales that change the outputs of its layer least; one that is on a grid already stays.

    Args:
        node: A Conv, Gemm or MatMul.
        weight: What it multiplies, on scales up to the largest weight.
        powers: Mean square of each channel of its input, or None where it is not known: all count alike then.
        limit: Largest integer.
    """
    if weight.integers is not None:
        return weight
    axis = output_axis(node, weight.values.ndim)
    rows = np.moveaxis(weight.values, axis, 0).reshape(weight.values.shape[axis], -1).astype(np.float64)
    importance = _importance(node, rows, powers)
    scales = weight_scales(rows, importance, limit=limit, per_row=weight.axis is not None)
    found = np.where(scales > 0, scales, weight.scales).astype(np.float32)
    return replace(weight, codes=quantize_weight(weight.values, weight.axis, found, limit).values, scales=found)


def least_error_grid(node: Node, weight: NDArray[np.float32], powers: Vector | None, kind: GridKind) -> Grid:
    """Return the one grid with any zero point that changes the outputs of a layer least, over shares of the range.

    Args:
        node: A Conv, Gemm or MatMul.
        weight: Its weight.
        powers: Mean square of each channel of its input, or None where it is not known.
        kind: Type of the grid.
    """
    axis = output_axis(node, weight.ndim)
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    importance = _importance(node, rows.astype(np.float64), powers)
    low, high = float(weight.min(initial=0.0)), float(weight.max(initial=0.0))
    grids = [activation_grid(share * low, share * high, kind=kind) for share in SHARES]

    def error(grid: Grid) -> float:
        real = (grid.quantize(rows).astype(np.float64) - grid.zero_point) * float(grid.scale)
        squares = np.square(real - rows)
        return float((squares if importance is None else squares * importance).sum())

    return min(grids, key=error)


def _importance(node: Node, rows: Matrix, powers: Vector | None) -> Matrix | None:
    """Return the mean square of what each weight meets, in the shape of the rows, or None where channels do not fit."""
    if powers is None:
        return None
    groups = int(node.attrs.get("group", 1)) if node.op == "Conv" else 1
    if len(powers) % groups or len(rows) % groups or rows.shape[1] % max(len(powers) // groups, 1):
        return None
    each = np.repeat(powers.reshape(groups, -1), rows.shape[1] // (len(powers) // groups), axis=1)
    return np.repeat(each, len(rows) // groups, axis=0)
