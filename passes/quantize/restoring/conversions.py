"""Converts tensors between integers and what they stand for, with the operators of the standard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from graphopt.analysis.tensor_grid import restored_values
from graphopt.graph import constant_value, is_graph_output, producer, uses

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.analysis.tensor_grid import TensorGrid
    from graphopt.graph import Node, Rewriter, Tensor, Variable

AXIS_SINCE = 13
"""The first opset whose DequantizeLinear takes a scale per channel."""

FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float64))


def restore(rw: Rewriter, node: Node, codes: Tensor, grid: TensorGrid, *, opset: int) -> Tensor:
    """Return the real values of a tensor: a constant for constant codes that need it, else a DequantizeLinear's result.

    Args:
        rw: The rewriter.
        node: The node that will read it.
        codes: The integers.
        grid: What they stand for.
        opset: Of the model: below 13 a DequantizeLinear takes one scale only.
    """
    values = constant_value(codes)
    many = grid.values is not None and grid.values[0].size > 1
    if values is not None and many and opset < AXIS_SINCE:
        real = restored_values(values, grid)
        assert real is not None
        made: Tensor = rw.constant(real, name=f"{codes.name}_restored", near=node)
        return made
    attrs: dict[str, Any] = {"axis": grid.axis} if many else {}
    restored: Variable = rw.op("DequantizeLinear", _inputs(codes, grid), attrs=attrs, near=node)
    rw.set_type(restored, grid.scale.dtype or np.dtype(np.float32), codes.shape)
    return restored


def round_to(rw: Rewriter, node: Node, real: Tensor, grid: TensorGrid, like: Tensor) -> Variable:
    """Return a tensor rounded to a grid with one scale, of the type and shape of ``like``."""
    rounded: Variable = rw.op("QuantizeLinear", _inputs(real, grid), like=like, near=node)
    return rounded


def _inputs(tensor: Tensor, grid: TensorGrid) -> list[Tensor]:
    return [tensor, grid.scale] if grid.zero is None else [tensor, grid.scale, grid.zero]


def erase_idle(rw: Rewriter, tensors: Iterable[Tensor], ops: frozenset[str] | None = None) -> None:
    """Remove nodes that nothing reads any more, from the given tensors upwards.

    Args:
        rw: The rewriter.
        tensors: What lost a reader.
        ops: Operators that may go; None for all without a body.
    """
    waiting = [tensor for tensor in tensors if not tensor.is_empty()]
    while waiting:
        source = producer(waiting.pop())
        if source is None or source.graph is None or (ops is not None and source.op not in ops):
            continue
        if any(uses(out) or is_graph_output(out) for out in source.outputs):
            continue
        waiting += [tensor for tensor in source.inputs if not tensor.is_empty()]
        rw.erase([source])
