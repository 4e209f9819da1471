"""Packed matrices of few bits: what is packed is unpacked again, and damaged bytes are refused with a reason."""

from __future__ import annotations

import ctypes
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import KernelError
from graphopt.runtime.library import kernel_library
from graphopt.solve.pack_low_bit import LowBitMatrix, pack_low_bit, packed_bytes, unpack_low_bit
from low_bit_calls import LowBitLibrary, matrix

FIELDS = {
    "magic": (0, 8),
    "format version": (8, 4),
    "header bytes": (12, 4),
    "bytes": (16, 8),
    "K": (24, 8),
    "N": (32, 8),
    "bits": (40, 4),
    "block": (44, 4),
    "zeros": (48, 4),
    "constant zero": (52, 4),
    "levels": (56, 4),
    "reserved": (60, 4),
    "offset": (128, 8),
    "more reserved": (136, 112),
    "hash": (248, 8),
}
MAY_CHANGE = {"K", "N", "bits", "block", "zeros", "constant zero", "levels"}


@pytest.fixture(scope="session")
def low_bit() -> LowBitLibrary:
    return LowBitLibrary(ctypes.CDLL(str(kernel_library())))


def rehash(packed: np.ndarray) -> np.ndarray:
    value = 0xCBF29CE484222325
    for byte in packed[:248].tobytes():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    packed[248:256] = np.frombuffer(struct.pack("<Q", value), np.uint8)
    return packed


def example() -> np.ndarray:
    return pack_low_bit(matrix(100, 90, 4, 32, "bytes"))


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 300),
    n=st.integers(1, 150),
    bits=st.sampled_from([1, 2, 3, 4, 8]),
    block=st.sampled_from([16, 32, 96, 1024]),
    zeros=st.sampled_from(["constant", "bytes", "offsets"]),
    seed=st.integers(0, 9),
)
def test_pack_then_unpack_gives_the_matrix(k: int, n: int, bits: int, block: int, zeros: str, seed: int) -> None:
    block = 32 if block == 16 and bits in {1, 3} else block
    w = matrix(k, n, bits, block, zeros, book=bits in {2, 4} and block != 16 and seed % 2 == 0, seed=seed)
    packed = pack_low_bit(w)
    assert packed.size == packed_bytes(k, n, bits, block, w.zeros)
    found = unpack_low_bit(packed)
    assert (found.bits, found.block, found.book) == (w.bits, w.block, w.book)
    for ours, theirs in ((found.codes, w.codes), (found.scales, w.scales), (found.zeros, w.zeros)):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(found.restored(), w.restored())


def test_pack_same_matrix_same_bytes() -> None:
    assert pack_low_bit(matrix(70, 65, 3, 32)).tobytes() == pack_low_bit(matrix(70, 65, 3, 32)).tobytes()


CODES = np.zeros((64, 4), np.uint8)
ONES = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (LowBitMatrix(CODES.astype(np.int8), ONES, 4, 32), "codes are int8"),
        (LowBitMatrix(CODES[:0], ONES, 4, 32), "of shape"),
        (LowBitMatrix(CODES + np.uint8(16), ONES, 4, 32), "codes go up to 16 and have 4 bits"),
        (LowBitMatrix(CODES, ONES, 5, 32), "not 1, 2, 3, 4, 8"),
        (LowBitMatrix(CODES, ONES, 4, 48), "blocks of 48 are no multiple of 32"),
        (LowBitMatrix(CODES, ONES, 3, 16), "nor 16 with 2, 4 or 8 bits"),
        (LowBitMatrix(CODES, ONES, 4, 2048), "multiple of 32 up to 1024"),
        (LowBitMatrix(CODES, ONES[:1], 4, 32), "its scales are float32 of shape [1, 4], not float32 of [2, 4]"),
        (LowBitMatrix(CODES, ONES, 4, 32, ONES[:1]), "its zeros are float32 of shape [1, 4]"),
        (LowBitMatrix(CODES, ONES, 4, 32, 256), "its zero is 256, not 0 to 255"),
        (LowBitMatrix(CODES, ONES, 8, 32, 0, (1.0, 2.0)), "it has a book for 8 bits in blocks of 32"),
        (LowBitMatrix(CODES, ONES, 2, 32, 0, (1.0,) * 5), "its book has 5 levels for 2 bits"),
        (LowBitMatrix(CODES, ONES, 2, 32, 0, (float("nan"),)), "some that are not finite"),
    ],
)
def test_pack_what_the_kernel_cannot_read_is_an_error(bad: LowBitMatrix, reason: str) -> None:
    with pytest.raises(KernelError) as error:
        pack_low_bit(bad)
    assert reason in str(error.value)


def test_unpack_other_bytes_is_an_error() -> None:
    with pytest.raises(KernelError, match="not a packed matrix"):
        unpack_low_bit(np.zeros(300, np.uint8))
    with pytest.raises(KernelError, match="cannot be read"):
        unpack_low_bit(example()[:-1])


def test_check_valid_is_accepted(low_bit: LowBitLibrary) -> None:
    assert low_bit.check(example()) == ""
    assert low_bit.check(rehash(example())) == ""


@pytest.mark.parametrize("field", FIELDS)
def test_check_every_flipped_header_bit_is_refused(low_bit: LowBitLibrary, field: str) -> None:
    start, size = FIELDS[field]
    for bit in range(8 * size):
        packed = example()
        packed[start + bit // 8] ^= 1 << bit % 8
        assert low_bit.check(packed), f"bit {bit} of {field}"
        if field not in MAY_CHANGE | {"hash"}:
            assert low_bit.check(rehash(packed)), f"bit {bit} of {field} with a correct hash"


@pytest.mark.parametrize("field", sorted(MAY_CHANGE))
def test_check_forged_sizes_are_refused_or_harmless(low_bit: LowBitLibrary, isa: str, field: str) -> None:
    start, size = FIELDS[field]
    for bit in range(8 * size):
        packed = example()
        packed[start + bit // 8] ^= 1 << bit % 8
        if low_bit.check(rehash(packed)) == "":
            k, n = struct.unpack_from("<2Q", packed.tobytes(), 24)
            for rounds in (False, True)[: 1 if packed[56] == 2 else 2]:  # books of floats take floats
                low_bit.run(packed, np.ones((3, k), np.float32), n, isa, rounds=rounds)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 256.0, 0.5])
def test_check_book_of_what_bytes_cannot_hold_is_refused(low_bit: LowBitLibrary, value: float) -> None:
    packed = pack_low_bit(matrix(40, 9, 2, 32, book=True))
    packed[64:68] = np.frombuffer(struct.pack("<f", value), np.uint8)
    assert "entry 0 of the book" in low_bit.check(rehash(packed))


@pytest.mark.parametrize("extra", [-64, -1, 1, 64])
def test_check_other_lengths_are_refused(low_bit: LowBitLibrary, extra: int) -> None:
    packed = example()
    changed = packed[:extra].copy() if extra < 0 else np.concatenate([packed, np.zeros(extra, np.uint8)])
    assert "the header says" in low_bit.check(changed)
    changed[16:24] = np.frombuffer(struct.pack("<Q", changed.size), np.uint8)
    assert low_bit.check(rehash(changed))
