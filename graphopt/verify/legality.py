"""The grammar of legal graphs, as rules on tensors, nodes, graphs and the model.

After one patch only what it touched is checked, which costs no more than the patch did. After a pass the whole model
is, in time linear in its size. A model that breaks a rule raises `GraphError`; the manager turns that into a
`VerificationError` that names the patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from graphopt.errors import GraphError
from graphopt.graph import Constant, Graph, Node, Tensor, subgraphs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from graphopt.graph import Model


@dataclass(frozen=True, slots=True)
class Port:
    """A public input or output.

    Attributes:
        name: Its name.
        kind: ``tensor_type``, ``sequence_type`` and so on.
        dtype: Its ONNX element type; 0 where it has none.
        shape: Its dimensions: numbers, symbol names or None; None where even the rank is unknown.
    """

    name: str
    kind: str
    dtype: int
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        """Return the port as ``x: type 1 [1, 'n']``."""
        return f"{self.name}: type {self.dtype} {list(self.shape) if self.shape is not None else 'of unknown rank'}"


@dataclass(frozen=True, slots=True)
class Interface:
    """What the callers of a model see; no rewrite may change it.

    Attributes:
        inputs: Public inputs in order.
        outputs: Public outputs in order.
        overridable: Names of the initializers that a caller may replace.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    overridable: tuple[str, ...]

    @classmethod
    def of(cls, model: Model) -> Interface:
        """Return the interface of a model as it is now."""
        graph = model.graph
        overridable = tuple(str(c.name) for c in graph.initializer_inputs if graph.is_overridable(c))
        return cls(tuple(map(_port, graph.inputs)), tuple(map(_port, graph.outputs)), overridable)

    def check(self, model: Model) -> None:
        """Check that a model still has this interface.

        Args:
            model: The model.

        Raises:
            GraphError: An input or output is gone, renamed, reordered or retyped.
        """
        now = Interface.of(model)
        if now == self:
            return
        for what, before, after in (("input", self.inputs, now.inputs), ("output", self.outputs, now.outputs)):
            changed = next(((old, new) for old, new in zip(before, after, strict=False) if old != new), None)
            if changed is not None or len(before) != len(after):
                detail = f"{changed[0]} became {changed[1]}" if changed else f"{len(before)} became {len(after)}"
                raise GraphError(f"the public {what}s changed: {detail}", must=_FIXED_INTERFACE)
        gone = [name for name in self.overridable if name not in now.overridable]
        raise GraphError(f"the overridable initializers changed: {gone or now.overridable}", must=_FIXED_INTERFACE)


_FIXED_INTERFACE = "Names, order, types and shapes of public inputs and outputs never change"


def check_legal(
    model: Model,
    touched: Iterable[Node] | None = None,
    *,
    interface: Interface | None = None,
    tensors: Iterable[Tensor] = (),
) -> None:
    """Check that a model is legal.

    Order and names are checked for the whole model alone: the manager sorts after each pass, and a name says nothing
    about its neighbours.

    Args:
        model: The model.
        touched: Check these nodes alone, and only those that are still in the model; None checks everything.
        interface: What the public inputs and outputs must be.
        tensors: With ``touched``: tensors around the nodes that the patch may have removed.

    Raises:
        GraphError: A rule is broken; the message names the node or tensor.
    """
    if touched is None:
        _check_model(model)
        if interface is not None:
            interface.check(model)
        return
    outward = False
    for node in touched:
        if in_model(node):
            _check_node(node)
            outward = outward or any(tensor.roles for tensor in (*node.inputs, *node.outputs))
    for tensor in tensors:
        outward = outward or bool(tensor.roles)
        # of a hub one user is asked: what is not defined for one is not for any
        for user in tensor.outputs if len(tensor.outputs) <= _LONG_USE_LIST else _some_user(tensor):
            if in_model(user):
                _check_source(tensor, user)
    if interface is not None and outward:
        interface.check(model)
        for tensor in model.graph.outputs:
            _check_output(tensor, model.graph)


