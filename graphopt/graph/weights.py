"""Where the values of a constant live: outside the objects, decoded only when they are read.

Every storage is a ``gs.LazyValues``, so that code written for graphsurgeon reads ``constant.values`` as it always did.
Sizes are compared with dimensions before anything is allocated: files are untrusted.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
from onnx import TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from graphopt.errors import GraphError, ReadError
from graphopt.graph import dtypes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Array = np.ndarray[Any, Any]

CHUNK_BYTES = 8 << 20
DENSE_LIMIT_BYTES = 4 << 30  # a sparse tensor of a few bytes may claim any dense size
_CACHED_BYTES = 1 << 16
_MAX_RANK = 64  # of numpy


class Weight(LazyValues):  # type: ignore[misc]
    """Values of a constant: element type, shape and a way to load them.

    Attributes:
        onnx_dtype: ONNX element type.
        shape: Dimensions.
    """

    __slots__ = ("_cached", "onnx_dtype", "shape")

    def __init__(self, onnx_dtype: int, shape: Sequence[int]) -> None:
        self.onnx_dtype = int(onnx_dtype)
        self.shape = tuple(map(int, shape))
        self._cached: Any = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of ``load()``."""
        found = dtypes.numpy_dtype(self.onnx_dtype)
        if found is None:
            raise GraphError(
                f"element type {self.onnx_dtype} has no numpy type in the installed onnx {onnx.__version__}",
                do="Install a newer onnx.",
            )
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of the packed values (strings: of a pointer each)."""
        return dtypes.packed_size_bytes(self.onnx_dtype, self.shape)

    def load(self) -> Array:
        """Return the values, read-only, one element per array element."""
        held = self._cached
        if held is not None:
            array = held() if isinstance(held, weakref.ref) else held
            if array is not None:
                return array  # type: ignore[no-any-return]
        _ = self.dtype  # refuses types that numpy does not have
        array = self._decode()
        array.flags.writeable = False
        self._cached = array if array.nbytes <= _CACHED_BYTES else weakref.ref(array)
        return array

    def _decode(self) -> Array:
        raise NotImplementedError

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Return the packed little-endian bytes in pieces of at most ``CHUNK_BYTES``."""
        return array_chunks(self.load(), self.onnx_dtype)

    def head(self, count: int) -> bytes:
        """Return the first packed little-endian bytes, at most this many."""
        if sys.byteorder == "little" and not dtypes.is_sub_byte(self.onnx_dtype) and self.nbytes <= count:
            return self.load().tobytes()
        return bytes(next(iter(self.chunks()), b"")[:count])

    @property
    def tensor(self) -> TensorProto | onnx.SparseTensorProto:
        """A new message with the values: what the exporter of graphsurgeon asks for, and writes a name into."""
        proto = TensorProto(data_type=self.onnx_dtype, dims=self.shape)
        fill(proto, self)
        return proto

    def __str__(self) -> str:
        return f"{type(self).__name__} (shape={self.shape}, dtype={self.onnx_dtype})"


def fill(proto: TensorProto, weight: Weight) -> None:
    """Put the values into a message that has none."""
    if weight.onnx_dtype == dtypes.STRING:
        items = weight.load().reshape(-1)
        proto.string_data.extend([item if isinstance(item, bytes) else str(item).encode() for item in items])
        return
    if dtypes.bits(weight.onnx_dtype) == 0:
        raise GraphError(f"element type {weight.onnx_dtype} is unknown to onnx {onnx.__version__}")
    proto.raw_data = b"".join(weight.chunks())


def array_chunks(array: Array, onnx_dtype: int) -> Iterator[bytes | memoryview]:
    """Yield the packed little-endian bytes of an array in pieces of at most ``CHUNK_BYTES``."""
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, CHUNK_BYTES // max(1, flat.itemsize)) // 8 * 8 or 8  # whole bytes of every packed type
    for start in range(0, flat.size, step):
        piece = flat[start : start + step]
        if dtypes.is_sub_byte(onnx_dtype):
            yield dtypes.pack(piece, onnx_dtype).tobytes()
        elif sys.byteorder == "big":
            yield piece.byteswap().tobytes()
        else:
            yield piece.view(np.uint8).data


def check_dims(dims: Sequence[int], name: str) -> tuple[int, ...]:
    """Return the dimensions of a stored tensor.

    Raises:
        ReadError: A dimension is negative, there are too many, or their product does not fit 63 bits.
    """
    shape = tuple(dims)
    what, must = "", ""
    if len(shape) > _MAX_RANK:
        what, must = f"it has {len(shape)} dimensions", f"At most {_MAX_RANK} are supported"
    product = 1
    for dim in shape:
        if dim < 0 and not what:
            what, must = f"dimension {dim} of {list(shape)} is negative", "Sizes are not negative"
        product *= dim or 1
    if product >= 1 << 60 and not what:
        what, must = f"the product of dimensions {list(shape)} is absurd", "It must fit memory"
    if what:
        raise ReadError(what, where=f"tensor '{name}'", must=must)
    return shape


