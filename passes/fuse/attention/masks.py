"""Masks of an attention: one summand with one row per query and one column per key, made once for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import producer
from graphopt.passes.fuse.attention.lengths import Length, placed, shape_of

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.types import Types
    from graphopt.graph import Graph, Node, Rewriter, Tensor


@dataclass(frozen=True, slots=True)
class Mask:
    """What is done to the scores before the softmax.

    Attributes:
        summand: What is added, if anything.
        closed: Where scores are replaced, if anywhere.
        value: What they are replaced by.
        is_inverted: Whether they are replaced where `closed` is false.
    """

    summand: Tensor | None = None
    closed: Tensor | None = None
    value: Tensor | None = None
    is_inverted: bool = False

    @property
    def parts(self) -> list[Tensor]:
        """The tensors that it broadcasts."""
        return [tensor for tensor in (self.summand, self.closed) if tensor is not None]


class Masks:
    """Makes masks and remembers those it has made.

    Args:
        types: Shapes.
    """

    def __init__(self, types: Types) -> None:
        self.types = types
        self._made: dict[tuple[Mask, Graph, Dim, Dim], Tensor] = {}
        self._joined: dict[tuple[Mask, Graph], Tensor] = {}

    def nodes_for(self, mask: Mask, rows: Dim, columns: Dim) -> int:
        """Return how many nodes it takes to make a mask: at most 6, counted for every layer.

        Args:
            mask: The mask.
            rows: Number of queries.
            columns: Number of keys.
        """
        missing = self._missing(mask, rows, columns)
        unknown = sum(not isinstance(size, int) for size in missing)
        expand = 0 if not missing else 1 + unknown + (1 if unknown else 0)
        return expand + (0 if mask.closed is None else len(mask.parts))

    def full(self, rw: Rewriter, mask: Mask, rows: Length, columns: Length, near: Node) -> Tensor:
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
        tensor = self._summand(rw, mask, graph, near)
        missing = self._missing(mask, rows.size, columns.size)
        if not missing:
            return tensor
        key = (mask, graph, rows.size, columns.size)
        known = self._made.get(key)
        if known is not None and _is_in(known, graph):
            return known
        target = [
            size if isinstance(size, int) else placed(graph, self.types, length)
            for size, length in zip(missing, (rows, columns), strict=True)
        ]
        made: Tensor = rw.op("Expand", [tensor, shape_of(rw, target, near)], near=near)
        if all(isinstance(entry, int) or entry.is_input for entry in target):
            self._made[key] = made  # no layer computes it, so others may read it too
        return made

    def _summand(self, rw: Rewriter, mask: Mask, graph: Graph, near: Node) -> Tensor:
        """Return all of a mask as one summand."""
        if mask.closed is None:
            assert mask.summand is not None
            return mask.summand
        known = self._joined.get((mask, graph))
        if known is not None and _is_in(known, graph):
            return known
        zero = rw.constant(np.zeros((), np.float32), near=near)
        choices = [zero, mask.value] if mask.is_inverted else [mask.value, zero]
        made: Tensor = rw.op("Where", [mask.closed, *choices], near=near)
        if mask.summand is not None:
            made = rw.op("Add", [made, mask.summand], near=near)
        self._joined[mask, graph] = made
        return made

    def _missing(self, mask: Mask, rows: Dim, columns: Dim) -> list[Dim]:
        """Return the last two entries of the target of Expand, 1 where the mask has the size; [] for no Expand."""
        shapes = [self.types.shape(part) or () for part in mask.parts]
        missing: list[Dim] = []
        for place, wanted in ((-2, rows), (-1, columns)):
            has_it = any(len(shape) >= -place and shape[place] == wanted for shape in shapes)
            missing.append(1 if has_it else wanted)
        has_two_axes = any(len(shape) >= 2 for shape in shapes)
        return [] if missing == [1, 1] and has_two_axes else missing


def _is_in(tensor: Tensor, graph: Graph) -> bool:
    maker = producer(tensor)
    return maker is not None and maker.graph is graph
