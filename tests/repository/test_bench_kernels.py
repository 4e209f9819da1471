"""What the benchmarks of kernels conclude from what they measure."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # the benchmarks are no package of graphopt

from benchmarks import bench_kernels, model_contest, model_subjects  # noqa: E402
from benchmarks.kernel_rows import ALSO, DENSE, ROWS, Row  # noqa: E402
from graphopt.analysis.cost_table import KERNELS  # noqa: E402
from graphopt.runtime import session  # noqa: E402
from graphopt.tuning.alternatives import ALTERNATIVES  # noqa: E402
from graphopt.tuning.race import Timed  # noqa: E402
from graphopt.tuning.stacks import MatmulSize  # noqa: E402


def timed(seconds: float, kernel: str = "sparse-matmul", level: float = 0.9, m: int = 64) -> Timed:
    return Timed(kernel, level, MatmulSize(m, 768, 3072), 1.0, seconds, 0.0, 9, 0.1, 1_200_000, 130.0)


def test_rows_name_kernels_that_can_be_measured() -> None:
    for row in ROWS:
        assert row.kernel in ALTERNATIVES
        assert row.over == DENSE or row.over in ALTERNATIVES
        assert len(row.floors) == len(row.sizes)
        assert row.after > 0
    assert {kernel for kernel, _, _ in ALSO} <= set(KERNELS)


def test_everything_a_row_is_compared_with_is_measured_on_its_sizes() -> None:
    for only in ([], ["low-bit"], ["sparse-int8-matmul-1x4"]):
        work = bench_kernels.wanted(only)
        for row in ROWS:
            if only and only[0] not in row.kernel:
                continue
            for size in row.sizes:
                assert (row.kernel, row.level) in work[size]
                assert row.over == DENSE or (row.over, row.over_level) in work[size]


def verdict(*speedups: float, floor: float = 2.0, after: float = 4.0) -> bench_kernels.Verdict:
    sizes = tuple(MatmulSize(m, 1, 1) for m in range(1, len(speedups) + 1))
    row = Row("a row", "sparse-matmul", 0.9, sizes, (floor,) * len(sizes), after)
    return bench_kernels.Verdict(row, dict(zip(map(str, sizes), speedups, strict=True)))


@pytest.mark.parametrize(
    ("speedups", "word", "low"),
    [
        ((2.0, 2.0), "floor", []),
        ((1.6, 3.0), "floor", []),
        ((1.4, 5.0), "below the floor", ["1x1x1"]),
        ((1.9, 1.9), "below the floor", []),
        ((4.0, 4.0), "after", []),
        ((2.0, 8.0), "after", []),
    ],
)
def test_row_stands_by_its_mean_and_its_worst_size(speedups: tuple[float, ...], word: str, low: list[str]) -> None:
    found = verdict(*speedups)
    assert (found.word, found.low) == (word, low)
    assert found.mean == pytest.approx(np.prod(speedups) ** (1 / len(speedups)))


def test_judge_leaves_out_rows_that_were_not_measured_on_every_size() -> None:
    row = next(row for row in ROWS if row.over)
    found = {(row.kernel, row.level, size): timed(0.5, row.kernel, row.level) for size in row.sizes}
    assert bench_kernels.judge(found) == []
    found |= {(row.over, row.over_level, size): timed(2.0, row.over, row.over_level) for size in row.sizes}
    (only,) = bench_kernels.judge(found)
    assert only.mean == pytest.approx(4)


def test_roofline_names_the_tightest_limit() -> None:
    peak = {"fma_gflops": 100.0, "dot_gops": 400.0, "l1_gbytes": 1e6, "l2_gbytes": 1e6, "l3_gbytes": 1e6}
    peak["dram_gbytes"] = 1e6
    operations = 2 * 64 * 768 * 3072 * 0.1
    share, limit = bench_kernels.roofline(timed(1e-3), peak)
    assert limit == "fma"
    assert share == pytest.approx(operations / 100e9 / 1e-3)
    share, limit = bench_kernels.roofline(timed(1e-3), peak | {"l1_gbytes": 100.0})
    assert limit == "l1"
    share, limit = bench_kernels.roofline(timed(1e-3, m=1), peak | {"l3_gbytes": 1.0})
    assert limit == "l3"
    assert share == pytest.approx(1.2)
    assert bench_kernels.roofline(timed(1e-3, "sparse-int8-matmul-1x4"), peak)[1] == "dot"


def test_quality_is_that_of_the_worst_output() -> None:
    exact = [np.ones(100), np.ones(100)]
    assert model_contest.sqnr_db(exact, exact) == np.inf
    assert model_contest.sqnr_db([np.ones(100), np.full(100, 1.1)], exact) == pytest.approx(20)


def test_decoder_runs_and_stores_four_bits() -> None:
    data = model_subjects.decoder(layers=1, width=256, inner=512)
    opened = session(data)
    rng = np.random.default_rng(0)
    feed = {each.name: rng.standard_normal(each.shape, dtype=np.float32) for each in opened.get_inputs()}
    (y,) = opened.run(None, feed)
    assert y.shape == (1, 1, 256)
    assert np.isfinite(y).all()
    assert len(data) < 1.4 * (4 * 256 * 256 + 3 * 256 * 512) * (0.5 + 4 / 32)