def from_buffer(buffer: Any, onnx_dtype: int, shape: tuple[int, ...]) -> Array:
    """Return packed little-endian bytes as an array, one element per array element."""
    if dtypes.is_sub_byte(onnx_dtype):
        return dtypes.unpack(np.frombuffer(buffer, np.uint8), onnx_dtype, shape)
    dtype = dtypes.numpy_dtype(onnx_dtype)
    assert dtype is not None
    if sys.byteorder == "big":
        return np.frombuffer(buffer, dtype).byteswap().reshape(shape)
    return np.frombuffer(buffer, dtype).reshape(shape)


# ------------------------------------------------------------------------------------------------------- in protobuf


class ProtoWeight(Weight):
    """A TensorProto whose data are in the message; written back verbatim while nobody changes it."""

    __slots__ = ("proto",)

    def __init__(self, tensor: TensorProto) -> None:
        self.onnx_dtype = tensor.data_type
        self.shape = check_dims(tensor.dims, tensor.name)
        self._cached = None
        self.proto = tensor
        self._check()

    @property
    def _where(self) -> str:
        """How errors name it."""
        return f"tensor '{self.proto.name}'"

    def _check(self) -> None:
        tensor, kind = self.proto, self.onnx_dtype
        if kind == TensorProto.UNDEFINED:
            raise ReadError("its element type is undefined", where=self._where, must="Every stored tensor has a type")
        if tensor.HasField("segment"):
            raise ReadError(
                "it is one segment of a larger tensor", where=self._where, must="Segments are not supported"
            )
        width = dtypes.bits(kind)
        if kind != dtypes.STRING and width == 0:
            return  # a newer ONNX type: carried, never read
        count = 1
        for dim in self.shape:
            count *= dim
        if tensor.HasField("raw_data"):
            found, needed, unit = len(tensor.raw_data), (count * width + 7) // 8, "bytes of raw_data"
            if kind == dtypes.STRING:
                raise ReadError("it keeps strings in raw_data", where=self._where, must="Strings belong in string_data")
        else:
            found, needed, unit = self._typed_counts(count)
        if found != needed:
            raise ReadError(
                f"dimensions {list(self.shape)} need {needed} {unit}, there are {found}",
                where=self._where,
                must="Dimensions and data must agree",
                do="Export the model again.",
            )

    def _typed_counts(self, count: int) -> tuple[int, int, str]:
        field = onnx.helper.tensor_dtype_to_field(self.onnx_dtype)
        needed = count
        if self.onnx_dtype in {TensorProto.COMPLEX64, TensorProto.COMPLEX128}:
            needed = 2 * count
        width = dtypes.bits(self.onnx_dtype)
        if width in {2, 4}:
            needed = (count * width + 7) // 8
        return len(getattr(self.proto, field)), needed, f"entries of {field}"

    @property
    def tensor(self) -> TensorProto:
        """A copy of the message."""
        proto = TensorProto()
        proto.CopyFrom(self.proto)
        return proto

    def _decode(self) -> Array:
        tensor = self.proto
        if self.onnx_dtype == dtypes.STRING:
            return _strings(tensor.string_data, self.shape)
        if tensor.HasField("raw_data"):
            return from_buffer(tensor.raw_data, self.onnx_dtype, self.shape)
        return _typed(tensor, self.onnx_dtype, self.shape, self.dtype)


def _strings(items: Sequence[bytes], shape: tuple[int, ...]) -> Array:
    """Strings as str; bytes where one of them is not UTF-8, since ONNX allows any bytes in a tensor."""
    out = np.empty(len(items), object)
    for position, item in enumerate(items):
        try:
            out[position] = item.decode("utf-8")
        except UnicodeDecodeError:
            out[position] = item
    return out.reshape(shape)


