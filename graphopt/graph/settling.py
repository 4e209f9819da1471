"""What is made legal again when a block of edits ends: nodes that go, constants without uses, order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.errors import GraphError
from graphopt.graph.order import is_used, sort_graph, tensors_read
from graphopt.graph.scopes import holder_in, producer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from graphopt.graph.graphs import Graph
    from graphopt.graph.nodes import Node
    from graphopt.graph.tensors import Constant, Tensor


def remove_erased(erased: Mapping[Node, Sequence[Tensor]]) -> None:
    """Take nodes out of their graphs.

    Args:
        erased: The nodes, each with the outputs that it had.

    Raises:
        GraphError: One of these is still used and nothing else makes it.
    """
    for node, outputs in erased.items():
        for tensor in outputs:
            if (tensor.outputs or tensor.roles) and not tensor.inputs:
                user = tensor.outputs[0].name if tensor.outputs else "the outputs of its graph"
                raise GraphError(
                    f"'{node.name}' ({node.op}) was erased, but its output '{tensor.name}' is used by '{user}'",
                    must="Replace the uses of a tensor before its producer goes",
                )
        if node.graph is not None:
            node.graph.nodes.discard(node)


def drop_loose(constants: Iterable[Constant]) -> None:
    """Drop those of some constants that nothing uses any more."""
    for constant in constants:
        if constant.outputs:
            continue
        home = constant.home
        if home is not None and not is_used(constant) and constant not in home.initializer_inputs:
            home.initializers.pop(constant, None)
            constant.home = None


def keep_order(touched: Iterable[Node]) -> None:
    """Sort the graphs in which a node that was touched stands before what it reads."""
    unsorted: dict[Graph, None] = {}
    for node in touched:
        here = node.graph
        if here is None:
            continue
        for tensor in tensors_read(node):
            made = producer(tensor)
            graph = None if made is None else made.graph
            if made is None or graph is None or graph in unsorted:
                continue
            holder = node if graph is here else holder_in(graph, node)
            if holder is not None and graph.nodes.label(made) >= graph.nodes.label(holder):
                unsorted[graph] = None
    for graph in unsorted:
        sort_graph(graph, nested=False)
