"""Cosines and sines as RotaryEmbedding reads them: (batch, length, half a size), made once for all that share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import producer
from graphopt.passes.fuse.lengths import Length, expanded, placed

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.types import Types
    from graphopt.graph import Graph, Node, Rewriter, Tensor


@dataclass(frozen=True, slots=True)
class Kind:
    """How cosines or sines are given.

    Attributes:
        tensor: The tensor that all heads share.
        head_axis: The axis of size 1 that stands for the heads; None where it has none that must go.
        batch: The batch that is wanted.
        length: The length that is wanted.
        half: Half the size of a head.
        is_doubled: Whether it has both halves.
        needs_expand: Whether batch or length are not proved to be the wanted ones.
        rows: The axis of the rotated tensor that has the length.
    """

    tensor: Tensor
    head_axis: int | None
    batch: Dim
    length: Dim
    half: int
    is_doubled: bool
    needs_expand: bool
    rows: int


class Angles:
    """Makes cosines and sines and remembers those it has made.

    Args:
        types: Shapes.
    """

    def __init__(self, types: Types) -> None:
        self.types = types
        self._made: dict[tuple[Kind, Graph], Tensor] = {}

    def kind(
        self, tensor: Tensor, is_heads_first: bool, batch: Dim, length: Dim, size: int, is_doubled: bool
    ) -> Kind | None:
        """Return how a tensor gives the angles, None where its shape is none that broadcasts over the heads.

        Args:
            tensor: The tensor.
            is_heads_first: Whether the rotated tensor is (batch, heads, length, size), else the length comes second.
            batch: Its batch.
            length: Its length.
            size: The size of a head.
            is_doubled: Whether the tensor has the cosines for both halves.
        """
        shape = self.types.shape(tensor)
        if shape is None or not 2 <= len(shape) <= 4 or shape[-1] != (size if is_doubled else size // 2):
            return None
        place = len(shape) - (3 if is_heads_first else 2)
        if place >= 0 and shape[place] != 1:
            return None
        if len(shape) == 4 and shape[0] not in (1, batch):
            return None
        rows = shape[-2] if is_heads_first else shape[-3] if len(shape) > 2 else 1
        if is_heads_first and len(shape) == 3:
            head_axis, first = None, shape[0]
        else:
            head_axis, first = (place if place >= 0 else None), (shape[0] if len(shape) == 4 else 1)
        has_batch = len(shape) - (head_axis is not None) == 3
        needs_expand = not has_batch or first != batch or rows != length
        return Kind(tensor, head_axis, batch, length, size // 2, is_doubled, needs_expand, 2 if is_heads_first else 1)

    def nodes_for(self, kind: Kind, graph: Graph) -> int:
        """Return how many nodes it takes at most to make it; none where it was made before.

        Args:
            kind: How it is given.
            graph: The graph that reads it.
        """
        if self._known(kind, graph) is not None:
            return 0
        sizes = sum(not isinstance(size, int) for size in (kind.batch, kind.length))
        expand = (2 + sizes if sizes else 1) if kind.needs_expand else 0
        return int(kind.is_doubled) + int(kind.head_axis is not None) + expand

    def made(self, rw: Rewriter, kind: Kind, rotated: Tensor, near: Node) -> Tensor:
        """Return the angles as RotaryEmbedding reads them.

        Args:
            rw: The rewriter.
            kind: How they are given.
            rotated: The tensor that is rotated, of the wanted batch and length.
            near: The node that reads them.
        """
        graph = near.graph
        assert graph is not None
        known = self._known(kind, graph)
        if known is not None:
            return known
        tensor = kind.tensor
        if kind.is_doubled:
            limits = [np.asarray([limit], np.int64) for limit in (0, kind.half, -1)]
            tensor = rw.op("Slice", [tensor, *(rw.constant(limit, near=near) for limit in limits)], near=near)
        if kind.head_axis is not None:
            axis = rw.constant(np.asarray([kind.head_axis], np.int64), near=near)
            tensor = rw.op("Squeeze", [tensor, axis], near=near)
        if kind.needs_expand:
            rows = kind.rows if self.types.rank(rotated) == 4 else 1
            wanted = [Length(kind.batch, rotated, 0), Length(kind.length, rotated, rows)]
            target = [
                length if isinstance(length.size, int) else placed(graph, self.types, length) for length in wanted
            ]
            tensor = expanded(rw, tensor, [*target, 1], near)
            if not all(isinstance(length.size, int) or length.is_input for length in target):
                return tensor
        self._made[kind, graph] = tensor
        return tensor

    def _known(self, kind: Kind, graph: Graph) -> Tensor | None:
        known = self._made.get((kind, graph))
        maker = None if known is None else producer(known)
        return known if maker is not None and maker.graph is graph else None