def _typed(tensor: TensorProto, onnx_dtype: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Decode float_data, int32_data and so on."""
    field = onnx.helper.tensor_dtype_to_field(onnx_dtype)
    data = getattr(tensor, field)
    if onnx_dtype in {TensorProto.COMPLEX64, TensorProto.COMPLEX128}:
        part = np.float32 if onnx_dtype == TensorProto.COMPLEX64 else np.float64
        return np.array(data, part).view(dtype).reshape(shape)
    if field == "int32_data" and onnx_dtype != TensorProto.INT32:
        words = np.array(data, np.int32).view(np.uint32)
        width = dtypes.bits(onnx_dtype)
        if width in {2, 4}:
            return dtypes.unpack(words.astype(np.uint8), onnx_dtype, shape)
        if width == 6:
            return (words.astype(np.uint8) & 0x3F).view(dtype).reshape(shape)
        if onnx_dtype == TensorProto.BOOL:
            return np.asarray(words != 0).reshape(shape)
        return words.astype(np.uint8 if width == 8 else np.uint16).view(dtype).reshape(shape)
    return cast("Array", np.array(data, dtype).reshape(shape))


class SparseWeight(Weight, SparseValues):  # type: ignore[misc]
    """A SparseTensorProto; ``load()`` gives the dense tensor."""

    __slots__ = ("sparse", "values_weight")

    def __init__(self, sparse: onnx.SparseTensorProto) -> None:
        name = sparse.values.name
        super().__init__(sparse.values.data_type, check_dims(sparse.dims, name))
        self.sparse = sparse
        self.values_weight = ProtoWeight(sparse.values)

    @property
    def tensor(self) -> onnx.SparseTensorProto:
        """A copy of the message."""
        proto = onnx.SparseTensorProto()
        proto.CopyFrom(self.sparse)
        return proto

    def _decode(self) -> Array:
        where = f"sparse tensor '{self.sparse.values.name}'"
        values = self.values_weight.load().reshape(-1)
        if self.nbytes > DENSE_LIMIT_BYTES:
            raise ReadError(
                f"dense, dimensions {list(self.shape)} take {self.nbytes} bytes",
                where=where,
                must=f"At most {DENSE_LIMIT_BYTES} bytes are made dense",
            )
        if self.sparse.indices.data_type != TensorProto.INT64:
            raise ReadError("its indices are not int64", where=where, must="ONNX asks for int64 indices")
        indices = ProtoWeight(self.sparse.indices).load()
        out = np.zeros(self.shape, self.dtype)
        if self.onnx_dtype == dtypes.STRING:
            out[...] = ""
        try:
            if indices.ndim == 2:
                linear = np.ravel_multi_index(tuple(indices.T), self.shape) if len(indices) else indices[:, :0].sum(1)
            else:
                linear = indices
            if linear.size and (linear.min() < 0 or linear.size != values.size):
                raise ValueError("negative index or another number of indices than values")
            out.reshape(-1)[linear.astype(np.int64)] = values
        except (ValueError, IndexError) as error:
            raise ReadError(f"its indices do not fit: {error}", where=where, must="Every index lies inside") from error
        return out


# ----------------------------------------------------------------------------------------------------- made by us


class ArrayWeight(Weight):
    """Values in memory, as an array that nobody may write to."""

    __slots__ = ("_array",)

    def __init__(self, array: Array, onnx_dtype: int | None = None) -> None:
        kind = dtypes.onnx_dtype_of(array.dtype) if onnx_dtype is None else int(onnx_dtype)
        wanted = dtypes.numpy_dtype(kind)
        if kind != dtypes.STRING and wanted is not None and array.dtype != wanted:
            if array.dtype.itemsize == wanted.itemsize and array.dtype.kind in "ui" and wanted.kind not in "uifb":
                array = array.view(wanted)  # the bytes of an ml_dtypes type
            elif array.dtype.newbyteorder("=") == wanted:
                array = array.astype(wanted)
            else:
                raise GraphError(f"an array of {array.dtype} cannot hold ONNX element type {kind} ({wanted})")
        super().__init__(kind, array.shape)
        self._array = array

    def _decode(self) -> Array:
        return self._array.view()

    def load(self) -> Array:
        """Return the array, read-only."""
        held: Array | None = self._cached
        if held is None:
            held = self._cached = self._array.view()
            held.flags.writeable = False
        return held


class PackedWeight(Weight):
    """Values of a sub-byte type kept packed, as ONNX stores them; an eighth to a half of the memory of an array."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | Array, onnx_dtype: int, shape: Sequence[int]) -> None:
        super().__init__(onnx_dtype, shape)
        self._data = bytes(data) if isinstance(data, bytes | bytearray) else np.ascontiguousarray(data).tobytes()
        if len(self._data) != self.nbytes:
            raise GraphError(f"shape {self.shape} needs {self.nbytes} packed bytes, there are {len(self._data)}")

    def _decode(self) -> Array:
        return from_buffer(self._data, self.onnx_dtype, self.shape)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the packed bytes."""
        view = memoryview(self._data)
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


class LazyWeight(Weight):
    """Values computed from others when they are needed, and not kept: a quantized copy of a large weight.

    Args:
        compute: Returns the array; called each time the values are read, it must always return the same.
        onnx_dtype: ONNX element type of the array.
        shape: Its dimensions.
    """

    __slots__ = ("_compute",)

    def __init__(self, compute: Callable[[], Array], onnx_dtype: int, shape: Sequence[int]) -> None:
        super().__init__(onnx_dtype, shape)
        self._compute = compute

    def _decode(self) -> Array:
        array = np.asarray(self._compute())
        if array.shape != self.shape or dtypes.onnx_dtype_of(array.dtype) != self.onnx_dtype:
            raise GraphError(
                f"a lazy weight gave {array.dtype}{list(array.shape)}",
                must=f"It was declared as ONNX type {self.onnx_dtype}{list(self.shape)}",
            )
        return array.view()
