"""The objects of a graph: subclasses of those of graphsurgeon with identity, exact use lists and carried messages.

Nothing is modelled that need not be: each object keeps the protobuf message it was read from (``carried``, never
changed) and states only what code can change. The writer writes the message verbatim where nothing did change.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.errors import GraphError
from graphopt.graph import attributes, dtypes
from graphopt.graph.edges import Edges, Uses
from graphopt.graph.nodelist import NodeList, RoleList
from graphopt.graph.weights import ArrayWeight, ProtoWeight, Weight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# True while a function written for stock graphsurgeon runs, which may write into ``constant.values``.
WRITABLE_VALUES: ContextVar[bool] = ContextVar("graphopt_writable_values", default=False)


def _set_edges(self: Any, name: str, value: Any) -> None:
    if name in {"inputs", "outputs"} and name in self.__dict__:
        current = self.__dict__[name]
        if value is not current:
            current[:] = list(value)
    else:
        object.__setattr__(self, name, value)


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
        fields = self.__dict__
        fields["op"] = op
        fields["name"] = name or ""
        fields["domain"] = domain
        fields["_attrs"] = {} if attrs is None else attrs
        fields["inputs"] = Edges(self, "outputs", inputs or ())
        fields["outputs"] = Edges(self, "inputs", outputs or ())

    __setattr__ = _set_edges

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes by name, decoded when first asked for; see attributes.decode for the kinds of values."""
        if self._attrs is None:
            carried = cast("onnx.NodeProto", self.carried)
            self.__dict__["_attrs"] = {a.name: attributes.decode(a, _attribute_constant) for a in carried.attribute}
        return cast("dict[str, Any]", self._attrs)

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
            self.__dict__["_metadata"] = {entry.key: entry.value for entry in props}
        return cast("dict[str, str]", self._metadata)

    @property
    def doc_string(self) -> str:
        """The documentation carried by the source model."""
        return "" if self.carried is None else str(self.carried.doc_string)

    @property
    def overload(self) -> str:
        """Which overload of a function the node calls."""
        return "" if self.carried is None else str(self.carried.overload)

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


class _Identity:
    """What variables and constants share."""

    name: str
    inputs: Uses
    outputs: Uses
    carried: onnx.ValueInfoProto | None = None
    roles: tuple[tuple[str, Graph], ...] = ()

    __eq__ = object.__eq__
    __hash__ = object.__hash__
    __setattr__ = _set_edges

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        msg = f"tensor '{self.name}' cannot be copied alone"
        raise GraphError(msg, must="A tensor belongs to its nodes", do="Copy the Model or the Graph.")


