"""Messages of nodes, graphs and functions: verbatim where nothing changed, else on top of the message read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto

from graphopt.errors import GraphError
from graphopt.graph import attributes
from graphopt.graph.external import ExternalWeight
from graphopt.graph.graphs import Function, Graph
from graphopt.graph.messages import has_type, tensor_as_is, tensor_inline, value_info, verbatim
from graphopt.graph.order import is_used
from graphopt.graph.read import MAX_DEPTH
from graphopt.graph.tensors import Constant, Tensor, Variable
from graphopt.graph.unknown import copy_unknown, properties, set_text
from graphopt.graph.weights import ProtoWeight

if TYPE_CHECKING:
    from collections.abc import Callable


_GRAPH_FIELDS = frozenset(
    [
        "node",
        "name",
        "initializer",
        "sparse_initializer",
        "input",
        "output",
        "value_info",
        "quantization_annotation",
        "doc_string",
    ]
)
_FUNCTION_FIELDS = frozenset(
    [
        "name",
        "input",
        "output",
        "attribute",
        "attribute_proto",
        "node",
        "opset_import",
        "domain",
        "overload",
        "value_info",
        "doc_string",
    ]
)


class Builder:
    """Builds messages of nodes, graphs and functions.

    Args:
        tensor: Makes the message of an initializer.
    """

    def __init__(self, tensor: Callable[[Constant], Any]) -> None:
        self.tensor = tensor
        self.keep_external = tensor is tensor_as_is

    def node(self, node: Any, depth: int, target: Any) -> None:
        """Append the message of a node to ``target``."""
        carried = getattr(node, "carried", None)
        ins = [t.name for t in node.inputs]
        outs = [t.name for t in node.outputs]
        if carried is not None and not node.attrs_read and node._metadata is None:
            same = (
                carried.op_type == node.op
                and carried.name == node.name
                and list(carried.input) == ins
                and list(carried.output) == outs
                and (carried.domain == (node.domain or ""))
                and carried.HasField("domain") == (node.domain is not None)
            )
            if same:
                target.append(carried)
                return
        proto = target.add()
        if carried is not None:
            proto.CopyFrom(carried)
            if node.attrs_read:
                proto.ClearField("attribute")
            if len(carried.device_configurations):
                _rename_shards(proto, carried, ins, outs)
            proto.ClearField("input")
            proto.ClearField("output")
        proto.input.extend(ins)
        proto.output.extend(outs)
        proto.op_type = node.op
        if node.name or proto.name:
            proto.name = node.name
        if node.domain is not None:
            proto.domain = node.domain
        elif proto.HasField("domain"):
            proto.ClearField("domain")
        metadata = getattr(node, "_metadata", None)
        if metadata is not None and metadata != properties(proto.metadata_props):
            proto.ClearField("metadata_props")
            for key, value in metadata.items():
                proto.metadata_props.add(key=key, value=value)
        if carried is None or node.attrs_read:
            self.attributes(node, proto, carried, depth)

    def attributes(self, node: Any, proto: onnx.NodeProto, carried: onnx.NodeProto | None, depth: int) -> None:
        """Fill in the attributes of a node."""
        before = {a.name: a for a in carried.attribute} if carried is not None else {}
        where = f"node '{node.name}' ({node.op})"
        for key, value in node.attrs.items():
            source = before.get(key)
            if isinstance(value, attributes.RawAttribute):
                proto.attribute.append(value.proto)
                proto.attribute[-1].name = key
                continue
            if (
                source is not None
                and not isinstance(value, gs.Graph)
                and _unchanged(source, value, keep_external=self.keep_external)
            ):
                proto.attribute.append(source)
                continue
            target = proto.attribute.add()
            if source is not None:
                target.CopyFrom(source)
                for field in attributes.FIELD.values():
                    target.ClearField(field)
                target.ClearField("ref_attr_name")
            target.name = key
            if isinstance(value, gs.Graph):
                if source is None or source.type:
                    target.type = AttributeProto.GRAPH
                self.graph(value, target.g, depth + 1)
            elif isinstance(value, gs.Constant):
                target.type = AttributeProto.TENSOR
                made = tensor_inline(value)
                if isinstance(made, onnx.SparseTensorProto):
                    target.type = AttributeProto.SPARSE_TENSOR
                    target.sparse_tensor.CopyFrom(made)
                else:
                    target.t.CopyFrom(made)
            elif value is not None:
                attributes.encode_plain(target, value, where)
            else:
                raise GraphError(
                    f"attribute '{key}' is None", where=where, must="An attribute has a value", do="Remove it."
                )

    # ---------------------------------------------------------------------------------------------------- graphs

    def graph(self, graph: Graph, proto: onnx.GraphProto, depth: int) -> None:
        """Fill the message of a graph."""
        if depth > MAX_DEPTH:
            raise GraphError(
                f"graph '{graph.name}' is nested {depth} levels deep",
                must=f"Protobuf reads at most {MAX_DEPTH} levels back",
            )
        carried = graph.carried
        if carried is not None:
            copy_rest(carried, proto, _GRAPH_FIELDS)
        if carried is None or carried.HasField("name") or graph.name:
            proto.name = graph.name
        if graph.doc_string or (carried is not None and carried.HasField("doc_string")):
            set_text(proto, "doc_string", graph.doc_string)
        for node in graph.nodes:
            self.node(node, depth, proto.node)
        for constant in graph.initializers:
            if not is_written(graph, constant):
                continue
            message = self.tensor(constant)
            is_sparse = isinstance(message, onnx.SparseTensorProto)
            (proto.sparse_initializer if is_sparse else proto.initializer).append(message)
        self._interface(graph, proto)
        _value_infos(graph, proto)
        _annotations(graph, proto)

    def _interface(self, graph: Graph, proto: onnx.GraphProto) -> None:
        for tensor in inputs_in_order(graph):
            info = graph.initializer_inputs.get(tensor) if isinstance(tensor, Constant) else None
            proto.input.append(verbatim(tensor, info) if info is not None else value_info(tensor))
        before: dict[Tensor, list[onnx.ValueInfoProto]] = {}
        if graph.record is not None:
            for tensor, info in graph.record.outputs:
                before.setdefault(tensor, []).append(info)
        for tensor in graph.outputs:
            known = before.get(tensor)
            proto.output.append(verbatim(tensor, known.pop(0)) if known else value_info(tensor))

    def function(self, function: Function, proto: onnx.FunctionProto) -> None:
        """Fill the message of a function."""
        carried = function.carried
        if carried is not None:
            copy_rest(carried, proto, _FUNCTION_FIELDS)
        proto.name = function.name
        if carried is None or carried.HasField("domain") or function.domain:
            proto.domain = function.domain
        if function.overload or (carried is not None and carried.HasField("overload")):
            proto.overload = function.overload
        if function.doc_string or (carried is not None and carried.HasField("doc_string")):
            set_text(proto, "doc_string", function.doc_string)
        proto.input.extend([t.name for t in function.inputs])
        proto.output.extend([t.name for t in function.outputs])
        before = {a.name: a for a in carried.attribute_proto} if carried is not None else {}
        for key, value in function.attributes.items():
            if value is None:
                proto.attribute.append(key)
            elif key in before and _unchanged(before[key], value, keep_external=self.keep_external):
                proto.attribute_proto.append(before[key])
            elif isinstance(value, attributes.RawAttribute):
                proto.attribute_proto.append(value.proto)
            else:
                plain = tensor_inline(value) if isinstance(value, Constant) else value
                proto.attribute_proto.append(onnx.helper.make_attribute(key, plain))
        for constant in function.initializers:  # functions have none: a Constant node says the same
            if is_used(constant):
                target = proto.node.add(op_type="Constant", output=[constant.name])
                target.attribute.add(name="value", type=AttributeProto.TENSOR).t.CopyFrom(tensor_inline(constant))
        for node in function.nodes:
            self.node(node, 0, proto.node)
        write_imports(function.imports, carried, proto)
        _value_infos(function, proto)


def copy_rest(source: Any, target: Any, owned: frozenset[str]) -> None:
    """Copy what the graph layer does not model, without copying what it does: weights would be copied twice."""
    for field, value in source.ListFields():
        if field.name in owned:
            continue
        if field.is_repeated:
            getattr(target, field.name).extend(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            set_text(target, field.name, value) if isinstance(value, bytes) else setattr(target, field.name, value)
    copy_unknown(source, target)


def _unchanged(source: AttributeProto, value: Any, *, keep_external: bool) -> bool:
    if isinstance(value, gs.Constant):
        weight = value.weight if isinstance(value, Constant) else None
        if isinstance(weight, ProtoWeight) or (keep_external and isinstance(weight, ExternalWeight)):
            return source.HasField("t") and weight.proto is source.t and value.name == source.t.name
        return False
    decoded = attributes.decode(source, lambda tensor: tensor)
    if type(decoded) is attributes.TypedList:
        return isinstance(value, list) and list.__eq__(decoded, value) and _same_types(decoded, value)
    if isinstance(decoded, float) and isinstance(value, float):
        return decoded == value or (math.isnan(decoded) and math.isnan(value))
    return type(decoded) is type(value) and bool(decoded == value)


def _same_types(left: list[Any], right: list[Any]) -> bool:
    return all(type(a) is type(b) for a, b in zip(left, right, strict=True))


def _rename_shards(proto: onnx.NodeProto, carried: onnx.NodeProto, ins: list[str], outs: list[str]) -> None:
    """Let sharding follow renamed tensors; drop that of tensors which the node no longer has."""
    renamed = dict(zip(carried.input, ins, strict=False)) | dict(zip(carried.output, outs, strict=False))
    for configuration in proto.device_configurations:
        kept = [spec for spec in configuration.sharding_spec if renamed.get(spec.tensor_name)]
        same = all(renamed[spec.tensor_name] == spec.tensor_name for spec in kept)
        if same and len(kept) == len(configuration.sharding_spec):
            continue
        copies = []
        for spec in kept:
            copy = type(spec)()
            copy.CopyFrom(spec)
            copy.tensor_name = renamed[spec.tensor_name]
            copies.append(copy)
        configuration.ClearField("sharding_spec")
        configuration.sharding_spec.extend(copies)


def is_written(graph: Graph, constant: Constant) -> bool:
    """Tell whether an initializer is written: used, fed, or unused already when it was read."""
    if constant in graph.initializer_inputs or is_used(constant):
        return True
    return graph.record is not None and constant in graph.record.idle


def inputs_in_order(graph: Graph) -> list[Tensor]:
    """Return the inputs of a graph, initializers that are inputs among them, as they are written."""
    stored: list[Tensor] = [c for c in graph.initializer_inputs if c in graph.initializers]
    if graph.parent is None and not isinstance(graph, Function) and (graph.ir_version or 4) < 4:
        stored += [c for c in graph.initializers if c not in graph.initializer_inputs and is_written(graph, c)]
    variables: list[Tensor] = list(graph.inputs)
    if graph.record is None:
        return variables + stored
    alive = set(variables) | set(stored)
    ordered = [t for t in graph.record.inputs if t in alive]
    if [t for t in ordered if t not in set(stored)] != [t for t in variables if t in set(ordered)]:
        return variables + stored
    known = set(ordered)
    return ordered + [t for t in (*variables, *stored) if t not in known]


def _value_infos(graph: Graph, proto: Any) -> None:
    """Write value_info as it was read, without what is gone, then that of new variables with a type."""
    io = {*graph.inputs, *graph.outputs}
    done: set[Tensor] = set()
    if graph.record is not None:
        names = None
        for tensor, info in graph.record.value_infos:
            if tensor is None:
                if names is None:
                    names = {t.name for node in graph.nodes for t in node.outputs}
                if info.name not in names:
                    proto.value_info.append(info)
                continue
            if tensor in done or _is_here(graph, tensor):
                done.add(tensor)
                proto.value_info.append(value_info(tensor) if tensor.carried is info else verbatim(tensor, info))
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor in done or tensor in io or not tensor.name:
                continue
            if isinstance(tensor, Variable) and has_type(tensor):
                proto.value_info.append(value_info(tensor))
                done.add(tensor)


def _is_here(graph: Graph, tensor: Tensor) -> bool:
    made = tensor.inputs
    if made:
        return getattr(made[0], "graph", None) is graph
    if isinstance(tensor, Constant) and tensor.home is graph and tensor in graph.initializers:
        return is_written(graph, tensor)
    return any(owner is graph for _, owner in tensor.roles)


def _annotations(graph: Graph, proto: onnx.GraphProto) -> None:
    if graph.record is None:
        return
    for tensor, parameters, annotation in graph.record.annotations:
        if tensor is not None and not _is_here(graph, tensor):
            continue
        entries = annotation.quant_parameter_tensor_names
        names = [entry.value if p is None else p.name for p, entry in zip(parameters, entries, strict=True)]
        gone = any(p is not None and not _is_here(graph, p) for p in parameters)
        if gone:
            continue
        target = proto.quantization_annotation.add()
        target.CopyFrom(annotation)
        if tensor is not None and target.tensor_name != tensor.name:
            target.tensor_name = tensor.name
        for entry, name in zip(target.quant_parameter_tensor_names, names, strict=True):
            if entry.value != name:
                entry.value = name


def write_imports(imports: dict[str, int], carried: Any, proto: Any) -> None:
    """Write opset imports: as they were read, without removed domains, then new ones."""
    done = set()
    for entry in () if carried is None else carried.opset_import:
        version = imports.get(entry.domain)
        if version is None:
            continue
        done.add(entry.domain)
        proto.opset_import.append(entry)
        if entry.version != version:
            proto.opset_import[-1].version = version
    for domain, version in imports.items():
        if domain not in done:
            proto.opset_import.add(domain=domain, version=version)
