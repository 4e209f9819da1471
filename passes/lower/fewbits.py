"""Matrices of few bits as they stand in models: behind a DequantizeLinear, in a code book, or in a MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, constant_value, producer
from graphopt.target.reading import is_conversion, restored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.graph import Node, Tensor

CONTRIBUTED = "com.microsoft"
_STANDARD = (None, "", "ai.onnx")
_SMALL = frozenset(("int2", "uint2", "int4", "uint4"))
_FLOAT32 = 1
_MOST_STEPS = 6
"""Operators that unpack integers at most, each behind the other."""


@dataclass(frozen=True, slots=True, eq=False)
class FewBitMatrix:
    """A matrix w[k, n] = scale[b, n] * (value[k, n] - zero[b, n]), b = k // block; with a book, w = book[value].

    Attributes:
        values: Integers of shape [K, N].
        scale: float32 of shape [blocks, N].
        zero: float64 of the same shape.
        block: Inputs that share a scale.
        book: float32 values, or None.
        written: The operator that restores it.
        rounds: Whether activations are rounded to 8 bits already.
        fuses: Whether ONNX Runtime multiplies with the packed integers rather than with floats.
    """

    values: NDArray[np.int16]
    scale: NDArray[np.float32]
    zero: NDArray[np.float64]
    block: int
    book: NDArray[np.float32] | None
    written: str
    rounds: bool = False
    fuses: bool = False


def read_operand(tensor: Tensor, *, transposed: bool) -> FewBitMatrix | str | None:
    """Return the matrix that an operand is restored from, the reason why it cannot be read, or None if it is another.

    Args:
        tensor: The operand.
        transposed: Whether it holds the matrix as [N, K].
    """
    node = producer(tensor)
    if node is None:
        return None
    if is_conversion(node, "DequantizeLinear"):
        return _read_dequantized(node, tensor, transposed=transposed)
    if node.op == "Gather" and node.domain in _STANDARD:
        return _read_book(node, transposed=transposed)
    return None


def read_nbits(node: Node) -> FewBitMatrix | str:
    """Return the matrix of a MatMulNBits, or the reason why it cannot be read."""
    attrs = node.attrs
    inputs = [tensor if tensor.name else None for tensor in node.inputs] + [None] * 6
    if inputs[4] is not None:
        return "its inputs are in the order of an index (g_idx)"
    k, n = int(attrs["K"]), int(attrs["N"])
    bits, block = int(attrs.get("bits", 4)), int(attrs.get("block_size", 0))
    if bits not in {2, 4, 8}:
        return f"its weight has {bits} bits, not 2, 4 or 8"
    codes, scales, zeros = (_plain(tensor) for tensor in inputs[1:4])
    if codes is None or scales is None or (inputs[3] is not None and zeros is None):
        return "its weight, scales or zero points are not constant, or callers may replace them"
    if scales.dtype != np.float32:
        return f"its scales are {scales.dtype.name}; the kernel has float32 only"
    blocks = -(-k // block)
    values = _unpacked(codes.reshape(n, -1), bits)[:, :k].T.astype(np.int16)
    zero = np.full((blocks, n), float(1 << bits - 1))
    if zeros is not None and zeros.dtype == np.uint8:
        zero = _unpacked(zeros.reshape(n, -1), bits)[:, :blocks].T.astype(np.float64)
    elif zeros is not None:
        zero = zeros.reshape(n, blocks).T.astype(np.float64)
    scale = np.ascontiguousarray(scales.reshape(n, blocks).T)
    rounds = int(attrs.get("accuracy_level", 0)) == 4
    return FewBitMatrix(values, scale, zero, block, None, str(node.op), rounds=rounds, fuses=True)


def _plain(tensor: Tensor | None) -> NDArray[Any] | None:
    return None if tensor is None else constant_value(tensor)


def _unpacked(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Bytes along the last axis as integers, the lowest bits first."""
    parts = codes[..., None] >> (np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)) & np.uint8((1 << bits) - 1)
    found: NDArray[np.uint8] = parts.reshape(*codes.shape[:-1], -1)
    return found


