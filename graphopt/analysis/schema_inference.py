"""Shapes of operators without a rule of their own: onnx's inference, one node at a time, symbols carried as names."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import onnx
from onnx import AttributeProto, TensorProto, TypeProto, checker, helper, numpy_helper, shape_inference

from graphopt.analysis.site import INTEGERS, Known, ShapeClashError
from graphopt.graph.attributes import RawAttribute, encode_plain
from graphopt.graph.objects import Constant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graphopt.analysis.dims import Dim, Expr
    from graphopt.analysis.site import PartialShape, Site

_PROBE = 5040
"""Stands for a symbol where sizes are compared: a number that most head counts and block sizes divide."""


_named: WeakValueDictionary[str, Expr] = WeakValueDictionary()
"""The expression behind each parameter name: the type of a sequence keeps only the name."""


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
    opsets = [helper.make_opsetid(name, version) for name, version in imports.items()]
    symbols: dict[str, Expr] = {}
    types = {name: type_proto(site.input(index), symbols) for index, name in enumerate(names) if name}
    data = _integer_data(site, names)
    found = _infer(schema, proto, types, data, opsets)
    outputs = [known_of(found.get(f"o{index}"), symbols) for index in range(site.outputs)]
    return _confirmed(outputs, schema, proto, types, data, opsets, symbols) if symbols else outputs


def _infer(
    schema: Any,
    proto: onnx.NodeProto,
    types: Mapping[str, TypeProto],
    data: Mapping[str, TensorProto],
    opsets: list[onnx.OperatorSetIdProto],
) -> Mapping[str, TypeProto]:
    try:
        found: Mapping[str, TypeProto] = shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=opsets
        )
    except (shape_inference.InferenceError, checker.ValidationError, RuntimeError) as error:
        raise ShapeClashError(str(error).strip()) from error
    return found


def _confirmed(
    outputs: list[Known],
    schema: Any,
    proto: onnx.NodeProto,
    types: Mapping[str, TypeProto],
    data: Mapping[str, TensorProto],
    opsets: list[onnx.OperatorSetIdProto],
    symbols: Mapping[str, Expr],
) -> list[Known]:
    """Return the outputs with the sizes that hold for numbers in the place of symbols too; the others become unknown.

    Some operators' inference (Attention among them) takes the 0 of a size without a number for a number. A size that
    it computes from a symbol differs when the symbol is a number, so each size is compared with one such run.
    """
    numbers = {name: _PROBE * (index + 1) for index, name in enumerate(symbols)}
    concrete = {name: _with_numbers(given, numbers) for name, given in types.items()}
    try:
        found = _infer(schema, proto, concrete, data, opsets)
    except ShapeClashError:
        found = {}
    confirmed = []
    for index, known in enumerate(outputs):
        probe = known_of(found.get(f"o{index}"), {}).shape
        if known.shape is None or probe is None or len(probe) != len(known.shape):
            shape: PartialShape | None = None if known.shape is None else (None,) * len(known.shape)
        else:
            sizes = zip(known.shape, probe, strict=True)
            shape = tuple(size if size is not None and _number(size, numbers) == seen else None for size, seen in sizes)
        confirmed.append(Known(known.dtype, shape, None, known.proto))
    return confirmed


def _number(size: Dim, numbers: Mapping[str, int]) -> int | None:
    return size if isinstance(size, int) else numbers.get(str(size))


def _with_numbers(given: TypeProto, numbers: Mapping[str, int]) -> TypeProto:
    proto = TypeProto()
    proto.CopyFrom(given)
    for dim in _dims(proto):
        if dim.dim_param in numbers:
            dim.dim_value = numbers[dim.dim_param]
    return proto


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
        symbols.update((dim.dim_param, _named[dim.dim_param]) for dim in _dims(known.proto) if dim.dim_param in _named)
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
                symbols[str(size)] = _named[str(size)] = size
    return proto


def _dims(proto: TypeProto) -> Iterator[Any]:
    """Yield the sizes of a tensor type, or of the tensor type inside a sequence or an optional."""
    while proto.WhichOneof("value") in {"sequence_type", "optional_type"}:
        proto = getattr(proto, proto.WhichOneof("value")).elem_type
    if proto.WhichOneof("value") == "tensor_type":
        yield from proto.tensor_type.shape.dim


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


def _integer_data(site: Site, names: list[str]) -> dict[str, TensorProto]:
    """Return the integer inputs whose every element is a number."""
    data = {}
    for index, name in enumerate(names):
        known = site.input(index)
        value, entries = site.value(index), site.ints(index)
        if name and known.dtype in INTEGERS and value is not None and entries is not None:
            data[name] = helper.make_tensor(name, known.dtype, value.shape, entries)
    return data
