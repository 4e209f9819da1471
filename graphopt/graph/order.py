"""Stable topological order and removal of what nothing needs, over nested scopes, without recursion."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from graphopt.errors import GraphError
from graphopt.graph.graphs import Graph, holds_graph, node_subgraphs
from graphopt.graph.scopes import bodies_in, captures, nested_graphs, walk_graphs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.graph.nodes import Node
    from graphopt.graph.tensors import Constant, Tensor


def tensors_read(node: Node) -> Iterable[Tensor]:
    """Return what a node reads: its inputs and what its bodies capture."""
    if not holds_graph(node):
        return node.inputs
    return [*node.inputs, *[tensor for _, body in node_subgraphs(node) for tensor in captures(body)]]


def is_sorted(graph: Graph, nested: bool = False) -> bool:
    """Tell whether every node comes after the producers of what it and its bodies read.

    Args:
        graph: The graph to look at.
        nested: Look at the bodies in it too.
    """
    bodies = bodies_in(graph)
    captured = _captured_producers(bodies)
    return all(_in_order(scope, captured) for scope in (nested_graphs(graph) if nested and bodies else (graph,)))


def _in_order(graph: Graph, captured: dict[Node, list[Node]]) -> bool:
    for node in graph.nodes.labelled():
        place = node.link_label
        for tensor in node.inputs:
            makers = tensor.inputs
            if makers and makers[0].graph is graph and makers[0].link_label >= place:
                return False
        if captured and any(made.graph is graph and made.link_label >= place for made in captured.get(node, ())):
            return False
    return True


def sort_graph(graph: Graph, nested: bool = True) -> None:
    """Bring the nodes into topological order; nodes that may keep their relative order keep it.

    Args:
        graph: The graph to sort.
        nested: Sort the bodies in it too.

    Raises:
        GraphError: There is a cycle; the message names its nodes.
    """
    bodies = bodies_in(graph)
    captured = _captured_producers(bodies)
    for scope in list(nested_graphs(graph)) if nested and bodies else [graph]:
        _sort_one(scope, captured)


def _captured_producers(bodies: list[Graph]) -> dict[Node, list[Node]]:
    """Return for the nodes that hold bodies of a graph the nodes beside them that produce what the bodies capture."""
    captured: dict[Node, list[Node]] = {}

    def note(graph: Graph, tensor: Tensor) -> None:
        for made in tensor.inputs:
            outer = made.graph
            if outer is None or outer is graph:
                continue
            holder = graph.parent_node
            while holder is not None and holder.graph is not None and holder.graph is not outer:
                holder = holder.graph.parent_node
            if holder is not None and holder.graph is outer:
                captured.setdefault(holder, []).append(made)

    for body in bodies:
        for tensor in body.outputs:
            note(body, tensor)
    for graph, node in walk_graphs(bodies):
        for tensor in node.inputs:
            note(graph, tensor)
        for _, inner in node_subgraphs(node):
            for tensor in inner.outputs:
                note(inner, tensor)
    return captured


def _sort_one(graph: Graph, captured: dict[Node, list[Node]]) -> None:
    if _in_order(graph, captured):
        return
    nodes = list(graph.nodes)
    made_at = {tensor: index for index, node in enumerate(nodes) for tensor in node.outputs}
    position = {node: index for index, node in enumerate(nodes)} if captured else {}
    waiting = [0] * len(nodes)
    followers: list[list[int]] = [[] for _ in nodes]
    find = made_at.get
    for index, node in enumerate(nodes):
        for tensor in node.inputs:
            before = find(tensor)
            if before is not None:
                followers[before].append(index)
                waiting[index] += 1
        for made in captured.get(node, ()):
            before = position.get(made)
            if before is not None:
                followers[before].append(index)
                waiting[index] += 1
    ready = [index for index, count in enumerate(waiting) if count == 0]
    sorted_nodes = []
    while ready:
        index = heapq.heappop(ready)
        sorted_nodes.append(nodes[index])
        for after in followers[index]:
            waiting[after] -= 1
            if waiting[after] == 0:
                heapq.heappush(ready, after)
    if len(sorted_nodes) != len(nodes):
        raise GraphError(
            f"the nodes {_cycle(nodes, waiting, followers)} form a cycle",
            where=f"graph '{graph.name}'",
            must="No node may depend on its own output",
        )
    graph.nodes.replace_all(sorted_nodes)


def _cycle(nodes: list[Node], waiting: list[int], followers: list[list[int]]) -> str:
    """Name the nodes of one cycle: from any node that waits, go back along waiting nodes until one repeats."""
    waits = {index for index, count in enumerate(waiting) if count > 0}
    before: dict[int, int] = {}
    for index in sorted(waits):
        for after in followers[index]:
            if after in waits:
                before.setdefault(after, index)
    path, seen, index = [], set(), min(waits)
    while index not in seen:
        seen.add(index)
        path.append(index)
        index = before[index]
    ring = path[path.index(index) :][::-1]
    names = [f"'{nodes[i].name or nodes[i].op}'" for i in ring[:6]]
    return ", ".join(names) + (f" and {len(ring) - 6} more" if len(ring) > 6 else "")


def disconnect(nodes: Iterable[Node]) -> None:
    """Remove every edge of these nodes and of the nodes in their bodies. O(1) per edge."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if holds_graph(node):
            for _, body in node_subgraphs(node):
                stack.extend(body.nodes)
                body.outputs.clear()
        node.inputs.clear()
        node.outputs.clear()


