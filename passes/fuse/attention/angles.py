"""Cosines and sines as RotaryEmbedding reads them: (batch, length, half a size), made once for all that share them."""

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
class Kind:
    """How cosines or sines are given.

    Attributes:
        tensor: The tensor that all heads share.
        head_axis: The axis of size 1 that stands for the heads; None where it has none that must go.
        batch: The batch that it is expanded to, 1 where it has it.
        length: The length that it is expanded to, 1 where it has it.
        half: Half the size of a head.
        is_doubled: Whether it has both halves.
        has_batch: Whether it has an axis for the batch.
        rows: The axis of the rotated tensor that has the length.
    """

    tensor: Tensor
    head_axis: int | None
    batch: Dim
    length: Dim
    half: int
    is_doubled: bool
    has_batch: bool
    rows: int

    @property
    def needs_expand(self) -> bool:
        """Whether batch or length are not proved to be the wanted ones."""
        return not self.has_batch or self.batch != 1 or self.length != 1


class Angles:
    """Makes cosines and sines and remembers those it has made.

    Args:
        types: Shapes.
    """

    def __init__(self, types: Types) -> None:
        self.types = types
        self._made: dict[tuple[Kind, Graph], Tensor] = {}
        self._shapes: dict[tuple[Graph | Length, ...], Tensor] = {}

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
        wanted = 1 if first == batch else batch, 1 if rows == length else length
        return Kind(tensor, head_axis, *wanted, size // 2, is_doubled, has_batch, 2 if is_heads_first else 1)

    def nodes_for(self, cos: Kind, sin: Kind, graph: Graph) -> int:
        """Return how many nodes it takes at most to make them; none where they were made before.

        Args:
            cos: How the cosines are given.
            sin: How the sines are given.
            graph: The graph that reads them.
        """
        missing = [kind for kind in (cos, sin) if self._known(kind, graph) is None]
        shapes = {(kind.batch, kind.length) for kind in missing if kind.needs_expand}
        unknown = [sum(not isinstance(size, int) for size in shape) for shape in shapes]
        views = sum(kind.is_doubled + (kind.head_axis is not None) + kind.needs_expand for kind in missing)
        return views + sum(count + 1 for count in unknown if count)

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
        tensor: Tensor = kind.tensor
        if kind.is_doubled:
            limits = [np.asarray([limit], np.int64) for limit in (0, kind.half, -1)]
            tensor = rw.op("Slice", [tensor, *(rw.constant(limit, near=near) for limit in limits)], near=near)
        if kind.head_axis is not None:
            axis = rw.constant(np.asarray([kind.head_axis], np.int64), near=near)
            tensor = rw.op("Squeeze", [tensor, axis], near=near)
        if kind.needs_expand:
            rows = kind.rows if self.types.rank(rotated) == 4 else 1
            wanted = [Length(kind.batch, rotated, 0), Length(kind.length, rotated, rows)]
            target = [each if isinstance(each.size, int) else placed(graph, self.types, each) for each in wanted]
            is_shared = all(isinstance(each.size, int) or each.is_input for each in target)
            tensor = rw.op("Expand", [tensor, self._shape(rw, target, graph, near, is_shared=is_shared)], near=near)
            if not is_shared:
                return tensor
        self._made[kind, graph] = tensor
        return tensor

    def _shape(self, rw: Rewriter, target: list[Length], graph: Graph, near: Node, *, is_shared: bool) -> Tensor:
        """Return the target of Expand, one for cosines and sines."""
        key: tuple[Graph | Length, ...] = (graph, *target)
        known = self._shapes.get(key)
        maker = None if known is None else producer(known)
        if known is not None and maker is not None and maker.graph is graph:
            return known
        made = shape_of(rw, [*target, 1], near)
        if is_shared:
            self._shapes[key] = made
        return made

    def _known(self, kind: Kind, graph: Graph) -> Tensor | None:
        known = self._made.get((kind, graph))
        maker = None if known is None else producer(known)
        return known if maker is not None and maker.graph is graph else None
