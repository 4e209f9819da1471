"""The part of a graph around a Transpose in which every tensor may have one of two layouts.

A Transpose, or a Reshape that is one, holds the same value in two layouts; it is a *turn*. From there on the region
grows through nodes that can compute in the other layout too (*movers*), until it meets nodes that cannot. What is in
between is a choice: each mover has a layout, and each value that is made in one layout and read in the other costs a
turn.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnx import TensorProto

from graphopt.graph import producer
from graphopt.graph.dtypes import bits
from graphopt.passes.simplify.layout.permutations import (
    Perm,
    between,
    compose,
    inverse,
    is_identity,
    keeps_order,
    permuted,
    same_on,
)
from graphopt.passes.simplify.layout.relayout import Relayout, Side
from graphopt.passes.simplify.layout.views import VIEWS, free_input, free_output
from graphopt.passes.simplify.look import Look
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, refers_to_function

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor
    from graphopt.passes.simplify.layout.relayout import Rule

MOST_MOVERS = 256
"""A region stops growing at so many movers; what lies behind keeps its layout."""

MOVERS_PER_TURN = 32
"""It stops earlier, at so many movers for each turn found and one more: far from all turns nothing is to be saved."""

_FLOAT8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ)

MOST_READERS = 64
"""The readers of a tensor with more readers than this keep their layout."""


@dataclass(slots=True, eq=False)
class Value:
    """One value of a region, in one or both layouts.

    Attributes:
        perm: The permutation from layout 0 to layout 1.
        shape: The shape in layout 0.
        tensors: The tensors that hold it, with their layouts; the first one found first.
        turns: The nodes that make one of these tensors from another.
        free: Readers that can read either layout at the same price, with what changes in them.
    """

    perm: Perm
    shape: tuple[Dim, ...]
    tensors: dict[Tensor, int] = field(default_factory=dict)
    turns: dict[Node, None] = field(default_factory=dict)
    free: dict[Node, Relayout] = field(default_factory=dict)

    def away(self, layout: int) -> Perm:
        """Return the permutation from a layout to the other."""
        return inverse(self.perm) if layout else self.perm

    @property
    def root(self) -> Tensor:
        """The tensor that no turn makes."""
        return next(tensor for tensor in self.tensors if producer(tensor) not in self.turns)

    @property
    def keeps_order(self) -> bool:
        """Whether both layouts have their elements in the same order, so that a view turns one into the other."""
        return keeps_order(self.shape, self.perm)


@dataclass(frozen=True, slots=True)
class Mover:
    """A node that can compute in either layout.

    Attributes:
        layout: The layout in which it computes now.
        other: How it computes in the other.
    """

    layout: int
    other: Relayout


class Turns:
    """Recognises turns.

    Args:
        types: Types of the tensors.
    """

    def __init__(self, types: Types) -> None:
        self.types = types

    def perm(self, node: Node) -> Perm | None:
        """Return the permutation of a Transpose, or of a Reshape that only moves axes of size 1; else None."""
        if node.domain not in DEFAULT_DOMAINS or node.op not in {"Transpose", "Reshape"} or not node.inputs:
            return None
        if node.op == "Transpose":
            given = node.attrs.get("perm")
            if given is None or refers_to_function(node):
                rank = self.types.rank(node.inputs[0])
                return None if rank is None or refers_to_function(node) else tuple(range(rank))[::-1]
            return tuple(int(axis) for axis in given)
        source, target = self.types.shape(node.inputs[0]), self.types.shape(node.outputs[0])
        return None if source is None or target is None or source == target else between(source, target)


class Region:
    """Everything that may change its layout together with one turn.

    Args:
        seed: The turn.
        perm: Its permutation.
        types: Types of the tensors.
        values: Values of shape computations.
        rules: How nodes compute in other layouts, by operator.

    Attributes:
        values: The values, in the order found.
        movers: The nodes that can compute in either layout.
        around: Nodes that were looked at and stay as they are.
        whole: Whether nothing was left out because the region grew too large.
        found: All turns.
        near: The turns found before the region had grown to half of its largest size: it would look much the same from
            any of them.
    """

    def __init__(self, seed: Node, perm: Perm, types: Types, values: ShapeValues, rules: Mapping[str, Rule]) -> None:
        self.graph = seed.graph
        self.types = types
        self.values: list[Value] = []
        self.movers: dict[Node, Mover] = {}
        self.around: dict[Node, None] = {}
        self.whole = True
        self.found: dict[Node, None] = {seed: None}
        self.near: dict[Node, None] = {seed: None}
        self._facts = values
        self._rules = rules
        self._turns = Turns(types)
        self._value_of: dict[Tensor, Value] = {}
        self._queue: deque[Tensor] = deque()
        self._free: set[Node] = set()
        self._hint: tuple[Perm, Perm] = (perm, inverse(perm))
        if self._add(seed.inputs[0], perm, 0) is not None:
            while self._queue:
                self._look_around(self._queue.popleft())
            self._drop_contradictions()

    @property
    def turns(self) -> Iterator[Node]:
        """All turns of the region."""
        return (turn for value in self.values for turn in value.turns)

    @property
    def nodes(self) -> Iterator[Node]:
        """All nodes whose change may make another choice the best."""
        yield from self.movers
        yield from self.around
        for value in self.values:
            yield from value.turns
            yield from value.free

    def value(self, tensor: Tensor, perm: Perm | None) -> Value | None:
        """Return the value that a node reads or gives through an edge, None where the layout makes no difference.

        Args:
            tensor: The tensor on the edge.
            perm: The permutation on the edge in the other layout.
        """
        return None if perm is None else self._value_of.get(tensor)

    def edges(self, node: Node) -> Iterator[tuple[Tensor, Perm]]:
        """Yield the tensors of a mover whose layout depends on its own, with their permutations."""
        other = self.movers[node].other
        for tensor, perm in (
            *zip(node.inputs, other.inputs, strict=True),
            *zip(node.outputs, other.outputs, strict=True),
        ):
            if perm is not None:
                yield tensor, perm

    def decides(self, node: Node | None, tensor: Tensor) -> bool:
        """Whether the layout of a tensor goes with that of a mover; one that only holds axes of size 1 may not."""
        return node is not None and node in self.movers and any(each is tensor for each, _ in self.edges(node))

    # ------------------------------------------------------------------------------------------------------- growing

    def _add(self, tensor: Tensor, perm: Perm, layout: int) -> Value | None:
        """Take a tensor in, whose other layout a permutation gives; None where it cannot be turned."""
        shape = self.types.shape(tensor)
        if shape is None or len(shape) != len(perm) or not self._has_transpose(tensor):
            return None
        value = Value(inverse(perm), permuted(shape, perm)) if layout else Value(perm, shape)
        self.values.append(value)
        self._hold(tensor, value, layout)
        return value

    def _hold(self, tensor: Tensor, value: Value, layout: int) -> None:
        value.tensors[tensor] = layout
        self._value_of[tensor] = value
        self._queue.append(tensor)

    def _look_around(self, tensor: Tensor) -> None:
        value = self._value_of[tensor]
        layout = value.tensors[tensor]
        away = value.away(layout)
        made = producer(tensor)
        if made is not None and made.graph is self.graph and not self._turns_here(made, made.inputs[:1], tensor, away):
            place = next(place for place, output in enumerate(made.outputs) if output is tensor)
            self._meet(made, Side(is_output=True, place=place), away, layout, value)
        if len(tensor.outputs) > MOST_READERS:
            self.whole = False
            return
        # turns first: a mover that reads both sides of one would take them for two values
        readers = [each for each in self._readers(tensor) if not self._turns_here(each, each.outputs[:1], tensor, away)]
        for reader in readers:
            for place, each in enumerate(reader.inputs):
                if each is tensor:
                    self._meet(reader, Side(is_output=False, place=place), away, layout, value)

    def _readers(self, tensor: Tensor) -> list[Node]:
        """Return the readers in the order of the graph; that of the uses depends on what was edited last."""
        assert self.graph is not None
        here = {reader for reader in tensor.outputs if reader.graph is self.graph}
        return sorted(here, key=self.graph.nodes.label) if len(here) > 1 else list(here)

    def _turns_here(self, node: Node, others: Sequence[Tensor], tensor: Tensor, away: Perm) -> bool:
        """Whether a node turns a value between a tensor and another, which then is taken in.

        Args:
            node: The node.
            others: The tensor on its other side, if it has one.
            tensor: The tensor on this side.
            away: The permutation to the other layout.
        """
        value = self._value_of[tensor]
        if node in value.turns:
            return True
        perm, shape = self._turns.perm(node), self._shape(tensor)
        if perm is None or not others or others[0] is tensor:
            return False
        if len(perm) != len(shape) or not same_on(shape, perm if node.inputs[0] is tensor else inverse(perm), away):
            return False
        other, layout = others[0], 1 - value.tensors[tensor]
        known = self._value_of.get(other)
        if known is None:
            self._hold(other, value, layout)
        elif known.tensors[other] != layout or not same_on(self._shape(other), known.away(layout), inverse(away)):
            return False
        elif known is not value:
            self._join(value, known)
        value.turns[node] = None
        self.found[node] = None
        if len(self.movers) < MOST_MOVERS // 2:
            self.near[node] = None
        return True

    def _shape(self, tensor: Tensor) -> tuple[Dim, ...]:
        """Return the shape of a tensor of the region; where nothing tells its rank, the value that it holds does."""
        value, shape = self._value_of[tensor], self.types.shape(tensor)
        if shape is not None:
            return tuple(shape)
        return permuted(value.shape, value.perm) if value.tensors[tensor] else value.shape

    def _join(self, value: Value, known: Value) -> None:
        """Make one value of two that turned out to be the same."""
        for tensor, layout in known.tensors.items():
            value.tensors[tensor] = layout
            self._value_of[tensor] = value
        value.turns.update(known.turns)
        value.free.update(known.free)
        self.values.remove(known)

    def _meet(self, node: Node, side: Side, perm: Perm, layout: int, value: Value) -> None:
        """Make a node a mover if its rule allows, and take in the tensors that change with it."""
        if node in self.movers or node in self.around or node in self._free:
            return
        if len(self.movers) >= min(MOST_MOVERS, MOVERS_PER_TURN * (1 + len(self.found))):
            self.whole = False
            self.around[node] = None
            return
        if node.domain not in DEFAULT_DOMAINS or refers_to_function(node) or any(not out.name for out in node.outputs):
            self.around[node] = None
            return
        look = Look(node, self.types, self._facts)
        if not side.is_output:
            change = self._free_reader(look, perm)
            if change is not None:
                value.free[node] = change
                self._free.add(node)
                return
        found = self._free_maker(look, perm) if side.is_output else None
        if found is None and node.op in self._rules:
            found = self._rules[node.op](look, side, perm, self._hint[layout])
        moving = None if found is None else self._moving(node, found)
        if moving is None:
            self.around[node] = None
            return
        self.movers[node] = Mover(layout, moving)
        for tensor, wanted in list(self.edges(node)):
            if tensor not in self._value_of:
                self._add(tensor, wanted, layout)

    def _free_reader(self, look: Look, perm: Perm) -> Relayout | None:
        if look.node.op == "Transpose":
            own = self._turns.perm(look.node)
            if own is None:
                return None
            return Relayout((perm,), (tuple(range(len(own))),), {"perm": list(compose(inverse(perm), own))})
        return free_input(look, perm) if look.node.op in VIEWS else None

    def _free_maker(self, look: Look, perm: Perm) -> Relayout | None:
        if look.node.op == "Transpose":
            own = self._turns.perm(look.node)
            return None if own is None else Relayout((None,), (perm,), {"perm": list(compose(own, perm))})
        return free_output(look, perm) if look.node.op in VIEWS else None

    def _moving(self, node: Node, found: Relayout) -> Relayout | None:
        """Return a relayout without the permutations that mean nothing; None where a tensor cannot be turned."""
        sides: list[tuple[Perm | None, ...]] = []
        for tensors, perms in ((node.inputs, found.inputs), (node.outputs, found.outputs)):
            kept: list[Perm | None] = []
            for tensor, perm in zip(tensors, perms, strict=True):
                shape = None if perm is None or is_identity(perm) else self.types.shape(tensor)
                if perm is None or is_identity(perm):
                    kept.append(None)
                elif shape is None or len(shape) != len(perm) or not self._has_transpose(tensor):
                    return None
                else:
                    kept.append(None if 1 in shape and same_on(shape, perm, tuple(range(len(perm)))) else perm)
            sides.append(tuple(kept))
        return replace(found, inputs=sides[0], outputs=sides[1])

    def _has_transpose(self, tensor: Tensor) -> bool:
        """Whether Transpose takes the element type of a tensor in the opset of the graph."""
        assert self.graph is not None
        return 0 < self._transposes_since(self.types.dtype(tensor)) <= self.graph.opset

    @staticmethod
    def _transposes_since(dtype: int) -> int:
        if dtype == TensorProto.BFLOAT16:
            return 13
        if dtype in _FLOAT8:
            return 21
        return 1 if 0 < dtype < TensorProto.BFLOAT16 else 0

    def _drop_contradictions(self) -> None:
        """Let movers stay that need another layout or permutation than their tensors have, or read a crowded one."""
        for node, mover in list(self.movers.items()):
            for tensor, perm in list(self.edges(node)):
                value, shape = self._value_of.get(tensor), self.types.shape(tensor)
                assert shape is not None
                if (
                    value is None
                    or (len(tensor.outputs) > MOST_READERS and producer(tensor) is not node)
                    or value.tensors[tensor] != mover.layout
                    or not same_on(shape, value.away(mover.layout), perm)
                ):
                    del self.movers[node]
                    self.around[node] = None
                    break


def element_bytes(tensor: Tensor, types: Types) -> int:
    """Return the bytes of an element, 1 where they are not known."""
    return max(1, bits(types.dtype(tensor)) // 8)