def eliminate_unreachable(
    graph: Graph,
    nested: bool = True,
    unused_outputs: bool = False,
    unused_inputs: bool = False,
    unused_initializers: bool = True,
) -> int:
    """Remove the nodes and initializers that contribute to no output of their graph.

    Args:
        graph: The graph to clean.
        nested: Clean the bodies in it too.
        unused_outputs: Also make trailing outputs of nodes that nobody reads empty.
        unused_inputs: Also remove inputs of the graph itself that nobody reads: this changes the public interface.
            Bodies keep theirs: how many a body has, its operator decides.
        unused_initializers: Also remove initializers that nobody reads, except those that are inputs.

    Returns:
        The number of removed nodes.
    """
    removed = 0
    # Outer first: a body that goes away need not be cleaned, and frees what it captured.
    scopes = [graph]
    while scopes:
        scope = scopes.pop()
        removed += _clean_one(scope)
        if nested:
            scopes.extend(body for node in scope.nodes for _, body in node_subgraphs(node))
    # Cleaned bodies may have released outer nodes.
    if nested and removed:
        again = _clean_one(graph)
        while again:
            removed += again
            again = _clean_one(graph)
    for scope in list(nested_graphs(graph)) if nested else [graph]:
        if unused_outputs:
            _drop_unused_outputs(scope)
        if unused_inputs and scope is graph:
            scope.inputs[:] = [t for t in scope.inputs if t.outputs or len(t.roles) > 1]
        if unused_initializers:
            _drop_unused_initializers(scope)
    return removed


def _clean_one(graph: Graph) -> int:
    needed: set[Node] = set()
    stack = [made for tensor in graph.outputs for made in tensor.inputs]
    # Outputs of nodes here that bodies elsewhere give out directly are needed as well; bodies are reached by nodes.
    while stack:
        node = stack.pop()
        if node in needed or node.graph is not graph:
            continue
        needed.add(node)
        for tensor in tensors_read(node) if node.has_subgraphs() else node.inputs:
            stack.extend(tensor.inputs)
    nodes = list(graph.nodes)
    dead = [node for node in nodes if node not in needed]
    if dead:
        disconnect(dead)
        graph.nodes.replace_all(node for node in nodes if node in needed)
    return len(dead)


def _drop_unused_outputs(graph: Graph) -> None:
    for node in graph.nodes:
        while node.outputs and not node.outputs[-1].outputs and not node.outputs[-1].roles and len(node.outputs) > 1:
            node.outputs.pop()


def _drop_unused_initializers(graph: Graph) -> None:
    for constant in list(graph.initializers):
        if not is_used(constant):
            del graph.initializers[constant]
            graph.initializer_inputs.pop(constant, None)


def is_used(constant: Constant) -> bool:
    """Tell whether an initializer has a reader, is an output, or is an input that the user may feed."""
    if constant.outputs or constant.roles:
        return True
    return constant.home is not None and constant.home.is_overridable(constant)
