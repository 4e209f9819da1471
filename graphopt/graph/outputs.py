"""Public outputs keep their names and types whatever produces them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphError
from graphopt.graph.nodes import Node
from graphopt.graph.scopes import is_graph_input, producer
from graphopt.graph.tensors import Constant, Variable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.graph.graphs import Graph
    from graphopt.graph.rewriter import Rewriter
    from graphopt.graph.tensors import Tensor


def replace_output(rewriter: Rewriter, graph: Graph, old: Tensor, new: Tensor) -> None:
    """Let a graph give out ``new`` under the name and the declared type of ``old``; see Rewriter.replace_tensor."""
    if is_graph_input(old):
        raise GraphError(
            f"output '{old.name}' of graph '{graph.name}' is an input of it as well", must="It cannot be replaced"
        )
    if old.onnx_dtype and new.onnx_dtype and old.onnx_dtype != new.onnx_dtype:
        raise GraphError(
            f"output '{old.name}' of graph '{graph.name}' has element type {old.onnx_dtype}, its replacement "
            f"'{new.name}' has {new.onnx_dtype}",
            must="Public types never change",
            do="Insert a Cast.",
        )
    if not _shapes_agree(old.shape, new.shape):
        raise GraphError(
            f"output '{old.name}' of graph '{graph.name}' has shape {old.shape}, its replacement '{new.name}' has "
            f"{new.shape}",
            must="Public shapes never change",
        )
    made = producer(new)
    if isinstance(new, Constant) or made is None or made.graph is not graph or new.roles:
        anchor = made if made is not None and made.graph is graph else None
        new = _identity(rewriter, graph, new, old, anchor)
    name = old.name
    old.name = rewriter.fresh(name, "replaced")
    new.name = name
    if isinstance(old, Variable):
        for field in ("carried", "_known", "_dtype", "_shape", "_type"):
            if field in old.__dict__:
                new.__dict__[field] = old.__dict__[field]
            else:
                new.__dict__.pop(field, None)
        if isinstance(old.__dict__.get("_shape"), list):
            new.__dict__["_shape"] = list(old.__dict__["_shape"])
    record = graph.record
    if record is not None:
        record.outputs = [(new if t is old else t, info) for t, info in record.outputs]
        record.value_infos = [(new if t is old else t, info) for t, info in record.value_infos]
    for position, tensor in enumerate(graph.outputs):
        if tensor is old:
            graph.outputs[position] = new
    maker = producer(new)
    if maker is not None:
        rewriter.mark(maker)


def _identity(rewriter: Rewriter, graph: Graph, new: Tensor, old: Tensor, after: Node | None) -> Variable:
    output = Variable(rewriter.fresh(old.name, "Identity"))
    node = Node("Identity", rewriter.fresh(old.name, "output"), {}, [new], [output])
    if after is not None:
        graph.nodes.insert_after(after, node)
    else:
        graph.nodes.insert_last(node)
    rewriter.mark(node)
    rewriter.settle(new, graph)
    return output


def _shapes_agree(left: Sequence[Any] | None, right: Sequence[Any] | None) -> bool:
    """Tell whether two shapes may be the same: numbers differ nowhere, symbols may stand for anything."""
    if left is None or right is None:
        return True
    return len(left) == len(right) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int) for a, b in zip(left, right, strict=True)
    )
