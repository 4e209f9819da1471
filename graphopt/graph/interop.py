"""graphsurgeon in and out: adopting a gs.Graph, and running functions written for it on our graphs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from graphopt.errors import GraphError
from graphopt.graph.edges import Edges, Uses
from graphopt.graph.graphs import Function, Graph
from graphopt.graph.model import Model
from graphopt.graph.nodelist import NodeList, RoleList
from graphopt.graph.nodes import Node
from graphopt.graph.order import sort_graph
from graphopt.graph.scopes import nested_graphs
from graphopt.graph.tensors import WRITABLE_VALUES, Constant, Variable, as_weight
from graphopt.graph.write import adopt_constants

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


def from_gs(graph: gs.Graph) -> Model:
    """Adopt a graph of graphsurgeon: its objects become ours, in place.

    What graphsurgeon's own import lost is lost; read the file with ``read_model`` to keep it.

    Raises:
        GraphError: Two tensors of one scope share a name, a tensor has two producers, or nodes form a cycle.
    """
    if not isinstance(graph, Graph):
        _Adopter().graph(graph)
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
    adopter = _Adopter()
    for root in model.roots():
        adopter.graph(root)
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


class _Adopter:
    """Turns stock objects into ours without changing their identity."""

    def graph(self, graph: gs.Graph) -> None:
        stack: list[tuple[gs.Graph, Graph | None, Node | None]] = [(graph, None, None)]
        while stack:
            scope, parent, holder = stack.pop()
            if not isinstance(scope, Graph):
                self._convert_graph(scope)
            if holder is not None:
                scope.__dict__.update(parent=parent, parent_node=holder, imports=parent.imports)  # type: ignore[union-attr]
            for tensor in (*scope.inputs, *scope.outputs):
                self.tensor(tensor)
            for node in scope.nodes:
                self.node(node)
                stack.extend(
                    (body, scope, node) for body in node.attrs.values() if isinstance(body, gs.Graph)
                ) if not isinstance(node, Node) or node.attrs_read else None

    def _convert_graph(self, graph: gs.Graph) -> None:
        fields = graph.__dict__
        nodes, inputs, outputs = list(graph.nodes), list(graph.inputs), list(graph.outputs)
        domains = {entry.domain: entry.version for entry in fields.pop("import_domains", None) or ()}
        opset = fields.pop("opset", None)
        if opset is not None:
            domains[""] = opset
        attributes = fields.pop("attrs", None)
        functions = list(graph.functions)
        graph.__class__ = Function if isinstance(graph, gs.Function) else Graph
        fields.update(imports=domains, initializers={}, initializer_inputs={})
        if isinstance(graph, Function):
            fields.update(attributes=attributes or {}, overload="")
        for tensor in (*inputs, *outputs):
            self.tensor(tensor)
        fields["nodes"] = NodeList(graph, nodes)
        fields["inputs"] = RoleList(graph, "input", inputs)
        fields["outputs"] = RoleList(graph, "output", outputs)
        for function in functions:
            if not isinstance(function, Function):
                self._convert_graph(function)
                self.graph(function)

    def node(self, node: gs.Node) -> None:
        for tensor in (*node.inputs, *node.outputs):
            self.tensor(tensor)
        if isinstance(node, Node):
            return
        fields = node.__dict__
        ins, outs = list(node.inputs), list(node.outputs)
        attrs = fields.pop("attrs")
        node.__class__ = Node
        fields["_attrs"] = {key: self._value(value) for key, value in attrs.items()}
        for name, field, tensors in (("inputs", "outputs", ins), ("outputs", "inputs", outs)):
            edges = Edges.__new__(Edges)
            list.extend(edges, tensors)
            edges.owner, edges.field = node, field
            fields[name] = edges

    def _value(self, value: Any) -> Any:
        if isinstance(value, gs.Constant):
            self.tensor(value)
        return value

    def tensor(self, tensor: gs.Tensor) -> None:
        if isinstance(tensor, Variable | Constant):
            return
        fields = tensor.__dict__
        users, makers = list(tensor.outputs), list(tensor.inputs)
        if isinstance(tensor, gs.Constant):
            values, export = fields.pop("_values"), fields.pop("_export_dtype", None)
            tensor.__class__ = Constant
            fields.pop("data_location", None)
            fields["_weight"] = as_weight(values, export)
        else:
            dtype, shape, kind = fields.pop("dtype", None), fields.pop("shape", None), fields.pop("type", "tensor_type")
            tensor.__class__ = Variable
            fields.update(_dtype=dtype, _shape=None if shape is None else list(shape), _type=kind, _known=True)
        for name, field, nodes in (("inputs", "outputs", makers), ("outputs", "inputs", users)):
            uses = Uses(tensor, field)
            list.extend(uses, nodes)
            fields[name] = uses


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
