"""The packed form in which the LowBitMatMul kernel reads a matrix of few bits: one block of bytes, used in place.

The layout is documented in ``kernels/low_bit_matmul/packed.h`` and ``contract.h``; the kernel checks every field of it.
In short: 64 outputs share a stream. In it, for each block of inputs, lie 64 scales, the zeros unless one integer is the
zero of all, and the codes, four inputs of every output side by side and 8 / bits such groups in a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import KernelError
from graphopt.solve.blob import BlobFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

# k, n; bits, block, kind of zeros, the zero of all, kind of levels, nothing; the book; the offset of the streams
_FORMAT: Final = BlobFormat(b"GOLOWB\r\n", 1, "2Q6I16fQ112x", "matrix")
_PANEL: Final = 64
_BOOK_SIZE: Final = 16

WIDTHS: Final = (1, 2, 3, 4, 8)
"""Bits that a stored code may have."""
MAX_BLOCK: Final = 1024
SMALL_BLOCK: Final = 16
"""The one block that is no multiple of 32; for 2, 4 and 8 bits."""

Zeros = int | NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LowBitMatrix:
    """A matrix w[k, n] = scale[k // block, n] * (level(code[k, n]) - zero[k // block, n]).

    The level of a code is the code, twice the code where it has one bit, or its place in the book.

    Attributes:
        codes: uint8 of shape [K, N], below 2^bits.
        scales: float32 of shape [blocks, N].
        bits: Of a code.
        block: Inputs that share a scale.
        zeros: An integer of 0 to 255; or uint8 of shape [blocks, N]; or float32 of that shape, which are the offsets
            -scale * zero.
        book: At most 16 levels, or none. Integers of 0 to 255 where activations are rounded.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int
    block: int
    zeros: Zeros = 0
    book: tuple[float, ...] = ()

    def restored(self) -> NDArray[np.float32]:
        """Return the matrix as floats, rounded as the kernel rounds it where activations are floats."""
        rows = np.arange(self.codes.shape[0]) // self.block
        levels = self.codes.astype(np.float32) * np.float32(2 if self.bits == 1 else 1)
        if self.book:
            levels = np.asarray(self.book, np.float32)[self.codes]
        scale = self.scales[rows]
        if isinstance(self.zeros, np.ndarray) and self.zeros.dtype == np.float32:
            return (levels.astype(np.float64) * scale + self.zeros[rows]).astype(np.float32)
        zero = self.zeros[rows].astype(np.float32) if isinstance(self.zeros, np.ndarray) else np.float32(self.zeros)
        restored: NDArray[np.float32] = (levels - zero) * scale
        return restored


def pack_low_bit(matrix: LowBitMatrix) -> NDArray[np.uint8]:
    """Pack a matrix for LowBitMatMul.

    Args:
        matrix: Codes of 8, 4, 3, 2 or 1 bits in blocks of a multiple of 32 up to 1024, or of 16 with 2, 4 or 8 bits.

    Returns:
        uint8 of shape [bytes], the same for the same matrix everywhere.

    Raises:
        KernelError: A size, type or value is not one that the kernel reads.
    """
    problem = _problem(matrix)
    if problem:
        raise KernelError(f"the matrix cannot be packed: {problem}", must="See LowBitMatrix for what a matrix may be.")
    (k, n), block, bits = matrix.codes.shape, matrix.block, matrix.bits
    blocks, panels = -(-k // block), -(-n // _PANEL)
    codes = np.zeros((blocks * block, panels * _PANEL), np.uint8)
    codes[:k, :n] = matrix.codes
    parts = [_by_panel(matrix.scales.astype("<f4"), panels)]
    kind, constant = 0, 0
    if isinstance(matrix.zeros, np.ndarray):
        kind = 1 if matrix.zeros.dtype == np.uint8 else 2
        parts.append(_by_panel(matrix.zeros, panels))
    else:
        constant = int(matrix.zeros)
    parts.append(_rows(codes, blocks, panels, bits, block).reshape(panels, blocks, -1))
    streams = np.concatenate(parts, axis=2).reshape(-1)

    book = np.zeros(_BOOK_SIZE, np.float32)
    book[: len(matrix.book)] = matrix.book
    levels = 0 if not matrix.book else 1 if _is_bytes(matrix.book) else 2
    return _FORMAT.write([streams], (k, n, bits, block, kind, constant, levels, 0, *book))


def unpack_low_bit(packed: NDArray[np.uint8]) -> LowBitMatrix:
    """Return the matrix of packed bytes.

    Raises:
        KernelError: The bytes are not those of a packed matrix of this version.
    """
    data = packed.tobytes()
    k, n, bits, block, kind, constant, levels, _, *book, offset = _FORMAT.read(packed)
    blocks, panels = -(-k // block), -(-n // _PANEL)
    streams = np.frombuffer(data, np.uint8, offset=offset).reshape(panels, blocks, -1)
    zero_bytes = (0, _PANEL, 4 * _PANEL)[kind]
    scales, zeros, rows = np.split(streams, [4 * _PANEL, 4 * _PANEL + zero_bytes], axis=2)
    stored: Zeros = constant
    if kind == 1:
        stored = _by_block(zeros, n)
    elif kind == 2:
        stored = _by_block(zeros, n).view("<f4")
    codes = _codes(rows, bits, block)[:k, :n]
    known = tuple(book[: 1 << bits]) if levels else ()
    return LowBitMatrix(np.ascontiguousarray(codes), _by_block(scales, n).view("<f4"), bits, block, stored, known)


def packed_bytes(k: int, n: int, bits: int, block: int, zeros: Zeros = 0) -> int:
    """Return how many bytes `pack_low_bit` needs for a [k, n] matrix."""
    per_zero = zeros.itemsize if isinstance(zeros, np.ndarray) else 0
    return _FORMAT.header_bytes + -(-n // _PANEL) * -(-k // block) * _PANEL * (4 + per_zero + block * bits // 8)


def _problem(matrix: LowBitMatrix) -> str:
    codes, bits, block = matrix.codes, matrix.bits, matrix.block
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.size == 0:
        return f"its codes are {codes.dtype} of shape {list(codes.shape)}, not uint8 of shape [K, N]"
    if bits not in WIDTHS or int(codes.max()) >> bits:
        return f"its codes go up to {int(codes.max())} and have {bits} bits, not {', '.join(map(str, WIDTHS))}"
    small = block == SMALL_BLOCK and bits in {2, 4, 8}
    if not small and not (0 < block <= MAX_BLOCK and block % 32 == 0):
        return f"its blocks of {block} are no multiple of 32 up to {MAX_BLOCK}, nor 16 with 2, 4 or 8 bits"
    shape = (-(-codes.shape[0] // block), codes.shape[1])
    if matrix.scales.dtype != np.float32 or matrix.scales.shape != shape:
        return (
            f"its scales are {matrix.scales.dtype} of shape {list(matrix.scales.shape)}, not float32 of {list(shape)}"
        )
    if isinstance(matrix.zeros, np.ndarray):
        if matrix.zeros.dtype not in {np.dtype(np.uint8), np.dtype(np.float32)} or matrix.zeros.shape != shape:
            return f"its zeros are {matrix.zeros.dtype} of shape {list(matrix.zeros.shape)}, not as many as its scales"
    elif not 0 <= matrix.zeros <= 255:
        return f"its zero is {matrix.zeros}, not 0 to 255"
    return _book_problem(matrix)


def _book_problem(matrix: LowBitMatrix) -> str:
    if not matrix.book:
        return ""
    if matrix.bits not in {2, 3, 4} or matrix.block == SMALL_BLOCK:
        return (
            f"it has a book for {matrix.bits} bits in blocks of {matrix.block}; the kernel has 2 to 4 bits from 32 on"
        )
    if len(matrix.book) > 1 << matrix.bits or not np.isfinite(matrix.book).all():
        return f"its book has {len(matrix.book)} levels for {matrix.bits} bits, or some that are not finite"
    return ""


def _is_bytes(book: Sequence[float]) -> bool:
    return all(0 <= level <= 255 and level == int(level) for level in book)


def _by_panel(values: NDArray[np.generic], panels: int) -> NDArray[np.uint8]:
    """[blocks, N] of any type as bytes of shape [panels, blocks, bytes]."""
    blocks, n = values.shape
    padded = np.zeros((blocks, panels * _PANEL), values.dtype)
    padded[:, :n] = values
    ordered = np.ascontiguousarray(padded.reshape(blocks, panels, _PANEL).transpose(1, 0, 2))
    return ordered.view(np.uint8).reshape(panels, blocks, -1)


def _by_block(stored: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """The inverse of `_by_panel`, as bytes: [blocks, N * bytes of a value]."""
    panels, blocks, wide = stored.shape
    ordered = np.ascontiguousarray(stored.transpose(1, 0, 2)).reshape(blocks, panels * wide)
    return np.ascontiguousarray(ordered[:, : n * wide // _PANEL])


def _rows(codes: NDArray[np.uint8], blocks: int, panels: int, bits: int, block: int) -> NDArray[np.uint8]:
    """[K, N] as [panels, chunks, rows, 256]."""
    chunk = min(block, 32)
    parts = codes.reshape(-1, chunk // 4, 4, panels, _PANEL).transpose(3, 0, 1, 4, 2)
    groups = np.ascontiguousarray(parts).reshape(panels, -1, chunk // 4, 4 * _PANEL)
    if bits == 3:
        return np.concatenate([_fields(groups & np.uint8(3), 2), _fields(groups >> np.uint8(2), 1)], axis=2)
    return _fields(groups, bits)


def _fields(groups: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    panels, chunks, count, wide = groups.shape
    split = groups.reshape(panels, chunks, count * bits // 8, 8 // bits, wide)
    rows = np.zeros((panels, chunks, count * bits // 8, wide), np.uint8)
    for place in range(8 // bits):
        rows |= split[:, :, :, place] << np.uint8(place * bits)
    return rows


def _codes(rows: NDArray[np.uint8], bits: int, block: int) -> NDArray[np.uint8]:
    """The inverse of `_rows`, of rows in any shape that begins with the panels."""
    chunk = min(block, 32)
    chunked = rows.reshape(rows.shape[0], -1, chunk * bits // 32, 4 * _PANEL)
    if bits == 3:
        groups = _groups(chunked[:, :, :2], 2) | _groups(chunked[:, :, 2:], 1) << np.uint8(2)
    else:
        groups = _groups(chunked, bits)
    parts = groups.reshape(rows.shape[0], -1, chunk // 4, _PANEL, 4).transpose(1, 2, 4, 0, 3)
    return parts.reshape(-1, rows.shape[0] * _PANEL)


def _groups(rows: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    mask = np.uint8((1 << bits) - 1)
    parts = [rows >> np.uint8(place * bits) & mask for place in range(8 // bits)]
    panels, chunks, count, wide = rows.shape
    return np.stack(parts, axis=3).reshape(panels, chunks, count * 8 // bits, wide)
