"""LowBitMatMul: every implementation against the plain C++ reference and numpy, through the C interface."""

from __future__ import annotations

import ctypes
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.library import isa_report, kernel_library
from graphopt.solve.pack_low_bit import LowBitMatrix, pack_low_bit
from kernel_calls import ACTIVATIONS
from low_bit_calls import LowBitLibrary, exact, matrix, rounded

FORMS = [
    (bits, block, zeros, book)
    for bits in (1, 2, 3, 4, 8)
    for block in (16, 32, 128)
    for zeros in ("constant", "bytes", "offsets")
    for book in (False, True)
    if (block != 16 or bits in {2, 4, 8}) and (not book or (bits in {2, 3, 4} and block != 16))
]
SHAPES = [(1, 1), (5, 3), (33, 17), (64, 64), (70, 130), (131, 65), (300, 31)]
ROWS = (1, 2, 3, 5, 7, 12, 13, 31, 66)


@pytest.fixture(scope="session")
def low_bit() -> LowBitLibrary:
    return LowBitLibrary(ctypes.CDLL(str(kernel_library())))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def agree(low_bit: LowBitLibrary, isa: str, w: LowBitMatrix, x: np.ndarray, *, rounds: bool) -> None:
    y = low_bit.run(pack_low_bit(w), x, w.codes.shape[1], isa, rounds=rounds)
    wanted, bound = exact(x, w, rounds=rounds)
    excess = np.abs(y - wanted) - bound
    assert excess.max() <= 0, f"{isa} {x.shape} rounds={rounds} {w.bits} bits: {excess.max()} beyond the bound"


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_kernel_every_form_is_within_the_rounding_bound(
    low_bit: LowBitLibrary, isa: str, form: tuple[int, int, str, bool]
) -> None:
    bits, block, zeros, book = form
    w = matrix(block + 37, 70, bits, block, zeros, book=book)
    for m in (1, 4, 6, 25):
        for rounds in (True, False):
            agree(low_bit, isa, w, random(m, block + 37), rounds=rounds)


@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_kernel_any_size_is_within_the_rounding_bound(low_bit: LowBitLibrary, isa: str, k: int, n: int) -> None:
    for i, m in enumerate(ROWS):
        bits = (1, 2, 3, 4, 8)[i % 5]
        for block in (32, 64):
            agree(low_bit, isa, matrix(k, n, bits, block), random(m, k), rounds=True)
        agree(low_bit, isa, matrix(k, n, bits, 32, "bytes"), random(m, k), rounds=False)


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(1, 70),
    k=st.integers(1, 400),
    n=st.integers(1, 140),
    form=st.sampled_from(FORMS),
    rounds=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernel_chosen_set_agrees_with_the_reference(
    m: int, k: int, n: int, form: tuple[int, int, str, bool], rounds: bool, seed: int
) -> None:
    bits, block, zeros, book = form
    low_bit = LowBitLibrary(ctypes.CDLL(str(kernel_library())))
    w = matrix(k, n, bits, block, zeros, book=book, seed=seed)
    x, packed = random(m, k, seed=seed), pack_low_bit(w)
    _, bound = exact(x, w, rounds=rounds)
    wanted = low_bit.run(packed, x, n, "reference", rounds=rounds)
    found = low_bit.run(packed, x, n, isa_report().chosen, rounds=rounds)
    assert np.all(np.abs(wanted - found) <= bound + np.abs(wanted) * 2e-7)


def test_reference_agrees_with_numpy(low_bit: LowBitLibrary) -> None:
    for bits, block, zeros, book in FORMS:
        w = matrix(150, 20, bits, block, zeros, book=book)
        x = random(3, 150)
        for rounds in (True, False):
            wanted, _ = exact(x, w, rounds=rounds)
            y = low_bit.run(pack_low_bit(w), x, 20, "reference", rounds=rounds)
            assert np.allclose(y, wanted, rtol=2e-7, atol=1e-6 * np.abs(wanted).max())


def test_kernel_rows_do_not_depend_on_the_rows_beside_them(low_bit: LowBitLibrary, isa: str) -> None:
    for bits, block in ((4, 32), (4, 128), (1, 64), (8, 16)):
        packed, x = pack_low_bit(matrix(200, 90, bits, block)), random(400, 200)
        alone = np.concatenate([low_bit.run(packed, x[i : i + 1], 90, isa) for i in range(0, 400, 57)])
        for m in (3, 11, 29, 400):
            together = low_bit.run(packed, x[:m], 90, isa)
            assert together[::57].tobytes() == alone[: len(together[::57])].tobytes(), (bits, block, m)


def test_kernel_every_epilogue(low_bit: LowBitLibrary, isa: str) -> None:
    w = matrix(64, 75, 4, 32)
    for m in (1, 5, 30):
        x, bias, residual = random(m, 64), random(75, seed=1), random(m, 75, seed=2)
        for i, activation in enumerate(ACTIVATIONS):
            for rounds in (True, False):
                run = partial(
                    low_bit.run,
                    pack_low_bit(w),
                    x,
                    75,
                    bias=bias if i % 2 else None,
                    residual=residual if i % 3 else None,
                    activation=activation,
                    low=-0.5,
                    high=1.5,
                    rounds=rounds,
                )
                wanted, found = run(isa="reference"), run(isa=isa)
                _, bound = exact(x, w, rounds=rounds)
                assert np.all(np.abs(found - wanted) <= 1.2 * bound + 4e-6 * np.maximum(np.abs(wanted), 1)), activation