class Variable(_Identity, gs.Variable):  # type: ignore[misc]
    """A tensor that is computed or fed. Compared and hashed by identity.

    Attributes:
        name: Tensor name; "" for an omitted input or output.
        carried: The ValueInfoProto it was read from, or None.
        roles: ("input" | "output", graph) for every graph whose input or output it is.
    """

    _dtype: Any = None
    _shape: list[int | str | None] | None = None
    _type: str = "tensor_type"
    _known: bool = True

    def __init__(self, name: str, dtype: Any = None, shape: Sequence[Any] | None = None, type: str = "tensor_type") -> None:  # noqa: A002
        fields = self.__dict__
        fields["name"] = name
        fields["inputs"] = Uses(self, "outputs")
        fields["outputs"] = Uses(self, "inputs")
        if dtype is not None:
            fields["_dtype"] = dtype
        if shape is not None:
            fields["_shape"] = list(shape)
        if type != "tensor_type":
            fields["_type"] = type

    @classmethod
    def read(cls, name: str, carried: onnx.ValueInfoProto | None) -> Variable:
        """Return a variable whose type is decoded from ``carried`` when it is first asked for."""
        variable = cls(name)
        if carried is not None:
            variable.__dict__["carried"] = carried
            variable.__dict__["_known"] = False
        return variable

    @staticmethod
    def empty() -> Variable:
        """Return the placeholder of an omitted optional input or output."""
        return Variable("")

    def _know(self) -> None:
        dtype, shape, kind = decode_type(cast("onnx.ValueInfoProto", self.carried))
        self.__dict__.update(_dtype=dtype, _shape=shape, _type=kind, _known=True)

    @property
    def type_read(self) -> bool:
        """Whether the type was decoded, and may therefore differ from the carried message."""
        return self._known

    @property
    def dtype(self) -> Any:
        """Element type: numpy dtype, an ONNX enum value where numpy has none, None if unknown or not a tensor."""
        if not self._known:
            self._know()
        return self._dtype

    @dtype.setter
    def dtype(self, value: Any) -> None:
        if not self._known:
            self._know()
        self.__dict__["_dtype"] = value

    @property
    def shape(self) -> list[int | str | None] | None:
        """Dimensions: number, symbol or None each; None if the rank is unknown."""
        if not self._known:
            self._know()
        return self._shape

    @shape.setter
    def shape(self, value: Sequence[Any] | None) -> None:
        if not self._known:
            self._know()
        self.__dict__["_shape"] = None if value is None else list(value)

    @property
    def type(self) -> str:
        """The field of onnx.TypeProto in use: tensor_type, sequence_type, optional_type, map_type and so on."""
        if not self._known:
            self._know()
        return self._type

    @type.setter
    def type(self, value: str) -> None:
        if not self._known:
            self._know()
        self.__dict__["_type"] = value

    @property
    def onnx_dtype(self) -> int:
        """Element type as ONNX enum; 0 if unknown."""
        return dtypes.onnx_dtype_of(self.dtype)

    def copy(self) -> Variable:
        """Return an unconnected variable of the same name and type."""
        twin = Variable(self.name)
        for field in ("carried", "_known", "_dtype", "_type"):
            if field in self.__dict__:
                twin.__dict__[field] = self.__dict__[field]
        if self._shape is not None:
            twin.__dict__["_shape"] = list(self._shape)
        return twin

    def to_constant(self, values: Any, data_location: int | None = None, export_dtype: Any = None) -> Constant:
        """Turn this variable into a constant in place; producers and consumers keep it."""
        _ = data_location
        for field in ("_dtype", "_shape", "_type", "_known", "carried"):
            self.__dict__.pop(field, None)
        self.__class__ = Constant  # type: ignore[assignment]
        constant = cast("Constant", self)
        constant.__dict__.update(_weight=as_weight(values, export_dtype), home=None, residual=None)
        return constant

    def __str__(self) -> str:
        return f"Variable ({self.name}): (shape={self.shape}, dtype={self.dtype})"

    __repr__ = __str__


def decode_type(info: onnx.ValueInfoProto) -> tuple[Any, list[int | str | None] | None, str]:
    """Return element type, dimensions and kind of a ValueInfoProto."""
    kind = info.type.WhichOneof("value") or "tensor_type"
    if kind != "tensor_type":
        return None, None, kind
    tensor = info.type.tensor_type
    element = tensor.elem_type
    dtype: Any = None
    if element:
        found = dtypes.numpy_dtype(element)
        dtype = element if found is None else found
    shape: list[int | str | None] | None = None
    if tensor.HasField("shape"):
        shape = []
        for dim in tensor.shape.dim:
            which = dim.WhichOneof("value")
            shape.append(dim.dim_value if which == "dim_value" else dim.dim_param or None if which else None)
    return dtype, shape, kind


