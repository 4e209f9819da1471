"""Masks of an attention: broadcast to one row per query and one column per key, once for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import enclosing, producer

if TYPE_CHECKING:
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


class Masks:
    """Expands masks and remembers those it has expanded.

    Args:
        types: Shapes.
    """

    def __init__(self, types: Types) -> None:
        self.types = types
        self._made: dict[tuple[Tensor, Graph, Dim, Dim], Tensor] = {}

    def nodes_for(self, mask: Tensor, rows: Dim, columns: Dim) -> int:
        """Return how many nodes it takes to give a mask all rows and columns: at most 4, counted for every layer.

        Args:
            mask: The mask.
            rows: Number of queries.
            columns: Number of keys.
        """
        missing = self._missing(mask, rows, columns)
        unknown = sum(not isinstance(size, int) for size in missing)
        return 0 if not missing else 1 + unknown + (1 if unknown else 0)

    def full(self, rw: Rewriter, mask: Tensor, rows: Length, columns: Length, near: Node) -> Tensor:
        """Return a mask with all rows and columns.

        Args:
            rw: The rewriter.
            mask: The mask.
            rows: Number of queries.
            columns: Number of keys.
            near: The node that reads it.
        """
        graph = near.graph
        assert graph is not None
        missing = self._missing(mask, rows.size, columns.size)
        if not missing:
            return mask
        key = (mask, graph, rows.size, columns.size)
        known = self._made.get(key)
        if known is not None and (maker := producer(known)) is not None and maker.graph is graph:
            return known
        places = [
            None if isinstance(size, int) else self._place(graph, length)
            for size, length in zip(missing, (rows, columns), strict=True)
        ]
        target = self._target(rw, missing, places, near)
        made: Tensor = rw.op("Expand", [mask, target], near=near)
        if all(place is None or place.is_input for place in places):  # no layer computes it, so others may read it too
            self._made[key] = made
        return made

    @staticmethod
    def _target(rw: Rewriter, sizes: list[Dim], places: list[Length | None], near: Node) -> Tensor:
        parts: list[Tensor] = []
        for size, place in zip(sizes, places, strict=True):
            if place is None:
                parts.append(rw.constant(np.asarray([size], np.int64), near=near))
            else:
                attrs = {"start": place.axis, "end": place.axis + 1}
                parts.append(rw.op("Shape", [place.tensor], attrs=attrs, near=near))
        if all(isinstance(size, int) for size in sizes):
            whole: Tensor = rw.constant(np.asarray(sizes, np.int64), near=near)
            return whole
        joined: Tensor = rw.op("Concat", parts, attrs={"axis": 0}, near=near)
        return joined

    def _missing(self, mask: Tensor, rows: Dim, columns: Dim) -> list[Dim]:
        """Return the last two entries of the target of Expand, 1 where the mask has the size; [] for no Expand."""
        shape = self.types.shape(mask)
        last: list[Dim] = [1, 1, *(shape or ())][-2:]
        if shape is not None and len(shape) >= 2 and last == [rows, columns]:
            return []
        return [1 if have == want else want for have, want in zip(last, (rows, columns), strict=True)]

    def _place(self, graph: Graph, length: Length) -> Length:
        """Return where a length can be read: from an input of the graph or of one around it where there is one."""
        for scope in enclosing(graph):
            for tensor in scope.inputs:
                for axis, size in enumerate(self.types.shape(tensor) or ()):
                    if size == length.size:
                        return Length(size, tensor, axis, is_input=True)
        return length
