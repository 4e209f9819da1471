"""Copies of graphs and models: new objects, shared values."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from graphopt.graph.graphs import Function, Graph, node_subgraphs
from graphopt.graph.nodes import Node
from graphopt.graph.scopes import nested_graphs
from graphopt.graph.tensors import Constant, Tensor, Variable

if TYPE_CHECKING:
    from collections.abc import Iterable


def copy_graph(graph: Graph, outer: dict[str, Tensor] | None = None) -> Graph:
    """Return a copy of a graph with the bodies in it.

    Args:
        graph: The graph to copy.
        outer: Tensors around it by name. A captured tensor is taken from here if it is there; a body that is copied
            alone gets an unconnected copy of it.
    """
    return _Copier({} if outer is None else outer).graph(graph, None, None)


def copy_roots(roots: Iterable[Graph]) -> list[Graph]:
    """Return copies of the main graph and the functions of a model, which share the list of functions."""
    copies = [_Copier({}).graph(root, None, None) for root in roots]
    functions = [copy for copy in copies if isinstance(copy, Function)]
    for copy in copies:
        for scope in nested_graphs(copy):
            scope.__dict__["_functions"] = functions
    return copies


class _Copier:
    """Copies level by level: the objects of a body are created before the body is filled, so nothing recurses."""

    def __init__(self, outer: dict[str, Tensor]) -> None:
        self.outer = outer
        self.tensors: dict[Tensor, Tensor] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        if not tensor.name:
            return Variable("")
        twin = self.tensors.get(tensor)
        if twin is None:
            twin = self.tensors[tensor] = tensor.copy()
        return twin

    def captured_or_local(self, root: Graph) -> None:
        """Take captured tensors from outside where they are there."""
        if not self.outer:
            return
        from graphopt.graph.scopes import captures

        for tensor in captures(root):
            if tensor.name in self.outer:
                self.tensors[tensor] = self.outer[tensor.name]

    def graph(self, root: Graph, parent: Graph | None, holder: Node | None) -> Graph:
        self.captured_or_local(root)
        imports: dict[int, dict[str, int]] = {}
        result = self._shell(root, imports)
        result.__dict__.update(parent=parent, parent_node=holder)
        work = [(root, result)]
        while work:
            source, target = work.pop()
            for constant in source.initializers:
                twin = cast("Constant", self.tensor(constant))
                twin.home = target
                target.initializers[twin] = None
            target.inputs[:] = [self.tensor(t) for t in source.inputs]
            nodes = []
            for node in source.nodes:
                bodies = dict(node_subgraphs(node))
                twin_node = self._node(node, bodies)
                nodes.append(twin_node)
                for key, body in bodies.items():
                    shell = self._shell(body, imports)
                    shell.__dict__.update(parent=target, parent_node=twin_node)
                    twin_node.attrs[key] = shell
                    work.append((body, shell))
            target.nodes[:] = nodes
            target.outputs[:] = [self.tensor(t) for t in source.outputs]
            target.initializer_inputs.update(
                {cast("Constant", self.tensor(c)): info for c, info in source.initializer_inputs.items()}
            )
        for source, target in self._pairs(root, result):
            if source.record is not None:
                target.record = source.record.moved(self.tensors)
        self._rehome(result)
        return result

    def _pairs(self, root: Graph, result: Graph) -> Iterable[tuple[Graph, Graph]]:
        return zip(nested_graphs(root), nested_graphs(result), strict=True)

    def _rehome(self, result: Graph) -> None:
        """New constants without a place, and copies of captured ones, must not claim a place in the source."""
        inside = set(nested_graphs(result))
        for twin in self.tensors.values():
            if (
                isinstance(twin, Constant)
                and twin.home is not None
                and twin.home not in inside
                and twin not in self.outer.values()
            ):
                twin.home = None

    def _node(self, node: Node, bodies: dict[str, Graph]) -> Node:
        twin = Node.__new__(Node)
        held = node.__dict__.get("_attrs")
        attrs = None
        if held is not None:
            attrs = {
                key: None if key in bodies else value.copy() if isinstance(value, list | Constant) else value
                for key, value in held.items()
            }
        Node.__init__(
            twin,
            node.op,
            node.name,
            attrs,
            [self.tensor(t) for t in node.inputs],
            [self.tensor(t) for t in node.outputs],
            node.domain,
        )
        twin.__dict__["_attrs"] = attrs
        twin.carry_from(node)
        return twin

    def _shell(self, graph: Graph, imports: dict[int, dict[str, int]]) -> Graph:
        if isinstance(graph, Function):
            twin: Graph = Function(graph.name, graph.domain, attrs=dict(graph.attributes), overload=graph.overload)
        else:
            twin = Graph()
        shared = imports.setdefault(id(graph.imports), dict(graph.imports))
        twin.__dict__.update(
            imports=shared,
            name=graph.name,
            doc_string=graph.doc_string,
            producer_name=graph.producer_name,
            producer_version=graph.producer_version,
            ir_version=graph.ir_version,
            carried=graph.carried,
            name_idx=graph.name_idx,
            _functions=graph.functions,
        )
        return twin
