"""Every implementation against the plain C++ reference and numpy, through the C interface."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.solve.pack_sparse import pack_sparse
from kernel_calls import Library, rounding_bound, sparse

SHAPES = [(1, 1), (3, 5), (15, 17), (17, 33), (128, 512), (129, 513), (300, 700), (1000, 31)]


def check(
    library: Library, isa: str, w: np.ndarray, m: int, *, bias: bool, relu: bool, packed: np.ndarray | None = None
) -> None:
    rng = np.random.default_rng(m)
    x = rng.standard_normal((m, w.shape[0])).astype(np.float32)
    b = rng.standard_normal((w.shape[1],)).astype(np.float32) if bias else None
    y = library.run(pack_sparse(w) if packed is None else packed, x, w.shape[1], isa, b, relu=relu)
    exact = x.astype(np.float64) @ w + (np.zeros(w.shape[1]) if b is None else b)
    if relu:
        exact = np.maximum(exact, 0)
    excess = np.abs(y - exact) - rounding_bound(x, w, b)
    assert excess.max() <= 0, f"{isa} M={m} K={w.shape[0]} N={w.shape[1]}: {excess.max()} beyond the bound"


@pytest.mark.parametrize(("k", "n"), SHAPES)
@pytest.mark.parametrize("density", [0.03, 0.4])
def test_kernel_any_size_is_within_the_rounding_bound(
    library: Library, isa: str, k: int, n: int, density: float
) -> None:
    w = sparse(k, n, density)
    packed = pack_sparse(w)
    for m in (1, 2, 5, 8, 15, 16, 17, 31, 33, 64, 65, 100):
        check(library, isa, w, m, bias=m % 2 == 0, relu=m % 3 == 0, packed=packed)


@pytest.mark.parametrize(("k_block", "panel_rows"), [(1, 1), (7, 3), (256, 4096), (100, 8), (256, 33)])
def test_kernel_any_block_size_is_within_the_rounding_bound(
    library: Library, isa: str, k_block: int, panel_rows: int
) -> None:
    w = sparse(150, 90, 0.3)
    packed = pack_sparse(w, k_block=k_block, panel_rows=panel_rows)
    for m in (1, 3, 70):
        check(library, isa, w, m, bias=True, relu=False, packed=packed)


def test_kernel_agrees_with_the_reference(library: Library, isa: str) -> None:
    w = sparse(333, 222, 0.2)
    packed = pack_sparse(w)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((37, 333)).astype(np.float32)
    b = rng.standard_normal(222).astype(np.float32)
    for relu in (False, True):
        wanted = library.run(packed, x, 222, "reference", b, relu=relu)
        excess = np.abs(library.run(packed, x, 222, isa, b, relu=relu) - wanted) - rounding_bound(x, w, b)
        assert excess.max() <= 0


def test_reference_agrees_with_numpy(library: Library) -> None:
    w = sparse(140, 60, 0.3)
    x = np.random.default_rng(2).standard_normal((9, 140)).astype(np.float32)
    y = library.run(pack_sparse(w), x, 60, "reference")
    assert np.allclose(y, x.astype(np.float64) @ w, rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("m", [1, 5, 70])
def test_kernel_empty_rows_and_matrices(library: Library, isa: str, m: int) -> None:
    empty = np.zeros((140, 70), np.float32)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((m, 140)).astype(np.float32)
    b = rng.standard_normal(70).astype(np.float32)
    assert np.array_equal(library.run(pack_sparse(empty), x, 70, isa), np.zeros((m, 70), np.float32))
    assert np.array_equal(library.run(pack_sparse(empty), x, 70, isa, b), np.broadcast_to(b, (m, 70)))
    w = sparse(140, 70, 0.5)
    w[:, ::3] = 0
    w[:128, 1::3] = 0
    check(library, isa, w, m, bias=True, relu=True)


@pytest.mark.parametrize("m", [1, 5, 70])
def test_kernel_full_matrix(library: Library, isa: str, m: int) -> None:
    check(library, isa, sparse(300, 130, 1.0), m, bias=True, relu=False)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 7])
def test_kernel_unaligned_blob_gives_the_same_bits(library: Library, isa: str, offset: int) -> None:
    w = sparse(200, 90, 0.3)
    packed = pack_sparse(w)
    room = np.zeros(packed.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    moved = room[start : start + packed.nbytes]
    moved[:] = packed
    for m in (1, 20):
        x = np.random.default_rng(4).standard_normal((m, 200)).astype(np.float32)
        assert library.run(moved, x, 90, isa).tobytes() == library.run(packed, x, 90, isa).tobytes()


@pytest.mark.parametrize("m", [1, 6, 40])
def test_kernel_non_finite_activations_reach_exactly_the_outputs_that_read_them(
    library: Library, isa: str, m: int
) -> None:
    w = sparse(150, 80, 0.2)
    x = np.random.default_rng(5).standard_normal((m, 150)).astype(np.float32)
    x[0, 7], x[m - 1, 100] = np.inf, np.nan
    y = library.run(pack_sparse(w), x, 80, isa)
    reads = w != 0
    touched = np.zeros((m, 80), bool)
    touched[0] |= reads[7]
    touched[m - 1] |= reads[100]
    assert np.array_equal(~np.isfinite(y), touched)


@pytest.mark.parametrize("m", [1, 6, 40])
def test_kernel_relu_lets_nan_pass_and_keeps_infinity(library: Library, isa: str, m: int) -> None:
    w = np.eye(20, dtype=np.float32)
    x = np.ones((m, 20), np.float32)
    x[m - 1, :4] = [np.nan, np.inf, -np.inf, -1]
    y = library.run(pack_sparse(w), x, 20, isa, relu=True)
    assert np.isnan(y[m - 1, 0])
    assert y[m - 1, 1:4].tolist() == [np.inf, 0, 0]


@pytest.mark.parametrize("m", [1, 6, 40])
def test_kernel_extreme_weights(library: Library, isa: str, m: int) -> None:
    w = np.zeros((10, 4), np.float32)
    w[0] = [3e38, np.inf, np.nan, 1e-40]
    y = library.run(pack_sparse(w), np.full((m, 10), 2, np.float32), 4, isa)
    assert np.all(np.isinf(y[:, :2]))
    assert np.all(np.isnan(y[:, 2]))
    assert np.all(np.isclose(y[:, 3], 2e-40, rtol=1e-4)), "denormals are kept in the default floating-point mode"


def test_kernel_unknown_isa_is_refused(library: Library) -> None:
    with pytest.raises(AssertionError, match="'sse9' is unknown or not supported"):
        library.run(pack_sparse(sparse(4, 4, 0.5)), np.zeros((1, 4), np.float32), 4, "sse9")
