"""Which layers are the first and the last of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph import producer
from graphopt.graph.scopes import walk_graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from graphopt.graph import Graph, Node


def end_layers(graph: Graph, layers: set[Node]) -> set[Node]:
    """Return the layers of the main graph with no layer before them, and those with none behind them.

    A node that holds bodies counts as a layer where one lies in them, but is never returned.

    Args:
        graph: The main graph.
        layers: The nodes that count as layers.
    """
    outer = _outermost(graph)
    holding = {outer[node] for node in layers if node in outer}
    readers: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    makers: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    for inner, node in outer.items():
        for tensor in inner.inputs:
            made = producer(tensor)
            maker = None if made is None else outer.get(made)
            if maker is not None and maker is not node:
                readers[maker].append(node)
                makers[node].append(maker)
    ends = layers & set(graph.nodes)
    return (ends - _reached(holding, readers.__getitem__)) | (ends - _reached(holding, makers.__getitem__))


def _outermost(graph: Graph) -> dict[Node, Node]:
    """Return for each node, in bodies too, the node of the main graph that it is or lies in."""
    found: dict[Node, Node] = {}
    top: Node | None = None
    for owner, node in walk_graphs([graph]):
        if owner is graph:
            top = node
        assert top is not None
        found[node] = top
    return found


def _reached(start: Iterable[Node], following: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """Return every node that one or more steps from the start lead to."""
    found: set[Node] = set()
    waiting = list(start)
    while waiting:
        for node in following(waiting.pop()):
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found
