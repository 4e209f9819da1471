"""Damaged packed matrices are refused with a reason; nothing outside the bytes is read."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from graphopt.solve.pack_sparse import BLOCK_ROWS, pack_sparse
from kernel_calls import Library, sparse

HEADER_FIELDS = {
    "magic": (0, 8),
    "format version": (8, 4),
    "header bytes": (12, 4),
    "bytes": (16, 8),
    "K": (24, 8),
    "N": (32, 8),
    "entries": (40, 8),
    "runs": (48, 8),
    "listed rows": (56, 8),
    "offset of blocks": (64, 8),
    "offset of runs": (72, 8),
    "offset of rows": (80, 8),
    "offset of indices": (88, 8),
    "offset of values": (96, 8),
    "k_block": (104, 4),
    "panel_rows": (108, 4),
    "block_rows": (112, 4),
    "reserved": (116, 4),
    "hash": (120, 8),
}


def rehash(packed: np.ndarray) -> np.ndarray:
    value = 0xCBF29CE484222325
    for byte in packed[:120].tobytes():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    packed[120:128] = np.frombuffer(struct.pack("<Q", value), np.uint8)
    return packed


def example(block_rows: int = 1) -> np.ndarray:
    if block_rows == 1:
        return pack_sparse(sparse(200, 90, 0.3), block_rows=1, k_block=64, panel_rows=40)
    return pack_sparse(sparse(200, 90, 0.1), block_rows=block_rows, k_block=64, panel_rows=48)


block_rows_any = pytest.mark.parametrize("block_rows", BLOCK_ROWS)


def test_check_valid_is_accepted(library: Library) -> None:
    for block_rows in BLOCK_ROWS:
        assert library.check(example(block_rows)) == ""
        assert library.check(rehash(example(block_rows))) == ""
    assert library.check(pack_sparse(np.zeros((5, 3), np.float32))) == ""


@pytest.mark.parametrize("field", HEADER_FIELDS)
@block_rows_any
def test_check_every_flipped_header_bit_is_refused(library: Library, field: str, block_rows: int) -> None:
    start, size = HEADER_FIELDS[field]
    for bit in range(8 * size):
        packed = example(block_rows)
        packed[start + bit // 8] ^= 1 << bit % 8
        assert library.check(packed), f"bit {bit} of {field}"


@pytest.mark.parametrize("field", [f for f in HEADER_FIELDS if f not in {"hash", "K", "N", "k_block", "panel_rows"}])
@block_rows_any
def test_check_every_flipped_header_bit_with_a_correct_hash_is_refused(
    library: Library, field: str, block_rows: int
) -> None:
    start, size = HEADER_FIELDS[field]
    for bit in range(8 * size):
        packed = example(block_rows)
        packed[start + bit // 8] ^= 1 << bit % 8
        assert library.check(rehash(packed)), f"bit {bit} of {field}"


@pytest.mark.parametrize("field", ["K", "N", "k_block", "panel_rows"])
@block_rows_any
def test_check_forged_sizes_are_refused_or_harmless(library: Library, isa: str, field: str, block_rows: int) -> None:
    start, size = HEADER_FIELDS[field]
    for bit in range(8 * size):
        packed = example(block_rows)
        packed[start + bit // 8] ^= 1 << bit % 8
        if library.check(rehash(packed)) == "":
            k, n = struct.unpack_from("<2Q", packed.tobytes(), 24)
            y = library.run(packed, np.ones((3, k), np.float32), n, isa)
            assert np.all(np.isfinite(y))


@block_rows_any
def test_check_every_truncation_is_refused(library: Library, block_rows: int) -> None:
    packed = example(block_rows)
    for size in [*range(300), *range(300, len(packed), 97), len(packed) - 1]:
        assert library.check(packed[:size].copy())
        if size >= 128:
            shorter = packed[:size].copy()
            shorter[16:24] = np.frombuffer(struct.pack("<Q", size), np.uint8)
            assert library.check(rehash(shorter))


def test_check_a_row_in_two_runs_is_refused(library: Library) -> None:
    w = np.zeros((8, 2), np.float32)
    w[:3, 0] = w[:5, 1] = 1
    packed = pack_sparse(w)
    assert library.check(packed) == ""
    (at,) = struct.unpack_from("<Q", packed.tobytes(), 80)
    packed[at + 2 : at + 4] = packed[at : at + 2]
    assert "is in two runs" in library.check(packed)


def test_check_trailing_bytes_are_refused(library: Library) -> None:
    longer = np.concatenate([example(), np.zeros(64, np.uint8)])
    longer[16:24] = np.frombuffer(struct.pack("<Q", len(longer)), np.uint8)
    assert "left over" in library.check(rehash(longer))


def sections(packed: np.ndarray) -> list[int]:
    return list(struct.unpack_from("<5Q", packed.tobytes(), 64))


@pytest.mark.parametrize(
    ("section", "offset", "value", "reason"),
    [
        (0, 0, "<Q1", "block 0 does not start at 0"),
        (0, 16, "<Q999999", "before those of the block before it"),
        (0, 16 + 8, "<I65000", "before those of the block before it"),
        (1, 0, "<H65", "more entries than columns"),
        (1, 0, "<H0", "no entries"),
        (1, 2, "<H0", "no rows"),
        (1, 2, "<H9999", "reaches beyond block"),
        (2, 0, "<H40", "outside its panel"),
        (2, 0, "<H65535", "outside its panel"),
        (3, 0, "<B64", "outside its 64 columns"),
        (3, 0, "<B255", "outside its 64 columns"),
    ],
)
def test_check_damaged_section_is_refused(library: Library, section: int, offset: int, value: str, reason: str) -> None:
    packed = example()
    at = sections(packed)[section] + offset
    data = struct.pack(value[:2], int(value[2:]))
    packed[at : at + len(data)] = np.frombuffer(data, np.uint8)
    assert reason in library.check(packed)


@pytest.mark.parametrize(
    ("section", "offset", "value", "reason"),
    [
        (0, 0, "<Q1", "block 0 does not start at 0"),
        (0, 8, "<Q999999", "before that of the block before it"),
        (0, 8, "<Q18446744073709551615", "before that of the block before it"),
        (0, -1, "<Q3", "before that of the block before it"),
        (3, 0, "<H64", "outside its 64 columns"),
        (3, 0, "<H65535", "outside its 64 columns"),
        (3, 2, "<H0", "out of order"),
    ],
)
def test_check_damaged_strips_are_refused(library: Library, section: int, offset: int, value: str, reason: str) -> None:
    packed = example(8)
    starts, k_blocks = sections(packed), 4
    at = starts[section] + (offset if offset >= 0 else -(-90 // 8) * k_blocks * 8)
    data = struct.pack(value[:2], int(value[2:]))
    packed[at : at + len(data)] = np.frombuffer(data, np.uint8)
    assert reason in library.check(packed)


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (48, "<Q1", "which strips have not"),
        (56, "<Q1", "which strips have not"),
        (104, "<I0", "a K-block of 0; it must be 1 to 65536"),
        (104, "<I65537", "a K-block of 65537"),
        (108, "<I40", "panels of 40 rows, which is no multiple of 16"),
        (108, "<I8192", "they must have 1 to 4096"),
        (112, "<I2", "blocks of 2 rows; there are blocks of 1, 4, 8 and 16"),
        (112, "<I0", "blocks of 0 rows"),
        (40, "<Q99999", "more entries than the matrix has places"),
    ],
)
def test_check_forged_field_of_strips_is_refused(library: Library, at: int, value: str, reason: str) -> None:
    packed = example(4)
    data = struct.pack(value[:2], int(value[2:]))
    packed[at : at + len(data)] = np.frombuffer(data, np.uint8)
    assert reason in library.check(rehash(packed))


def test_check_rows_out_of_order_are_refused(library: Library) -> None:
    packed = pack_sparse(np.ones((4, 6), np.float32), block_rows=1)
    rows = sections(packed)[2]
    packed[rows + 2 : rows + 4] = 0
    assert "out of order" in library.check(packed)


def test_check_index_beyond_the_last_short_block_is_refused(library: Library) -> None:
    packed = pack_sparse(np.ones((130, 1), np.float32), block_rows=1, k_block=128)
    packed[sections(packed)[3] + 128] = 2
    assert "outside its 2 columns" in library.check(packed)


def test_check_other_version_names_both(library: Library) -> None:
    packed = example()
    packed[8] = 1
    assert library.check(packed) == "format version 1; this library reads version 2"
