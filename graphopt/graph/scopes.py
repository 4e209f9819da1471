"""Walking: every scope of a model, who uses a tensor, what a body captures. Nothing here recurses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from onnx import AttributeProto

from graphopt.graph.attributes import RawAttribute
from graphopt.graph.graphs import Graph, holds_graph, node_subgraphs
from graphopt.graph.tensors import Constant, Tensor
from graphopt.graph.weights import SparseWeight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from graphopt.graph.nodes import Node

Order = Literal["pre", "post"]


class Use(NamedTuple):
    """One edge into a node.

    Attributes:
        node: The consumer.
        index: Position among its inputs.
    """

    node: Node
    index: int  # type: ignore[assignment]


def subgraphs(node: Node) -> Iterator[tuple[str, Graph]]:
    """Yield (attribute name, body) for every graph directly in the attributes of a node."""
    return node_subgraphs(node)


def walk_graphs(roots: Iterable[Graph], order: Order = "pre") -> Iterator[tuple[Graph, Node]]:
    """Yield (graph, node) for every node of the graphs and of the bodies in them.

    Args:
        roots: Graphs to walk one after the other.
        order: "pre" gives a node before those in its bodies, "post" after them.
    """
    pre = order == "pre"
    for root in roots:
        stack: list[tuple[Graph, Iterator[Node], Node | None]] = [(root, iter(root.nodes), None)]
        while stack:
            graph, nodes, holder = stack[-1]
            for node in nodes:
                if node.graph is not graph:
                    continue  # erased since the walk of this graph began
                if pre:
                    yield graph, node
                if node._attrs and holds_graph(node):  # few have attributes that were looked at
                    bodies = [body for _, body in node_subgraphs(node)]
                    for body in bodies:
                        if body.parent_node is not node or body.parent is not graph:
                            body.__dict__.update(parent=graph, parent_node=node)  # an attribute was set by hand
                    stack.extend((body, iter(body.nodes), node) for body in reversed(bodies))
                    break  # the rest of this graph comes after them
                if not pre:
                    yield graph, node
            else:
                stack.pop()
                if not pre and holder is not None and stack[-1][2] is not holder:
                    yield stack[-1][0], holder


def bodies_in(graph: Graph) -> list[Graph]:
    """Return the bodies directly in the nodes of a graph, and let each know what is around it."""
    found = []
    for node in graph.nodes:
        if node._attrs and holds_graph(node):  # few have attributes that were looked at
            for _, body in node_subgraphs(node):
                if body.parent_node is not node or body.parent is not graph:
                    body.__dict__.update(parent=graph, parent_node=node)  # an attribute was set by hand
                found.append(body)
    return found


def nested_graphs(root: Graph) -> Iterator[Graph]:
    """Yield a graph and every body in it, outer before inner."""
    stack = [root]
    while stack:
        graph = stack.pop()
        yield graph
        stack.extend(reversed(bodies_in(graph)))


def nodes_in_bodies(node: Node) -> int:
    """Return how many nodes the bodies of a node hold, those in their bodies included."""
    if not holds_graph(node):
        return 0
    return sum(len(scope.nodes) for _, body in node_subgraphs(node) for scope in nested_graphs(body))


def holder_in(graph: Graph, node: Node | None) -> Node | None:
    """Return the node of ``graph`` that is or contains ``node``, None where that lies elsewhere."""
    while node is not None:
        if node.graph is graph:
            return node
        node = None if node.graph is None else node.graph.parent_node
    return None


def producer(tensor: Tensor) -> Node | None:
    """Return the node that produces a tensor; None for inputs, initializers and omitted tensors."""
    makers = tensor.inputs
    return makers[0] if makers else None


def uses(tensor: Tensor) -> list[Use]:
    """Return every edge from a tensor to a node, of all scopes. Outputs of graphs are not nodes: see graph_outputs."""
    if not tensor.name:
        return []
    found: list[Use] = []
    for node in dict.fromkeys(tensor.outputs):
        found.extend(Use(node, index) for index, item in enumerate(node.inputs) if item is tensor)
    return found


def graph_outputs(tensor: Tensor) -> list[Graph]:
    """Return the graphs of which a tensor is an output, once per occurrence."""
    return [graph for role, graph in tensor.roles if role == "output"]


def is_graph_output(tensor: Tensor) -> bool:
    """Tell whether a tensor is an output of any graph."""
    roles = tensor.roles
    return bool(roles) and any(role == "output" for role, _ in roles)


def is_graph_input(tensor: Tensor) -> bool:
    """Tell whether a tensor is fed from outside a graph."""
    return any(role == "input" for role, _ in tensor.roles) or (
        isinstance(tensor, Constant) and tensor.home is not None and tensor in tensor.home.initializer_inputs
    )


def captures(graph: Graph) -> list[Tensor]:
    """Return the tensors that a body takes from the graphs around it, in order of first use."""
    inside = dict.fromkeys(nested_graphs(graph))  # in order: the result must not depend on addresses
    found: dict[Tensor, None] = {}

    def outside(tensor: Tensor) -> bool:
        if not tensor.name:
            return False
        made = producer(tensor)
        if made is not None:
            return made.graph not in inside
        if isinstance(tensor, Constant):
            return tensor.home is not None and tensor.home not in inside
        return not any(role == "input" and owner in inside for role, owner in tensor.roles)

    for _, node in walk_graphs([graph]):
        found.update((t, None) for t in node.inputs if outside(t))
    for body in inside:
        found.update((t, None) for t in body.outputs if outside(t))
    return list(found)


def owner(tensor: Tensor) -> Graph | None:
    """Return the graph in which a tensor is produced, fed or stored; None for a new tensor without a place."""
    made = producer(tensor)
    if made is not None:
        return made.graph
    if isinstance(tensor, Constant) and tensor.home is not None:
        return tensor.home
    return next((graph for role, graph in tensor.roles if role == "input"), None)


def enclosing(graph: Graph | None) -> Iterator[Graph]:
    """Yield a graph and the graphs around it, inner before outer."""
    while graph is not None:
        yield graph
        graph = graph.parent


_CONSTANT_DTYPES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": object,
    "value_strings": object,
}


def constant_value(tensor: Tensor) -> np.ndarray[Any, Any] | None:
    """Return the value of a tensor that cannot change between runs, else None.

    That is an initializer which is not an input of its graph as well (before IR version 4 it must be one, and counts as
    constant), or the output of a Constant node. The array is read-only, its type exactly that of the tensor.
    """
    if isinstance(tensor, Constant):
        home = tensor.home
        if home is not None and home.is_overridable(tensor):
            return None
        if home is None and is_graph_input(tensor):
            return None
        return tensor.array()
    node = producer(tensor)
    if node is None or node.op != "Constant" or node.domain not in {None, "", "ai.onnx"}:
        return None
    return constant_node_value(node)


def constant_node_value(node: Node) -> np.ndarray[Any, Any] | None:
    """Return the value of a Constant node; None where it refers to an attribute of a function."""
    for key, value in node.attrs.items():
        if key == "value" and isinstance(value, Constant):
            return value.array()
        if key == "sparse_value" and isinstance(value, RawAttribute):
            return SparseWeight(value.proto.sparse_tensor).load()
        if key in _CONSTANT_DTYPES:
            if isinstance(value, RawAttribute) and value.proto.type == AttributeProto.STRING:
                value = value.proto.s
            elif isinstance(value, RawAttribute) and value.proto.type == AttributeProto.STRINGS:
                value = list(value.proto.strings)
            if not isinstance(value, int | float | str | bytes | list | tuple):
                return None
            entries = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(entry, str | bytes) != key.startswith("value_string") for entry in entries):
                return None
            array = np.array(value, _CONSTANT_DTYPES[key])
            array.flags.writeable = False
            return array
    return None
