"""SparseInt8MatMul: every implementation against the plain C++ reference and numpy, through the C interface."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.library import isa_report, kernel_library
from graphopt.solve.pack_sparse_int8 import pack_sparse_int8
from int8_calls import EXACT, Int8Library, Output, block_sparse, dynamic_grid, integer_sums, to_bytes

SHAPES = [(1, 1), (3, 5), (16, 16), (17, 33), (64, 64), (131, 70), (257, 300), (1000, 31)]
BYTES = (0.05, 100)


@pytest.fixture(scope="session")
def int8() -> Int8Library:
    return Int8Library(ctypes.CDLL(str(kernel_library())))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def packed(w: np.ndarray, unit: int, seed: int = 0, **options: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.001, 0.01, w.shape[1:]).astype(np.float32)
    fixes = rng.integers(-2000, 2000, w.shape[1:]).astype(np.int32)
    return pack_sparse_int8(w, scales, fixes, unit=unit, **options), scales, fixes


def outputs(m: int, n: int) -> list[Output]:
    b, r = random(n, seed=1), random(m, n, seed=2)
    return [
        Output(),
        Output(b),
        Output(b, r, "relu"),
        Output(None, r, "clip", -0.3, 0.4),
        Output(grid=BYTES),
        Output(grid=BYTES, activation="relu6"),
        Output(grid=(0.01, 7), activation="clip", low=-0.03, high=0.4),
        Output(b, grid=BYTES),
        Output(b, r, "relu", grid=BYTES),
    ]


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_kernel_gives_the_bits_of_the_reference(int8: Int8Library, isa: str, unit: int, k: int, n: int) -> None:
    w = block_sparse(k, n, unit, 0.3)
    blob, *_ = packed(w, unit)
    for m in (1, 2, 7, 8, 15, 16, 17, 33, 64, 65, 100):
        x = random(m, k)
        grid = dynamic_grid(x)
        output = outputs(m, n)[m % 9]
        wanted = int8.matmul(blob, x, n, "reference", output).tobytes()
        for given_x, given_grid in ((x, (0.0, 0)), (x, grid), (to_bytes(x, grid), grid)):
            assert int8.matmul(blob, given_x, n, isa, output, given_grid).tobytes() == wanted, (m, given_x.dtype)


def test_kernel_every_output_gives_the_bits_of_the_reference(int8: Int8Library, isa: str) -> None:
    for unit in (1, 4):
        blob, *_ = packed(block_sparse(77, 53, unit, 0.3), unit)
        for m in (5, 40):
            x = random(m, 77)
            for output in outputs(m, 53):
                wanted = int8.matmul(blob, x, 53, "reference", output)
                assert int8.matmul(blob, x, 53, isa, output).tobytes() == wanted.tobytes(), output


def test_reference_agrees_with_numpy(int8: Int8Library) -> None:
    for unit in (1, 4):
        w = block_sparse(140, 60, unit, 0.3)
        blob, scales, fixes = packed(w, unit)
        x = random(9, 140)
        grid = dynamic_grid(x)
        sums = integer_sums(to_bytes(x, grid), grid[1], w, fixes)
        factor = np.float32(grid[0]) * scales
        assert np.array_equal(int8.matmul(blob, x, 60, "reference"), sums.astype(np.float32) * factor)
        scaled = np.rint(np.clip(sums.astype(np.float32) * (factor / np.float32(0.05)), -100, 155)) + 100
        assert np.array_equal(int8.matmul(blob, x, 60, "reference", Output(grid=BYTES)), scaled.astype(np.uint8))


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(0, 70),
    k=st.integers(1, 120),
    n=st.integers(1, 60),
    unit=st.sampled_from([1, 4]),
    k_block=st.integers(1, 32),
    panel=st.integers(1, 4),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 99),
)
def test_kernel_any_cut_gives_the_bits_of_the_reference(
    m: int, k: int, n: int, unit: int, k_block: int, panel: int, density: float, seed: int
) -> None:
    int8 = Int8Library(ctypes.CDLL(str(kernel_library())))
    w = block_sparse(k, n, unit, density, seed)
    blob, *_ = packed(w, unit, seed, k_block=4 * k_block, panel=16 * panel)
    assert int8.check(blob) == ""
    x = random(m, k, seed=seed)
    output = outputs(m, n)[seed % 9]
    wanted = int8.matmul(blob, x, n, "reference", output)
    for isa in isa_report().supported:
        assert int8.matmul(blob, x, n, isa, output).tobytes() == wanted.tobytes(), isa


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_kernel_smooth_activations_are_near_the_reference(int8: Int8Library, isa: str, activation: str) -> None:
    blob, *_ = packed(block_sparse(90, 45, 1, 0.3), 1)
    for m in (3, 33):
        x, b = random(m, 90), random(45)
        wanted = int8.matmul(blob, x, 45, "reference", Output(b, None, activation))
        got = int8.matmul(blob, x, 45, isa, Output(b, None, activation))
        assert np.all(np.abs(got - wanted) <= 1e-6 * np.maximum(1, np.abs(wanted)))
        near = int8.matmul(blob, x, 45, isa, Output(b, None, activation, grid=BYTES))
        exact = int8.matmul(blob, x, 45, "reference", Output(b, None, activation, grid=BYTES))
        assert np.abs(near.astype(int) - exact).max() <= 1


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 7])
def test_kernel_unaligned_blob_and_input_give_the_same_bits(int8: Int8Library, isa: str, offset: int) -> None:
    blob, *_ = packed(block_sparse(200, 90, 1, 0.3), 1)
    room = np.zeros(blob.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    moved = room[start : start + blob.nbytes]
    moved[:] = blob
    x = np.random.default_rng(4).integers(0, 256, (20, 200)).astype(np.uint8)
    shifted = np.zeros(x.size + 16, np.uint8)[offset : offset + x.size].reshape(x.shape)
    shifted[:] = x
    grid = (0.02, 130)
    assert (
        int8.matmul(moved, shifted, 90, isa, grid=grid).tobytes() == int8.matmul(blob, x, 90, isa, grid=grid).tobytes()
    )


def test_kernel_extreme_bytes_and_weights_do_not_saturate(int8: Int8Library, isa: str) -> None:
    """-128 by 255 and their like, in every place of a dot product: 16-bit sums would overflow."""
    for value, other in ((-128, 127), (127, -128), (-128, -128), (127, 127)):
        w = np.full((64, 20), value, np.int8)
        w[::2] = other
        for unit in (1, 4):
            blob = pack_sparse_int8(w, np.ones(20, np.float32), unit=unit)
            for zero_point in (0, 128, 255):
                for m in (1, 18):
                    x = np.full((m, 64), 255, np.uint8)
                    x[:, 1::2] = 0 if m == 1 else 255
                    wanted = integer_sums(x, zero_point, w).astype(np.float32)
                    assert np.array_equal(int8.matmul(blob, x, 20, isa, grid=(1.0, zero_point)), wanted)


def test_kernel_largest_k_does_not_overflow(int8: Int8Library, isa: str) -> None:
    w = np.full((65536, 2), -128, np.int8)
    blob = pack_sparse_int8(w, np.ones(2, np.float32))
    x = np.full((3, 65536), 255, np.uint8)
    assert np.all(int8.matmul(blob, x, 2, isa, grid=(1.0, 0)) == np.float32(-128 * 255 * 65536))


def test_kernel_rounds_ties_and_their_neighbours_as_division_does(int8: Int8Library, isa: str) -> None:
    """x / s in the middle between two bytes and one ulp beside, for many scales: products with 1 / s would differ."""
    rng = np.random.default_rng(6)
    w = np.eye(512, dtype=np.int8)
    blob = pack_sparse_int8(w, np.ones(512, np.float32))
    for scale in (*rng.uniform(1e-4, 3, 30), 1.0, 0.1, 1 / 3, 1e-35, 1e-38, 1e30, 1e36):
        s, zero_point = np.float32(scale), int(rng.integers(0, 256))
        middle = (np.arange(512, dtype=np.float32) - 255.5) * s
        x = np.stack([middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))])
        wanted = to_bytes(x, (float(s), zero_point)).astype(np.float32) - zero_point
        got = int8.matmul(blob, x, 512, isa, Output(), (float(s), zero_point))
        assert np.array_equal(np.rint(got / s), wanted), scale


def test_kernel_odd_numbers_become_bytes_as_the_contract_says(int8: Int8Library, isa: str) -> None:
    w = np.eye(20, dtype=np.int8)
    blob = pack_sparse_int8(w, np.ones(20, np.float32))
    x = np.zeros((17, 20), np.float32)
    x[16, :8] = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -1e-45, 1e10]
    got = int8.matmul(blob, x, 20, isa, grid=(0.5, 10))[16, :8]
    assert got.tolist() == [-5, 122.5, -5, 122.5, -5, 0, 0, 122.5]
    x[16, 1:] = 0
    x[3, 3] = 255
    found = int8.matmul(blob, x, 20, isa)
    assert found[3, 3] == 255, "NaN has no part in the range"
    assert found[16, 0] == 0, "the least byte"


def test_kernel_infinite_range_gives_what_the_reference_gives(int8: Int8Library, isa: str) -> None:
    blob, *_ = packed(block_sparse(30, 20, 1, 0.5), 1)
    for low, high in ((0, np.inf), (-np.inf, 0), (-np.inf, np.inf), (-3e38, 3e38)):
        x = random(3, 30)
        x[0, 0], x[1, 1] = low, high
        for output in (Output(), Output(grid=BYTES)):
            wanted, got = int8.matmul(blob, x, 20, "reference", output), int8.matmul(blob, x, 20, isa, output)
            assert np.array_equal(wanted, got, equal_nan=wanted.dtype == np.float32)


def test_kernel_bytes_of_non_finite_results_are_those_of_the_reference(int8: Int8Library, isa: str) -> None:
    blob, *_ = packed(block_sparse(30, 20, 1, 0.5), 1)
    b = random(20)
    b[:3] = [np.nan, np.inf, -np.inf]
    for activation in EXACT:
        output = Output(b, activation=activation, low=-1, high=1, grid=BYTES)
        wanted = int8.matmul(blob, random(18, 30), 20, "reference", output)
        assert np.array_equal(int8.matmul(blob, random(18, 30), 20, isa, output), wanted)


@pytest.mark.parametrize("m", [1, 16, 40])
def test_kernel_empty_and_full_weights(int8: Int8Library, isa: str, m: int) -> None:
    x, b = random(m, 140), random(70)
    for unit in (1, 4):
        empty = pack_sparse_int8(np.zeros((140, 70), np.int8), np.ones(70, np.float32), unit=unit)
        assert np.array_equal(int8.matmul(empty, x, 70, isa), np.zeros((m, 70), np.float32))
        assert np.array_equal(int8.matmul(empty, x, 70, isa, Output(b)), np.broadcast_to(b, (m, 70)))
        full, *_ = packed(block_sparse(140, 70, unit, 1), unit)
        assert np.array_equal(int8.matmul(full, x, 70, isa), int8.matmul(full, x, 70, "reference"))


def test_kernel_unknown_isa_is_refused(int8: Int8Library) -> None:
    blob, *_ = packed(block_sparse(4, 4, 1, 1), 1)
    with pytest.raises(AssertionError, match="'sse9' is unknown or not supported"):
        int8.matmul(blob, random(1, 4), 4, "sse9")
