"""Shapes of operators without a rule of their own: onnx's inference, one node at a time, symbols carried as names."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import onnx
from onnx import AttributeProto, TensorProto, TypeProto, helper, numpy_helper, shape_inference

from graphopt.analysis.site import INTEGERS, Known, ShapeClashError
from graphopt.graph.attributes import RawAttribute, encode_plain
from graphopt.graph.objects import Constant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.analysis.dims import Dim, Expr
    from graphopt.analysis.site import PartialShape, Site

_DATA_LIMIT = 1 << 16
"""Most elements of an integer constant that is handed to onnx as data: a shape, axes or sizes, never a weight."""


@cache
def schema_of(op: str, domain: str, opset: int) -> Any:
    """Return the operator's schema in the installed onnx, None where it has none."""
    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None


def infer_by_schema(site: Site, domain: str, imports: Mapping[str, int]) -> list[Known]:
    """Return the facts of a node's outputs as onnx infers them from types, shapes and integer constants.

    Args:
        site: The node.
        domain: Its domain, "" for the default one.
        imports: The opset imports of the graph it is in.

    Raises:
        ShapeClashError: There is no schema, or onnx finds the node contradictory; the message says which.
    """
    schema = schema_of(site.op, domain, site.opset)
    if schema is None:
        msg = f"operator {site.op} of domain '{domain}' version {site.opset} has no schema in onnx {onnx.__version__}"
        raise ShapeClashError(msg)
    names = [f"i{index}" if site.has(index) else "" for index in range(len(site.known))]
    proto = helper.make_node(site.op, names, [f"o{index}" for index in range(site.outputs)], domain=domain)
    proto.attribute.extend(encode_attribute(name, value, site.op) for name, value in site.attrs.items())
    symbols: dict[str, Expr] = {}
    types, data = {}, {}
    for index, name in enumerate(names):
        known = site.input(index)
        if name:
            types[name] = type_proto(known, symbols)
            constant = _integer_data(site, index)
            if constant is not None:
                data[name] = constant
    try:
        found = shape_inference.infer_node_outputs(
            schema,
            proto,
            types,
            data,
            opset_imports=[helper.make_opsetid(name, version) for name, version in imports.items()],
        )
    except shape_inference.InferenceError as error:
        raise ShapeClashError(str(error).strip()) from error
    return [known_of(found.get(f"o{index}"), symbols) for index in range(site.outputs)]


def encode_attribute(name: str, value: Any, where: str) -> AttributeProto:
    """Return an attribute of a node as onnx has it.

    Args:
        name: Its name.
        value: Its value as the graph layer decodes it, other than a graph.
        where: What it belongs to, for messages.
    """
    if isinstance(value, RawAttribute):
        return value.proto
    proto = AttributeProto(name=name)
    if isinstance(value, Constant):
        proto.type = AttributeProto.TENSOR
        proto.t.CopyFrom(numpy_helper.from_array(value.array()))
    else:
        encode_plain(proto, value, where)
    return proto


def type_proto(known: Known, symbols: dict[str, Expr]) -> TypeProto:
    """Return the ONNX type of a tensor; symbolic sizes become parameters that ``symbols`` maps back."""
    if known.proto is not None:
        return known.proto
    proto = TypeProto()
    proto.tensor_type.elem_type = known.dtype
    if known.shape is not None:
        proto.tensor_type.shape.SetInParent()
        for size in known.shape:
            dim = proto.tensor_type.shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = str(size)
                symbols[str(size)] = size
    return proto


def known_of(proto: TypeProto | None, symbols: Mapping[str, Expr]) -> Known:
    """Return the facts that an ONNX type states; a parameter that is not in ``symbols`` is unknown."""
    kind = None if proto is None else proto.WhichOneof("value")
    if proto is None or kind is None:
        return Known()
    if kind != "tensor_type":
        return Known(proto=proto)
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return Known(tensor.elem_type)
    return Known(tensor.elem_type, _shape(tensor.shape, symbols))


def _shape(shape: onnx.TensorShapeProto, symbols: Mapping[str, Expr]) -> PartialShape:
    dims: list[Dim | None] = []
    for dim in shape.dim:
        if dim.HasField("dim_value"):
            dims.append(int(dim.dim_value))
        else:
            dims.append(symbols.get(dim.dim_param))
    return tuple(dims)


def _integer_data(site: Site, index: int) -> TensorProto | None:
    known = site.input(index)
    if known.dtype not in INTEGERS:
        return None
    value, entries = site.value(index), site.ints(index)
    if value is None or entries is None or value.size > _DATA_LIMIT:
        return None
    return helper.make_tensor(f"i{index}", known.dtype, value.shape, entries)
