"""Graphs and functions: subclasses of those of graphsurgeon with identity and a carried message.

Nothing is modelled that need not be: each object keeps the protobuf message it was read from (``carried``, never
changed) and states only what code can change. The writer writes the message verbatim where nothing did change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.fields import give_graph_fields
from graphopt.graph.nodelist import NodeList, RoleList
from graphopt.graph.nodes import Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from graphopt.graph.edges import Edges
    from graphopt.graph.record import Record
    from graphopt.graph.tensors import Constant, Tensor


class _ImportList(list[onnx.OperatorSetIdProto]):
    """Opset imports as graphsurgeon has them, which appends to the list."""

    def __init__(self, imports: dict[str, int]) -> None:
        super().__init__(onnx.OperatorSetIdProto(domain=key, version=value) for key, value in imports.items())
        self._imports = imports

    def append(self, entry: onnx.OperatorSetIdProto) -> None:
        """Import one more domain."""
        self._imports[entry.domain] = entry.version
        super().append(entry)


class Graph(gs.Graph):  # type: ignore[misc]
    """A graph: the main one, the body of a control-flow node, or of a function. Compared and hashed by identity.

    Attributes:
        nodes: Node list; see NodeList.
        inputs: Variables fed from outside. An initializer that is an input too is in ``initializer_inputs`` instead.
        outputs: Tensors given to the outside.
        initializers: Constants owned by this graph, in order.
        parent: The graph around it, or None.
        parent_node: The node whose attribute it is, or None.
        carried: The GraphProto or FunctionProto it was read from, or None.
        imports: Opset version by domain; shared by a model's main graph and all bodies in it.
        ir_version: IR version of the model.
    """

    nodes: NodeList
    inputs: RoleList
    outputs: RoleList
    name: str
    doc_string: str
    producer_name: str = ""
    producer_version: str = ""
    ir_version: int | None = None
    parent: Graph | None = None
    parent_node: Node | None = None
    carried: onnx.GraphProto | onnx.FunctionProto | None = None
    imports: dict[str, int]
    initializers: dict[Constant, None]
    initializer_inputs: dict[Constant, onnx.ValueInfoProto | None]
    record: Record | None = None

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        nodes: Iterable[Node] | None = None,
        inputs: Iterable[Tensor] | None = None,
        outputs: Iterable[Tensor] | None = None,
        name: str | None = None,
        doc_string: str | None = None,
        opset: int | None = None,
        import_domains: Any = None,
        producer_name: str | None = None,
        producer_version: str | None = None,
        functions: Any = None,
        ir_version: int | None = None,
    ) -> None:
        fields: dict[str, Any] = {
            "imports": {},
            "initializers": {},
            "initializer_inputs": {},
            "ir_version": ir_version,
            "parent": None,
            "parent_node": None,
        }
        give_graph_fields(self, fields)
        for domain in import_domains or ():
            self.imports[domain.domain] = domain.version
        if opset is not None or not self.imports:
            self.opset = opset or gs.Graph.DEFAULT_OPSET
        fields["_functions"] = functions if isinstance(functions, list) else list(functions or ())
        fields["nodes"] = NodeList(self, nodes or ())
        fields["inputs"] = RoleList(self, "input", inputs or ())
        fields["outputs"] = RoleList(self, "output", outputs or ())
        fields["name"] = "graph" if name is None else name
        fields["doc_string"] = doc_string or ""
        fields["producer_name"] = producer_name or ""
        fields["producer_version"] = producer_version or ""
        fields["name_idx"] = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "nodes":
            if value is not self.nodes:
                self.nodes.replace_all(value)
        elif name in {"inputs", "outputs"}:
            current = self.__dict__[name]
            if value is not current:
                current[:] = list(value)
        else:
            object.__setattr__(self, name, value)

    @property
    def opset(self) -> int:
        """Opset version of the default domain; 0 if the model imports none."""
        return self.imports.get("") or self.imports.get("ai.onnx") or 0

    @opset.setter
    def opset(self, value: int) -> None:
        self.imports["ai.onnx" if "ai.onnx" in self.imports and "" not in self.imports else ""] = value

    @property
    def import_domains(self) -> list[onnx.OperatorSetIdProto]:
        """The imports as graphsurgeon has them."""
        return _ImportList(self.imports)

    @import_domains.setter
    def import_domains(self, value: Iterable[onnx.OperatorSetIdProto] | None) -> None:
        self.imports.clear()
        self.imports.update({entry.domain: entry.version for entry in value or ()})

    def is_overridable(self, tensor: Any) -> bool:
        """Tell whether whoever runs the model may replace the value of an initializer, because it is an input too.

        Before IR version 4 every initializer had to be listed as an input and could not be replaced.
        """
        roles = getattr(tensor, "roles", ())
        if not roles and tensor not in self.initializer_inputs:
            return False  # nearly every one, and it is asked for all the time
        if (self.ir_version or 4) < 4:
            return False
        if tensor in self.initializer_inputs:
            return True
        return any(role == "input" and graph is self for role, graph in roles)

    def subgraphs(self, recursive: bool = False) -> Iterator[Graph]:
        """Yield the graphs in the attributes of the nodes; with ``recursive`` those inside them too."""
        stack = [iter(self.nodes)]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                continue
            for _, graph in node_subgraphs(node):
                yield graph
                if recursive:
                    stack.append(iter(graph.nodes))

    def toposort(self, recurse_subgraphs: bool = True, recurse_functions: bool = True, mode: str = "full") -> Graph:
        """Sort stably; see graphopt.graph.order."""
        from graphopt.graph import order

        if mode != "functions":
            order.sort_graph(self, nested=recurse_subgraphs)
        if recurse_functions:
            for function in self.functions:
                order.sort_graph(function, nested=recurse_subgraphs)
        return self

    def cleanup(
        self,
        remove_unused_node_outputs: bool = False,
        recurse_subgraphs: bool = True,
        remove_unused_graph_inputs: bool = False,
        recurse_functions: bool = True,
    ) -> Graph:
        """Remove what contributes to no output; see graphopt.graph.order.eliminate_unreachable."""
        from graphopt.graph import order

        order.eliminate_unreachable(
            self,
            nested=recurse_subgraphs,
            unused_outputs=remove_unused_node_outputs,
            unused_inputs=remove_unused_graph_inputs,
        )
        if recurse_functions:
            for function in self.functions:
                order.eliminate_unreachable(
                    function, nested=recurse_subgraphs, unused_outputs=remove_unused_node_outputs
                )
        return self

    def layer(
        self, inputs: Iterable[Any] | None = None, outputs: Iterable[Any] | None = None, *args: Any, **kwargs: Any
    ) -> Edges:
        """Append a node, as graphsurgeon does, of our classes.

        Args:
            inputs: Tensors; strings for new variables; arrays, numbers and lists of numbers for new constants.
            outputs: Tensors, or strings for new variables.
            args: Passed to Node.
            kwargs: Passed to Node.

        Returns:
            The outputs of the node.
        """
        from graphopt.graph.layer import append_layer

        return append_layer(self, list(inputs or ()), list(outputs or ()), *args, **kwargs)

    def copy(self, tensor_map: dict[str, Tensor] | None = None) -> Graph:
        """Return a copy that shares the values of constants until one side changes them.

        Args:
            tensor_map: For a body: tensors of the graphs around it, by name, which the copy captures.
        """
        from graphopt.graph.copying import copy_graph

        return copy_graph(self, tensor_map)

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return self.copy()

    def __str__(self) -> str:
        return f"Graph {self.name}: {len(self.nodes)} nodes, {len(self.inputs)} inputs, {len(self.outputs)} outputs"

    __repr__ = __str__


class Function(Graph, gs.Function):  # type: ignore[misc]
    """A model-local function: the body is the graph itself.

    Attributes:
        domain: Its domain.
        name: Its name: the operator type of the nodes that call it.
        overload: Tells functions of one name apart.
        attributes: Attribute name to default value; None for a required attribute.
    """

    domain: str
    overload: str
    attributes: dict[str, Any]

    def __init__(
        self,
        name: str,
        domain: str | None = None,
        nodes: Iterable[Node] | None = None,
        inputs: Iterable[Tensor] | None = None,
        outputs: Iterable[Tensor] | None = None,
        doc_string: str | None = None,
        opset: int | None = None,
        import_domains: Any = None,
        functions: Any = None,
        attrs: dict[str, Any] | None = None,
        ir_version: int | None = None,
        overload: str = "",
    ) -> None:
        Graph.__init__(
            self,
            nodes,
            inputs,
            outputs,
            name,
            doc_string,
            opset,
            import_domains,
            functions=functions,
            ir_version=ir_version,
        )
        self.__dict__["domain"] = gs.Function.DEFAULT_DOMAIN if domain is None else domain
        self.__dict__["overload"] = overload
        self.__dict__["attributes"] = {} if attrs is None else attrs

    @property
    def graph(self) -> Graph:
        """The body."""
        return self

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes, under the name graphsurgeon has for them."""
        return self.attributes

    @property
    def unique_id(self) -> tuple[str, str, str]:
        """Domain, name and overload: what identifies a function in a model."""
        return (self.domain, self.name, self.overload)

    def toposort(self, recurse_subgraphs: bool = True, recurse_functions: bool = False, mode: str = "nodes") -> Graph:
        """Sort the body stably."""
        return Graph.toposort(self, recurse_subgraphs, recurse_functions, mode)

    def cleanup(
        self,
        remove_unused_node_outputs: bool = False,
        recurse_subgraphs: bool = True,
        remove_unused_graph_inputs: bool = False,
        recurse_functions: bool = False,
    ) -> Graph:
        """Remove what contributes to no output of the function; its inputs are its signature and stay."""
        _ = remove_unused_graph_inputs
        return Graph.cleanup(self, remove_unused_node_outputs, recurse_subgraphs, False, recurse_functions)

    def copy(self, tensor_map: dict[str, Tensor] | None = None) -> Function:
        """Return a copy of the function."""
        return cast("Function", Graph.copy(self, tensor_map))

    def __str__(self) -> str:
        return f"Function {self.domain}::{self.name}:{self.overload}: {len(self.nodes)} nodes"

    __repr__ = __str__


