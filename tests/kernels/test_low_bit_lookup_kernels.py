"""LowBitMatMul of one bit: sums that are looked up are those of products to the bit, and the choice is pinned."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.library import isa_report, kernel_library
from graphopt.solve.pack_low_bit import LowBitMatrix, pack_low_bit
from kernel_calls import runs_here
from low_bit_calls import LowBitLibrary, exact, matrix

BLOCKS = (32, 96, 128, 256, 288, 544, 1024)
MANY = 40  # rows of a call that multiplies


@pytest.fixture(scope="module")
def low_bit() -> LowBitLibrary:
    return LowBitLibrary(ctypes.CDLL(str(kernel_library())))


@pytest.fixture
def isa() -> str:
    """The set that has tables."""
    return runs_here("avx512vnni")


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def same_as_products(low_bit: LowBitLibrary, isa: str, w: LowBitMatrix, x: np.ndarray) -> None:
    """The rows of x alone, and among so many that nothing is looked up."""
    packed, n = pack_low_bit(w), w.codes.shape[1]
    among = np.concatenate([x, random(MANY - len(x), x.shape[1], seed=1)])
    products = low_bit.run(packed, among, n, isa)[: len(x)]
    found = low_bit.run(packed, x, n, isa)
    assert found.tobytes() == products.tobytes(), (isa, x.shape, n, w.block)
    wanted, bound = exact(x, w, rounds=True)
    assert np.all(np.abs(found - wanted) <= bound)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("zeros", ["constant", "bytes", "offsets"])
def test_lookup_gives_the_bits_of_products(low_bit: LowBitLibrary, isa: str, block: int, zeros: str) -> None:
    for k, n in ((block, 449), (2 * block + 5, 512), (900, 710)):
        w = matrix(k, n, 1, block, zeros)
        for m in (1, 5):
            assert low_bit.choice(pack_low_bit(w), isa, m) == "lookup"
            same_as_products(low_bit, isa, w, random(m, k))


@pytest.mark.parametrize("block", [256, 1024])
def test_lookup_largest_sums_do_not_overflow(low_bit: LowBitLibrary, isa: str, block: int) -> None:
    for code in (0, 1):
        codes = np.full((1024, 512), code, np.uint8)
        for zero in (0, 1, 255):
            w = LowBitMatrix(codes, np.ones((1024 // block, 512), np.float32), 1, block, zero)
            for sign in (1, -1):
                same_as_products(low_bit, isa, w, np.full((1, 1024), sign * 3e30, np.float32))


def test_lookup_each_input_meets_its_own_weight(low_bit: LowBitLibrary, isa: str) -> None:
    codes = np.tile(np.eye(128, dtype=np.uint8), 4)
    packed = pack_low_bit(LowBitMatrix(codes, np.full((1, 512), 0.5, np.float32), 1, 128, 0))
    x = (np.arange(128, dtype=np.float32) - 64).reshape(1, 128)
    x[0, 0] = 127  # the largest: steps are 1
    y = low_bit.run(packed, x, 512, isa)
    assert np.allclose(y[0], np.tile(x[0], 4), rtol=1e-6)


def test_lookup_not_a_number_spoils_its_row_only(low_bit: LowBitLibrary, isa: str) -> None:
    packed, x = pack_low_bit(matrix(300, 460, 1, 64)), random(3, 300)
    bad = x.copy()
    bad[1, 250] = np.nan
    y, wanted = low_bit.run(packed, bad, 460, isa), low_bit.run(packed, x, 460, isa)
    assert np.isnan(y[1]).all()
    assert y[::2].tobytes() == wanted[::2].tobytes()


def test_lookup_epilogue_and_bytes_at_odd_addresses(low_bit: LowBitLibrary, isa: str) -> None:
    packed, x = pack_low_bit(matrix(200, 470, 1, 128, "bytes")), random(2, 200)
    bias, residual = random(470), random(2, 470, seed=1)
    plain = low_bit.run(packed, x, 470, isa)
    found = low_bit.run(packed, x, 470, isa, bias=bias, residual=residual, activation="relu")
    assert np.array_equal(found, np.maximum(plain + bias + residual, 0))
    room = np.zeros(packed.nbytes + 128, np.uint8)
    moved = room[7 - room.ctypes.data % 64 + 64 :][: packed.nbytes]
    moved[:] = packed
    assert low_bit.run(moved, x, 470, isa).tobytes() == plain.tobytes()


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 32),
    k=st.integers(1, 900),
    n=st.integers(449, 900),
    block=st.sampled_from(BLOCKS),
    zeros=st.sampled_from(["constant", "bytes", "offsets"]),
    seed=st.integers(0, 99),
)
def test_lookup_gives_the_bits_of_products_for_any_shape(
    m: int, k: int, n: int, block: int, zeros: str, seed: int
) -> None:
    low_bit = LowBitLibrary(ctypes.CDLL(str(kernel_library())))
    same_as_products(low_bit, isa_report().chosen, matrix(k, n, 1, block, zeros, seed=seed), random(m, k, seed=seed))


@pytest.mark.parametrize(
    ("isa", "k", "n", "bits", "wanted"),
    [
        ("avx512vnni", 768, 3072, 1, {1: "lookup", 32: "lookup", 33: "dot"}),
        ("avx512vnni", 4096, 449, 1, {1: "lookup", 8: "lookup", 9: "dot"}),
        ("avx512vnni", 32768, 449, 1, {1: "lookup", 2: "dot"}),
        ("avx512vnni", 32769, 512, 1, {1: "dot"}),
        ("avx512vnni", 768, 448, 1, {1: "dot"}),
        ("avx512vnni", 768, 3072, 2, {1: "dot"}),
        ("avx512", 768, 3072, 1, {1: "dot"}),
        ("avx2", 768, 3072, 1, {1: "dot"}),
        ("avxvnni", 768, 3072, 1, {1: "dot"}),
        ("scalar", 768, 3072, 1, {1: "dot"}),
        ("neon", 768, 3072, 1, {1: "dot"}),
        ("neon-dotprod", 768, 3072, 1, {1: "dot"}),
    ],
)
def test_lookup_is_chosen_by_shape_format_and_instruction_set(
    low_bit: LowBitLibrary, isa: str, k: int, n: int, bits: int, wanted: dict[int, str]
) -> None:
    """Tables of all rows stay in L2, and outputs are enough to be worth making them."""
    codes = np.zeros((k, n), np.uint8)
    packed = pack_low_bit(LowBitMatrix(codes, np.ones((-(-k // 128), n), np.float32), bits, 128, 1))
    for m, choice in wanted.items():
        assert low_bit.choice(packed, isa, m) in {choice, ""}, "the set may belong to another platform"


def test_lookup_choice_of_damaged_bytes_is_an_error(low_bit: LowBitLibrary) -> None:
    packed = pack_low_bit(matrix(64, 64, 1, 32))
    assert low_bit.choice(packed, "scalar", 1) == "dot"
    packed[70] ^= 1
    assert low_bit.choice(packed, "scalar", 1) == ""
    assert low_bit.choice(pack_low_bit(matrix(64, 64, 1, 32)), "sse9", 1) == ""