def as_weight(values: Any, dtype: Any = None) -> Weight:
    """Return values as a Weight: an array, a Weight, or what graphsurgeon keeps lazily.

    Raises:
        GraphError: The values are none of these, or do not fit ``dtype``.
    """
    if isinstance(values, Weight):
        return values
    if isinstance(values, LazyValues):
        tensor = values.tensor
        if isinstance(tensor, onnx.SparseTensorProto):
            from graphopt.graph.weights import SparseWeight

            return SparseWeight(tensor)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return ProtoWeight(tensor)
        values = values.load()
    if not isinstance(values, np.ndarray | np.generic):
        msg = f"the values of a constant are a {type(values).__name__}"
        raise GraphError(msg, must="They must be a numpy array or a Weight", do="Call numpy.asarray with the dtype you mean.")
    array = np.asarray(values)
    if dtype is not None and dtypes.onnx_dtype_of(dtype) != dtypes.onnx_dtype_of(array.dtype):
        wanted = dtypes.numpy_dtype(dtypes.onnx_dtype_of(dtype))
        array = array.astype(wanted)
    return ArrayWeight(array)


class Constant(_Identity, gs.Constant):  # type: ignore[misc]
    """A tensor whose value is known: an initializer. Compared and hashed by identity.

    Attributes:
        name: Tensor name.
        home: The graph that owns the initializer; None until the writer adopts a new one.
        carried: Its ValueInfoProto if the model had one, or None.
        residual: A TensorProto with doc string and metadata but no data, or None.
    """

    home: Graph | None = None
    residual: onnx.TensorProto | None = None
    data_location = None
    _export_dtype = None
    _weight: Weight
    _scratch: np.ndarray[Any, Any] | None = None

    def __init__(self, name: str, values: Any, data_location: int | None = None, export_dtype: Any = None) -> None:
        _ = data_location
        fields = self.__dict__
        fields["name"] = name
        fields["inputs"] = Uses(self, "outputs")
        fields["outputs"] = Uses(self, "inputs")
        fields["_weight"] = as_weight(values, export_dtype)

    @property
    def weight(self) -> Weight:
        """Where the values live."""
        if self._scratch is not None:
            self._settle_scratch()
        return self._weight

    @weight.setter
    def weight(self, value: Weight) -> None:
        self._keep_residual()
        self.__dict__["_weight"] = value
        self.__dict__.pop("_scratch", None)

    def _keep_residual(self) -> None:
        proto = getattr(self._weight, "tensor", None) or getattr(self._weight, "proto", None)
        if proto is not None and (proto.doc_string or len(proto.metadata_props)):
            kept = onnx.TensorProto()
            kept.doc_string = proto.doc_string
            kept.metadata_props.extend(proto.metadata_props)
            self.residual = kept

    @property
    def onnx_dtype(self) -> int:
        """Element type as ONNX enum."""
        return self.weight.onnx_dtype

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type as numpy type."""
        return self.weight.dtype

    @property
    def export_dtype(self) -> Any:
        """The type it is written as: always its own."""
        return self.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return tuple(self.weight.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed values."""
        return self.weight.nbytes

    def array(self) -> np.ndarray[Any, Any]:
        """Return the values: read-only, sub-byte types one element per byte as ml_dtypes, strings as objects."""
        return self.weight.load()

    def set(self, values: Any, onnx_dtype: int | None = None) -> None:
        """Replace the values; type and shape may change.

        Args:
            values: An array or a Weight.
            onnx_dtype: Element type where the numpy type does not say it.
        """
        weight = ArrayWeight(values, onnx_dtype) if isinstance(values, np.ndarray) else as_weight(values, onnx_dtype)
        self.weight = weight

    @contextlib.contextmanager
    def edit(self) -> Iterator[np.ndarray[Any, Any]]:
        """Give a writable copy of the values and keep what it holds at the end; nothing changes if the block raises."""
        array = np.array(self.array())
        kind = self.onnx_dtype
        yield array
        self.weight = ArrayWeight(array, kind)

    @property
    def values(self) -> np.ndarray[Any, Any]:
        """The values, for code written for graphsurgeon: writable inside ``gs_pass``, else read-only."""
        if not WRITABLE_VALUES.get():
            return self.array()
        if self._scratch is None:
            self.__dict__["_scratch"] = np.array(self._weight.load())
        return cast("np.ndarray[Any, Any]", self._scratch)

    @values.setter
    def values(self, values: Any) -> None:
        self.weight = as_weight(values)

    def _settle_scratch(self) -> None:
        scratch = cast("np.ndarray[Any, Any]", self._scratch)
        self.__dict__.pop("_scratch")
        before = self._weight.load()
        if before.dtype != scratch.dtype or before.shape != scratch.shape or not _same_bits(before, scratch):
            self.weight = as_weight(scratch)

    @property
    def _values(self) -> Any:
        return self._weight if self._scratch is None else self._scratch

    @_values.setter
    def _values(self, values: Any) -> None:
        self.weight = as_weight(values)

    def copy(self) -> Constant:
        """Return an unconnected constant that shares the values; changing either copies them first."""
        twin = Constant(self.name, self.weight)
        twin.__dict__.update(carried=self.carried, residual=self.residual, home=self.home)
        return twin

    def to_variable(self, dtype: Any = None, shape: Sequence[Any] | None = None) -> Variable:
        """Turn this constant into a variable in place; of its own type and shape unless told otherwise."""
        dtype = self.dtype if dtype is None else dtype
        shape = self.shape if shape is None else shape
        for field in ("_weight", "_scratch", "home", "residual", "carried"):
            self.__dict__.pop(field, None)
        self.__class__ = Variable  # type: ignore[assignment]
        variable = cast("Variable", self)
        variable.__dict__.update(_dtype=dtype, _shape=list(shape), _type="tensor_type", _known=True)
        return variable

    def to_constant(self, values: Any, data_location: int | None = None, export_dtype: Any = None) -> Constant:
        """Replace the values."""
        _ = data_location
        self.weight = as_weight(values, export_dtype)
        return self

    def __str__(self) -> str:
        return f"Constant ({self.name}): (shape={self.shape}, dtype={self.onnx_dtype})"

    __repr__ = __str__


