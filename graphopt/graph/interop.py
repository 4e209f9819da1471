"""graphsurgeon in and out: adopting a gs.Graph, and running functions written for it on our graphs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from onnx_graphsurgeon.logger import G_LOGGER

from graphopt.errors import GraphError
from graphopt.graph.adopt import adopt_graphs
from graphopt.graph.graphs import Graph
from graphopt.graph.model import Model
from graphopt.graph.order import sort_graph
from graphopt.graph.scopes import nested_graphs
from graphopt.graph.tensors import WRITABLE_VALUES, Variable
from graphopt.graph.write import adopt_constants

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_graphsurgeon as gs

P = ParamSpec("P")
R = TypeVar("R")


def from_gs(graph: gs.Graph) -> Model:
    """Adopt a graph of graphsurgeon: its objects become ours, in place.

    What graphsurgeon's own import lost is lost; read the file with ``read_model`` to keep it.

    Raises:
        GraphError: Two tensors of one scope share a name, a tensor has two producers, or nodes form a cycle.
    """
    if not isinstance(graph, Graph):
        adopt_graphs([graph])
    model = Model(graph)
    repair(model)
    return model


def gs_pass(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function written for stock graphsurgeon run on our graphs.

    Its first argument is a Model or a Graph; the function gets the graph. While it runs, ``constant.values`` may be
    written to. Afterwards stock objects that it created become ours, edges that stock lists lost are linked again,
    names and order are checked, and the version counters move.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        item, *rest = args
        if not isinstance(item, Model | Graph):
            raise GraphError(
                f"a gs_pass was called with a {type(item).__name__}", must="Its first argument is a Model or a Graph"
            )
        model = item if isinstance(item, Model) else None
        graph = item.graph if isinstance(item, Model) else item
        token = WRITABLE_VALUES.set(True)
        severity = G_LOGGER.severity
        G_LOGGER.severity = G_LOGGER.WARNING
        try:
            result = function(graph, *rest, **kwargs)  # type: ignore[arg-type]
        finally:
            G_LOGGER.severity = severity
            WRITABLE_VALUES.reset(token)
        repair(model if model is not None else Model(graph))
        return result

    return wrapped


def repair(model: Model) -> None:
    """Make a model legal after edits that bypassed the rewriter, or say why it cannot be.

    Raises:
        GraphError: Names or producers clash, a node reads what nothing defines, or nodes form a cycle.
    """
    adopt_graphs(model.roots())
    for root in model.roots():
        _relink(root)
    adopt_constants(model)
    for root in model.roots():
        for graph in nested_graphs(root):
            for constant in graph.initializers:
                _ = constant.weight  # settles values that were written in place
            _check_names(graph)
        sort_graph(root)
    versions = model.versions
    versions.structure += 1
    versions.types += 1
    versions.weights += 1
    model.names.refresh()


def _relink(root: Graph) -> None:
    """Rebuild the use lists from the nodes that are in the graphs: stock lists miss edges and keep dead ones."""
    tensors: dict[Any, tuple[list[Any], list[Any]]] = {}
    for graph in nested_graphs(root):
        for tensor in (*graph.inputs, *graph.outputs, *graph.initializers):
            tensors.setdefault(tensor, ([], []))
        for node in graph.nodes:
            for tensor in node.inputs:
                tensors.setdefault(tensor, ([], []))[1].append(node)
            for tensor in node.outputs:
                makers = tensors.setdefault(tensor, ([], []))[0]
                if makers and tensor.name:
                    raise GraphError(
                        f"tensor '{tensor.name}' is produced by {_called(makers[0])} and {_called(node)}",
                        where=f"graph '{graph.name}'",
                        must="A tensor has one producer",
                    )
                makers.append(node)
    for tensor, (makers, users) in tensors.items():
        for uses, nodes in ((tensor.inputs, makers), (tensor.outputs, users)):
            if list(uses) != nodes:
                list.__setitem__(uses, slice(None), nodes)


def _called(node: Any) -> str:
    return f"'{node.name}' ({node.op})"


def _check_names(graph: Graph) -> None:
    owners: dict[str, Any] = {}
    defined = [*graph.inputs, *graph.initializers, *(t for node in graph.nodes for t in node.outputs)]
    for tensor in defined:
        if tensor.name and owners.setdefault(tensor.name, tensor) is not tensor:
            raise GraphError(
                f"two tensors are named '{tensor.name}'",
                where=f"graph '{graph.name}'",
                must="Names of tensors are unique",
            )
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, Variable) and tensor.name and not tensor.inputs and not tensor.roles:
                raise GraphError(
                    f"node '{node.name}' ({node.op}) reads '{tensor.name}', which nothing defines",
                    where=f"graph '{graph.name}'",
                    must="Every input is a graph input, a constant or the output of a node",
                )
