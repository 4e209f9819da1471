"""Uses and captures: who reads each tensor, and what the bodies of control-flow nodes take from around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from graphopt.analysis.base import Analysis
from graphopt.graph.scopes import Use, captures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.analysis.manager import Facts
    from graphopt.graph.model import Model
    from graphopt.graph.objects import Graph, Tensor


class Uses(Analysis):
    """Every edge from a tensor to a node, of all scopes, in the order of the walk; edits do not move the snapshot."""

    depends = frozenset({"structure"})

    def __init__(self, uses: Mapping[Tensor, tuple[Use, ...]], outputs: Mapping[Tensor, tuple[Graph, ...]]) -> None:
        self._uses = dict(uses)
        self._outputs = dict(outputs)

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:  # noqa: D102
        uses: dict[Tensor, list[Use]] = {}
        for _, node in model.walk():
            for index, tensor in enumerate(node.inputs):
                if tensor.name:
                    uses.setdefault(tensor, []).append(Use(node, index))
        outputs: dict[Tensor, list[Graph]] = {}
        for graph in model.graphs():
            for tensor in graph.outputs:
                outputs.setdefault(tensor, []).append(graph)
        return cls(
            {tensor: tuple(found) for tensor, found in uses.items()},
            {tensor: tuple(found) for tensor, found in outputs.items()},
        )

    def of(self, tensor: Tensor) -> tuple[Use, ...]:
        """Return the nodes that read a tensor, with the index of the input; inner scopes included."""
        return self._uses.get(tensor, ())

    def outputs_of(self, tensor: Tensor) -> tuple[Graph, ...]:
        """Return the graphs that give a tensor out, once per occurrence."""
        return self._outputs.get(tensor, ())

    def count(self, tensor: Tensor) -> int:
        """Return how often a tensor is read or given out."""
        return len(self.of(tensor)) + len(self.outputs_of(tensor))

    def same_as(self, other: Self) -> bool:
        """True where every tensor has the same uses in the same order."""
        return self._uses == other._uses and self._outputs == other._outputs


class Captures(Analysis):
    """Which outer tensors each body reads; a tensor captured by a body inside a body counts for both."""

    depends = frozenset({"structure"})

    def __init__(self, by_graph: Mapping[Graph, tuple[Tensor, ...]]) -> None:
        self._by_graph = dict(by_graph)
        self._by_tensor: dict[Tensor, list[Graph]] = {}
        for graph, tensors in self._by_graph.items():
            for tensor in tensors:
                self._by_tensor.setdefault(tensor, []).append(graph)

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:  # noqa: D102
        return cls({graph: tuple(captures(graph)) for graph in model.graphs() if graph.parent is not None})

    def of(self, graph: Graph) -> tuple[Tensor, ...]:
        """Return the tensors that a body takes from the graphs around it, in order of first use."""
        return self._by_graph.get(graph, ())

    def by(self, tensor: Tensor) -> tuple[Graph, ...]:
        """Return the bodies that capture a tensor, outer before inner."""
        return tuple(self._by_tensor.get(tensor, ()))

    def same_as(self, other: Self) -> bool:
        """True where every body captures the same tensors in the same order."""
        return self._by_graph == other._by_graph
