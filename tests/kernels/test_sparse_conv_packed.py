"""Packed convolution weights: what goes in comes out; of damaged ones nothing outside the bytes is read."""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conv_calls import ConvLibrary, Steps
from graphopt.errors import KernelError
from graphopt.solve.pack_sparse_conv import (
    BLOCKS,
    block_entries,
    pack_sparse_conv,
    packed_conv_bytes,
    read_sizes,
    unpack_sparse_conv,
)

if TYPE_CHECKING:
    from kernel_calls import Library

HEADER_BYTES = 192
HEADER_FIELDS = {
    "magic": (0, 8),
    "format version": (8, 4),
    "header bytes": (12, 4),
    "bytes": (16, 8),
    "output channels": (24, 8),
    "groups": (32, 8),
    "input channels": (40, 8),
    "kernel height": (48, 8),
    "kernel width": (56, 8),
    "entries": (64, 8),
    "runs": (72, 8),
    "listed rows": (80, 8),
    "offset of parts": (88, 8),
    "offset of runs": (96, 8),
    "offset of listed rows": (104, 8),
    "offset of indices": (112, 8),
    "offset of values": (120, 8),
    "block": (128, 4),
    "k_block": (132, 4),
    "panel_rows": (136, 4),
    "group_rows": (140, 4),
    "reserved": (144, 40),
    "hash": (184, 8),
}
SIZES = (
    "output channels",
    "groups",
    "input channels",
    "kernel height",
    "kernel width",
    "block",
    "k_block",
    "panel_rows",
)


@pytest.fixture
def conv(library: Library) -> ConvLibrary:
    return ConvLibrary(library.dll)


def weight(*shape: int, density: float = 0.3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape).astype(np.float32)
    w[rng.random(shape) >= density] = 0
    return w


def rehash(packed: np.ndarray) -> np.ndarray:
    value = 0xCBF29CE484222325
    for byte in packed[: HEADER_BYTES - 8].tobytes():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    packed[HEADER_BYTES - 8 : HEADER_BYTES] = np.frombuffer(struct.pack("<Q", value), np.uint8)
    return packed


@cache
def _example(block: int) -> np.ndarray:
    return pack_sparse_conv(weight(22, 4, 3, 2), group=2, block=block, k_block=10, panel_rows=5)


def example(block: int = 1) -> np.ndarray:
    return _example(block).copy()


def forged(packed: np.ndarray, at: int, value: str) -> np.ndarray:
    data = struct.pack(value[:2], int(value[2:]))
    packed[at : at + len(data)] = np.frombuffer(data, np.uint8)
    return packed


def sections(packed: np.ndarray) -> list[int]:
    return list(struct.unpack_from("<5Q", packed.tobytes(), 88))


@given(
    *(st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.lists(st.integers(1, 4), min_size=1, max_size=2)),
    *(st.sampled_from(BLOCKS), st.integers(0, 40), st.integers(0, 12), st.floats(0, 1), st.integers(0, 9)),
)
def test_pack_what_goes_in_comes_out(
    channels: int,
    group: int,
    inputs: int,
    kernel: list[int],
    block: int,
    k_block: int,
    panel_rows: int,
    density: float,
    seed: int,
) -> None:
    w = weight(channels * group, inputs, *kernel, density=density, seed=seed)
    packed = pack_sparse_conv(w, group=group, block=block, k_block=k_block, panel_rows=panel_rows)
    assert packed.dtype == np.uint8
    assert np.array_equal(unpack_sparse_conv(packed).reshape(w.shape), w)
    sizes = read_sizes(packed)
    assert (sizes.shape[:2], sizes.group, sizes.block) == (w.shape[:2], group, block)
    assert sizes.entries == block_entries(w, group=group, block=block)


def test_pack_keeps_nan_and_infinity_and_leaves_out_zeros_of_either_sign() -> None:
    w = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45], np.float32).reshape(6, 1, 1, 1)
    packed = pack_sparse_conv(w)
    assert read_sizes(packed).entries == 4
    assert np.array_equal(unpack_sparse_conv(packed), w, equal_nan=True)


