"""Stock graphsurgeon objects become ours, in place, as soon as they touch one of our graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from graphopt.graph.edges import Edges, new_uses
from graphopt.graph.graphs import Function, Graph
from graphopt.graph.nodelist import NodeList, RoleList
from graphopt.graph.nodes import Node
from graphopt.graph.tensors import Constant, Variable, as_weight

if TYPE_CHECKING:
    from collections.abc import Iterable


def adopt_tensor(tensor: gs.Tensor) -> None:
    """Turn a stock tensor into a Variable or a Constant."""
    if isinstance(tensor, Variable | Constant):
        return
    fields = tensor.__dict__
    users, makers = list(tensor.outputs), list(tensor.inputs)
    if isinstance(tensor, gs.Constant):
        values, export = fields.pop("_values"), fields.pop("_export_dtype", None)
        fields.pop("data_location", None)
        fields["_weight"] = as_weight(values, export)
        tensor.__class__ = Constant
    else:
        shape = fields.pop("shape", None)
        fields.update(_dtype=fields.pop("dtype", None), _shape=None if shape is None else list(shape), _known=True)
        fields["_type"] = fields.pop("type", "tensor_type")
        tensor.__class__ = Variable
    for name, uses, nodes in zip(("inputs", "outputs"), new_uses(tensor), (makers, users), strict=True):
        list.extend(uses, nodes)
        fields[name] = uses


def adopt_node(node: gs.Node) -> None:
    """Turn a stock node, its tensors and the bodies in it into ours."""
    adopt_graphs(_convert_node(node))


def adopt_graphs(graphs: Iterable[gs.Graph]) -> None:
    """Turn stock graphs and everything in them into ours; look for stock objects in graphs that are ours already."""
    stack = list(graphs)
    while stack:
        graph = stack.pop()
        if not isinstance(graph, Graph):
            stack.extend(_convert_graph(graph))
            continue
        for tensor in (*graph.inputs, *graph.outputs):
            adopt_tensor(tensor)
        for node in graph.nodes:
            bodies = _convert_node(node)
            for body in bodies:
                if isinstance(body, Graph):
                    body.__dict__.update(parent=graph, parent_node=node, imports=graph.imports)
            stack.extend(bodies)


def _convert_node(node: gs.Node) -> list[gs.Graph]:
    for tensor in (*node.inputs, *node.outputs):
        adopt_tensor(tensor)
    if isinstance(node, Node):
        return [value for value in (node._attrs or {}).values() if isinstance(value, gs.Graph)]
    fields = node.__dict__
    ins, outs, attrs = list(node.inputs), list(node.outputs), dict(fields.pop("attrs"))
    node.__class__ = Node
    fields["_attrs"] = attrs
    for name, field, tensors in (("inputs", "outputs", ins), ("outputs", "inputs", outs)):
        edges = Edges.__new__(Edges)
        list.extend(edges, tensors)
        edges.owner, edges.field = node, field
        fields[name] = edges
    for value in attrs.values():
        if isinstance(value, gs.Constant):
            adopt_tensor(value)
    return [value for value in attrs.values() if isinstance(value, gs.Graph)]


def _convert_graph(graph: gs.Graph) -> list[gs.Graph]:
    """Turn one stock graph into ours and return the graphs in it, and its functions."""
    fields = graph.__dict__
    nodes, inputs, outputs = list(graph.nodes), list(graph.inputs), list(graph.outputs)
    imports = {entry.domain: entry.version for entry in fields.pop("import_domains", None) or ()}
    imports[""] = fields.pop("opset", None) or gs.Graph.DEFAULT_OPSET
    attributes: dict[str, Any] = fields.pop("attrs", None) or {}
    functions = list(graph.functions)
    graph.__class__ = Function if isinstance(graph, gs.Function) else Graph
    fields.update(imports=imports, initializers={}, initializer_inputs={})
    if isinstance(graph, Function):
        fields.update(attributes=attributes, overload="")
    bodies = []
    for node in nodes:
        found = _convert_node(node)
        for body in found:
            _share(body, graph, node)
        bodies.extend(found)
    for tensor in (*inputs, *outputs):
        adopt_tensor(tensor)
    fields["nodes"] = NodeList(graph, nodes)
    fields["inputs"] = RoleList(graph, "input", inputs)
    fields["outputs"] = RoleList(graph, "output", outputs)
    return [*bodies, *(function for function in functions if not isinstance(function, Function))]


def _share(body: gs.Graph, graph: Graph, node: Node) -> None:
    """Let a body know what is around it; its opsets are those of the graph around it."""
    if not isinstance(body, Graph):
        _convert_head(body, graph)
    body.__dict__.update(parent=graph, parent_node=node)


def _convert_head(body: gs.Graph, graph: Graph) -> None:
    body.__dict__["import_domains"] = graph.import_domains
    body.__dict__["opset"] = graph.opset
