"""Sizes that are known by a symbol only, and where in the graph they can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import enclosing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.types import Types
    from graphopt.graph import Graph, Node, Rewriter, Tensor


@dataclass(frozen=True, slots=True)
class Length:
    """A size that a tensor has.

    Attributes:
        size: The size.
        tensor: The tensor.
        axis: Its axis.
        is_input: Whether the tensor is an input of a graph.
    """

    size: Dim
    tensor: Tensor
    axis: int
    is_input: bool = False


def placed(graph: Graph, types: Types, length: Length) -> Length:
    """Return where a length can be read: from an input of the graph or of one around it where there is one.

    Args:
        graph: The graph.
        types: Shapes.
        length: A place where it can be read in any case.
    """
    for scope in enclosing(graph):
        for tensor in scope.inputs:
            for axis, size in enumerate(types.shape(tensor) or ()):
                if size == length.size:
                    return Length(size, tensor, axis, is_input=True)
    return length


def shape_of(rw: Rewriter, target: Sequence[Length | int], near: Node) -> Tensor:
    """Return a tensor that holds a shape.

    Args:
        rw: The rewriter.
        target: The sizes.
        near: The node that reads the result.
    """
    numbers = [entry if isinstance(entry, int) else entry.size for entry in target]
    if all(isinstance(size, int) for size in numbers):
        whole: Tensor = rw.constant(np.asarray(numbers, np.int64), near=near)
        return whole
    parts: list[Tensor] = []
    for entry, size in zip(target, numbers, strict=True):
        if isinstance(size, int):
            parts.append(rw.constant(np.asarray([size], np.int64), near=near))
        elif isinstance(entry, Length):
            parts.append(rw.op("Shape", [entry.tensor], attrs={"start": entry.axis, "end": entry.axis + 1}, near=near))
    joined: Tensor = parts[0] if len(parts) == 1 else rw.op("Concat", parts, attrs={"axis": 0}, near=near)
    return joined
