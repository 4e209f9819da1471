from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import KernelError
from graphopt.solve.pack_sparse_int8 import pack_sparse_int8, packed_bytes, stored_share, unpack_sparse_int8
from int8_calls import block_sparse


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 200),
    n=st.integers(1, 90),
    unit=st.sampled_from([1, 4]),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    k_block=st.integers(0, 64),
    panel=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_pack_any_weight_unpacks_to_the_same(
    k: int, n: int, unit: int, density: float, k_block: int, panel: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    w = block_sparse(k, n, unit, density, seed)
    scales, fixes = rng.random(n).astype(np.float32), rng.integers(-(2**31), 2**31, n).astype(np.int32)
    back = unpack_sparse_int8(pack_sparse_int8(w, scales, fixes, unit=unit, k_block=4 * k_block, panel=16 * panel))
    assert np.array_equal(back.values, w)
    assert np.array_equal(back.scales, scales)
    assert np.array_equal(back.fixes, fixes)
    assert back.unit == unit


def test_pack_zeros_in_a_block_are_stored_with_it() -> None:
    w = np.zeros((8, 8), np.int8)
    w[0, 0] = w[5, 4] = 1
    assert stored_share(w, 1) == 8 / 64
    assert stored_share(w, 4) == 32 / 64
    for unit in (1, 4):
        assert np.array_equal(unpack_sparse_int8(pack_sparse_int8(w, np.ones(8, np.float32), unit=unit)).values, w)


def test_pack_one_scale_for_all() -> None:
    w = block_sparse(12, 7, 1, 0.5)
    one = pack_sparse_int8(w, np.array(0.5, np.float32))
    assert np.array_equal(one, pack_sparse_int8(w, np.full(7, 0.5, np.float32)))


def test_pack_non_contiguous_input_packs_as_its_copy() -> None:
    w, scales = block_sparse(64, 40, 1, 0.3), np.ones(64, np.float32)
    assert np.array_equal(pack_sparse_int8(w.T, scales), pack_sparse_int8(np.ascontiguousarray(w.T), scales))


@pytest.mark.parametrize("unit", [1, 4])
def test_pack_bytes_are_estimated(unit: int) -> None:
    for density in (0.05, 0.2, 0.5):
        w = block_sparse(768, 1024, unit, density)
        size = pack_sparse_int8(w, np.ones(1024, np.float32), unit=unit).nbytes
        assert size <= packed_bytes(w, unit) < 1.15 * size + 4096


def test_pack_same_input_same_bytes() -> None:
    w, scales = block_sparse(100, 70, 4, 0.3), np.ones(70, np.float32)
    assert pack_sparse_int8(w, scales, unit=4).tobytes() == pack_sparse_int8(w, scales, unit=4).tobytes()


ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("values", "scales", "options", "said"),
    [
        (np.zeros((4, 3), np.float32), ONES, {}, "of type float32 and shape"),
        (np.zeros((0, 3), np.int8), ONES, {}, r"shape \[0, 3\] cannot be packed"),
        (np.zeros((65540, 3), np.int8), ONES, {}, "K up to 65536"),
        (np.zeros((4, 3), np.int8), np.ones(4, np.float32), {}, r"float32 of shape \[3\]"),
        (np.zeros((4, 3), np.int8), np.array([1, np.nan, 1], np.float32), {}, "finite and not negative"),
        (np.zeros((4, 3), np.int8), ONES, {"fixes": np.zeros(3, np.int64)}, r"int32 of shape \[3\]"),
        (np.zeros((4, 3), np.int8), ONES, {"unit": 2}, "units of 2 outputs"),
        (np.zeros((4, 3), np.int8), ONES, {"k_block": 6}, "blocks of 6 x 16"),
        (np.zeros((4, 3), np.int8), ONES, {"panel": 2048}, "blocks of 4 x 2048"),
    ],
)
def test_pack_other_weights_are_refused(values: np.ndarray, scales: np.ndarray, options: dict, said: str) -> None:
    with pytest.raises(KernelError, match=said):
        pack_sparse_int8(values, scales, **options)


def test_unpack_other_bytes_are_refused() -> None:
    packed = pack_sparse_int8(np.ones((4, 3), np.int8), ONES)
    with pytest.raises(KernelError, match="not a packed int8 weight"):
        unpack_sparse_int8(np.zeros(200, np.uint8))
    for at in (8, 24, 125):
        damaged = packed.copy()
        damaged[at] ^= 1
        with pytest.raises(KernelError, match="cannot be read"):
            unpack_sparse_int8(damaged)
