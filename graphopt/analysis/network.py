"""NetworkView: a graph as a networkx graph of integers, for questions about the whole of it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Self

import networkx as nx

from graphopt.analysis.base import Analysis
from graphopt.graph.order import tensors_read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from graphopt.analysis.manager import Facts
    from graphopt.graph.model import Model
    from graphopt.graph.objects import Graph, Node


class Network:
    """One graph: its nodes numbered in the order of the node list, an edge wherever one reads what another makes.

    Attributes:
        nodes: The node of each number.
    """

    def __init__(self, graph: Graph) -> None:
        self.nodes: tuple[Node, ...] = tuple(graph.nodes)
        self._number = {node: index for index, node in enumerate(self.nodes)}

    def number(self, node: Node) -> int:
        """Return the number of a node.

        Raises:
            KeyError: The node is not in this graph.
        """
        return self._number[node]

    @cached_property
    def digraph(self) -> nx.DiGraph[int]:
        """The graph over the numbers, made when first asked for; what a body captures is read by its holder."""
        made: nx.DiGraph[int] = nx.DiGraph()
        made.add_nodes_from(range(len(self.nodes)))
        for index, node in enumerate(self.nodes):
            for tensor in tensors_read(node):
                for producer in tensor.inputs:
                    source = self._number.get(producer)
                    if source is not None:
                        made.add_edge(source, index)
        return made

    def articulation_points(self) -> tuple[Node, ...]:
        """Return the nodes whose removal would fall a connected part of the graph apart, in node order."""
        return tuple(
            self.nodes[index] for index in sorted(nx.articulation_points(self.digraph.to_undirected(as_view=True)))
        )

    def components(self) -> tuple[tuple[Node, ...], ...]:
        """Return the connected parts, each in node order, the part with the first node first."""
        parts = sorted(sorted(part) for part in nx.weakly_connected_components(self.digraph))
        return tuple(tuple(self.nodes[index] for index in part) for part in parts)

    def longest_path(self, cost: Callable[[Node], float]) -> tuple[tuple[Node, ...], float]:
        """Return the path whose nodes cost most together, and that sum; the critical path of the graph.

        Args:
            cost: What one node costs, at least 0.
        """
        reach: list[float] = [0.0] * len(self.nodes)
        before: list[int | None] = [None] * len(self.nodes)
        for index in nx.topological_sort(self.digraph):
            best = max(self.digraph.predecessors(index), key=lambda source: (reach[source], -source), default=None)
            before[index] = best
            reach[index] = cost(self.nodes[index]) + (0.0 if best is None else reach[best])
        if not self.nodes:
            return (), 0.0
        end = max(range(len(self.nodes)), key=lambda index: (reach[index], -index))
        path: list[int] = []
        at: int | None = end
        while at is not None:
            path.append(at)
            at = before[at]
        return tuple(self.nodes[index] for index in reversed(path)), reach[end]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Network):
            return NotImplemented
        return self.nodes == other.nodes and nx.utils.edges_equal(
            self.digraph.edges, other.digraph.edges, directed=True
        )

    __hash__ = object.__hash__


class NetworkView(Analysis):
    """The networkx view of each graph, built on demand; node-by-node rewriting never goes through it."""

    depends = frozenset({"structure"})

    def __init__(self, networks: Mapping[Graph, Network], main: Graph) -> None:
        self._networks = dict(networks)
        self._main = main

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:  # noqa: D102
        return cls({graph: Network(graph) for graph in model.graphs()}, model.graph)

    def of(self, graph: Graph | None = None) -> Network:
        """Return the view of a graph; of the main graph without one.

        Raises:
            KeyError: The graph is not part of the model.
        """
        return self._networks[self._main if graph is None else graph]

    def same_as(self, other: Self) -> bool:
        """True where every graph has the same nodes in the same order and the same edges."""
        return self._networks == other._networks
