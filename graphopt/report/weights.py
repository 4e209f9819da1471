"""The weights of layers before and after: bytes, element type and zeros, matched by the name and origin of nodes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx

from graphopt.graph import Constant, producer
from graphopt.report.report import WeightEntry
from graphopt.solve.pack_low_bit import unpack_low_bit
from graphopt.solve.pack_sparse import unpack_sparse
from graphopt.solve.pack_sparse_conv import unpack_sparse_conv
from graphopt.solve.pack_sparse_int8 import unpack_sparse_int8

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from graphopt.graph import Model, Node, Tensor

SPARSE = "SparseMatMul"
SPARSE_CONV = "SparseConv"
LOW_BIT = "LowBitMatMul"
SPARSE_INT8 = ("SparseInt8MatMul", "SparseInt8Conv")
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Gather"})
"""Operators whose constant operand is a layer's weight."""
COMPRESSED = frozenset(
    (
        *("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm", "MatMulNBits"),
        *(SPARSE, SPARSE_CONV, LOW_BIT, *SPARSE_INT8),
    )
)
"""What passes make of them."""


def weight_entries(before: Model, after: Model) -> Iterator[WeightEntry]:
    """Yield one row per layer of the original that the result still has, in model order.

    A layer of the result is found by its name, else by the names of the nodes it was made from.
    """
    by_name: dict[str, tuple[Node, Constant]] = {}
    by_origin: dict[str, tuple[Node, Constant]] = {}
    for node, weight in _layers(after, LAYERS | COMPRESSED):
        if node.name:
            by_name.setdefault(str(node.name), (node, weight))
        for name in node.origin:
            by_origin.setdefault(name, (node, weight))
    for node, weight in _layers(before, LAYERS):
        name = str(node.name)
        found = by_name.get(name) or by_origin.get(name)
        if not name or found is None:
            continue
        new = found[1]
        type_after, zeros_after = _stored_as(*found)
        yield WeightEntry(
            name=name,
            op=str(node.op),
            parameters=_elements(weight),
            bytes_before=int(weight.nbytes),
            bytes_after=int(new.nbytes),
            type_before=type_name(weight),
            type_after=type_after,
            zeros_before=_zeros(weight),
            zeros_after=zeros_after,
        )


def type_name(constant: Constant) -> str:
    """Return the element type of a constant as ONNX calls it, in lower case."""
    return str(onnx.TensorProto.DataType.Name(constant.onnx_dtype)).lower()


def _layers(model: Model, operators: frozenset[str]) -> Iterator[tuple[Node, Constant]]:
    for _, node in model.walk():
        if node.op not in operators:
            continue
        weights = (stored_weight(tensor) for tensor in node.inputs)
        weight = next((found for found in weights if found is not None and _elements(found) > 1), None)
        if weight is not None:
            yield node, weight


def stored_weight(tensor: Tensor) -> Constant | None:
    """Return the constant behind an operand: itself, the value of a Constant node, or what is dequantized or cast."""
    while not isinstance(tensor, Constant):
        source = producer(tensor)
        if source is None:
            return None
        if source.op == "Constant":
            value = source.attrs.get("value")
            return value if isinstance(value, Constant) else None
        if source.op not in {"DequantizeLinear", "Cast", "Identity", "Transpose"}:
            return None
        tensor = source.inputs[0]
    return tensor


def _elements(constant: Constant) -> int:
    return math.prod(constant.shape)


def _zeros(constant: Constant) -> float:
    size = _elements(constant)
    if not size or constant.onnx_dtype in {onnx.TensorProto.STRING, onnx.TensorProto.BOOL}:
        return 0.0
    return float(size - np.count_nonzero(constant.array())) / size


def _stored_as(node: Node, weight: Constant) -> tuple[str, float]:
    """How a weight is stored, in words, and its share of zeros."""
    if node.op == SPARSE:
        return "sparse float", _share_of_zeros(unpack_sparse(np.asarray(weight.array(), dtype=np.uint8)))
    if node.op == SPARSE_CONV:
        return "sparse float", _share_of_zeros(unpack_sparse_conv(np.asarray(weight.array(), dtype=np.uint8)))
    if node.op == LOW_BIT:
        matrix = unpack_low_bit(np.asarray(weight.array(), dtype=np.uint8))
        return f"{matrix.bits}-bit packed", _share_of_zeros(matrix.restored())
    if node.op in SPARSE_INT8:
        return "sparse int8", _share_of_zeros(unpack_sparse_int8(np.asarray(weight.array()).view(np.uint8)).values)
    return type_name(weight), _zeros(weight)


def _share_of_zeros(dense: NDArray[np.float32] | NDArray[np.int8]) -> float:
    return float(dense.size - np.count_nonzero(dense)) / dense.size