def in_model(node: Node) -> bool:
    """Tell whether a node is in a graph, and that graph in the model."""
    graph = node.graph
    while graph is not None:
        owner = graph.parent_node
        if owner is None:
            return graph.parent is None
        graph = owner.graph
    return False


def _check_model(model: Model) -> None:
    for graph in (model.graph, *(function.graph for function in model.functions)):
        _check_graph(graph, ())


_NOTHING: Mapping[str, Tensor] = {}

Scopes: TypeAlias = "tuple[dict[str, Tensor], ...]"
"""Tensors by name, those of the innermost graph first; each holds what is defined before the node at hand."""


def _check_graph(graph: Graph, around: Scopes) -> None:
    local: dict[str, Tensor] = {}
    scopes = (local, *around)
    for tensor in (*graph.inputs, *graph.initializers):
        _define(tensor, graph, local)
    for node in graph.nodes:
        if node.graph is not graph:
            raise GraphError(
                "it is in the node list of a graph that is not its own",
                where=_node(node),
                must="A node is in one graph",
                do="Add nodes with Rewriter.op",
            )
        _check_node(node, local)
        for tensor in node.inputs:
            if tensor.name and local.get(tensor.name) is not tensor:
                _check_visible(tensor, node, scopes)
        for key, body in subgraphs(node):
            if body.parent_node is not node or body.parent is not graph:
                raise GraphError(f"its attribute {key} holds a graph of another node", where=_node(node))
            _check_graph(body, scopes)
        for tensor in node.outputs:
            if tensor.name:
                _define(tensor, graph, local)
    for tensor in graph.outputs:
        _check_output(tensor, graph)


def _define(tensor: Tensor, graph: Graph, local: dict[str, Tensor]) -> None:
    other = local.get(tensor.name)
    if other is not None and other is not tensor:
        raise GraphError(
            f"two tensors are named {tensor.name!r}",
            where=f"graph {graph.name!r}",
            must="Names are unique in a graph",
            do="Take names from model.names.fresh",
        )
    local[tensor.name] = tensor


def _check_visible(tensor: Tensor, node: Node, scopes: Scopes) -> None:
    """Check that the name of a tensor, as read at a node, means that tensor."""
    meant = next((scope[tensor.name] for scope in scopes if tensor.name in scope), None)
    if meant is tensor:
        return
    if isinstance(tensor, Constant) and tensor.home is None and meant is None:
        scopes[0][tensor.name] = tensor  # the writer makes it an initializer of the graph that uses it first
        return
    if meant is not None:
        raise GraphError(
            f"it uses tensor {tensor.name!r}, but that name means another tensor there",
            where=_node(node),
            must="A name means the same tensor wherever both are visible",
            do="Take names from model.names.fresh",
        )
    _check_source(tensor, node)
    raise GraphError(
        f"it uses tensor {tensor.name!r} before it is computed",
        where=_node(node),
        must="Nodes are in topological order, without cycles",
        do="Call model.sort()",
    )


def _check_node(node: Node, local: Mapping[str, Tensor] = _NOTHING) -> None:
    """Check a node and its edges.

    Args:
        node: The node.
        local: What is defined in its graph before it, by name; of a variable in it the source was checked already.
    """
    if not node.op:
        raise GraphError("it has no operator type", where=_node(node))
    domain = node.domain or ""
    assert node.graph is not None
    imports = node.graph.imports
    if domain not in imports and not (domain in {"", "ai.onnx"} and ("" in imports or "ai.onnx" in imports)):
        raise GraphError(
            f"it uses the operator domain {domain!r}, which is not imported",
            where=_node(node),
            must=f"Imported are {', '.join(map(repr, imports))}",
            do="Add it to model.opset_imports",
        )
    counts: dict[Tensor, int] = {}
    for tensor in node.inputs:
        counts[tensor] = counts.get(tensor, 0) + 1
    for tensor, count in counts.items():
        name = tensor.name
        if name:
            _check_edge(tensor, node, count)
            if isinstance(tensor, Constant) or local.get(name) is not tensor:
                _check_source(tensor, node)
    for tensor in node.outputs:
        if not tensor.name:
            continue
        if isinstance(tensor, Constant):
            raise GraphError(f"it produces the constant {tensor.name!r}", where=_node(node))
        if len(tensor.inputs) != 1 or tensor.inputs[0] is not node:
            producers = ", ".join(_node(producer) for producer in tensor.inputs) or "nothing"
            raise GraphError(
                f"its output {tensor.name!r} is produced by {producers}",
                where=_node(node),
                must="A tensor has exactly one producer",
            )
        if tensor.roles and any(role == "input" for role, _ in tensor.roles):
            raise GraphError(f"it produces {tensor.name!r}, which is an input of a graph", where=_node(node))


