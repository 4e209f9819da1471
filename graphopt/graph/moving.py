"""Moving nodes and initializers of a body into a graph around it: the objects stay the same, and so do their names.

A name that more than one tensor of the model has is replaced, since it may mean another tensor where the moved one is
visible now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph.graphs import Function, node_subgraphs
from graphopt.graph.scopes import enclosing
from graphopt.graph.tensors import Constant, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.graph.graphs import Graph
    from graphopt.graph.nodes import Node
    from graphopt.graph.rewriter import Rewriter


def move_nodes(rewriter: Rewriter, nodes: Sequence[Node], near: Node) -> None:
    """Move nodes out of their body to the place before a node of a graph around it.

    What they read must be visible there, or be moved as well. Edges, types and provenance stay.

    Args:
        rewriter: The rewriter of the patch.
        nodes: Nodes of bodies, producers first.
        near: The node to put them before: as a rule the one that holds the body.
    """
    target = near.graph
    assert target is not None
    for node in nodes:
        source = node.graph
        assert source is not None
        source.nodes.discard(node)
        target.nodes.insert_before(near, node)
        for tensor in node.outputs:
            _make_unique(rewriter, tensor)
        for _, body in node_subgraphs(node):
            body.parent = target
        rewriter.mark(node)


def move_initializer(rewriter: Rewriter, constant: Constant, near: Node) -> None:
    """Move an initializer of a body into a graph around it.

    In a function, which has no initializers, and before IR version 4, where they are inputs, a Constant node gives out
    its value.

    Args:
        rewriter: The rewriter of the patch.
        constant: An initializer that nobody may feed.
        near: A node of the graph that owns it from now on.
    """
    target = near.graph
    home = constant.home
    assert target is not None
    assert home is not None
    if not holds_initializers(target):
        value = Constant("", constant.weight)
        made = rewriter.op("Constant", [], attrs={"value": value}, like=constant, name=constant.name, near=near)
        rewriter.replace_tensor(constant, made)
        rewriter.drop_initializer(constant)
        return
    del home.initializers[constant]
    target.initializers[constant] = None
    constant.home = target
    _make_unique(rewriter, constant)
    for user in constant.outputs:
        rewriter.mark(user)


def holds_initializers(graph: Graph) -> bool:
    """Whether a constant of a graph may be an initializer: not in functions, nor before IR version 4."""
    *_, root = enclosing(graph)
    return not isinstance(root, Function) and (root.ir_version or 4) >= 4


def _make_unique(rewriter: Rewriter, tensor: Tensor) -> None:
    if tensor.name and rewriter.model.names.is_repeated(tensor.name):
        tensor.name = rewriter.fresh(tensor.name, "moved")
