"""Bodies: which graphs of a model lie in attributes of nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from graphopt.analysis.base import Analysis

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Graph, Model


class Bodies(Analysis):
    """The bodies of If, Loop, Scan and custom operators, outer before inner.

    Finding them costs a look at every node, so passes that have nothing to do in a model without bodies ask here.
    """

    depends = frozenset({"structure"})

    def __init__(self, graphs: Iterable[Graph]) -> None:
        self.graphs = tuple(graphs)

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:  # noqa: D102
        return cls(graph for graph in model.graphs() if graph.parent_node is not None)

    def __bool__(self) -> bool:
        return bool(self.graphs)

    def same_as(self, other: Self) -> bool:
        """Tell whether both name the same graphs."""
        return self.graphs == other.graphs
