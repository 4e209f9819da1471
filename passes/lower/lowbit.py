"""From a matrix of few bits as a model holds it to the one that the low-bit kernel reads."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.solve.pack_low_bit import MAX_BLOCK, SMALL_BLOCK, LowBitMatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.passes.lower.fewbits import FewBitMatrix

_BOOK_SIZE = 16
_SCALE_SHARE = 256
"""Bits of codes in a column of a block from which on its scale of 32 bits is an eighth of them at most."""


def low_bit_matrix(weight: FewBitMatrix, *, rounds: bool) -> LowBitMatrix | str:
    """Return a matrix as the kernel reads it, or why it cannot be.

    Args:
        weight: The matrix.
        rounds: Whether activations are rounded to 8 bits: levels of a code book that do not lie evenly are rounded too.
    """
    if weight.book is not None:
        return _from_book(weight, weight.book, rounds=rounds)
    if not np.isfinite(weight.scale).all() or not np.isfinite(weight.zero).all():
        return "a scale or zero point is not finite"
    low, high = int(weight.values.min()), int(weight.values.max())
    if high - low > 255:
        return f"its integers from {low} to {high} take more than 8 bits"
    used = np.flatnonzero(np.bincount((weight.values - low).ravel(), minlength=2))
    if len(used) <= 2:
        return _two_levels(weight, low, low + (int(used[-1]) or 1))
    bits = next(width for width in (2, 3, 4, 8) if high - low < 1 << width)
    blocks = kernel_block(weight, bits)
    if isinstance(blocks, str):
        return blocks
    codes, zero = (weight.values - low).astype(np.uint8), weight.zero - low
    return _made(weight, codes, weight.scale, zero, bits, blocks)


def kernel_block(weight: FewBitMatrix, bits: int) -> int | str:
    """Return into how large blocks a matrix is cut, or why its own cannot be cut so."""
    k, block = int(weight.values.shape[0]), weight.block
    if block >= k:  # one scale per output: activations are rounded in shares of it
        share = max(128, _SCALE_SHARE // bits)
        return min(share, -(-k // 32) * 32)
    if block % SMALL_BLOCK:
        return f"its blocks of {block} inputs are no multiple of {SMALL_BLOCK}"
    if block % 32:
        return SMALL_BLOCK
    return block if block <= MAX_BLOCK else gcd(block, MAX_BLOCK)


def _two_levels(weight: FewBitMatrix, first: int, second: int) -> LowBitMatrix | str:
    """One bit: w = step / 2 * (2 c - zero), c = 0 for the first value and 1 for the second."""
    step = second - first
    block = kernel_block(weight, 1)
    if isinstance(block, str):
        return block
    codes = (weight.values == second).astype(np.uint8)
    scale = weight.scale * np.float32(step / 2)
    zero = 2 * (weight.zero - first) / step
    if block == SMALL_BLOCK:  # blocks of 16 have 2 bits at least
        return _made(weight, codes * np.uint8(2), scale, zero, 2, block)
    return _made(weight, codes, scale, zero, 1, block)


def _made(
    weight: FewBitMatrix,
    codes: NDArray[np.uint8],
    scale: NDArray[np.float32],
    zero: NDArray[np.float64],
    bits: int,
    block: int,
) -> LowBitMatrix:
    codes = np.ascontiguousarray(codes)
    bits = 2 if block == SMALL_BLOCK and bits == 1 else 4 if block == SMALL_BLOCK and bits == 3 else bits
    scale, offset = _cut(weight, scale, block), _cut(weight, -scale.astype(np.float64) * zero, block)
    if (zero == np.rint(zero)).all() and 0 <= zero.min() <= zero.max() <= 255:
        small = _cut(weight, zero.astype(np.uint8), block)
        if (small == small.flat[0]).all():
            return LowBitMatrix(codes, scale, bits, block, int(small.flat[0]))
        return LowBitMatrix(codes, scale, bits, block, small)
    return LowBitMatrix(codes, scale, bits, block, offset.astype(np.float32))


def _cut(weight: FewBitMatrix, values: NDArray[Any], block: int) -> NDArray[Any]:
    """Values per block of the model as values per block of the kernel."""
    starts = np.arange(-(-weight.values.shape[0] // block)) * block
    found: NDArray[Any] = np.ascontiguousarray(values[np.minimum(starts // weight.block, len(values) - 1)])
    return found


def _from_book(weight: FewBitMatrix, book: NDArray[np.float32], *, rounds: bool) -> LowBitMatrix | str:
    if len(book) > _BOOK_SIZE:
        return f"its code book has {len(book)} values; the kernel has up to {_BOOK_SIZE}"
    wide = book.astype(np.float64)
    low, high = wide[0], wide[-1]
    codes = weight.values.astype(np.uint8)
    bits = next(width for width in (1, 2, 3, 4) if len(book) <= 1 << width)
    block = kernel_block(weight, bits)
    assert isinstance(block, int)
    one = np.ones_like(weight.scale)
    step = (high - low) / max(len(book) - 1, 1)
    if bits == 1:
        scale = np.float32((high - low) / 2) * one
        if low == -high:
            return _made(weight, codes, scale, np.ones(one.shape), 1, block)
        return _offsets(weight, codes, scale, low * one, 1, block)
    if np.abs(low + np.arange(len(book)) * step - wide).max() <= np.abs(wide).max() * 2.0**-23:
        zero = -low / step
        if abs(zero - round(zero)) <= 2.0**-20 and 0 <= round(zero) <= 255:
            return _made(weight, codes, np.float32(step) * one, np.full(one.shape, float(round(zero))), bits, block)
        return _offsets(weight, codes, np.float32(step) * one, low * one, bits, block)
    if not rounds:
        return LowBitMatrix(codes, _cut(weight, one, block), bits, block, 0, tuple(float(level) for level in book))
    levels = tuple(float(level) for level in np.rint((wide - low) * (255 / (high - low))))
    made = _offsets(weight, codes, np.float32((high - low) / 255) * one, low * one, bits, block)
    return LowBitMatrix(codes, made.scales, bits, block, made.zeros, levels)


def _offsets(
    weight: FewBitMatrix,
    codes: NDArray[np.uint8],
    scale: NDArray[np.float32],
    offset: NDArray[np.float64],
    bits: int,
    block: int,
) -> LowBitMatrix:
    zeros = _cut(weight, offset.astype(np.float32), block)
    return LowBitMatrix(codes, _cut(weight, scale.astype(np.float32), block), bits, block, zeros)
