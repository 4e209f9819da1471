"""Element types: the ONNX enum is the truth, numpy types are derived from it.

Sub-byte types exist twice: unpacked, one element per byte as an ``ml_dtypes`` array, and packed as ONNX stores them
(int4, uint4 and float4 two per byte, int2 and uint2 four per byte, float6 four per three bytes; lowest bits first).
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Sequence

STRING = int(TensorProto.STRING)
OBJECT = np.dtype(object)

_BITS_BY_NAME = {
    "INT4": 4,
    "UINT4": 4,
    "FLOAT4E2M1": 4,
    "INT2": 2,
    "UINT2": 2,
    "FLOAT6E2M3": 6,
    "FLOAT6E3M2": 6,
}
_SUB_BYTE_BITS = {int(v): _BITS_BY_NAME[k] for k, v in TensorProto.DataType.items() if k in _BITS_BY_NAME}


@cache
def numpy_dtype(onnx_dtype: int) -> np.dtype[Any] | None:
    """Return the numpy type of an ONNX element type; object for strings, None when the installed onnx has none."""
    if onnx_dtype == STRING:
        return OBJECT
    try:
        return cast("np.dtype[Any]", np.dtype(helper.tensor_dtype_to_np_dtype(onnx_dtype)))
    except (KeyError, TypeError):
        return None


@cache
def _enum_of(dtype: np.dtype[Any]) -> int:
    if dtype == OBJECT or dtype.kind in "US":
        return STRING
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def onnx_dtype_of(dtype: Any) -> int:
    """Return the ONNX element type of a numpy type, of a type name or of an ONNX enum value; 0 for None.

    Raises:
        ValueError: numpy has the type but ONNX does not.
    """
    if dtype is None:
        return 0
    if isinstance(dtype, int):
        return int(dtype)
    if isinstance(dtype, np.dtype) and dtype.isnative:
        return _enum_of(dtype)
    return _enum_of(np.dtype(dtype).newbyteorder("="))


@cache
def bits(onnx_dtype: int) -> int:
    """Return the bits one element takes in a packed tensor; 0 for strings and unknown types."""
    if onnx_dtype in _SUB_BYTE_BITS:
        return _SUB_BYTE_BITS[onnx_dtype]
    dtype = numpy_dtype(onnx_dtype)
    return 0 if dtype is None or dtype == OBJECT else dtype.itemsize * 8


def packed_size_bytes(onnx_dtype: int, shape: Sequence[int]) -> int:
    """Return the bytes of the packed data of a tensor (raw_data, external data)."""
    return (math.prod(shape) * bits(onnx_dtype) + 7) // 8


def is_sub_byte(onnx_dtype: int) -> bool:
    """Tell whether several elements share a byte."""
    return onnx_dtype in _SUB_BYTE_BITS


def unpack(data: np.ndarray[Any, np.dtype[np.uint8]], onnx_dtype: int, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Unpack a sub-byte buffer into one element per byte, of the numpy type of ``onnx_dtype``."""
    dtype = cast("np.dtype[Any]", numpy_dtype(onnx_dtype))
    count = math.prod(shape)
    width = _SUB_BYTE_BITS[onnx_dtype]
    if width == 6:
        padded = np.zeros((count + 3) // 4 * 3, np.uint8)
        padded[: data.size] = data[: padded.size]
        b0, b1, b2 = padded[0::3], padded[1::3], padded[2::3]
        out = np.empty((b0.size, 4), np.uint8)
        out[:, 0] = b0 & 0x3F
        out[:, 1] = b0 >> 6 | (b1 & 0x0F) << 2
        out[:, 2] = b1 >> 4 | (b2 & 0x03) << 4
        out[:, 3] = b2 >> 2
        return out.reshape(-1)[:count].reshape(shape).view(dtype)
    per_byte = 8 // width
    out = np.empty((data.size, per_byte), np.uint8)
    for lane in range(per_byte):
        out[:, lane] = data >> (width * lane) & ((1 << width) - 1)
    flat = out.reshape(-1)[:count]
    if dtype.name.startswith("int"):
        sign = np.uint8(1 << (width - 1))
        flat = ((flat ^ sign).astype(np.int8) - np.int8(sign)).view(np.uint8)
    return flat.reshape(shape).view(dtype)


def pack(array: np.ndarray[Any, Any], onnx_dtype: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pack an array of a sub-byte type as ONNX stores it; returns the flat bytes."""
    width = _SUB_BYTE_BITS[onnx_dtype]
    mask = np.uint8((1 << width) - 1)
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint8) & mask
    per_group = 4 if width == 6 else 8 // width
    padded = np.zeros((codes.size + per_group - 1) // per_group * per_group, np.uint8)
    padded[: codes.size] = codes
    lanes = padded.reshape(-1, per_group)
    size = (codes.size * width + 7) // 8
    if width == 6:
        triples = np.empty((lanes.shape[0], 3), np.uint8)
        triples[:, 0] = lanes[:, 0] | (lanes[:, 1] & 0x03) << 6
        triples[:, 1] = lanes[:, 1] >> 2 | (lanes[:, 2] & 0x0F) << 4
        triples[:, 2] = lanes[:, 2] >> 4 | lanes[:, 3] << 2
        return triples.reshape(-1)[:size]
    out = np.zeros(lanes.shape[0], np.uint8)
    for lane in range(per_group):
        out |= lanes[:, lane] << (width * lane)
    return out[:size]
