from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import KernelError
from graphopt.solve.pack_sparse import pack_sparse, packed_bytes, unpack_sparse


def sparse(k: int, n: int, density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((k, n)).astype(np.float32)
    w[rng.random((k, n)) >= density] = 0
    return w


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
    assert np.array_equal(unpack_sparse(pack_sparse(w, k_block=k_block, panel_rows=panel_rows)), w)


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


def test_pack_sparse_bytes_are_bounded_and_estimated() -> None:
    for density in (0.05, 0.2, 0.5):
        w = sparse(768, 1024, density)
        entries = int(np.count_nonzero(w))
        size = pack_sparse(w).nbytes
        assert 5 * entries < size <= packed_bytes(entries, 768, 1024)
        assert packed_bytes(entries, 768, 1024) < 1.1 * size + 4096


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
        pack_sparse(sparse(4, 4, 0.5), k_block=k_block, panel_rows=panel_rows)


@pytest.mark.parametrize("at", [0, 8, 16, 24, 40, 104, 112, 120])
def test_unpack_sparse_damaged_header_is_refused(at: int) -> None:
    packed = pack_sparse(sparse(40, 30, 0.3))
    packed[at] ^= 1
    with pytest.raises(KernelError):
        unpack_sparse(packed)


def test_unpack_sparse_truncated_is_refused() -> None:
    packed = pack_sparse(sparse(40, 30, 0.3))
    for size in (0, 50, 127, 128, len(packed) - 1):
        with pytest.raises(KernelError):
            unpack_sparse(packed[:size])
