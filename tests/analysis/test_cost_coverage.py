"""The table of the package knows every kernel, in every size that the passes may ask for."""

from __future__ import annotations

import pytest

from graphopt.analysis.cost_table import BITS, KERNELS, CostTable
from graphopt.tuning.alternatives import ALTERNATIVES


def test_default_table_has_every_kernel_that_can_be_measured() -> None:
    assert set(ALTERNATIVES) == set(KERNELS) == set(CostTable.default().kernels)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if KERNELS[name] == BITS])
def test_default_table_knows_low_bit_kernels_at_large_and_small_sizes(kernel: str) -> None:
    table = CostTable.default()
    for level in table.kernels[kernel].levels:
        assert table.predicted(kernel, 200 if "conv" in kernel else 1, 10**7, level) > 0
        assert table.predicted(kernel, 10**6, 10**7, level) > 0
        assert table.predicted(kernel, 10**6, 10, level) == 0


def test_default_table_prefers_blocks_and_more_zeros() -> None:
    table = CostTable.default()
    for isa in ("avx2", "avx512vnni"):
        at = [table.predicted("sparse-matmul", 64, 768 * 3072, level, isa) for level in (0.6, 0.8, 0.95)]
        assert at == sorted(at)
    wide = table.predicted("sparse-matmul-16x1", 1, 2048 * 4096, 0.9, "avx512vnni")
    assert wide > table.predicted("sparse-matmul", 1, 2048 * 4096, 0.9, "avx512vnni")


def test_default_table_lowers_no_layer_that_is_too_small() -> None:
    table = CostTable.default()
    for kernel in KERNELS:
        assert table.fastest([(kernel, 0.9 if KERNELS[kernel] != BITS else 8)], 1, 16) is None
