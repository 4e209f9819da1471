"""The block forms, and what is done to sums before they are stored: every implementation against the reference."""

from __future__ import annotations

import ctypes
from functools import partial

import numpy as np
import pytest

from graphopt.solve.pack_sparse import BLOCK_ROWS, pack_sparse
from kernel_calls import ACTIVATIONS, Library, rounding_bound, runs_here

ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 33, 40, 65)
block_rows_any = pytest.mark.parametrize("block_rows", BLOCK_ROWS)
blocks_only = pytest.mark.parametrize("block_rows", [b for b in BLOCK_ROWS if b > 1])


@pytest.fixture(params=["scalar", "avx2", "avx512", "neon"])
def isa(request: pytest.FixtureRequest) -> str:
    """The sets that have an implementation of their own."""
    return runs_here(request.param)


def blocks(k: int, n: int, density: float, block_rows: int) -> np.ndarray:
    """Gaussian [k, n] with about this share of blocks of so many columns."""
    rng = np.random.default_rng([k, n, block_rows])
    kept = rng.random((k, -(-n // block_rows))) < density
    w: np.ndarray = rng.standard_normal((k, n)).astype(np.float32) * np.repeat(kept, block_rows, axis=1)[:, :n]
    return w


def check(library: Library, isa: str, w: np.ndarray, packed: np.ndarray, m: int, *, bias: bool) -> None:
    rng = np.random.default_rng(m)
    x: np.ndarray = rng.standard_normal((m, len(w))).astype(np.float32)
    b = rng.standard_normal((w.shape[1],)).astype(np.float32) if bias else None
    y = library.run(packed, x, w.shape[1], isa, b)
    exact = x.astype(np.float64) @ w + (0 if b is None else b)
    excess = np.abs(y - exact) - rounding_bound(x, w, b)
    assert excess.max() <= 0, f"{isa} M={m} K={w.shape[0]} N={w.shape[1]}: {excess.max()} beyond the bound"


@blocks_only
@pytest.mark.parametrize(("k", "n"), [(1, 1), (3, 5), (17, 33), (129, 130), (40, 515), (300, 64)])
def test_blocks_any_size_is_within_the_rounding_bound(
    library: Library, isa: str, k: int, n: int, block_rows: int
) -> None:
    w = blocks(k, n, 0.3, block_rows)
    packed = pack_sparse(w, block_rows=block_rows)
    for m in ROWS:
        check(library, isa, w, packed, m, bias=m % 2 == 0)


@blocks_only
@pytest.mark.parametrize(("k_block", "panel_rows"), [(1, 16), (7, 48), (256, 4096), (65536, 32)])
def test_blocks_any_panel_is_within_the_rounding_bound(
    library: Library, isa: str, k_block: int, panel_rows: int, block_rows: int
) -> None:
    w = blocks(150, 90, 0.3, block_rows)
    packed = pack_sparse(w, block_rows=block_rows, k_block=k_block, panel_rows=panel_rows)
    for m in (1, 6, 20, 70):
        check(library, isa, w, packed, m, bias=True)


@blocks_only
def test_blocks_of_another_pattern_hold_zeros(library: Library, isa: str, block_rows: int) -> None:
    w = blocks(100, 70, 0.2, 1)
    for m in (1, 8, 35):
        check(library, isa, w, pack_sparse(w, block_rows=block_rows), m, bias=True)


@blocks_only
@pytest.mark.parametrize("m", [1, 6, 40])
def test_blocks_empty_and_full_matrices(library: Library, isa: str, m: int, block_rows: int) -> None:
    empty = pack_sparse(np.zeros((140, 70), np.float32), block_rows=block_rows)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((m, 140)).astype(np.float32)
    b = rng.standard_normal(70).astype(np.float32)
    assert np.array_equal(library.run(empty, x, 70, isa), np.zeros((m, 70), np.float32))
    assert np.array_equal(library.run(empty, x, 70, isa, b), np.broadcast_to(b, (m, 70)))
    full = blocks(140, 70, 1.0, 1)
    check(library, isa, full, pack_sparse(full, block_rows=block_rows), m, bias=True)


@blocks_only
@pytest.mark.parametrize("offset", [1, 2, 3, 7])
def test_blocks_unaligned_blob_gives_the_same_bits(library: Library, isa: str, offset: int, block_rows: int) -> None:
    packed = pack_sparse(blocks(200, 90, 0.3, block_rows), block_rows=block_rows)
    room = np.zeros(packed.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    moved = room[start : start + packed.nbytes]
    moved[:] = packed
    for m in (1, 7, 20):
        x = np.random.default_rng(4).standard_normal((m, 200)).astype(np.float32)
        assert library.run(moved, x, 90, isa).tobytes() == library.run(packed, x, 90, isa).tobytes()


@blocks_only
@pytest.mark.parametrize("m", [1, 6, 40])
def test_blocks_non_finite_activations_reach_the_whole_block_and_no_other(
    library: Library, isa: str, m: int, block_rows: int
) -> None:
    w = blocks(150, 80, 0.2, block_rows)
    x = np.random.default_rng(5).standard_normal((m, 150)).astype(np.float32)
    x[0, 7], x[m - 1, 100] = np.inf, np.nan
    y = library.run(pack_sparse(w, block_rows=block_rows), x, 80, isa)
    touched = np.zeros((m, 80), bool)
    touched[0] |= w[7] != 0
    touched[m - 1] |= w[100] != 0
    assert np.array_equal(~np.isfinite(y), touched)


@block_rows_any
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("m", [1, 2, 6, 19, 33])
def test_epilogue_agrees_with_the_reference(
    library: Library, isa: str, m: int, activation: str, block_rows: int
) -> None:
    w = blocks(60, 45, 0.3, block_rows)
    packed = pack_sparse(w, block_rows=block_rows)
    rng = np.random.default_rng(m)
    x = rng.standard_normal((m, 60)).astype(np.float32)
    x[m - 1, :20] *= 30
    for bias, residual in ((True, True), (False, True), (True, False)):
        b = rng.standard_normal(45).astype(np.float32) if bias else None
        r = rng.standard_normal((m, 45)).astype(np.float32) if residual else None
        run = partial(library.run, packed, x, 45, residual=r, activation=activation, low=-0.75, high=1.5)
        wanted, found = run(isa="reference", bias=b), run(isa=isa, bias=b)
        # The slope of every activation is below 1.2, and its own error a few units in the last place.
        bound = 1.2 * rounding_bound(x, w, b) + 2e-6 * np.abs(wanted) + 2e-7 * (1 + np.abs(0 if r is None else r))
        assert np.all(np.abs(found - wanted) <= bound), np.abs(found - wanted).max()


@block_rows_any
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("m", [1, 6, 40])
def test_epilogue_lets_nan_pass(library: Library, isa: str, m: int, activation: str, block_rows: int) -> None:
    packed = pack_sparse(np.eye(20, dtype=np.float32), block_rows=block_rows)
    x = np.ones((m, 20), np.float32)
    residual = np.zeros((m, 20), np.float32)
    residual[m - 1, 17] = np.nan
    residual[0, 3] = np.inf
    y = library.run(packed, x, 20, isa, residual=residual, activation=activation, low=-2, high=3)
    assert np.argwhere(np.isnan(y)).tolist() == [[m - 1, 17]]
    assert y[0, 3] == {"relu6": 6, "clip": 3}.get(activation, np.inf)


def choice(library: Library, packed: np.ndarray, isa: str, m: int) -> str:
    text = ctypes.create_string_buffer(200)
    failed = library.dll.graphopt_sparse_matmul_choice(
        ctypes.c_void_p(packed.ctypes.data), ctypes.c_size_t(packed.nbytes), isa.encode(), ctypes.c_size_t(m), text, 200
    )
    return ("error: " if failed else "") + text.value.decode()


@pytest.mark.parametrize(
    ("isa", "block_rows", "k", "wanted"),
    [
        ("scalar", 1, 9, {1: "8 vector 1", 2: "8 tile 32", 99: "8 tile 32"}),
        ("scalar", 4, 9, {1: "8 direct 4", 4: "8 direct 4", 5: "8 columns 8", 99: "8 columns 8"}),
        ("scalar", 8, 9, {4: "8 direct 4", 5: "8 columns 4"}),
        ("scalar", 16, 9, {4: "8 direct 4", 5: "8 columns 2"}),
        ("avx2", 1, 9, {1: "8 vector 1", 2: "8 tile 32"}),
        ("avx2", 4, 9, {4: "8 direct 4", 5: "8 rows 16", 99: "8 rows 16"}),
        ("avx2", 4, 8192, {99: "8 rows 16"}),
        ("avx2", 4, 8193, {99: "8 rows 8"}),
        ("avx2", 8, 9, {4: "8 direct 4", 5: "8 rows 8"}),
        ("avx2", 16, 9, {4: "8 direct 4", 5: "8 columns 6"}),
        ("avxvnni", 8, 9, {5: "8 rows 8"}),
        ("avx512", 1, 9, {2: "16 vector 1", 3: "8 tile 32", 8: "8 tile 32", 9: "16 tile 64"}),
        ("avx512", 4, 9, {4: "16 direct 4", 5: "16 columns 8", 8: "16 columns 8", 9: "16 rows 32"}),
        ("avx512", 8, 4096, {4: "16 direct 4", 8: "16 columns 8", 9: "16 rows 32"}),
        ("avx512", 8, 4097, {9: "16 rows 16"}),
        ("avx512", 16, 4097, {4: "16 direct 4", 5: "16 columns 16", 99: "16 columns 16"}),
        ("avx512vnni", 4, 9, {9: "16 rows 32"}),
        ("avx512vnni", 16, 9, {9: "16 columns 16"}),
        ("neon", 1, 9, {1: "4 vector 1", 2: "4 tile 16"}),
        ("neon", 4, 9, {4: "4 direct 4", 5: "4 columns 16"}),
        ("neon", 8, 9, {5: "4 columns 8"}),
        ("neon-dotprod", 16, 9, {5: "4 columns 4"}),
    ],
)
def test_choice_is_a_function_of_instruction_set_form_and_shape(
    library: Library, isa: str, block_rows: int, k: int, wanted: dict[int, str]
) -> None:
    packed = pack_sparse(np.zeros((k, 5), np.float32), block_rows=block_rows)
    found = {m: choice(library, packed, isa, m) for m in wanted}
    if any(text.startswith("error") for text in found.values()):
        assert set(found.values()) == {f"error: instruction set '{isa}' is unknown"}
        pytest.skip(f"{isa} is of another platform")
    assert found == wanted


def test_choice_of_a_damaged_matrix_is_an_error(library: Library) -> None:
    assert "shorter than the header" in choice(library, np.zeros(5, np.uint8), "scalar", 1)
