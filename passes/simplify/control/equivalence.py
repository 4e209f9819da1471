"""Whether two bodies compute the same, node by node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from graphopt.graph import Constant, RawAttribute, is_graph_input, producer
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS

if TYPE_CHECKING:
    from graphopt.graph import Graph, Node, Tensor


def same_bodies(one: Graph, other: Graph) -> bool:
    """Whether two bodies give the same outputs, proved by the same nodes in the same order on the same outer tensors.

    Args:
        one: A body.
        other: Another one, of the same number of inputs and outputs.
    """
    if (len(one.nodes), len(one.inputs), len(one.outputs)) != (len(other.nodes), len(other.inputs), len(other.outputs)):
        return False
    return _Pairing().graphs(one, other)


class _Pairing:
    """Tensors of one body with their counterparts of the other."""

    def __init__(self) -> None:
        self.twins: dict[Tensor, Tensor] = {}

    def graphs(self, one: Graph, other: Graph) -> bool:
        self.twins.update(zip(one.inputs, other.inputs, strict=True))
        for mine, theirs in zip(one.nodes, other.nodes, strict=True):
            if not self.nodes(mine, theirs):
                return False
            self.twins.update(zip(mine.outputs, theirs.outputs, strict=True))
        return all(self.tensors(a, b) for a, b in zip(one.outputs, other.outputs, strict=True))

    def tensors(self, one: Tensor, other: Tensor) -> bool:
        if not one.name or not other.name:
            return not one.name and not other.name
        twin = self.twins.get(one)
        if twin is not None:
            return twin is other
        return one is other or same_constants(one, other)

    def nodes(self, one: Node, other: Node) -> bool:
        if (one.op, _domain(one), len(one.inputs), len(one.outputs)) != (
            other.op,
            _domain(other),
            len(other.inputs),
            len(other.outputs),
        ):
            return False
        if one.overload != other.overload or one.attrs.keys() != other.attrs.keys():
            return False
        if not all(self.tensors(a, b) for a, b in zip(one.inputs, other.inputs, strict=True)):
            return False
        if [bool(t.name) for t in one.outputs] != [bool(t.name) for t in other.outputs]:
            return False
        return all(self.values(value, other.attrs[key]) for key, value in one.attrs.items())

    def values(self, one: object, other: object) -> bool:
        if isinstance(one, gs.Graph) and isinstance(other, gs.Graph):
            counts = [(len(g.nodes), len(g.inputs), len(g.outputs)) for g in (one, other)]
            return counts[0] == counts[1] and self.graphs(one, other)
        if isinstance(one, Constant) and isinstance(other, Constant):
            return same_values(one, other)
        if isinstance(one, RawAttribute) and isinstance(other, RawAttribute):
            mine, theirs = one.proto, other.proto
            return bool(mine.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True))
        return type(one) is type(other) and repr(one) == repr(other)


def same_constants(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are initializers of the same type, shape and bytes, which nobody may feed."""
    if not isinstance(one, Constant) or not isinstance(other, Constant):
        return False
    if producer(one) is not None or is_graph_input(one) or is_graph_input(other):
        return False
    return same_values(one, other)


def same_values(one: Constant, other: Constant) -> bool:
    """Whether two constants have the same type, shape and bytes."""
    if one.weight is other.weight:
        return True
    if (one.onnx_dtype, one.shape, one.nbytes) != (other.onnx_dtype, other.shape, other.nbytes):
        return False
    mine, theirs = one.array(), other.array()
    if mine.dtype.kind == "O":
        return bool((mine == theirs).all())
    return mine.tobytes() == theirs.tobytes()


def _domain(node: Node) -> str:
    return "" if node.domain in DEFAULT_DOMAINS else str(node.domain)
