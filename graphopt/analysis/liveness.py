"""Liveness: from where to where each tensor is needed, and how many bytes of activations that takes at most."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

from graphopt.analysis.base import Analysis
from graphopt.analysis.dim_values import evaluate
from graphopt.analysis.types import Types
from graphopt.graph.dtypes import packed_size_bytes
from graphopt.graph.objects import Constant
from graphopt.graph.order import tensors_read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graphopt.analysis.manager import Facts
    from graphopt.graph.model import Model
    from graphopt.graph.objects import Graph, Node, Tensor


class Span(NamedTuple):
    """Where a tensor is live, in positions of the node list of its graph.

    Attributes:
        first: The node that makes it; -1 for an input of the graph.
        last: The last node that needs it, the number of nodes for an output of the graph.
    """

    first: int
    last: int


class Peak(NamedTuple):
    """The most activation bytes that are live at one node.

    Attributes:
        size_bytes: The sum of the tensors live there: inputs of the graph and results of nodes, never initializers.
        node: The node that runs there, None for an empty graph.
        unknown: Tensors whose size is not known under the given dimensions; they count nothing.
    """

    size_bytes: int
    node: Node | None
    unknown: int


class Liveness(Analysis):
    """Live ranges of the tensors of every graph in the order of its node list.

    A tensor that a body captures is needed by the node that holds the body. Initializers and outputs of Constant nodes
    are not activations and have no range.
    """

    depends = frozenset({"structure"})
    may_survive = frozenset({"weights"})

    def __init__(self, spans: Mapping[Graph, dict[Tensor, Span]], types: Types) -> None:
        self._spans = dict(spans)
        self._by_tensor = {tensor: span for found in self._spans.values() for tensor, span in found.items()}
        self._types = types

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:  # noqa: D102
        return cls({graph: _spans(graph) for graph in model.graphs()}, facts.get(Types))

    def span(self, tensor: Tensor) -> Span | None:
        """Return where a tensor is live, None for a constant."""
        return self._by_tensor.get(tensor)

    def tensors(self, graph: Graph) -> Iterator[tuple[Tensor, Span]]:
        """Yield the activations of a graph with their ranges, in order of birth."""
        yield from self._spans.get(graph, {}).items()

    def peak(self, graph: Graph, sizes: Mapping[str, int] | None = None, *, default: int | None = None) -> Peak:
        """Return the largest sum of the activations that are live at one node.

        Args:
            graph: The graph; a body counts only its own tensors.
            sizes: The value of each symbolic dimension, by name.
            default: The value of the dimensions that are not named; None leaves their tensors unknown.
        """
        nodes = list(graph.nodes)
        change = [0] * (len(nodes) + 1)
        unknown = 0
        for tensor, span in self.tensors(graph):
            size = self._bytes(tensor, sizes or {}, default)
            if size is None:
                unknown += 1
                continue
            change[max(span.first, 0)] += size
            if span.last + 1 < len(change):
                change[span.last + 1] -= size
        most, at, live = 0, None, 0
        for index, delta in enumerate(change[: len(nodes)]):
            live += delta
            if live > most:
                most, at = live, nodes[index]
        return Peak(most, at, unknown)

    def _bytes(self, tensor: Tensor, sizes: Mapping[str, int], default: int | None) -> int | None:
        shape, dtype = self._types.shape(tensor), self._types.dtype(tensor)
        if shape is None or not dtype:
            return None
        numbers = [evaluate(size, sizes, default) for size in shape]
        known = [number for number in numbers if number is not None]
        return packed_size_bytes(dtype, known) if len(known) == len(numbers) else None

    def survives(self, model: Model) -> bool:
        """Hold exactly as long as the types the sizes come from."""
        return self._types.survives(model)

    def same_as(self, other: Self) -> bool:
        """True where every tensor has the same range and the sizes behind it are the same."""
        return self._spans == other._spans and self._types == other._types


def _spans(graph: Graph) -> dict[Tensor, Span]:
    """Return the ranges of a graph's activations; a range ends where it begins if nothing needs the tensor."""
    first: dict[Tensor, int] = {tensor: -1 for tensor in graph.inputs if not isinstance(tensor, Constant)}
    last: dict[Tensor, int] = dict.fromkeys(first, -1)
    count = 0
    for index, node in enumerate(graph.nodes):
        count += 1
        for tensor in tensors_read(node):
            if tensor in first:
                last[tensor] = index
        if node.op == "Constant" and node.domain in {None, "", "ai.onnx"}:
            continue
        for tensor in node.outputs:
            if tensor.name:
                first[tensor] = last[tensor] = index
    for tensor in graph.outputs:
        if tensor in first:
            last[tensor] = count
    return {tensor: Span(begin, last[tensor]) for tensor, begin in first.items()}
