"""Where zeros may lie, and which weights stay by their scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve.patterns import BLOCKS, Pattern, channels_last, keep_best
from graphopt.solve.wanda import wanda_mask, wanda_scores

NAMES = ["unstructured", "2:4", "1:4", "4:8", *BLOCKS]


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_prints_as_it_is_written(name: str) -> None:
    assert str(Pattern.parse(name)) == name


@pytest.mark.parametrize("name", ["", "5x1", "4x", "4:2", "0:4", "2:2", "1:65", "2:4:8", "channels"])
def test_what_is_no_pattern_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is one of unstructured, 4x1"):
        Pattern.parse(name)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    name=st.sampled_from(NAMES),
    share=st.floats(0, 1),
    per_row=st.booleans(),
)
def test_what_stays_follows_the_pattern_and_has_the_share(
    seed: int, shape: tuple[int, int], name: str, share: float, per_row: bool
) -> None:
    pattern = Pattern.parse(name)
    kept = keep_best(np.random.default_rng(seed).random(shape), pattern, share, per_row=per_row)
    assert kept.shape == shape
    assert pattern.holds(kept)
    gone = (~kept).sum(axis=1) if per_row else (~kept).sum()
    if pattern.of:
        whole = shape[1] // pattern.of * pattern.of
        assert (kept[:, :whole].reshape(shape[0], -1, pattern.of).sum(axis=2) == pattern.keep).all()
    else:
        wanted = share * (shape[1] if per_row else kept.size)
        block = pattern.columns * (1 if per_row else pattern.rows)
        assert (np.abs(gone - wanted) <= block / 2 + 1e-6).all()


@pytest.mark.parametrize("name", ["unstructured", "4x1", "1x4", "4x4"])
def test_the_blocks_that_stay_are_worth_more_than_those_that_go(name: str) -> None:
    pattern = Pattern.parse(name)
    scores = np.random.default_rng(0).random((14, 15))
    kept = keep_best(scores, pattern, 0.6)
    worth: dict[bool, list[float]] = {True: [], False: []}
    for row in range(0, 14, pattern.rows):
        for column in range(0, 15, pattern.columns):
            here = np.s_[row : row + pattern.rows, column : column + pattern.columns]
            assert kept[here].all() or not kept[here].any()
            worth[bool(kept[here].all())].append(float(scores[here].mean()))
    assert min(worth[True]) > max(worth[False])


def test_of_every_group_the_largest_stay() -> None:
    scores = np.array([[3.0, 1, 2, 4, 5, 5, 5, 5, 7, 9]])
    kept = keep_best(scores, Pattern.parse("2:4"), 0.0)
    assert kept.astype(int).tolist() == [[1, 0, 0, 1, 0, 0, 1, 1, 1, 1]]


def test_masks_of_other_patterns_do_not_hold() -> None:
    checked = np.indices((8, 8)).sum(axis=0) % 2 == 0
    assert Pattern.parse("2:4").holds(checked)
    assert not Pattern.parse("1:4").holds(checked)
    assert not any(Pattern.parse(name).holds(checked) for name in BLOCKS)
    stripes = np.repeat(np.arange(8)[None, :] % 2 == 0, 8, axis=0)
    assert Pattern.parse("4x1").holds(stripes)
    assert not Pattern.parse("1x4").holds(stripes)


def test_columns_of_one_kernel_place_become_neighbours() -> None:
    weight = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    ordered = weight.reshape(2, -1)[:, channels_last(weight.shape)]
    np.testing.assert_array_equal(ordered.reshape(2, 4, 3), weight.transpose(0, 2, 3, 1).reshape(2, 4, 3))


def test_wanda_weighs_by_the_root_of_the_mean_square() -> None:
    weight, squares = np.array([[1.0, -2.0, 3.0, 0.5]]), np.array([100.0, 1.0, 0.25, 4.0])
    np.testing.assert_allclose(wanda_scores(weight, squares), [[10, 2, 1.5, 1]])
    assert wanda_mask(weight, squares, Pattern.parse("unstructured"), 0.5).tolist() == [[True, True, False, False]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0, 1))
def test_wanda_prunes_every_row_alike(seed: int, share: float) -> None:
    draw = np.random.default_rng(seed)
    weight, squares = draw.standard_normal((5, 13)) * draw.random((5, 1)), draw.random(13)
    kept = wanda_mask(weight, squares, Pattern.parse("unstructured"), share)
    assert (kept.sum(axis=1) == 13 - int(share * 13 + 0.5)).all()
    values = np.abs(weight) * np.sqrt(squares)
    for row in range(5):
        if 0 < kept[row].sum() < 13:
            assert values[row][kept[row]].min() >= values[row][~kept[row]].max()
