"""From protobuf to objects, checking what untrusted input can get wrong."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto

from graphopt.errors import GraphError, ReadError
from graphopt.graph import attributes
from graphopt.graph.collection import collector_paused
from graphopt.graph.edges import Edges
from graphopt.graph.external import DataFolder
from graphopt.graph.fields import give_node_fields
from graphopt.graph.graphs import Function, Graph
from graphopt.graph.model import Model
from graphopt.graph.nodelist import NodeList, RoleList
from graphopt.graph.nodes import Node
from graphopt.graph.order import is_sorted, sort_graph
from graphopt.graph.record import Record
from graphopt.graph.scopes import nested_graphs
from graphopt.graph.tensors import Constant, Tensor, Variable
from graphopt.graph.weights import ProtoWeight, SparseWeight, Weight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

_Scope = dict[str, Tensor]
_VERSIONS = 1 << 31


def read_model(source: str | Path | bytes | onnx.ModelProto, *, base: str | Path | None = None) -> Model:
    """Read an ONNX model.

    Nothing of the source is changed, weights are not decoded, external data is mapped when it is read. Graphs that are
    not sorted are accepted; ``Model.sort`` sorts them.

    Args:
        source: Path of a .onnx file, its bytes, or a ModelProto (which is copied).
        base: Folder of the external data; by default that of the path.

    Raises:
        ReadError: The source is no ONNX model, or a tensor's data do not fit its dimensions.
        ExternalDataError: External data is missing, too short, or its description makes no sense.
        ExternalDataEscapeError: External data lies outside the folder.
        GraphError: A name is unknown or produced twice, or nodes form a cycle.
    """
    path = Path(source) if isinstance(source, str | Path) else None
    where = str(path) if path is not None else "model"
    proto = _parse(source, where)
    folder = Path(base) if base is not None else path.parent if path is not None else None
    if not proto.HasField("graph"):
        raise ReadError("it holds no graph", where=where, must="It must be an ONNX model", do="Check which file it is.")
    try:
        with collector_paused():
            return _Reader(proto, DataFolder(folder)).model(path)
    except UnicodeDecodeError as error:
        raise ReadError(f"a name is not UTF-8: {error}", where=where, must="ONNX names are UTF-8") from error
    except RecursionError as error:
        raise ReadError("graphs are nested too deeply", where=where, must=f"At most {MAX_DEPTH} levels") from error


def refuse_unsafe_data(path: Path) -> None:
    """Raise where a model file names external data that must not be opened; nothing of it is loaded.

    For files that another program will load: not every ONNX Runtime stays in the model's folder.

    Args:
        path: The file. One that is no ONNX model passes: whoever loads it says so.

    Raises:
        ExternalDataError: External data is missing, too short, or its description makes no sense.
        ExternalDataEscapeError: External data lies outside the folder.
    """
    try:
        proto = _parse(path, str(path))
    except ReadError:
        return
    folder = DataFolder(path.parent)
    for tensor in _stored_tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            folder.weight(tensor)


def _stored_tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor in a model: initializers and attributes of all graphs and functions."""
    stack: list[Any] = [proto.graph, *proto.functions]
    while stack:
        scope = stack.pop()
        if isinstance(scope, onnx.GraphProto):
            yield from scope.initializer
            for sparse in scope.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in scope.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("g"):
                    stack.append(attribute.g)
                yield from attribute.tensors
                stack.extend(attribute.graphs)


LIMIT_BYTES = (1 << 31) - 1  # of one protobuf message

# A body is three messages deep and protobuf reads at most 100 levels.
MAX_DEPTH = 32


