"""Moving nodes and initializers of a body into a graph around it, and copying nodes.

What is moved stays the same object and keeps its name, unless more than one tensor of the model has it: then it may
mean another tensor where the moved one is visible now. Copies have names of their own, in all scopes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.builder import Builder
from graphopt.graph.graphs import Function, node_subgraphs
from graphopt.graph.messages import tensor_as_is
from graphopt.graph.scopes import captures, enclosing, nested_graphs
from graphopt.graph.tensors import Constant, Tensor, Variable

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


def transfer_nodes(rewriter: Rewriter, nodes: Sequence[Node], body: Graph) -> None:
    """Move nodes to the end of another body of the same depth, or deeper; see `move_nodes`.

    Args:
        rewriter: The rewriter of the patch.
        nodes: Nodes of another body, producers first.
        body: Where they are from now on.
    """
    for node in nodes:
        source = node.graph
        assert source is not None
        source.nodes.discard(node)
        body.nodes.insert_last(node)
        for tensor in node.outputs:
            _make_unique(rewriter, tensor)
        for _, inner in node_subgraphs(node):
            inner.parent = body
        rewriter.mark(node)


def transfer_initializer(rewriter: Rewriter, constant: Constant, body: Graph) -> None:
    """Let another body own an initializer that nobody may feed."""
    home = constant.home
    assert home is not None
    del home.initializers[constant]
    body.initializers[constant] = None
    constant.home = body
    _make_unique(rewriter, constant)


def copy_nodes(
    rewriter: Rewriter, nodes: Sequence[Node], twins: dict[Tensor, Tensor], near: Node, *, prefix: str = ""
) -> list[Node]:
    """Put copies of nodes, with their bodies, before a node.

    Args:
        rewriter: The rewriter of the patch.
        nodes: The nodes, producers first.
        twins: What copies read instead of a tensor; outputs of the nodes are added, with those of the copies.
        near: The node to put the copies before.
        prefix: What new names begin with; without, they are those of the originals with a tag.

    Returns:
        The copies, those in bodies left out.
    """

    def label(name: str) -> str:
        return rewriter.fresh(prefix + name) if prefix else rewriter.fresh(name, "copy")

    def twin(tensor: Tensor) -> Tensor:
        found = twins.get(tensor, tensor) if tensor.name else tensor
        return found if found.name else Variable("")

    made = []
    for node in nodes:
        around = {tensor.name: twin(tensor) for _, body in node_subgraphs(node) for tensor in captures(body)}
        outputs = [_output_like(tensor, label(tensor.name)) if tensor.name else Variable("") for tensor in node.outputs]
        copy = node.copy([twin(tensor) for tensor in node.inputs], outputs, around)
        copy.name = label(node.name) if node.name else ""
        twins.update(zip(node.outputs, outputs, strict=True))
        rewriter.insert(copy, near)
        made.append(copy)
        for _, body in node_subgraphs(copy):
            for scope in nested_graphs(body):
                for tensor in (*scope.inputs, *scope.initializers, *(t for n in scope.nodes for t in n.outputs)):
                    if tensor.name:
                        tensor.name = label(tensor.name)
    return made


def _output_like(tensor: Tensor, name: str) -> Variable:
    """Return a new tensor of the same type; names of sizes are left out, since they may mean others here."""
    copy = cast("Variable", tensor).copy()
    copy.name = name
    if copy.shape is not None:
        copy.shape = [size if isinstance(size, int) else None for size in copy.shape]
    return copy


def bind_attributes(node: Node, values: dict[str, Any]) -> None:
    """Put values in the place of a node's references to attributes of the function it was copied from.

    Args:
        node: The copy.
        values: Values by name of the function's attribute; a reference to one that is not there goes.
    """
    references = [(key, value) for key, value in node.attrs.items() if isinstance(value, gs.Node.AttributeRef)]
    for key, value in references:
        given = values.get(value.name)
        if given is None:
            del node.attrs[key]
        else:
            node.attrs[key] = given.copy() if isinstance(given, list | Constant) else given
    if references and node.carried is not None:
        message = onnx.NodeProto()
        message.CopyFrom(node.carried)
        message.ClearField("attribute")
        Builder(tensor_as_is).attributes(node, message, None, 0)
        node.carried = message


def holds_initializers(graph: Graph) -> bool:
    """Whether a constant of a graph may be an initializer: not in functions, nor before IR version 4."""
    *_, root = enclosing(graph)
    return not isinstance(root, Function) and (root.ir_version or 4) >= 4


def _make_unique(rewriter: Rewriter, tensor: Tensor) -> None:
    if tensor.name and rewriter.model.names.is_repeated(tensor.name):
        tensor.name = rewriter.fresh(tensor.name, "moved")