@pytest.mark.parametrize("block", BLOCKS)
def test_pack_bytes_are_foretold(block: int) -> None:
    for shape, group in (((256, 128, 3, 3), 1), ((512, 64, 1, 1), 1), ((96, 24, 3, 3), 4)):
        w = weight(*shape, density=0.1)
        actual = pack_sparse_conv(w, group=group, block=block).nbytes
        assert actual * 0.98 - 4096 <= packed_conv_bytes(w, group=group, block=block) <= actual * 1.2 + 4096


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ((4, 4), {}, "cannot be packed"),
        ((4, 0, 3, 3), {}, "cannot be packed"),
        ((4, 4, 3, 3, 3), {}, "cannot be packed"),
        ((5, 4, 3, 3), {"group": 2}, "in 2 groups"),
        ((5, 4, 3, 3), {"block": 2}, "rows of 2 channels"),
        ((5, 4, 3, 3), {"k_block": 65537}, "x 65537"),
        ((5, 4, 3, 3), {"panel_rows": 65536}, "parts of 65536"),
    ],
)
def test_pack_what_cannot_be_packed_is_refused(shape: tuple[int, ...], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(KernelError, match=reason):
        pack_sparse_conv(np.zeros(shape, np.float32), **options)
    with pytest.raises(KernelError, match="float64"):
        pack_sparse_conv(np.zeros((1, 1, 1, 1)))  # type: ignore[arg-type]


def test_unpack_other_bytes_are_refused() -> None:
    with pytest.raises(KernelError, match="not a packed"):
        unpack_sparse_conv(np.zeros(500, np.uint8))
    with pytest.raises(KernelError, match="version 2"):
        unpack_sparse_conv(rehash(forged(example(), 8, "<I2")))


def test_check_valid_is_accepted(conv: ConvLibrary) -> None:
    for block in BLOCKS:
        assert conv.check(example(block)) == ""
        assert conv.check(rehash(example(block))) == ""
    assert conv.check(pack_sparse_conv(np.zeros((5, 3, 2), np.float32))) == ""


@pytest.mark.parametrize("field", HEADER_FIELDS)
def test_check_every_flipped_header_bit_is_refused(conv: ConvLibrary, field: str) -> None:
    start, size = HEADER_FIELDS[field]
    for bit in range(8 * size):
        packed = example()
        packed[start + bit // 8] ^= 1 << bit % 8
        assert conv.check(packed), f"bit {bit} of {field}"


@pytest.mark.parametrize("field", [field for field in HEADER_FIELDS if field not in {*SIZES, "hash"}])
@pytest.mark.parametrize("block", BLOCKS)
def test_check_every_flipped_header_bit_with_a_correct_hash_is_refused(
    conv: ConvLibrary, field: str, block: int
) -> None:
    start, size = HEADER_FIELDS[field]
    for bit in range(8 * size):
        packed = example(block)
        packed[start + bit // 8] ^= 1 << bit % 8
        assert conv.check(rehash(packed)), f"bit {bit} of {field}"


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("block", BLOCKS)
def test_check_forged_sizes_are_refused_or_harmless(conv: ConvLibrary, isa: str, field: str, block: int) -> None:
    start, size = HEADER_FIELDS[field]
    for bit in range(8 * size):
        packed = example(block)
        packed[start + bit // 8] ^= 1 << bit % 8
        if conv.check(rehash(packed)) == "":
            channels, groups, inputs, height, width = struct.unpack_from("<5Q", packed.tobytes(), 24)
            x = np.ones((1, groups * inputs, height + 2, width + 3), np.float32)
            conv.run(packed, x, isa, (channels, inputs, height, width), Steps())


@pytest.mark.parametrize("block", BLOCKS)
def test_check_every_truncation_is_refused(conv: ConvLibrary, block: int) -> None:
    packed = example(block)
    for size in [*range(300), *range(300, len(packed), 61), len(packed) - 1]:
        assert conv.check(packed[:size].copy())
        if size >= HEADER_BYTES:
            assert conv.check(rehash(forged(packed[:size].copy(), 16, f"<Q{size}")))


def test_check_trailing_bytes_are_refused(conv: ConvLibrary) -> None:
    longer = np.concatenate([example(), np.zeros(64, np.uint8)])
    assert "left over" in conv.check(rehash(forged(longer, 16, f"<Q{len(longer)}")))


@pytest.mark.parametrize(
    ("section", "offset", "value", "reason"),
    [
        (0, 0, "<Q1", "part 0 does not start at 0"),
        (0, 16, "<Q999999", "before those of the part before it"),
        (0, 16 + 8, "<I65000", "before those of the part before it"),
        (0, 16 + 12, "<I4", "lists 4 rows and its panel has 5"),
        (1, 0, "<I11", "more entries than columns"),
        (1, 4, "<I0", "no rows"),
        (1, 4, "<I9999", "reaches beyond part"),
        (2, 0, "<H5", "outside its panel of 5 rows"),
        (2, 0, "<H65535", "outside its panel"),
        (3, 0, "<H10", "outside its 10 columns"),
        (3, 0, "<H65535", "outside its 10 columns"),
    ],
)
@pytest.mark.parametrize("block", [1, 4])
def test_check_damaged_section_is_refused(
    conv: ConvLibrary, section: int, offset: int, value: str, reason: str, block: int
) -> None:
    packed = pack_sparse_conv(weight(11 * block, 4, 3, 2), block=block, k_block=10, panel_rows=5)
    assert reason in conv.check(forged(packed, sections(packed)[section] + offset, value))


def test_check_row_listed_twice_is_refused(conv: ConvLibrary) -> None:
    packed = example()
    at = sections(packed)[2]
    packed[at : at + 2] = packed[at + 2 : at + 4]
    assert "listed twice" in conv.check(packed)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("output channels", "<Q0", "zero or not below 2^31"),
        ("kernel width", f"<Q{1 << 31}", "zero or not below 2^31"),
        ("kernel width", f"<Q{(1 << 31) - 1}", "2^31 columns or more"),
        ("groups", "<Q3", "not a multiple of the 3 groups"),
        ("block", "<I2", "blocks of 2 channels; they have 1, 4 or 8"),
        ("k_block", "<I0", "a K-block of 0"),
        ("k_block", "<I65537", "a K-block of 65537"),
        ("panel_rows", "<I65536", "panels of 65536 rows"),
        ("group_rows", "<I4", "groups that do not have 8 rows"),
        ("entries", "<Q99999", "more entries than the weight has places"),
        ("listed rows", "<Q1", "the number of listed rows"),
        ("runs", "<Q9999", "more runs than listed rows"),
    ],
)
def test_check_forged_field_is_refused(conv: ConvLibrary, field: str, value: str, reason: str) -> None:
    assert reason in conv.check(rehash(forged(example(), HEADER_FIELDS[field][0], value)))


def test_check_other_version_names_both(conv: ConvLibrary) -> None:
    assert conv.check(forged(example(), 8, "<I2")) == "format version 2; this library reads version 1"
