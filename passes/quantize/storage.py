"""Writes rounded weights on standard operators, in as few bits as the opset of the model has types for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from graphopt.passes.quantize.weightonly import in_graph_of
from graphopt.passes.quantize.writing import conversion, drop_unused, short_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor, Variable

INT4_SINCE, INT2_SINCE = 21, 25
BITS_SINCE = 18
"""The first opset with BitwiseAnd."""

AXIS_SINCE, BLOCKS_SINCE = 13, 21
"""The first opsets in which DequantizeLinear takes a scale per channel and a scale per block."""

LEAST_PACKED = 4096
"""Weights from which single bits are packed into bytes: unpacking takes four operators, about 400 bytes."""

RESTORED = frozenset(("float32", "float16", "bfloat16"))
"""Element types that DequantizeLinear restores."""

HALVED_SINCE = 19
"""The first opset in which it restores the two of them that take 16 bits."""

_SIGNED = ((2, INT2_SINCE, TensorProto.INT2), (4, INT4_SINCE, TensorProto.INT4), (8, 0, TensorProto.INT8))
_UNSIGNED = ((2, INT2_SINCE, TensorProto.UINT2), (4, INT4_SINCE, TensorProto.UINT4), (8, 0, TensorProto.UINT8))
_SIGNED_TOP = {each[2]: (1 << each[0] - 1) - 1 for each in _UNSIGNED}
_NAMES = {
    TensorProto.INT2: "int2",
    TensorProto.INT4: "int4",
    TensorProto.INT8: "int8",
    TensorProto.UINT2: "uint2",
    TensorProto.UINT4: "uint4",
    TensorProto.UINT8: "uint8",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """Rounded weights in the layout of the weight.

    Attributes:
        codes: The integers, int64.
        scale: Of each weight, float64, in the same shape: what shares a scale has equal ones.
        zero: Zero point of each weight, in the same shape; 0.5 everywhere for codes 0 and 1 that mean minus and plus.
    """

    codes: NDArray[np.int64]
    scale: NDArray[np.float64]
    zero: NDArray[np.float64]


def fewest_bits(shape: Sequence[int]) -> int:
    """Return in how few bits integers of a shape may be stored behind a DequantizeLinear.

    ONNX Runtime 1.31 takes the product with a matrix of 2 bits for one with packed weights of its own, and reads beside
    them, other bytes each time, where the columns are no multiple of four.
    """
    return 4 if len(shape) == 2 and shape[-1] % 4 else 2


def element_type(low: int, high: int, opset: int, fewest: int = 2) -> int:
    """Return the smallest element type of an opset that holds integers from low to high, in 8 bits at most.

    Args:
        low: Smallest integer.
        high: Largest integer.
        opset: Of the model.
        fewest: Bits of the smallest type that will do.
    """
    for bits, since, found in _SIGNED if low < 0 else _UNSIGNED:
        least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if low < 0 else (0, (1 << bits) - 1)
        if opset >= since and bits >= fewest and least <= low and high <= most:
            return int(found)
    raise AssertionError(f"{low} to {high} take more than 8 bits")


def type_name(element: int) -> str:
    """Return the name of an element type."""
    return _NAMES[element]


def refusal(dtype: str, opset: int) -> str:
    """Return why weights of a type cannot be restored in an opset, or nothing."""
    if dtype not in RESTORED or opset < 10:
        return f"its weight is {dtype}, which DequantizeLinear of opset {opset} does not restore"
    if dtype != "float32" and opset < HALVED_SINCE:
        return f"its weight is {dtype}, which DequantizeLinear restores from opset {HALVED_SINCE} on"
    return ""


def packs_bits(size: int, opset: int) -> bool:
    """Tell whether weights of two values are stored in one bit each."""
    return size >= LEAST_PACKED and opset >= BITS_SINCE


def write_grid(rw: Rewriter, node: Node, weight: Tensor, stored: Stored, opset: int) -> None:
    """Let everything that reads a weight read it out of integers.

    Args:
        rw: The rewriter.
        node: A node that reads the weight.
        weight: What held it.
        stored: What it has become.
        opset: Of the model.
    """
    near = in_graph_of(weight, node)
    name = short_name(weight)
    binary = bool((stored.zero == 0.5).all())
    scale, zero, codes = stored.scale, stored.zero, stored.codes
    packed = binary and packs_bits(codes.size, opset)
    if binary:
        # minus and plus half a scale: as the integers -1 and 1, or as the bit of weight 128 around the zero point 64
        codes, scale = (codes * 128, scale / 128) if packed else (codes * 2 - 1, scale / 2)
        zero = np.full(zero.shape, 64.0 if packed else 0.0)
    steps, zeros, attrs = shared(scale, zero)
    if packed:
        integers: Any = _unpacked(rw, near, codes, name)
        element = int(TensorProto.UINT8)
    else:
        low, high = int(codes.min()), max(int(codes.max()), int(zeros.max()))
        fewest = fewest_bits(codes.shape)
        element = element_type(min(low, 0), high, opset, fewest)
        if low >= 0 and not zeros.any() and high <= _SIGNED_TOP[element]:
            # integer kernels multiply signed weights; levels from zero up may need the unsigned type of as many bits
            element, low = element_type(-1, high, opset, fewest), -1
        integers = rw.constant(
            codes.astype(np.int8 if low < 0 else np.uint8), name=f"{name}_quantized", near=near, onnx_dtype=element
        )
    inputs = [integers, rw.constant(steps.astype(weight.dtype), name=f"{name}_scale", near=near)]
    if zeros.any():
        values = zeros.astype(np.uint8)
        inputs.append(rw.constant(values, name=f"{name}_zero_point", near=near, onnx_dtype=element))
    restored = conversion(rw, "DequantizeLinear", inputs, attrs=attrs, near=near)
    _replace(rw, weight, restored)


def _unpacked(rw: Rewriter, near: Node, codes: NDArray[np.int64], name: str) -> Variable:
    """Return a uint8 tensor of 0 and 128 that is computed from single bits; runtimes do it once, when they load."""
    bits = np.packbits(codes.ravel() > 0, bitorder="big")
    packed = rw.constant(bits[:, None], name=f"{name}_bits", near=near)
    shifts = rw.constant(np.arange(8, dtype=np.uint8), name="shifts", near=near)
    highest = rw.constant(np.array([128], np.uint8), name="highest_bit", near=near)
    moved: Variable = rw.op("BitShift", [packed, shifts], attrs={"direction": "LEFT"}, near=near, name=f"{name}_shift")
    kept = rw.op("BitwiseAnd", [moved, highest], near=near, name=f"{name}_bit")
    rw.set_type(moved, np.dtype(np.uint8), [len(bits), 8])
    rw.set_type(kept, np.dtype(np.uint8), [len(bits), 8])
    if codes.size % 8:
        flat = rw.op(
            "Reshape", [kept, rw.constant(np.array([-1]), name="flat", near=near)], near=near, name=f"{name}_all"
        )
        rw.set_type(flat, np.dtype(np.uint8), [len(bits) * 8])
        ends = [rw.constant(np.array([end]), name="end", near=near) for end in (0, codes.size)]
        kept = rw.op("Slice", [flat, *ends], near=near, name=f"{name}_used")
        rw.set_type(kept, np.dtype(np.uint8), [codes.size])
    shape = rw.constant(np.array(codes.shape, np.int64), name=f"{name}_shape", near=near)
    shaped: Variable = rw.op("Reshape", [kept, shape], near=near, name=f"{name}_quantized")
    rw.set_type(shaped, np.dtype(np.uint8), list(codes.shape))
    return shaped


def write_codebook(
    rw: Rewriter, node: Node, weight: Tensor, places: NDArray[np.int64], values: NDArray[np.float64], opset: int
) -> None:
    """Let everything that reads a weight read it out of a code book; runtimes look it up once, when they load.

    Args:
        rw: The rewriter.
        node: A node that reads the weight.
        weight: What held it.
        places: Positions in the code book, in the layout of the weight.
        values: The code book, at most 256 values.
        opset: Of the model.
    """
    near = in_graph_of(weight, node)
    name = short_name(weight)
    element = element_type(0, len(values) - 1, opset)
    stored = rw.constant(places.astype(np.uint8), name=f"{name}_codes", near=near, onnx_dtype=element)
    book = rw.constant(values.astype(weight.dtype), name=f"{name}_values", near=near)
    wide = rw.op("Cast", [stored], attrs={"to": int(TensorProto.INT32)}, near=near, name=f"{name}_places")
    rw.set_type(wide, np.dtype(np.int32), list(places.shape))
    found = rw.op("Gather", [book, wide], near=near, name=f"{name}_found")
    _replace(rw, weight, found)


def _replace(rw: Rewriter, weight: Tensor, restored: Variable) -> None:
    rw.set_type(restored, weight.dtype, list(weight.shape or ()))
    rw.replace_uses(weight, restored)
    drop_unused(rw, [weight])


def shared(
    scale: NDArray[np.float64], zero: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, object]]:
    """Return scales and zero points of every weight as few as possible, with the attributes that spread them again.

    One for all where all are equal, else one per index of an axis, else one per block of an axis.
    """
    if _is_constant(scale) and _is_constant(zero):
        return scale.ravel()[0].reshape(()), zero.ravel()[0].reshape(()), {}
    for axis in range(scale.ndim):
        pick = tuple(slice(None) if place == axis else 0 for place in range(scale.ndim))
        spread = tuple(-1 if place == axis else 1 for place in range(scale.ndim))
        if all(bool((part == part[pick].reshape(spread)).all()) for part in (scale, zero)):
            return scale[pick], zero[pick], {"axis": axis}
    axis, block = max((_block(scale, zero, axis), axis) for axis in range(scale.ndim))[::-1]
    pick = tuple(slice(None, None, block) if place == axis else slice(None) for place in range(scale.ndim))
    return scale[pick], zero[pick], {"axis": axis, "block_size": block}


def _is_constant(values: NDArray[np.float64]) -> bool:
    return bool((values == values.flat[0]).all())


def _block(scale: NDArray[np.float64], zero: NDArray[np.float64], axis: int) -> int:
    """Return the largest block of an axis inside which nothing changes."""
    length = scale.shape[axis]
    changes = np.zeros(length, np.bool_)
    for part in (scale, zero):
        moved = np.moveaxis(part, axis, 0).reshape(length, -1)
        changes[1:] |= (moved[1:] != moved[:-1]).any(axis=1)
    starts = np.flatnonzero(changes)
    return int(np.gcd.reduce(starts)) if len(starts) else length
