"""Node attributes: AttributeProto to Python value and back, without losing what Python values do not hold."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto

from graphopt.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FIELD = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTOS: "type_protos",
}
_LIST_KINDS = {AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS}


class RawAttribute:
    """An attribute whose kind has no Python value: tensors, sparse tensors, types, bytes that are not UTF-8.

    Attributes:
        proto: The AttributeProto, never changed in place.
    """

    __slots__ = ("proto",)

    def __init__(self, proto: AttributeProto) -> None:
        self.proto = proto

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RawAttribute) and (self.proto is other.proto or self.proto == other.proto)

    def __hash__(self) -> int:
        return hash((self.proto.name, self.proto.type))

    def __repr__(self) -> str:
        kind = AttributeProto.AttributeType.Name(self.proto.type)
        return f"RawAttribute({self.proto.name}: {kind})"


class TypedList(list[Any]):
    """A list attribute that remembers its kind, so that it may be empty.

    Attributes:
        kind: FLOATS, INTS or STRINGS of ``onnx.AttributeProto``.
    """

    __slots__ = ("kind",)

    def __init__(self, items: Iterable[Any], kind: int) -> None:
        super().__init__(items)
        self.kind = kind

    def copy(self) -> TypedList:
        """Return a list of the same kind."""
        return TypedList(self, self.kind)


def kind_of(proto: AttributeProto) -> int:
    """Return the kind of an attribute; models before IR version 2 do not state it."""
    if proto.type:
        return int(proto.type)
    present = {field.name for field, _ in proto.ListFields()}
    return next((int(kind) for kind, field in FIELD.items() if field in present), 0)


def decode(proto: AttributeProto, constant: Callable[[onnx.TensorProto], Any]) -> Any:
    """Return the Python value of an attribute other than a graph.

    Args:
        proto: The attribute.
        constant: Makes a Constant of a TensorProto.

    Returns:
        float, int, str, TypedList, Constant, ``gs.Node.AttributeRef`` or RawAttribute.
    """
    if proto.ref_attr_name:
        if not isinstance(proto.ref_attr_name, str):
            return RawAttribute(proto)
        return gs.Node.AttributeRef(proto.ref_attr_name, gs.util.misc.convert_from_onnx_attr_type(proto.type))
    kind = kind_of(proto)
    if kind == AttributeProto.INT:
        return proto.i
    if kind == AttributeProto.FLOAT:
        return proto.f
    if kind in {AttributeProto.INTS, AttributeProto.FLOATS}:
        return TypedList(proto.ints if kind == AttributeProto.INTS else proto.floats, kind)
    if kind == AttributeProto.TENSOR:
        return constant(proto.t)
    try:
        if kind == AttributeProto.STRING:
            return proto.s.decode("utf-8")
        if kind == AttributeProto.STRINGS:
            return TypedList([item.decode("utf-8") for item in proto.strings], kind)
    except UnicodeDecodeError:
        return RawAttribute(proto)
    return RawAttribute(proto)


def encode_plain(proto: AttributeProto, value: Any, where: str) -> None:
    """Write a value other than a tensor or a graph into an empty attribute.

    Raises:
        GraphError: ONNX has no attribute for this value.
    """
    if isinstance(value, numbers.Integral | np.bool_):
        number = int(value)
        if not -(1 << 63) <= number < 1 << 63:
            raise GraphError(f"attribute '{proto.name}' is {number}", where=where, must="Integers have 64 bits")
        proto.i, proto.type = number, AttributeProto.INT
    elif isinstance(value, numbers.Real | np.floating):
        proto.f, proto.type = float(value), AttributeProto.FLOAT
    elif isinstance(value, str | bytes):
        proto.s, proto.type = value.encode() if isinstance(value, str) else value, AttributeProto.STRING
    elif isinstance(value, gs.Node.AttributeRef):
        proto.ref_attr_name = value.name
        kind = value.type if isinstance(value.type, int) else gs.util.misc.convert_to_onnx_attr_type(value.type)
        proto.type = kind or AttributeProto.UNDEFINED
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1):
        _encode_list(proto, list(value), getattr(value, "kind", None), where)
    elif isinstance(value, np.dtype | type):
        proto.i, proto.type = _dtype_enum(value), AttributeProto.INT
    else:
        raise GraphError(
            f"attribute '{proto.name}' is a {type(value).__name__}",
            where=where,
            must="ONNX has numbers, strings, lists of them, tensors and graphs",
            do="Convert it, or wrap an onnx.AttributeProto in RawAttribute.",
        )


def _dtype_enum(value: Any) -> int:
    from graphopt.graph.dtypes import onnx_dtype_of

    return onnx_dtype_of(np.dtype(value))


def _encode_list(proto: AttributeProto, items: list[Any], kind: int | None, where: str) -> None:
    if all(isinstance(item, numbers.Integral) for item in items) and (items or kind == AttributeProto.INTS):
        if kind == AttributeProto.FLOATS:
            proto.floats.extend([float(item) for item in items])
        else:
            proto.ints.extend([int(item) for item in items])
        proto.type = AttributeProto.FLOATS if kind == AttributeProto.FLOATS else AttributeProto.INTS
    elif items and all(isinstance(item, numbers.Real | np.floating) for item in items):
        proto.floats.extend([float(item) for item in items])
        proto.type = AttributeProto.FLOATS
    elif items and all(isinstance(item, str | bytes) for item in items):
        proto.strings.extend([item.encode() if isinstance(item, str) else item for item in items])
        proto.type = AttributeProto.STRINGS
    elif not items and kind in _LIST_KINDS:
        proto.type = kind
    elif not items:
        raise GraphError(
            f"attribute '{proto.name}' is an empty list without a kind",
            where=where,
            must="ONNX tells empty lists of integers, floats and strings apart",
            do="Pass TypedList((), onnx.AttributeProto.INTS).",
        )
    else:
        raise GraphError(
            f"attribute '{proto.name}' mixes {sorted({type(item).__name__ for item in items})}",
            where=where,
            must="A list holds numbers or strings",
        )
