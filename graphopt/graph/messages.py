"""Messages of tensors and of their types: verbatim where nothing changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from graphopt.errors import GraphError
from graphopt.graph import dtypes
from graphopt.graph.external import ExternalWeight
from graphopt.graph.tensors import Constant, Tensor, Variable, decode_type
from graphopt.graph.weights import ProtoWeight, SparseWeight, fill

if TYPE_CHECKING:
    from collections.abc import Iterable


def stays_outside(constant: Constant) -> bool:
    """Tell whether the values are in an external data file."""
    return isinstance(constant.weight, ExternalWeight)


def tensor_as_is(constant: Constant) -> onnx.TensorProto | onnx.SparseTensorProto:
    """Return the message of an initializer; external data stays where it is."""
    weight = constant.weight
    if isinstance(weight, ExternalWeight):
        return _named(weight.proto, constant.name)
    return tensor_inline(constant)


def tensor_inline(constant: Constant) -> onnx.TensorProto | onnx.SparseTensorProto:
    """Return the message of an initializer with its data."""
    weight = constant.weight
    if isinstance(weight, ProtoWeight):
        return _named(weight.proto, constant.name)
    if isinstance(weight, SparseWeight):
        if weight.sparse.values.name == constant.name:
            return weight.sparse
        sparse = onnx.SparseTensorProto()
        sparse.CopyFrom(weight.sparse)
        sparse.values.name = constant.name
        return sparse
    proto = tensor_head(constant)
    fill(proto, weight)
    return proto


def tensor_head(constant: Constant) -> onnx.TensorProto:
    """Return a TensorProto with everything but the data."""
    proto = TensorProto()
    weight = constant.weight
    residual = constant.residual
    if isinstance(weight, ExternalWeight | ProtoWeight):
        source = weight.proto
        proto.doc_string = source.doc_string
        proto.metadata_props.extend(source.metadata_props)
        if not source.HasField("doc_string"):
            proto.ClearField("doc_string")
    elif residual is not None:
        proto.CopyFrom(residual)
    proto.name = constant.name
    proto.data_type = weight.onnx_dtype
    proto.dims.extend(weight.shape)
    return proto


def _named(proto: onnx.TensorProto, name: str) -> onnx.TensorProto:
    if proto.name == name:
        return proto
    renamed = TensorProto()
    renamed.CopyFrom(proto)
    renamed.name = name
    return renamed


# ---------------------------------------------------------------------------------------------------------- values


def type_changed(tensor: Tensor) -> bool:
    """Tell whether the type of a tensor differs from that of its message."""
    carried = tensor.carried
    if carried is None:
        return True
    if isinstance(tensor, Variable) and not tensor.type_read:
        return False
    dtype, shape, kind = decode_type(carried)
    if isinstance(tensor, Constant):
        return dtypes.onnx_dtype_of(dtype) not in {0, tensor.onnx_dtype} or (
            shape is not None
            and (
                len(shape) != len(tensor.shape)
                or any(isinstance(d, int) and d != n for d, n in zip(shape, tensor.shape, strict=True))
            )
        )
    return dtypes.onnx_dtype_of(dtype) != tensor.onnx_dtype or shape != tensor.shape or kind != tensor.type


def value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    """Return the ValueInfoProto of a tensor."""
    carried = tensor.carried
    if carried is not None and not type_changed(tensor):
        if carried.name == tensor.name:
            return carried
        info = onnx.ValueInfoProto()
        info.CopyFrom(carried)
        info.name = tensor.name
        return info
    info = onnx.ValueInfoProto()
    if carried is not None:
        info.CopyFrom(carried)
    info.name = tensor.name
    kind = "tensor_type" if isinstance(tensor, Constant) else tensor.type
    if kind != "tensor_type":
        if info.type.WhichOneof("value") != kind:
            info.type.ClearField(info.type.WhichOneof("value") or kind)
            getattr(info.type, kind).SetInParent()
        return info
    if tensor.onnx_dtype == 0 and tensor.shape is None:
        info.ClearField("type")
        return info
    _set_tensor_type(info.type, tensor.onnx_dtype, tensor.shape, tensor.name)
    return info


def _set_tensor_type(proto: onnx.TypeProto, dtype: int, shape: Iterable[Any] | None, name: str) -> None:
    tensor = proto.tensor_type
    if not 0 <= dtype < 1 << 31:
        raise GraphError(f"{dtype} is no element type", where=f"tensor '{name}'", must="onnx.TensorProto lists them")
    tensor.elem_type = dtype
    if shape is None:
        tensor.ClearField("shape")
        return
    dims = list(shape)
    denotations = (
        [dim.denotation for dim in tensor.shape.dim] if len(tensor.shape.dim) == len(dims) else [""] * len(dims)
    )
    tensor.shape.ClearField("dim")
    tensor.shape.SetInParent()
    for value, denotation in zip(dims, denotations, strict=True):
        dim = tensor.shape.dim.add()
        if isinstance(value, int | np.integer):
            dim.dim_value = int(value)
        elif isinstance(value, str):
            if value:
                dim.dim_param = value
        elif value is not None:
            raise GraphError(
                f"dimension {value!r} is a {type(value).__name__}",
                where=f"tensor '{name}'",
                must="A dimension is a number, a symbol or None",
            )
        if denotation:
            dim.denotation = denotation


def has_type(variable: Variable) -> bool:
    """Tell whether there is anything to say about the type of a variable."""
    return not variable.type_read or variable.dtype is not None or variable.type != "tensor_type"


def verbatim(tensor: Tensor, info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Return ``info``, unless the tensor was changed since it was read with it."""
    if tensor.carried is not None and not type_changed(tensor) and info.name == tensor.name:
        return info
    if tensor.carried is None and isinstance(tensor, Constant) and info.name == tensor.name:
        return info
    return value_info(tensor)
