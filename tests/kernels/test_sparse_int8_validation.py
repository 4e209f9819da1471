"""Damaged packed int8 weights are refused with a reason; nothing outside the bytes is read."""

from __future__ import annotations

import ctypes
import struct

import numpy as np
import pytest

from graphopt.runtime.library import kernel_library
from graphopt.solve.pack_sparse_int8 import pack_sparse_int8
from int8_calls import Int8Library, block_sparse

FIELDS = {
    "magic": (0, 8),
    "format version": (8, 4),
    "header bytes": (12, 4),
    "bytes": (16, 8),
    "K": (24, 4),
    "N": (28, 4),
    "unit": (32, 4),
    "k_block": (36, 4),
    "panel": (40, 4),
    "reserved": (44, 4),
    "steps": (48, 8),
    "offset of scales": (56, 8),
    "offset of fixes": (64, 8),
    "offset of totals": (72, 8),
    "offset of blocks": (80, 8),
    "offset of groups": (88, 8),
    "offset of indices": (96, 8),
    "offset of values": (104, 8),
    "groups": (112, 8),
    "hash": (120, 8),
}
SIZES = ("K", "N", "unit", "k_block", "panel")


@pytest.fixture(scope="module")
def int8() -> Int8Library:
    return Int8Library(ctypes.CDLL(str(kernel_library())))


def rehash(packed: np.ndarray) -> np.ndarray:
    value = 0xCBF29CE484222325
    for byte in packed[:120].tobytes():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    packed[120:128] = np.frombuffer(struct.pack("<Q", value), np.uint8)
    return packed


def example(unit: int = 1) -> np.ndarray:
    w = block_sparse(200, 90, unit, 0.3)
    return pack_sparse_int8(w, np.ones(90, np.float32), unit=unit, k_block=64, panel=48)


def flipped(unit: int, start: int, bit: int) -> np.ndarray:
    packed = example(unit)
    packed[start + bit // 8] ^= 1 << bit % 8
    return packed


@pytest.mark.parametrize("unit", [1, 4])
def test_check_valid_is_accepted(int8: Int8Library, unit: int) -> None:
    assert int8.check(example(unit)) == ""
    assert int8.check(rehash(example(unit))) == ""
    assert int8.check(pack_sparse_int8(np.zeros((5, 3), np.int8), np.ones(3, np.float32), unit=unit)) == ""


@pytest.mark.parametrize("field", FIELDS)
def test_check_every_flipped_header_bit_is_refused(int8: Int8Library, field: str) -> None:
    start, size = FIELDS[field]
    for bit in range(8 * size):
        assert int8.check(flipped(1, start, bit)), f"bit {bit} of {field}"


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("field", [field for field in FIELDS if field not in {"hash", *SIZES}])
def test_check_every_flipped_header_bit_with_a_correct_hash_is_refused(
    int8: Int8Library, unit: int, field: str
) -> None:
    start, size = FIELDS[field]
    for bit in range(8 * size):
        assert int8.check(rehash(flipped(unit, start, bit))), f"bit {bit} of {field}"


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("field", SIZES)
def test_check_forged_sizes_are_refused_or_harmless(int8: Int8Library, isa: str, unit: int, field: str) -> None:
    start, size = FIELDS[field]
    for bit in range(8 * size):
        packed = rehash(flipped(unit, start, bit))
        if int8.check(packed) == "":
            k, n = struct.unpack_from("<2I", packed.tobytes(), 24)
            assert np.all(np.isfinite(int8.matmul(packed, np.ones((3, k), np.float32), n, isa)))


def test_check_every_truncation_is_refused(int8: Int8Library) -> None:
    packed = example()
    for size in [*range(300), *range(300, len(packed), 97), len(packed) - 1]:
        assert int8.check(packed[:size].copy())
        if size >= 128:
            shorter = packed[:size].copy()
            shorter[16:24] = np.frombuffer(struct.pack("<Q", size), np.uint8)
            assert int8.check(rehash(shorter))


def test_check_trailing_bytes_are_refused(int8: Int8Library) -> None:
    longer = np.concatenate([example(), np.zeros(64, np.uint8)])
    longer[16:24] = np.frombuffer(struct.pack("<Q", len(longer)), np.uint8)
    assert "left over" in int8.check(rehash(longer))


@pytest.mark.parametrize(
    ("section", "offset", "value", "reason"),
    [
        ("scales", 0, struct.pack("<f", np.nan), "scale 0 is not a positive number"),
        ("scales", 4, struct.pack("<f", -1), "scale 1 is not a positive number"),
        ("scales", 8, struct.pack("<f", np.inf), "scale 2 is not a positive number"),
        ("blocks", 0, struct.pack("<Q", 1), "block 0 does not start where"),
        ("blocks", 16, struct.pack("<Q", 99999), "block 1 does not start where"),
        ("blocks", 24, struct.pack("<Q", 99999), "reach beyond the section"),
        ("groups", 0, struct.pack("<H", 17), "has 17 steps; the block has 16 fours"),
        ("groups", 2, struct.pack("<H", 49), "is there twice or outside"),
        ("groups", 2, struct.pack("<H", 65535), "is there twice or outside"),
        ("groups", 2, struct.pack("<H", 48), "lists 47 of the 48 units"),
        ("indices", 0, struct.pack("<H", 16), "index 16 in block 0 is outside its 16 fours"),
        ("indices", 0, struct.pack("<H", 65535), "is outside its 16 fours"),
        ("totals", 4, struct.pack("<i", 1 << 20), "the weights of output 1 add up to"),
    ],
)
def test_check_damaged_sections_are_refused(
    int8: Int8Library, section: str, offset: int, value: bytes, reason: str
) -> None:
    packed = example()
    start = struct.unpack_from("<Q", packed.tobytes(), FIELDS[f"offset of {section}"][0])[0] + offset
    packed[start : start + len(value)] = np.frombuffer(value, np.uint8)
    assert reason in int8.check(packed)


def test_check_a_weight_behind_the_last_row_is_refused(int8: Int8Library) -> None:
    packed = pack_sparse_int8(np.ones((5, 1), np.int8), np.ones(1, np.float32))
    assert int8.check(packed) == ""
    start = struct.unpack_from("<Q", packed.tobytes(), FIELDS["offset of values"][0])[0]
    at = start + 4 * next(i for i, four in enumerate(packed[start:].reshape(-1, 4)) if four.sum() == 1)
    packed[at + 1] = 1
    assert "outside its 5 rows" in int8.check(packed)


def test_check_a_unit_listed_twice_is_refused(int8: Int8Library) -> None:
    packed = example()
    start = struct.unpack_from("<Q", packed.tobytes(), FIELDS["offset of groups"][0])[0]
    packed[start + 2 : start + 4] = packed[start + 4 : start + 6]
    assert "is there twice" in int8.check(packed)


def test_check_random_damage_is_refused_or_harmless(int8: Int8Library, isa: str) -> None:
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(300):
        packed = example(int(rng.choice([1, 4])))
        packed[rng.integers(128, packed.size)] = rng.integers(0, 256)
        if int8.check(packed) == "":
            accepted += 1
            int8.matmul(packed, np.ones((3, 200), np.float32), 90, isa)
    assert 0 < accepted < 300
