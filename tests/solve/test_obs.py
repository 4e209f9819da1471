"""Exact OBS against a direct solution of every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.errors import KernelError
from graphopt.solve.obs import RemovalPath, cut_paths, damped, inverted, losses_at, path_flops, removal_path
from graphopt.solve.obs_library import call_path, solver_library
from graphopt.solve.patterns import Pattern

if TYPE_CHECKING:
    from pathlib import Path

Matrix = NDArray[np.float64]
PATTERNS = ["unstructured", "2:4", "1:4", "4x1", "8x1", "16x1", "1x4", "4x4"]


def problem(rows: int, columns: int, seed: int, samples: int = 0) -> tuple[Matrix, Matrix]:
    draw = np.random.default_rng(seed)
    inputs = draw.standard_normal((samples or 3 * columns, columns)) @ draw.standard_normal((columns, columns))
    inner = inputs.T @ inputs / len(inputs)
    return draw.standard_normal((rows, columns)), damped(inner, 0.01)


def best_error(weight: Matrix, inner: Matrix, kept: NDArray[np.bool_]) -> float:
    """The least error over all weights on the support, summed over the rows, by solving for them."""
    total = 0.0
    for row, support in zip(weight, kept, strict=True):
        best = np.zeros_like(row)
        if support.any():
            best[support] = np.linalg.solve(inner[np.ix_(support, support)], (inner @ row)[support])
        total += (best - row) @ inner @ (best - row)
    return total


def brute_force(weight: Matrix, inner: Matrix, pattern: Pattern, steps: int) -> tuple[list[list[int]], Matrix]:
    """Try every block at every step."""
    down, beside = pattern.grid(weight.shape)
    orders, losses = [], np.zeros((down, steps))
    for group in range(down):
        rows = weight[group * pattern.rows : (group + 1) * pattern.rows]
        gone: list[int] = []
        present = 0.0
        for step in range(steps):
            errors = {}
            for block in range(beside):
                if block in gone:
                    continue
                if pattern.of:
                    first = block // pattern.of * pattern.of
                    members = range(first, min(first + pattern.of, beside))
                    if len(members) - sum(each in gone for each in members) <= pattern.keep:
                        continue
                stays = np.ones((1, beside), bool)
                stays[0, [*gone, block]] = False
                mask = np.repeat(stays, pattern.columns, axis=1)[:, : weight.shape[1]]
                errors[block] = best_error(rows, inner, np.repeat(mask, len(rows), axis=0))
            sizes = pattern.sizes(weight.shape)[group]
            chosen = min(errors, key=lambda block: (errors[block] - present) / sizes[block])
            losses[group, step], present = errors[chosen] - present, errors[chosen]
            gone.append(chosen)
        orders.append(gone)
    return orders, losses


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("rows", "columns"), [(5, 12), (8, 10), (1, 7)])
def test_order_and_losses_are_those_of_trying_every_block(name: str, rows: int, columns: int) -> None:
    weight, inner = problem(rows, columns, seed=rows)
    pattern = Pattern.parse(name)
    path = removal_path(weight, inner, pattern)
    order, losses = brute_force(weight, inner, pattern, path.order.shape[1])
    assert path.order.tolist() == order
    np.testing.assert_allclose(path.losses, losses, rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(1, 9), columns=st.integers(1, 20), name=st.sampled_from(PATTERNS))
def test_losses_sum_to_the_error_of_the_best_weights_on_what_stays(
    seed: int, rows: int, columns: int, name: str
) -> None:
    weight, inner = problem(rows, columns, seed)
    path = removal_path(weight, inner, Pattern.parse(name))
    steps = path.order.shape[1]
    counts = np.random.default_rng(seed).integers(0, steps + 1, len(path.order))
    kept = path.mask(counts)
    lost = sum(path.losses[group, :count].sum() for group, count in enumerate(counts))
    np.testing.assert_allclose(lost, best_error(weight, inner, kept), rtol=1e-6, atol=1e-9)
    if not path.pattern.of:
        assert path.pattern.holds(kept)


@pytest.mark.parametrize("name", ["2:4", "1:4", "4:8"])
@pytest.mark.parametrize("columns", [16, 18, 19])
def test_a_whole_path_of_n_of_m_leaves_n_of_every_m(name: str, columns: int) -> None:
    weight, inner = problem(6, columns, seed=1)
    path = removal_path(weight, inner, Pattern.parse(name))
    kept = path.mask(np.full(6, path.order.shape[1]))
    assert path.pattern.holds(kept)
    whole = columns // path.pattern.of * path.pattern.of
    assert (kept[:, :whole].reshape(6, -1, path.pattern.of).sum(axis=2) == path.pattern.keep).all()


@pytest.mark.parametrize("name", PATTERNS)
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    weight, inner = problem(37, 64, seed=3)
    one, five = (removal_path(weight, inner, Pattern.parse(name), threads=threads) for threads in (1, 5))
    assert np.array_equal(one.order, five.order)
    assert one.losses.tobytes() == five.losses.tobytes()


def test_zeros_go_first_and_cost_nothing() -> None:
    weight, inner = problem(4, 24, seed=5)
    support = np.random.default_rng(5).random(weight.shape) < 0.5
    for row, kept in zip(weight, support, strict=True):
        best = np.linalg.solve(inner[np.ix_(kept, kept)], (inner @ row)[kept])
        row[:] = 0
        row[kept] = best
    path = removal_path(weight, inner)
    for row, (order, losses) in enumerate(zip(path.order, path.losses, strict=True)):
        zeros = np.flatnonzero(~support[row])
        assert order[: len(zeros)].tolist() == zeros.tolist()
        assert (losses[: len(zeros)] == 0).all()
        assert (losses[len(zeros) :] > 0).all()


def test_steps_end_the_path_early() -> None:
    weight, inner = problem(4, 30, seed=6)
    whole, part = removal_path(weight, inner), removal_path(weight, inner, steps=11)
    assert np.array_equal(whole.order[:, :11], part.order)
    assert part.losses.shape == (4, 11)


def test_a_wide_layer_keeps_its_precision() -> None:
    """Hundreds of eliminations on fewer samples than columns: the last losses still are exact."""
    weight, inner = problem(2, 300, seed=7, samples=200)
    path = removal_path(weight, inner)
    for count in (50, 200, 290, 300):
        kept = path.mask(np.full(2, count))
        np.testing.assert_allclose(path.losses[:, :count].sum(), best_error(weight, inner, kept), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0, 1), name=st.sampled_from(["unstructured", "4x1", "1x4", "4x4"]))
def test_a_cut_takes_prefixes_and_the_share(seed: int, share: float, name: str) -> None:
    pattern = Pattern.parse(name)
    paths = [removal_path(*problem(5, columns, seed), pattern) for columns in (4, 9)]
    taken = cut_paths(paths, share)
    zeros = sum(int((~path.mask(each)).sum()) for path, each in zip(paths, taken, strict=True))
    assert abs(zeros - share * 65) <= pattern.rows * pattern.columns / 2 + 1e-6
    spent_all = sum(
        float(path.losses[row, : each[row]].sum())
        for path, each in zip(paths, taken, strict=True)
        for row in range(len(each))
    )
    np.testing.assert_allclose(losses_at(paths, np.array([share])), spent_all, rtol=1e-9, atol=1e-12)
    # No step that was left is below one that was taken.
    spent = [level[: each[row]] for path, each in zip(paths, taken, strict=True) for row, level in levels(path)]
    left = [level[each[row] :] for path, each in zip(paths, taken, strict=True) for row, level in levels(path)]
    if 0 < zeros < 65:
        assert np.concatenate(spent).max() <= np.concatenate(left).min()


def levels(path: RemovalPath) -> list[tuple[int, Matrix]]:
    return list(enumerate(path.highest_so_far()))


def test_a_cut_beyond_the_paths_takes_them_whole() -> None:
    path = removal_path(*problem(3, 8, 0), Pattern.parse("2:4"))
    (taken,) = cut_paths([path], 0.9)
    assert taken.tolist() == [4, 4, 4]


def test_what_is_not_positive_definite_is_refused() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        removal_path(np.ones((1, 2)), np.array([[1.0, 2.0], [2.0, 1.0]]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"group_rows": 0}, "a group of rows is empty or too large"),
        ({"group_rows": 65}, "a group of rows is empty or too large"),
        ({"block": 0}, "a block of columns is empty or too large"),
        ({"block": 17}, "a block of columns is empty or too large"),
        ({"steps": 5}, "more blocks are to go than may"),
        ({"keep": 2, "of": 4, "steps": 3}, "more blocks are to go than may"),
        ({"keep": 5, "of": 4, "steps": 0}, "no N of M blocks can stay"),
    ],
)
def test_sizes_are_checked(changed: dict[str, int], said: str) -> None:
    sizes = {"group_rows": 1, "block": 1, "keep": 0, "of": 0, "steps": 4, "threads": 1} | changed
    with pytest.raises(KernelError, match=said):
        call_path(np.ones((2, 4)), np.eye(4), library=None, **sizes)


def test_an_inverse_of_another_size_is_refused() -> None:
    with pytest.raises(KernelError, match=r"the inverse has the shape \(3, 3\)"):
        call_path(np.ones((2, 4)), np.eye(3), group_rows=1, block=1, keep=0, of=0, steps=4, threads=1)


def test_a_library_that_does_not_load_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / solver_library().name
    broken.write_bytes(b"no library")
    with pytest.raises(KernelError, match="does not load"):
        call_path(np.ones((2, 4)), np.eye(4), group_rows=1, block=1, keep=0, of=0, steps=4, threads=1, library=broken)


def test_the_inverse_is_one() -> None:
    _, inner = problem(1, 40, seed=9)
    np.testing.assert_allclose(inverted(inner) @ inner, np.eye(40), atol=1e-8)


def test_flops_grow_with_what_is_done() -> None:
    plain, blocks, half = (path_flops((64, 128), Pattern.parse(name)) for name in ("unstructured", "4x1", "2:4"))
    assert plain > half > blocks > 0