def import_domain(graph: Graph, domain: str | None) -> None:
    """Import the domain of a new node: a custom one in version 1, ONNX in the newest version the IR version allows."""
    if domain not in {None, "", "ai.onnx"}:
        graph.imports.setdefault(str(domain), 1)
    elif not graph.opset:
        allowed = [row[2] for row in onnx.helper.VERSION_TABLE if row[1] <= (graph.ir_version or onnx.IR_VERSION)]
        graph.opset = max(allowed, default=1)


def node_subgraphs(node: Any) -> Iterator[tuple[str, Graph]]:
    """Return attribute name and graph for every body of a node."""
    if isinstance(node, Node) and not holds_graph(node):
        return _NO_BODIES
    found = [(key, value) for key, value in node.attrs.items() if isinstance(value, gs.Graph)]
    for _, body in found:
        if not isinstance(body, Graph):
            from graphopt.graph.adopt import adopt_graphs

            adopt_graphs([body])
    return iter(found)


def holds_graph(node: Node) -> bool:
    """Tell whether an attribute of a node holds a graph; attributes that were not decoded yet hold none."""
    held = node._attrs
    if held:
        for value in held.values():  # a loop: this is asked for every node time and again
            if isinstance(value, gs.Graph):
                return True
    return False


_NO_BODIES: Iterator[tuple[str, Graph]] = iter(())  # exhausted for good, so that it can be shared
