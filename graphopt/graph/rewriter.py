"""The only way passes edit: every edge in O(1), order and names kept legal, provenance recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import GraphError
from graphopt.graph.edges import Uses
from graphopt.graph.graphs import Function, Graph, holds_graph, import_domain, node_subgraphs
from graphopt.graph.nodes import Node
from graphopt.graph.order import disconnect, is_used, tensors_read
from graphopt.graph.outputs import replace_output
from graphopt.graph.scopes import Use, graph_outputs, nested_graphs, nodes_in_bodies, producer, uses
from graphopt.graph.settling import drop_loose, keep_order, remove_erased
from graphopt.graph.tensors import Constant, Tensor, Variable, as_weight
from graphopt.graph.weights import ArrayWeight, Weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, KeysView, Sequence

    from graphopt.graph.model import Model


class Rewriter:
    """Edits a model inside a ``with`` block.

    Edges change at once. When the block ends, erased nodes leave their graphs, constants that lost their last use are
    dropped, order is made legal again around what was touched, and the version counters move. If the block raises, the
    model is left as the edits so far made it.

    Args:
        model: The model to edit.

    Raises:
        GraphError: At the end of the block: an erased node's output is still used, or the edits formed a cycle.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._touched: dict[Node, None] = {}
        self._created: set[Node] = set()
        self._erased: dict[Node, tuple[Tensor, ...]] = {}
        self._loose: dict[Constant, None] = {}
        self._structure = self._types = self._weights = False
        self._grown = 0

    def __enter__(self) -> Rewriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: object) -> None:
        if kind is not None:
            self._count()
            return
        remove_erased(self._erased)
        for node in self._erased:
            self._touched.pop(node, None)
        drop_loose(self._loose)
        keep_order(self._touched)
        self._count()

    @property
    def touched(self) -> KeysView[Node]:
        """Nodes that were created, or whose operator, attributes, edges or users changed; in order of first change."""
        return self._touched.keys()

    @property
    def growth(self) -> int:
        """By how many nodes the model grew, those in bodies included; negative where it shrank."""
        return self._grown

    def mark(self, node: Node) -> None:
        """Count a node as touched."""
        self._structure = True
        self._touched[node] = None

    # ------------------------------------------------------------------------------------------------- new objects

    def fresh(self, base: str, tag: str = "") -> str:
        """Return a new name; see NameAllocator.fresh."""
        return self.model.names.fresh(base, tag)

    def op(
        self,
        op_type: str,
        inputs: Sequence[Tensor | None],
        *,
        attrs: dict[str, Any] | None = None,
        domain: str | None = None,
        outputs: int = 1,
        like: Tensor | Sequence[Tensor | None] | None = None,
        name: str | None = None,
        near: Node,
        origin: Sequence[Node] = (),
    ) -> Any:
        """Create a node.

        Args:
            op_type: Operator.
            inputs: Tensors it reads; None omits an optional input.
            attrs: Attributes.
            domain: Operator domain; a new one is imported in version 1.
            outputs: Number of outputs.
            like: Tensors whose element type and shape the outputs have; without, they are unknown.
            name: Base of the node's name; by default that of ``near`` with the operator.
            near: A node of the graph to put it in. The node comes before it, or later if its inputs are made later.
            origin: Nodes that it replaces: their names become its origin, their metadata is merged into its own.
                Without, the name of ``near`` is its origin.

        Returns:
            The output, or the tuple of outputs if ``outputs`` is not 1.
        """
        graph = self._graph_of(near)
        models = [like] if isinstance(like, Variable | Constant) else list(like or ())
        models += [None] * (outputs - len(models))
        if len(models) != outputs:
            raise GraphError(f"{len(models)} tensors in like for {outputs} outputs", where=f"new node {op_type}")
        stem = name or near.name or near.op
        node_name = self.fresh(name) if name else self.fresh(stem, op_type)
        made = [self._output(stem, op_type, model, explicit=bool(name)) for model in models]
        tensors = [Variable("") if t is None else t for t in inputs]
        node = Node(op_type, node_name, dict(attrs or {}), tensors, made, domain)
        self._adopt_bodies(node, graph)
        self._record_origin(node, origin, near)
        import_domain(graph, domain)
        self._place(node, near, graph)
        self._created.add(node)
        self._grown += 1 + nodes_in_bodies(node)
        self.mark(node)
        for tensor in tensors:
            self.settle(tensor, graph)
        return made[0] if outputs == 1 else tuple(made)

    def insert(self, node: Node, near: Node) -> None:
        """Put a node made elsewhere, such as a copy, before a node; its outputs are new.

        Args:
            node: A node of no graph.
            near: A node of the graph to put it in.
        """
        graph = self._graph_of(near)
        self._adopt_bodies(node, graph)
        graph.nodes.insert_before(near, node)
        self._created.add(node)
        self.mark(node)
        for tensor in node.inputs:
            self.settle(tensor, graph)

    def _output(self, stem: str, op_type: str, like: Tensor | None, *, explicit: bool) -> Variable:
        if explicit or like is None:
            output = Variable(self.fresh(stem, op_type if not explicit else "out"))
        else:
            output = Variable(self.fresh(like.name or stem, op_type))
        if like is not None:
            shape = None if like.shape is None else list(like.shape)
            output.__dict__.update(_dtype=like.dtype, _shape=shape)
            if isinstance(like, Variable) and like.type != "tensor_type":
                output.__dict__.update(_type=like.type, carried=like.carried)
        return output

    def _record_origin(self, node: Node, origin: Sequence[Node], near: Node) -> None:
        sources = origin or (near,)
        names: dict[str, None] = {}
        for source in sources:
            names.update(dict.fromkeys(source.origin or ((source.name,) if source.name else ())))
        node.__dict__["origin"] = tuple(names)
        metadata: dict[str, str] = {}
        for source in origin:
            for key, value in source.metadata.items():
                known = metadata.get(key)
                if known is None:
                    metadata[key] = value
                elif value not in known.split("; "):
                    metadata[key] = f"{known}; {value}"
        if metadata:
            node.__dict__["_metadata"] = metadata

    def _place(self, node: Node, near: Node, graph: Graph) -> None:
        nodes = graph.nodes
        latest = None
        for tensor in tensors_read(node):
            made = producer(tensor)
            if made is not None and made.graph is graph and (latest is None or nodes.label(made) > nodes.label(latest)):
                latest = made
        if latest is not None and nodes.label(latest) >= nodes.label(near):
            nodes.insert_after(latest, node)
        else:
            nodes.insert_before(near, node)

    def _adopt_bodies(self, node: Node, graph: Graph) -> None:
        if not holds_graph(node):
            return
        for _, body in node_subgraphs(node):
            body.__dict__.update(parent=graph, parent_node=node)
            for scope in nested_graphs(body):
                scope.__dict__.update(imports=graph.imports, _functions=graph.functions, ir_version=graph.ir_version)

    def constant(
        self,
        array: np.ndarray[Any, Any] | np.generic | Weight,
        *,
        name: str | None = None,
        near: Node,
        onnx_dtype: int | None = None,
    ) -> Any:
        """Create a constant.

        Args:
            array: Its values, or a Weight.
            name: Base of its name.
            near: A node of the graph that owns it. In the body of a function, which has no initializers, it becomes the
                output of a Constant node instead; before IR version 4 the main graph owns it.
            onnx_dtype: Element type where the numpy type does not say it: int8 arrays that hold int4, for instance.

        Returns:
            The Constant; in the body of a function the output of a Constant node.
        """
        graph = self._graph_of(near)
        weight = as_weight(array) if onnx_dtype is None or isinstance(array, Weight) else _typed(array, onnx_dtype)
        label = self.fresh(name) if name else self.fresh(near.name or near.op, "const")
        if isinstance(graph, Function):
            value = Constant(label, weight)
            like = Variable(label, weight.dtype, list(weight.shape))
            return self.op("Constant", (), attrs={"value": value}, like=like, name=label, near=near)
        if graph.parent is not None and (graph.ir_version or 4) < 4:
            graph = self.model.graph
        constant = Constant(label, weight)
        constant.__dict__["home"] = graph
        graph.initializers[constant] = None
        self._loose[constant] = None
        return constant

    # ------------------------------------------------------------------------------------------------------- edges

    def replace_uses(self, old: Tensor, new: Tensor, *, where: Callable[[Use], bool] | None = None) -> None:
        """Let nodes of all scopes read ``new`` instead of ``old``; outputs of graphs stay.

        The nodes that this block made to compute ``new`` from ``old`` keep reading ``old``.

        Args:
            old: The tensor read so far.
            new: The tensor to read.
            where: Chooses among the uses; they are listed before any of them changes.
        """
        makers = self._makers(new) if self._created else ()
        if where is not None:
            for use in [u for u in uses(old) if u.node not in makers and where(u)]:
                self.set_input(use.node, use.index, new)
        elif old.name and old is not new:
            self._repoint([node for node in dict.fromkeys(old.outputs) if node not in makers], old, new)

    def _repoint(self, readers: Sequence[Node], old: Tensor, new: Tensor) -> None:
        """Let nodes read ``new`` in each place where they read ``old``: `set_input` for many edges at once."""
        if not new.name or not isinstance(new.outputs, Uses):
            for node in readers:
                for index, read in enumerate(node.inputs[:]):
                    if read is old:
                        self.set_input(node, index, new)
            return
        for node in readers:
            graph = self._graph_of(node)
            edges = node.inputs
            for index, read in enumerate(edges[:]):
                if read is old:
                    list.__setitem__(edges, index, new)
                    list.append(new.outputs, node)
            if not edges[-1].name:
                self._drop_omitted(node)
            self.mark(node)
            self._released(old)
            self.settle(new, graph)
        gone = set(readers)
        left = [node for node in old.outputs if node not in gone]
        list.__setitem__(old.outputs, slice(None), left)

    def _makers(self, tensor: Tensor) -> set[Node]:
        """Return the nodes of this block that compute a tensor: reading it would close a cycle."""
        makers: set[Node] = set()
        stack = [producer(tensor)]
        while stack:
            node = stack.pop()
            if node is not None and node in self._created and node not in makers:
                makers.add(node)
                stack.extend(producer(t) for t in tensors_read(node))
        return makers

    def insert_on_edge(self, use: Use, new: Tensor) -> None:
        """Let one input of one node read ``new``."""
        self.set_input(use.node, use.index, new)

    def set_input(self, node: Node, index: int, tensor: Tensor | None) -> None:
        """Set or add an input; None omits it, trailing omitted inputs are removed, but for the two places of Loop."""
        graph = self._graph_of(node)
        edges = node.inputs
        while len(edges) <= index:
            edges.append(Variable(""))
        before = edges[index]
        if before is tensor:
            return
        edges[index] = Variable("") if tensor is None else tensor
        self._drop_omitted(node)
        self.mark(node)
        self._released(before)
        if tensor is not None:
            self.settle(tensor, graph)

    def _drop_omitted(self, node: Node) -> None:
        """Remove trailing omitted inputs, but for the two places of Loop."""
        edges = node.inputs
        least = 2 if node.op == "Loop" else 0
        while len(edges) > least and not edges[-1].name:
            edges.pop()

    def remove_input(self, node: Node, index: int) -> None:
        """Remove an input; those behind it move forward."""
        self._graph_of(node)
        before = node.inputs[index]
        del node.inputs[index]
        self.mark(node)
        self._released(before)

    def _released(self, tensor: Tensor) -> None:
        if isinstance(tensor, Constant):
            self._loose[tensor] = None
            return
        made = producer(tensor)
        if made is not None and made.graph is not None:
            self._touched[made] = None

    def settle(self, tensor: Tensor, graph: Graph) -> None:
        """Give a constant without a place one in ``graph``."""
        if isinstance(tensor, Constant) and tensor.home is None:
            tensor.home = graph
            graph.initializers[tensor] = None
        elif isinstance(tensor, Constant) and tensor.home is not None:
            tensor.home.initializers.setdefault(tensor, None)

    def replace_tensor(self, old: Tensor, new: Tensor) -> None:
        """Let every node read ``new`` instead of ``old`` and every graph give it out under the same public name.

        The producer side of ``new`` takes over the name and the declared type of an output of a graph; where it cannot
        (it is an input, a constant, or an output already) an Identity does.

        Raises:
            GraphError: The element types differ, or the output is also an input of the graph.
        """
        if old is new:
            return
        self.replace_uses(old, new)
        for graph in dict.fromkeys(graph_outputs(old)):
            replace_output(self, graph, old, new)

    # ------------------------------------------------------------------------------------------- nodes and tensors

    def set_attr(self, node: Node, key: str, value: Any) -> None:
        """Set an attribute; None removes it."""
        graph = self._graph_of(node)
        before = node.attrs.get(key)
        if isinstance(before, gs.Graph) and before is not value:
            for scope in list(nested_graphs(before)):
                disconnect(scope.nodes)
                scope.outputs.clear()
        if value is None:
            node.attrs.pop(key, None)
        else:
            node.attrs[key] = value
            if isinstance(value, Graph):
                self._adopt_bodies(node, graph)
        self.mark(node)

    def set_op(self, node: Node, op: str, domain: str | None = None) -> None:
        """Change the operator."""
        graph = self._graph_of(node)
        node.op = op
        node.domain = domain
        import_domain(graph, domain)
        self.mark(node)

    def set_weight(self, constant: Constant, array: np.ndarray[Any, Any] | Weight) -> None:
        """Replace the values of a constant."""
        before = (constant.onnx_dtype, constant.shape)
        constant.set(array)
        self._weights = True
        if before != (constant.onnx_dtype, constant.shape):
            self._types = True
        for node in constant.outputs:
            self._touched[node] = None

    def set_type(self, tensor: Variable, dtype: Any, shape: Sequence[Any] | None) -> None:
        """State element type and shape of a variable.

        Raises:
            GraphError: It is an input or output of the main graph, and the type differs.
        """
        wanted = None if shape is None else list(shape)
        if any(graph is self.model.graph for _, graph in tensor.roles):
            from graphopt.graph.dtypes import onnx_dtype_of

            if (onnx_dtype_of(dtype), wanted) != (tensor.onnx_dtype, tensor.shape):
                raise GraphError(
                    f"the type of public tensor '{tensor.name}' would change", must="Public types never change"
                )
            return
        tensor.dtype = dtype
        tensor.shape = wanted
        self._types = True
        made = producer(tensor)
        if made is not None:
            self._touched[made] = None

    def erase(self, nodes: Iterable[Node] | Node) -> None:
        """Remove nodes with their bodies. Their outputs must have no use left when the block ends."""
        for node in [nodes] if isinstance(nodes, Node) else list(nodes):
            if node in self._erased:
                continue
            self._graph_of(node)
            self._erased[node] = tuple(node.outputs)
            self._grown -= 1 + nodes_in_bodies(node)
            read = dict.fromkeys(tensors_read(node))
            disconnect((node,))
            for tensor in read:
                self._released(tensor)
            self._touched.pop(node, None)
            self._structure = True

    def drop_output(self, node: Node, index: int) -> None:
        """Omit an optional output; trailing omitted outputs are removed.

        Raises:
            GraphError: Something still uses the output.
        """
        self._graph_of(node)
        tensor = node.outputs[index]
        if tensor.outputs or tensor.roles:
            raise GraphError(
                f"output '{tensor.name}' of node '{node.name}' ({node.op}) is still used", must="Replace its uses first"
            )
        node.outputs[index] = Variable("")
        while len(node.outputs) > 1 and not node.outputs[-1].name:
            node.outputs.pop()
        self.mark(node)

    def drop_initializer(self, constant: Constant) -> None:
        """Remove an initializer that nobody reads and nobody may feed; any other stays.

        Before IR version 4, where an initializer is listed as an input but cannot be fed, that entry goes too.
        """
        home = constant.home
        if home is not None and not is_used(constant):
            home.initializers.pop(constant, None)
            home.initializer_inputs.pop(constant, None)
            constant.home = None
            self._structure = True

    def drop_function(self, function: Function) -> None:
        """Remove a function that no node calls."""
        self.model.functions.remove(function)
        self._structure = True

    # ------------------------------------------------------------------------------------------------ the end of it

    def _graph_of(self, node: Node) -> Graph:
        graph = node.graph
        if graph is None:
            raise GraphError(
                f"node '{node.name}' ({node.op}) is in no graph",
                must="Edit nodes of the model only",
                do="Was it erased before?",
            )
        return graph

    def _count(self) -> None:
        versions = self.model.versions
        versions.structure += self._structure
        versions.types += self._types
        versions.weights += self._weights


def _typed(array: Any, onnx_dtype: int) -> Weight:
    from graphopt.graph.dtypes import numpy_dtype

    wanted = numpy_dtype(onnx_dtype)
    values = np.asarray(array)
    if wanted is not None and values.dtype != wanted:
        values = values.astype(wanted)
    return ArrayWeight(values, onnx_dtype)