@pytest.mark.parametrize("offset", [1, 2, 4, 7])
def test_kernel_unaligned_bytes_give_the_same_bits(low_bit: LowBitLibrary, isa: str, offset: int) -> None:
    for zeros, rounds in (("constant", True), ("bytes", True), ("offsets", True), ("bytes", False)):
        packed = pack_low_bit(matrix(100, 70, 4, 32, zeros))
        room = np.zeros(packed.nbytes + 128, np.uint8)
        start = -room.ctypes.data % 64 + offset
        moved = room[start : start + packed.nbytes]
        moved[:] = packed
        for m in (1, 12, 40):
            x = random(m, 100)
            wanted = low_bit.run(packed, x, 70, isa, rounds=rounds)
            assert low_bit.run(moved, x, 70, isa, rounds=rounds).tobytes() == wanted.tobytes()


def test_kernel_extreme_codes_and_activations_do_not_overflow(low_bit: LowBitLibrary, isa: str) -> None:
    for bits in (1, 2, 3, 4, 8):
        for block in (32, 1024):
            codes = np.full((1024, 3), (1 << bits) - 1, np.uint8)
            for zero in (0, 255):
                w = LowBitMatrix(codes, np.ones((1024 // block, 3), np.float32), bits, block, zero)
                for m in (1, 30):
                    for sign in (1, -1):
                        agree(low_bit, isa, w, np.full((m, 1024), sign * 3e30, np.float32), rounds=True)


def test_kernel_books_of_large_levels_do_not_overflow(low_bit: LowBitLibrary, isa: str) -> None:
    codes = np.full((256, 3), 3, np.uint8)
    w = LowBitMatrix(codes, np.ones((2, 3), np.float32), 2, 128, 0, (0.0, 1.0, 254.0, 255.0))
    agree(low_bit, isa, w, np.full((7, 256), -1, np.float32), rounds=True)


@pytest.mark.parametrize("rows", [1, 6, 40])
def test_kernel_rows_with_infinities_or_nan_are_nan_and_others_are_not(
    low_bit: LowBitLibrary, isa: str, rows: int
) -> None:
    for zeros in ("constant", "bytes", "offsets"):
        packed, x = pack_low_bit(matrix(90, 70, 4, 32, zeros)), random(rows, 90)
        for value in (np.inf, -np.inf, np.nan):
            bad = x.copy()
            bad[rows - 1, 40] = value
            y = low_bit.run(packed, bad, 70, isa)
            assert np.isnan(y[rows - 1]).all()
            assert y[: rows - 1].tobytes() == low_bit.run(packed, x, 70, isa)[: rows - 1].tobytes()
            relu = low_bit.run(packed, bad, 70, isa, activation="relu")
            assert np.isnan(relu[rows - 1]).all()


def test_kernel_tiny_activations_count_as_zeros(low_bit: LowBitLibrary, isa: str) -> None:
    w = matrix(64, 5, 4, 32)
    x = np.zeros((2, 64), np.float32)
    x[0, :32] = 2.0**-101
    x[1, :32] = 2.0**-99
    y = low_bit.run(pack_low_bit(w), x, 5, isa)
    assert not y[0].any()
    assert y[1].all()
    agree(low_bit, isa, w, x, rounds=True)
    agree(low_bit, isa, w, np.full((1, 64), 3e38, np.float32) * np.float32(1e-3), rounds=True)


def test_rounding_is_half_to_even_of_the_largest_over_127(low_bit: LowBitLibrary, isa: str) -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :7] = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]) / 4
    codes, _ = rounded(x, 32)
    assert codes[0, :7].tolist() == [127, 0, 2, 2, 0, -2, -126]
    w = LowBitMatrix(np.eye(32, 32, dtype=np.uint8), np.full((1, 32), 4, np.float32), 2, 32, 0)
    y = low_bit.run(pack_low_bit(w), x, 32, isa)
    assert np.allclose(y[0, :7], codes[0, :7], rtol=1e-6)


def test_kernel_no_rows(low_bit: LowBitLibrary, isa: str) -> None:
    packed = pack_low_bit(matrix(5, 3, 4, 32))
    for rounds in (True, False):
        assert low_bit.run(packed, np.zeros((0, 5), np.float32), 3, isa, rounds=rounds).shape == (0, 3)


def test_kernel_book_of_floats_needs_float_activations(low_bit: LowBitLibrary, isa: str) -> None:
    book = (-1.3, -0.2, 0.0, 0.7)
    codes = np.random.default_rng(0).integers(0, 4, (50, 9), dtype=np.uint8)
    w = LowBitMatrix(codes, np.ones((2, 9), np.float32), 2, 32, 0, book)
    agree(low_bit, isa, w, random(4, 50), rounds=False)
    with pytest.raises(AssertionError, match="a book of floats needs activations as floats"):
        low_bit.run(pack_low_bit(w), random(4, 50), 9, isa)


def test_kernel_unknown_set_is_refused(low_bit: LowBitLibrary) -> None:
    with pytest.raises(AssertionError, match="'sse9' is unknown or not supported"):
        low_bit.run(pack_low_bit(matrix(4, 4, 4, 32)), random(1, 4), 4, "sse9")