def _parse(source: str | Path | bytes | onnx.ModelProto, where: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    if isinstance(source, onnx.ModelProto):
        proto.CopyFrom(source)
        return proto
    try:
        data = bytes(source) if isinstance(source, bytes | bytearray | memoryview) else _file_bytes(Path(source), where)
    except OSError as error:
        raise ReadError(
            f"the file cannot be read: {error.strerror or error}", where=where, do="Check the path."
        ) from error
    if not data:
        raise ReadError("it is empty", where=where, must="It must be an ONNX model", do="Fetch the file again.")
    try:
        proto.ParseFromString(data)
    except (DecodeError, RuntimeError) as error:
        raise ReadError(
            f"{len(data)} bytes that are not an ONNX model ({error})",
            where=where,
            must="It must be a whole protobuf message",
            do="Fetch the file again and compare its size.",
        ) from error
    return proto


def _file_bytes(path: Path, where: str) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ReadError("it is not a regular file", where=where, must="It must be an .onnx file", do="Check the path.")
    if status.st_size > LIMIT_BYTES:
        raise ReadError(
            f"it has {status.st_size} bytes",
            where=where,
            must="An .onnx file is one protobuf message of at most 2 GiB",
            do="Export the model with external data.",
        )
    return path.read_bytes()


class _Reader:
    def __init__(self, proto: onnx.ModelProto, folder: DataFolder) -> None:
        self.proto = proto
        self.folder = folder
        self.functions: list[Function] = []
        self.imports = _imports(proto.opset_import, "model")

    def model(self, path: Path | None) -> Model:
        proto = self.proto
        graph = Graph(ir_version=proto.ir_version if proto.HasField("ir_version") else None)
        self._head(graph, proto.graph, self.imports)
        graph.__dict__.update(producer_name=proto.producer_name, producer_version=proto.producer_version)
        self._fill(graph, proto.graph, [])
        for function in proto.functions:
            self.functions.append(self._function(function))
        model = Model(graph, self.functions, carried=proto, path=path)
        for root in model.roots():
            _check_order(root)
        return model

    def _head(self, graph: Graph, proto: Any, imports: dict[str, int]) -> None:
        graph.__dict__.update(
            imports=imports,
            _functions=self.functions,
            carried=proto,
            name=_text(proto.name, "graph"),
            doc_string=proto.doc_string,
        )

    def _function(self, proto: onnx.FunctionProto) -> Function:
        where = f"function '{proto.domain}::{proto.name}'"
        defaults: dict[str, Any] = dict.fromkeys(_text(name, where) for name in proto.attribute)
        defaults.update({_text(a.name, where): attributes.decode(a, self._constant) for a in proto.attribute_proto})
        function = Function(
            _text(proto.name, where), _text(proto.domain, where), attrs=defaults, overload=_text(proto.overload, where)
        )
        self._head(function, proto, _imports(proto.opset_import, where))
        function.ir_version = self.proto.ir_version
        infos = {info.name: info for info in proto.value_info}
        local: _Scope = {}
        for name in proto.input:
            if name in local:
                raise GraphError(f"input '{name}' occurs twice", where=where, must="Names are unique")
            local[_text(name, where)] = Variable.read(name, infos.get(name))
        function.__dict__["inputs"] = RoleList(function, "input", local.values())
        record = Record()
        function.record = record
        self._body(function, proto.node, local, infos, [])
        function.__dict__["outputs"] = RoleList(
            function, "output", [self._output(n, local, [], where) for n in proto.output]
        )
        record.bind_value_infos(proto.value_info, local)
        return function

    def _fill(self, graph: Graph, proto: onnx.GraphProto, scopes: list[_Scope]) -> None:
        if len(scopes) > MAX_DEPTH:
            raise ReadError(
                f"graph '{proto.name}' is nested {len(scopes)} levels deep",
                must=f"At most {MAX_DEPTH} levels are supported",
            )
        where = f"graph '{graph.name}'"
        local: _Scope = {}
        record = Record()
        graph.record = record
        for weight, name in self._weights(proto):
            if name in local or not name:
                raise GraphError(
                    f"initializer '{name}' occurs twice or has no name", where=where, must="Names are unique"
                )
            constant = local[_text(name, where)] = Constant(name, weight)
            constant.__dict__["home"] = graph
            graph.initializers[constant] = None
        inputs = self._inputs(graph, proto, local, record, where)
        infos: dict[str, onnx.ValueInfoProto] = {info.name: info for info in proto.value_info}
        infos.update((info.name, info) for info in reversed(proto.output))
        for constant in graph.initializers:
            constant.__dict__["carried"] = graph.initializer_inputs.get(constant) or infos.get(constant.name)
        self._body(graph, proto.node, local, infos, scopes)
        outputs = []
        for info in proto.output:
            tensor = self._output(info.name, local, scopes, where)
            outputs.append(tensor)
            record.outputs.append((tensor, info))
        graph.__dict__["inputs"] = RoleList(graph, "input", inputs)
        graph.__dict__["outputs"] = RoleList(graph, "output", outputs)
        record.bind_value_infos(proto.value_info, local)
        record.bind_annotations(proto.quantization_annotation, local)
        record.idle = {c for c in graph.initializers if not c.outputs and not c.roles}

    def _weights(self, proto: onnx.GraphProto) -> Iterable[tuple[Weight, str]]:
        for tensor in proto.initializer:
            yield self._weight(tensor), tensor.name
        for sparse in proto.sparse_initializer:
            yield SparseWeight(sparse), sparse.values.name

    def _weight(self, tensor: TensorProto) -> Weight:
        if tensor.data_location == TensorProto.EXTERNAL:
            return self.folder.weight(tensor)
        return ProtoWeight(tensor)

    def _constant(self, tensor: TensorProto) -> Constant:
        return Constant(tensor.name, self._weight(tensor))

    def _inputs(
        self, graph: Graph, proto: onnx.GraphProto, local: _Scope, record: Record, where: str
    ) -> list[Variable]:
        inputs = []
        seen: set[str] = set()
        for info in proto.input:
            name = _text(info.name, where)
            if name in seen:
                raise GraphError(f"input '{name}' occurs twice", where=where, must="Names are unique")
            seen.add(name)
            known = local.get(name)
            if isinstance(known, Constant):
                graph.initializer_inputs[known] = info
                record.inputs.append(known)
                continue
            variable = local[name] = Variable.read(name, info)
            inputs.append(variable)
            record.inputs.append(variable)
        return inputs

    def _body(
        self,
        graph: Graph,
        protos: RepeatedCompositeFieldContainer[onnx.NodeProto],
        local: _Scope,
        infos: dict[str, onnx.ValueInfoProto],
        scopes: list[_Scope],
    ) -> None:
        held = list(protos)  # each look into the message makes its objects anew
        made_by = [self._outputs(proto, local, infos, graph) for proto in held]
        inner = [*scopes, local]
        nodes = []
        find, append = local.get, list.append
        for proto, outputs in zip(held, made_by, strict=True):
            node = Node.__new__(Node)
            op, label = proto.op_type, proto.name
            if not isinstance(op, str) or not isinstance(label, str):
                op, label = _text(op, graph.name), _text(label, graph.name)
            # the edges of both sides at once, without the hooks that keep them the same
            inputs, produced = Edges.__new__(Edges), Edges.__new__(Edges)
            inputs.owner = produced.owner = node
            inputs.field, produced.field = "outputs", "inputs"
            for name in proto.input:
                tensor = find(name) if name else Variable("")
                if tensor is None:
                    tensor = self._resolve(name, inner, proto, graph)
                append(inputs, tensor)
                append(tensor.outputs, node)
            for made in outputs:
                append(produced, made)
                append(made.inputs, node)
            give_node_fields(
                node,
                {
                    "op": op,
                    "name": label,
                    "domain": _text(proto.domain, graph.name) if proto.HasField("domain") else None,
                    "inputs": inputs,
                    "outputs": produced,
                    "graph": graph,
                    "_attrs": None,
                    "carried": proto,
                    "link_label": 0,
                    "link_prev": None,
                    "link_next": None,
                },
            )
            if len(proto.attribute):
                self._attributes(node, proto, inner, graph)
            nodes.append(node)
        graph.__dict__["nodes"] = NodeList(graph, nodes)

    def _outputs(
        self, proto: onnx.NodeProto, local: _Scope, infos: dict[str, onnx.ValueInfoProto], graph: Graph
    ) -> list[Variable]:
        outputs = []
        for name in proto.output:
            if not name:
                outputs.append(Variable(""))
                continue
            if name in local:
                raise GraphError(
                    f"tensor '{name}' is produced by node '{proto.name}' ({proto.op_type}) and defined before",
                    where=f"graph '{graph.name}'",
                    must="Every tensor has one definition",
                    do="Rename one of them.",
                )
            if not isinstance(name, str):
                _text(name, graph.name)
            variable = local[name] = Variable.read(name, infos.get(name))
            outputs.append(variable)
        return outputs

    def _resolve(self, name: str, scopes: Sequence[_Scope], proto: onnx.NodeProto, graph: Graph) -> Tensor:
        for scope in reversed(scopes):
            if name in scope:
                return scope[name]
        raise GraphError(
            f"node '{proto.name}' ({proto.op_type}) reads '{name}', which nothing defines",
            where=f"graph '{graph.name}'",
            must="Every input is a graph input, an initializer or the output of a node here or in a graph around it",
        )

    def _output(self, name: str, local: _Scope, scopes: Sequence[_Scope], where: str) -> Tensor:
        for scope in (local, *reversed(scopes)):
            if name in scope:
                return scope[name]
        raise GraphError(f"output '{name}' is not defined", where=where, must="Every output is a tensor of the graph")

    def _attributes(self, node: Node, proto: onnx.NodeProto, scopes: list[_Scope], graph: Graph) -> None:
        held = list(proto.attribute)
        names = [_text(a.name, graph.name) for a in held]
        if len(names) > 1 and len(set(names)) != len(names):
            raise GraphError(
                f"node '{proto.name}' ({proto.op_type}) has an attribute twice: {sorted(names)}",
                where=f"graph '{graph.name}'",
                must="Names of attributes are unique",
            )
        if not any(a.HasField("g") or a.HasField("t") for a in held):
            return  # decoded when somebody asks
        values: dict[str, Any] = {}
        for attribute in held:
            if attributes.kind_of(attribute) == AttributeProto.GRAPH and not attribute.ref_attr_name:
                body = Graph()
                self._head(body, attribute.g, graph.imports)
                body.ir_version = graph.ir_version
                body.__dict__.update(parent=graph, parent_node=node)
                self._fill(body, attribute.g, scopes)
                values[attribute.name] = body
            else:
                values[attribute.name] = attributes.decode(attribute, self._constant)
        node.__dict__["_attrs"] = values


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ReadError(f"the name {value!r} is not UTF-8", where=where, must="ONNX names are UTF-8")
    return value


def _imports(protos: Iterable[onnx.OperatorSetIdProto], where: str) -> dict[str, int]:
    imports: dict[str, int] = {}
    for entry in protos:
        domain = _text(entry.domain, where)
        if imports.get(domain, entry.version) != entry.version:
            raise ReadError(
                f"domain '{domain}' is imported as version {imports[domain]} and {entry.version}",
                where=where,
                must="A domain has one version",
            )
        if not -_VERSIONS <= entry.version < _VERSIONS:
            raise ReadError(
                f"domain '{domain}' is imported as version {entry.version}",
                where=where,
                must="A version must fit 32 bits: neither onnx nor a runtime reads more",
            )
        imports[domain] = entry.version
    return imports


def _check_order(root: Graph) -> None:
    """Refuse cycles; graphs that are merely not sorted stay as they are."""
    if is_sorted(root, nested=True):
        return
    orders = [(graph, list(graph.nodes)) for graph in nested_graphs(root)]
    sort_graph(root)
    for graph, nodes in orders:
        graph.nodes.replace_all(nodes)
