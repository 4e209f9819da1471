from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import KernelError
from graphopt.solve.pack_sparse import BLOCK_ROWS, pack_sparse, packed_form, sparse_forms, unpack_sparse


def sparse(k: int, n: int, density: float, seed: int = 0, block_rows: int = 1) -> np.ndarray:
    """Gaussian [k, n] with about this share of blocks of so many columns."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((k, n)).astype(np.float32)
    kept = rng.random((k, -(-n // block_rows))) < density
    return w * np.repeat(kept, block_rows, axis=1)[:, :n]


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 300),
    n=st.integers(1, 90),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    k_block=st.integers(1, 256),
    panel_rows=st.integers(1, 100),
    seed=st.integers(0, 1000),
)
def test_pack_sparse_any_matrix_unpacks_to_the_same(
    k: int, n: int, density: float, k_block: int, panel_rows: int, seed: int
) -> None:
    w = sparse(k, n, density, seed)
    assert np.array_equal(unpack_sparse(pack_sparse(w, block_rows=1, k_block=k_block, panel_rows=panel_rows)), w)


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 300),
    n=st.integers(1, 90),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    block_rows=st.sampled_from(BLOCK_ROWS),
    pattern=st.sampled_from(BLOCK_ROWS),
    k_block=st.sampled_from([None, 1, 7, 255]),
    seed=st.integers(0, 1000),
)
def test_pack_sparse_any_form_unpacks_to_the_same(
    k: int, n: int, density: float, block_rows: int, pattern: int, k_block: int | None, seed: int
) -> None:
    w = sparse(k, n, density, seed, pattern)
    packed = pack_sparse(w, block_rows=block_rows, k_block=k_block)
    assert np.array_equal(unpack_sparse(packed), w)
    form = next(form for form in sparse_forms(w) if form.block_rows == block_rows)
    assert (packed_form(packed).block_rows, packed_form(packed).stored) == (block_rows, form.stored)


@pytest.mark.parametrize("block_rows", BLOCK_ROWS)
def test_pack_sparse_chooses_the_form_of_the_zeros(block_rows: int) -> None:
    w = sparse(256, 512, 0.1, block_rows=block_rows)
    assert packed_form(pack_sparse(w)).block_rows == block_rows
    assert sparse_forms(w)[0].block_rows == block_rows
    assert sparse_forms(w)[0].stored == np.count_nonzero(w)
    assert packed_form(pack_sparse(w, block_rows=1)).block_rows == 1


def test_pack_sparse_dense_matrix_takes_the_tallest_blocks() -> None:
    assert packed_form(pack_sparse(sparse(64, 64, 1.0))).block_rows == 16


def test_pack_sparse_nearly_block_sparse_matrix_is_packed_as_takes_fewer_bytes() -> None:
    w = sparse(256, 512, 0.1, block_rows=4)
    w[np.random.default_rng(1).random(w.shape) < 0.05] = 0
    assert packed_form(pack_sparse(w)).block_rows == 4
    w[np.random.default_rng(1).random(w.shape) < 0.3] = 0
    assert packed_form(pack_sparse(w)).block_rows == 1
    assert np.array_equal(unpack_sparse(pack_sparse(w, block_rows=4)), w)


def test_pack_sparse_special_values_keep_their_bits() -> None:
    w = np.zeros((4, 4), np.float32)
    w[0] = [np.nan, np.inf, -np.inf, 1e-45]
    w[1, 0] = -0.0
    back = unpack_sparse(pack_sparse(w))
    assert np.array_equal(back.view(np.uint32)[0], w.view(np.uint32)[0])
    assert np.array_equal(back[1:], np.zeros((3, 4), np.float32))
    assert not np.signbit(back[1, 0]), "a negative zero is no entry"


def test_pack_sparse_non_contiguous_input_packs_as_its_copy() -> None:
    w = sparse(64, 40, 0.3)
    assert np.array_equal(pack_sparse(w.T), pack_sparse(np.ascontiguousarray(w.T)))
    assert np.array_equal(pack_sparse(w[::2, ::3]), pack_sparse(w[::2, ::3].copy()))


@pytest.mark.parametrize(
    ("n", "block_rows", "panel_rows"),
    [(768, 1, 384), (512, 1, 512), (513, 1, 272), (5, 1, 16), (768, 4, 256), (300, 16, 160)],
)
def test_pack_sparse_panels_are_about_equally_wide(n: int, block_rows: int, panel_rows: int) -> None:
    packed = pack_sparse(np.zeros((2, n), np.float32), block_rows=block_rows)
    assert int.from_bytes(packed[108:112].tobytes(), "little") == panel_rows


@pytest.mark.parametrize("block_rows", BLOCK_ROWS)
def test_pack_sparse_bytes_are_bounded_and_estimated(block_rows: int) -> None:
    for density in (0.05, 0.2, 0.5):
        w = sparse(768, 1024, density, block_rows=block_rows)
        size = pack_sparse(w).nbytes
        estimate = sparse_forms(w)[0].bytes
        per_weight = 5 if block_rows == 1 else 4 + 2 / block_rows
        assert per_weight * np.count_nonzero(w) < size <= estimate < 1.1 * size + 4096


def test_pack_sparse_same_input_same_bytes() -> None:
    w = sparse(130, 70, 0.4)
    assert pack_sparse(w).tobytes() == pack_sparse(w.copy()).tobytes()


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (np.zeros((2, 2), np.float64), "float64"),
        (np.zeros(4, np.float32), "[4]"),
        (np.zeros((0, 4), np.float32), "[0, 4]"),
    ],
)
def test_pack_sparse_wrong_weight_is_refused(weight: np.ndarray, said: str) -> None:
    with pytest.raises(KernelError, match=r"GO-K001.*must be float32 of shape \[K, N\]") as error:
        pack_sparse(weight)
    assert said in str(error.value)


@pytest.mark.parametrize(("k_block", "panel_rows"), [(0, 1), (257, 1), (1, 0), (1, 4097)])
def test_pack_sparse_wrong_block_is_refused(k_block: int, panel_rows: int) -> None:
    with pytest.raises(KernelError, match="k_block must be 1 to 256"):
        pack_sparse(sparse(4, 4, 0.5), block_rows=1, k_block=k_block, panel_rows=panel_rows)


@pytest.mark.parametrize(
    ("block_rows", "k_block", "panel_rows", "said"),
    [
        (4, 0, 16, "k_block must be 1 to 65536"),
        (8, 65537, 16, "k_block must be 1 to 65536"),
        (16, 1, 8, "a multiple of 16"),
        (2, 1, 16, "block_rows must be one of 1, 4, 8, 16"),
    ],
)
def test_pack_sparse_wrong_strip_is_refused(block_rows: int, k_block: int, panel_rows: int, said: str) -> None:
    with pytest.raises(KernelError, match=said):
        pack_sparse(sparse(4, 4, 0.5), block_rows=block_rows, k_block=k_block, panel_rows=panel_rows)


@pytest.mark.parametrize("at", [0, 8, 16, 24, 40, 104, 112, 120])
def test_unpack_sparse_damaged_header_is_refused(at: int) -> None:
    for block_rows in BLOCK_ROWS:
        packed = pack_sparse(sparse(40, 30, 0.3), block_rows=block_rows)
        packed[at] ^= 1
        with pytest.raises(KernelError):
            unpack_sparse(packed)


def test_unpack_sparse_truncated_is_refused() -> None:
    packed = pack_sparse(sparse(40, 30, 0.3))
    for size in (0, 50, 127, 128, len(packed) - 1):
        with pytest.raises(KernelError):
            unpack_sparse(packed[:size])
    for size in (0, 127):
        with pytest.raises(KernelError):
            packed_form(packed[:size])
