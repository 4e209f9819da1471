"""Nodes: identity, carried message, attributes decoded when somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import onnx_graphsurgeon as gs

from graphopt.errors import GraphError
from graphopt.graph import attributes
from graphopt.graph.edges import Edges, set_edges
from graphopt.graph.fields import give_node_fields
from graphopt.graph.tensors import Constant
from graphopt.graph.unknown import properties, text_of
from graphopt.graph.weights import ProtoWeight

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

    from graphopt.graph.graphs import Graph
    from graphopt.graph.tensors import Tensor


class Node(gs.Node):  # type: ignore[misc]
    """One operation. Compared and hashed by identity.

    Attributes:
        op: Operator type.
        name: Node name; "" if it has none.
        domain: Operator domain; None if the model does not state it, which means "".
        inputs: Tensors read; an omitted optional input is a Variable named "".
        outputs: Tensors produced.
        origin: Names of the nodes that this node replaces; empty for a node of the source model.
        graph: The graph whose node list holds it, or None.
        carried: The NodeProto it was read from, or None.
    """

    op: str
    name: str
    domain: str | None
    inputs: Edges
    outputs: Edges
    graph: Graph | None = None
    carried: onnx.NodeProto | None = None
    origin: tuple[str, ...] = ()
    _attrs: dict[str, Any] | None = None
    _metadata: dict[str, str] | None = None
    link_prev: Node | None = None
    link_next: Node | None = None
    link_label: int = 0

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        op: str,
        name: str | None = None,
        attrs: dict[str, Any] | None = None,
        inputs: Iterable[Tensor] | None = None,
        outputs: Iterable[Tensor] | None = None,
        domain: str | None = None,
    ) -> None:
        give_node_fields(
            self,
            {
                "op": op,
                "name": name or "",
                "domain": domain,
                "inputs": Edges(self, "outputs", inputs or ()),
                "outputs": Edges(self, "inputs", outputs or ()),
                "graph": None,
                "_attrs": {} if attrs is None else attrs,
                "carried": None,
                "link_label": 0,
                "link_prev": None,
                "link_next": None,
            },
        )

    __setattr__ = set_edges

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes by name, decoded when first asked for; see attributes.decode for the kinds of values."""
        held = self._attrs
        if held is None:
            carried = cast("onnx.NodeProto", self.carried)
            held = {a.name: attributes.decode(a, _attribute_constant) for a in carried.attribute}
            self.__dict__["_attrs"] = held
        return held

    @attrs.setter
    def attrs(self, value: dict[str, Any]) -> None:
        self.__dict__["_attrs"] = value

    @property
    def attrs_read(self) -> bool:
        """Whether the attributes were decoded, and may therefore differ from the carried message."""
        return self._attrs is not None

    @property
    def metadata(self) -> dict[str, str]:
        """The ``metadata_props`` of the node; may be changed."""
        if self._metadata is None:
            props = () if self.carried is None else self.carried.metadata_props
            self.__dict__["_metadata"] = properties(props)
        return cast("dict[str, str]", self._metadata)

    @property
    def doc_string(self) -> str:
        """The documentation carried by the source model."""
        return "" if self.carried is None else text_of(self.carried.doc_string)

    @property
    def overload(self) -> str:
        """Which overload of a function the node calls."""
        return "" if self.carried is None else text_of(self.carried.overload)

    def has_subgraphs(self) -> bool:
        """Tell whether an attribute holds a graph."""
        return self._attrs is not None and any(isinstance(value, gs.Graph) for value in self._attrs.values())

    def copy(
        self,
        inputs: Iterable[Tensor] | None = None,
        outputs: Iterable[Tensor] | None = None,
        tensor_map: dict[str, Tensor] | None = None,
    ) -> Node:
        """Return a node with the same operation on other tensors; its subgraphs are copied."""
        attrs = None
        if self._attrs is not None:
            attrs = {
                key: value.copy(tensor_map) if isinstance(value, gs.Graph) else _copied_value(value)
                for key, value in self._attrs.items()
            }
        twin = Node(self.op, self.name, attrs, inputs, outputs, self.domain)
        twin.__dict__["_attrs"] = attrs
        twin.carry_from(self)
        return twin

    def carry_from(self, other: Node) -> None:
        """Take over what travels with a node: message, metadata and origin."""
        self.carried = other.carried
        self.origin = other.origin
        self.__dict__["_metadata"] = None if other._metadata is None else dict(other._metadata)

    def __deepcopy__(self, memo: dict[int, Any]) -> Node:
        msg = f"node '{self.name}' ({self.op}) cannot be copied alone"
        raise GraphError(msg, must="A node belongs to its tensors", do="Copy the Model or the Graph.")

    def __str__(self) -> str:
        ins = ", ".join(t.name for t in self.inputs)
        outs = ", ".join(t.name for t in self.outputs)
        return f"{self.name or '<unnamed>'} ({self.op}): ({ins}) -> ({outs})"

    __repr__ = __str__


def _copied_value(value: Any) -> Any:
    if isinstance(value, list):
        return value.copy()
    if isinstance(value, gs.Constant):
        return value.copy()
    return value


def _attribute_constant(tensor: onnx.TensorProto) -> Constant:
    return Constant(tensor.name, ProtoWeight(tensor))
