from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.analysis.cost_table import KERNELS
from graphopt.errors import KernelError
from graphopt.tuning.alternatives import CONVOLUTIONS, DENSE, MATMULS, POINTWISE, Alternative, Weights, sparse
from graphopt.tuning.grid import FULL, QUICK, levels_of, names_of, pinned
from graphopt.tuning.race import Draws, layers_of, race
from graphopt.tuning.stacks import ConvSize, MatmulSize, Size, Stack

if TYPE_CHECKING:
    from collections.abc import Sequence

MATRIX = MatmulSize(3, 64, 32)
WINDOW = ConvSize(3, 16, 6)
POINT = ConvSize(1, 32, 6, 8)


@pytest.mark.parametrize("plan", [QUICK, FULL])
@pytest.mark.parametrize("each", [*MATMULS, *CONVOLUTIONS, *POINTWISE], ids=lambda each: each.kernel)
def test_every_alternative_has_a_name_and_levels_in_every_plan(each: Alternative, plan: object) -> None:
    assert each.kernel in KERNELS
    assert levels_of(each.kernel, plan)  # type: ignore[arg-type]


def entries(size: Size, alternatives: Sequence[Alternative]) -> list[tuple[Alternative, float]]:
    del size
    return [(each, level) for each in alternatives for level in levels_of(each.kernel, QUICK)]


@pytest.mark.parametrize(("size", "alternatives"), [(MATRIX, MATMULS), (WINDOW, CONVOLUTIONS), (POINT, POINTWISE)])
def test_race_gives_a_figure_for_each_entry(size: Size, alternatives: Sequence[Alternative]) -> None:
    wanted = entries(size, alternatives)
    found = race(size, wanted, Draws(2), seconds=0.0)
    assert [(each.kernel, each.level) for each in found] == [(each.kernel, level) for each, level in wanted]
    for each, (alternative, level) in zip(found, wanted, strict=True):
        assert each.speedup == each.dense_seconds / each.seconds > 0
        assert each.runs >= 7
        assert each.stored_bytes > 0
        assert each.sqnr_db > (90 if alternative.exact else 20)
        if KERNELS[each.kernel] == "sparsity":
            assert each.kept == pytest.approx(1 - level, abs=0.1)


class Wrong:
    """The dense product, with one weight changed behind the back of the comparison."""

    kernel = "sparse-matmul"
    exact = True

    def make(self, rng: np.random.Generator, size: Size, level: float) -> Weights:
        return DENSE.make(rng, size, level)

    def write(self, stack: Stack, x: str, weights: Weights, size: Size) -> str:
        changed = weights.dense.copy()
        changed.flat[0] += 1
        return DENSE.write(stack, x, Weights(changed, (changed,)), size)

    def open(self, stack: Stack, x: str, size: Size) -> str:
        return DENSE.open(stack, x, size)

    def close(self, stack: Stack, y: str, size: Size) -> str:
        return DENSE.close(stack, y, size)


@pytest.mark.parametrize("size", [MATRIX, WINDOW])
def test_race_times_nothing_when_a_result_is_wrong(size: Size) -> None:
    with pytest.raises(KernelError, match=r"sparse-matmul at .*a result is wrong"):
        race(size, [(Wrong(), 0.5)], Draws(2), seconds=0.0)


def test_draws_are_made_once_for_equal_weights_and_differ_between_layers() -> None:
    draws = Draws(2)
    first = draws.weights(DENSE, 0, MatmulSize(1, 8, 4))
    assert draws.weights(DENSE, 0, MatmulSize(9, 8, 4)) is first
    assert not np.array_equal(first[0].dense, first[1].dense)
    other = draws.weights(DENSE, 0, MatmulSize(1, 4, 8))
    assert other[0].dense.shape == (4, 8)
    again = draws.weights(DENSE, 0, MatmulSize(1, 8, 4))
    assert again is not first
    assert np.array_equal(again[0].dense, first[0].dense)


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (4, 1), (16, 1), (1, 4), (4, 4)])
@pytest.mark.parametrize("size", [MatmulSize(1, 64, 48), ConvSize(3, 32, 7)])
def test_sparse_weights_have_whole_blocks(size: Size, outputs: int, inputs: int) -> None:
    w = sparse(np.random.default_rng(0), size, 0.8, outputs=outputs, inputs=inputs)
    assert w.shape == size.weight_shape
    assert np.count_nonzero(w) / w.size == pytest.approx(0.2, abs=0.06)
    turned = w.T if isinstance(size, MatmulSize) else w.transpose(0, 2, 3, 1)
    n, k = turned.shape[0], turned.shape[-1]
    blocks = (turned != 0).reshape(n // outputs, outputs, -1, k // inputs, inputs)
    assert np.array_equal(blocks.any(axis=(1, 4)), blocks.all(axis=(1, 4)))


def test_a_chained_convolution_counts_for_the_plain_one_too() -> None:
    assert names_of("sparse-conv-4x1-chained") == ("sparse-conv-4x1-chained", "sparse-conv-4x1")
    assert names_of("sparse-matmul") == ("sparse-matmul",)
    assert all(set(names_of(name)) <= set(KERNELS) for name in KERNELS)


def test_narrow_convolutions_lead_back() -> None:
    assert POINT.weight_shape == (8, 32, 1, 1)
    assert POINT.turned.weight_shape == (32, 8, 1, 1)
    assert POINT.turned.weights == POINT.weights == 256
    assert layers_of(POINT, 3) == [POINT, POINT.turned, POINT]
    assert layers_of(WINDOW, 2) == [WINDOW, WINDOW]
    first, second = Draws(2).weights(DENSE, 0, POINT)
    assert first.dense.shape == (*second.dense.shape[1::-1], 1, 1)


def test_pinned_restores_the_affinity() -> None:
    os = pytest.importorskip("os")
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity")
    before = os.sched_getaffinity(0)
    with pinned():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