def _same_bits(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    if left.dtype == dtypes.OBJECT:
        return bool(np.array_equal(left, right))
    return np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()


Tensor = Variable | Constant


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
    record: Any = None  # what the reader bound, for the writer: graphopt.graph.read.Record

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
        fields = self.__dict__
        fields["imports"] = {}
        fields["initializers"] = {}
        fields["initializer_inputs"] = {}
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
        fields["ir_version"] = ir_version
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
        return [onnx.OperatorSetIdProto(domain=domain, version=version) for domain, version in self.imports.items()]

    @import_domains.setter
    def import_domains(self, value: Iterable[onnx.OperatorSetIdProto] | None) -> None:
        self.imports.clear()
        self.imports.update({entry.domain: entry.version for entry in value or ()})

    def is_overridable(self, tensor: Any) -> bool:
        """Tell whether whoever runs the model may replace the value of an initializer, because it is an input too.

        Before IR version 4 every initializer had to be listed as an input and could not be replaced.
        """
        if (self.ir_version or 4) < 4:
            return False
        if tensor in self.initializer_inputs:
            return True
        return any(role == "input" and graph is self for role, graph in getattr(tensor, "roles", ()))

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
        if mode != "nodes" or recurse_functions:
            for function in self.functions:
                if recurse_functions:
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
                order.eliminate_unreachable(function, nested=recurse_subgraphs, unused_outputs=remove_unused_node_outputs)
        return self

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
            self, nodes, inputs, outputs, name, doc_string, opset, import_domains, functions=functions, ir_version=ir_version
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


def node_subgraphs(node: Any) -> Iterator[tuple[str, Graph]]:
    """Yield attribute name and graph for every body of a node."""
    held = node.__dict__.get("_attrs") if isinstance(node, Node) else node.attrs
    if held:
        for key, value in held.items():
            if isinstance(value, gs.Graph):
                yield key, value
