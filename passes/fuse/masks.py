"""Masks of an attention: broadcast to one row per query and one column per key, once for all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph import producer
from graphopt.passes.fuse.lengths import Length, placed, shape_of

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.types import Types
    from graphopt.graph import Graph, Node, Rewriter, Tensor


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
        target = [
            size if isinstance(size, int) else placed(graph, self.types, length)
            for size, length in zip(missing, (rows, columns), strict=True)
        ]
        made: Tensor = rw.op("Expand", [mask, shape_of(rw, target, near)], near=near)
        if all(isinstance(entry, int) or entry.is_input for entry in target):
            self._made[key] = made  # no layer computes it, so others may read it too
        return made

    def _missing(self, mask: Tensor, rows: Dim, columns: Dim) -> list[Dim]:
        """Return the last two entries of the target of Expand, 1 where the mask has the size; [] for no Expand."""
        shape = self.types.shape(mask)
        last: list[Dim] = [1, 1, *(shape or ())][-2:]
        if shape is not None and len(shape) >= 2 and last == [rows, columns]:
            return []
        return [1 if have == want else want for have, want in zip(last, (rows, columns), strict=True)]