def _check_edge(tensor: Tensor, node: Node, forward: int) -> None:
    # a hub has thousands of users, and its list is exact by construction unless somebody wrote into it
    if len(tensor.outputs) > _LONG_USE_LIST:
        return
    backward = tensor.outputs.count(node)
    if forward != backward:
        raise GraphError(
            f"it uses tensor {tensor.name!r} {forward} times, but that tensor records {backward} uses by it",
            where=_node(node),
            must="Both ends of an edge know each other",
            do="Change edges through Rewriter or through the lists of the node",
        )


_LONG_USE_LIST = 256


def _some_user(tensor: Tensor) -> tuple[Node, ...]:
    """Return one user of a hub whose producer is gone; of others none, since listing users costs their number."""
    producer = tensor.inputs[0] if tensor.inputs else None
    defined = isinstance(tensor, Constant) or bool(tensor.roles) or (producer is not None and in_model(producer))
    return () if defined else (tensor.outputs[0],)


def _check_source(tensor: Tensor, user: Node) -> None:
    """Check that a used tensor is defined, in the user's graph or around it."""
    if isinstance(tensor, Constant):
        owners = [] if tensor.home is None else [tensor.home]
    elif tensor.inputs:
        producer = tensor.inputs[0]
        if producer.graph is user.graph:
            return
        if not in_model(producer):
            raise GraphError(
                f"it uses tensor {tensor.name!r} of {_node(producer)}, which is not in the model",
                where=_node(user),
                must="Every used tensor is computed, fed or constant",
            )
        owners = [producer.graph]
    else:
        owners = [graph for role, graph in tensor.roles if role == "input"]
        if not owners:
            raise GraphError(
                f"it uses tensor {tensor.name!r}, which nothing computes or feeds",
                where=_node(user),
                must="Every used tensor is computed, fed or constant",
                do="Erase a node only after its outputs were replaced",
            )
    scope = user.graph
    while scope is not None:
        if not owners or any(owner is scope for owner in owners):
            return
        scope = scope.parent
    raise GraphError(
        f"it uses tensor {tensor.name!r} of a graph that does not surround it",
        where=_node(user),
        must="A tensor is visible in its own graph and in the graphs inside",
    )


def _check_output(tensor: Tensor, graph: Graph) -> None:
    if isinstance(tensor, Constant):
        legal = tensor.home is None or tensor.home is graph
    elif tensor.inputs:
        legal = tensor.inputs[0].graph is graph
    else:
        legal = any(role == "input" and owner is graph for role, owner in tensor.roles)
    if not legal:
        raise GraphError(
            f"its output {tensor.name!r} is not computed in it",
            where=f"graph {graph.name!r}",
            must="The outputs of a graph are computed in that very graph",
            do="Put an Identity before it",
        )


def _node(node: Node) -> str:
    return f"node {node.name!r} ({node.op})" if node.name else f"an unnamed {node.op}"


def _port(tensor: Tensor) -> Port:
    shape = None if tensor.shape is None else tuple(tensor.shape)
    return Port(str(tensor.name), str(getattr(tensor, "type", "tensor_type")), tensor.onnx_dtype, shape)