def _read_dequantized(node: Node, tensor: Tensor, *, transposed: bool) -> FewBitMatrix | str | None:
    found = restored(tensor)
    assert found is not None
    values = found.values if found.values is not None else _computed(found.integers)
    if values is None:
        return None
    # The small integer types are no kinds of numpy's own.
    if values.ndim != 2 or values.size == 0 or not (values.dtype.kind in "iu" or values.dtype.name in _SMALL):
        return f"its weight is {values.dtype.name} of shape {list(values.shape)}, not integers of shape [K, N]"
    scale = found.scale
    if scale is None or (len(node.inputs) > 2 and node.inputs[2].name and found.zero is None):
        return "its scales or zero points are not constant"
    if scale.dtype != np.float32 or int(node.attrs.get("output_dtype", 0)) not in {0, _FLOAT32}:
        return f"its scales are {scale.dtype.name}, or it is restored to another type; the kernel has float32 only"
    if any(isinstance(each, Constant) and _is_fed(each) for each in node.inputs):
        return "its weight may be replaced by callers"
    zero = np.zeros(scale.shape) if found.zero is None else found.zero.astype(np.float64)
    inputs = values.shape[1] if transposed else values.shape[0]
    spread = _spread(scale, zero, found.axis, found.block, transposed=transposed, shape=values.shape)
    if isinstance(spread, str):
        return spread
    (scale, zero), block = spread, found.block if found.block and scale.ndim == 2 else inputs
    turned = values.astype(np.int16)
    turned = turned.T if transposed else turned
    return FewBitMatrix(turned, scale, zero, block, None, "DequantizeLinear", fuses=bool(found.block))


def _is_fed(tensor: Constant) -> bool:
    return constant_value(tensor) is None


def _spread(
    scale: NDArray[Any], zero: NDArray[Any], axis: int | None, block: int, *, transposed: bool, shape: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float64]] | str:
    """Scales and zero points as [blocks, N]."""
    outputs = shape[0] if transposed else shape[1]
    if axis is None:
        return (
            np.full((1, outputs), np.float32(scale.reshape(-1)[0])),
            np.full((1, outputs), zero.reshape(-1)[0] if zero.size else 0.0),
        )
    along_inputs = axis % 2 == (1 if transposed else 0)
    if block and along_inputs:
        parts = (scale.T, zero.T) if transposed else (scale, zero)
        return np.ascontiguousarray(parts[0], np.float32), np.ascontiguousarray(parts[1], np.float64)
    if block or along_inputs:
        along = f"in blocks of {block} outputs" if block else "by input"
        return f"its weight has scales {along}; the kernel has them by output, in blocks of inputs"
    return scale.reshape(1, -1).astype(np.float32), zero.reshape(1, -1).astype(np.float64)


def _read_book(node: Node, *, transposed: bool) -> FewBitMatrix | str | None:
    book, places = constant_value(node.inputs[0]), _computed(node.inputs[1])
    if book is None or places is None or places.ndim != 2 or book.ndim != 1 or int(node.attrs.get("axis", 0)):
        return None
    if book.dtype != np.float32 or places.size == 0 or not np.isfinite(book).all():
        return f"its code book is {book.dtype.name}, or not of finite numbers"
    used = np.unique(places)
    if used[0] < 0 or used[-1] >= len(book):
        return f"its places go from {used[0]} to {used[-1]} in a code book of {len(book)}"
    order = used[np.argsort(book[used], kind="stable")]
    rank = np.zeros(len(book), np.int16)
    rank[order] = np.arange(len(order))
    values = rank[places]
    values = values.T if transposed else values
    one = np.ones((1, values.shape[1]), np.float32)
    return FewBitMatrix(values, one, np.zeros(one.shape), values.shape[0], book[order], "Gather")


def _computed(tensor: Tensor) -> NDArray[Any] | None:
    """Integers that are constant, or computed from constants by the few operators that unpack bits."""
    steps: list[Node] = []
    value = constant_value(tensor)
    while value is None:
        node = producer(tensor)
        if node is None or node.domain not in _STANDARD or len(steps) == _MOST_STEPS or not node.inputs:
            return None
        steps.append(node)
        tensor = node.inputs[0]
        value = constant_value(tensor)
    for node in reversed(steps):
        others = [constant_value(other) for other in node.inputs[1:]]
        if any(other is None for other in others):
            return None
        value = _step(node, value, [np.asarray(other) for other in others])
        if value is None:
            return None
    return np.asarray(value)


def _step(node: Node, value: NDArray[Any], others: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    if node.op == "Cast":
        return value.astype(np.int16) if value.size and abs(int(value.astype(np.int64).max())) < 256 else None
    if node.op == "BitShift" and value.dtype == np.uint8:
        moved = np.left_shift if node.attrs.get("direction") == "LEFT" else np.right_shift
        found: NDArray[Any] = moved(value, others[0])
        return found
    if node.op == "BitwiseAnd":
        return np.asarray(np.bitwise_and(value, others[0]))
    if node.op == "Reshape" and not node.attrs.get("allowzero", 0) and 0 not in others[0]:
        return value.reshape([int(size) for size in others[0]])
    if node.op == "Slice" and len(others) == 2 and value.ndim == others[0].size == 1:
        return value[int(others[0].item()) : int(others[1].item())]
    return None
