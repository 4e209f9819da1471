"""The scores and the exact cut, against definitions written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.solve import scores

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
positive = st.floats(0, 2.0**100, width=32)


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=positive), st.data())
def test_cut_any_scores_removes_exactly_the_lowest(values: np.ndarray, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    blocks = np.array_split(values, data.draw(st.integers(1, 4)))
    edge = scores.cut(lambda: blocks, count)
    kept = []
    for block in blocks:
        keep, edge = edge.mask(block)
        kept.append(keep)
    keep = np.concatenate(kept)
    expected = np.ones(len(values), bool)
    expected[np.argsort(values, kind="stable")[:count]] = False
    np.testing.assert_array_equal(keep, expected)


def test_cut_ties_go_in_the_order_of_the_blocks() -> None:
    blocks = [np.full((2, 2), 3.0, np.float32), np.full(3, 3.0, np.float32)]
    edge = scores.cut(lambda: blocks, 5)
    first, edge = edge.mask(blocks[0])
    second, edge = edge.mask(blocks[1])
    assert first.tolist() == [[False, False], [False, False]]
    assert second.tolist() == [False, True, True]
    assert edge.ties == 0


def test_cut_negative_zero_counts_as_zero() -> None:
    values = np.array([1.0, -0.0, 0.0], np.float32)
    keep, _ = scores.cut(lambda: [values], 2).mask(values)
    assert keep.tolist() == [True, False, False]


def test_cut_more_than_there_are_raises() -> None:
    with pytest.raises(ValueError, match="there are 2"):
        scores.cut(lambda: [np.ones(2, np.float32)], 3)


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e3, 1e3, width=32)))
def test_lamp_distinct_weights_follow_the_definition(weight: np.ndarray) -> None:
    magnitudes = scores.magnitude(weight)
    got = scores.lamp(magnitudes)
    assert got.shape == weight.shape
    assert np.isfinite(got).all()
    assert ((got == 0) == (weight == 0)).all()
    squares = np.square(magnitudes.astype(np.float64)).ravel()
    for value, square in zip(got.ravel(), squares, strict=True):
        if square > 1e-30 and (squares == square).sum() == 1:
            assert value == pytest.approx(square / squares[squares >= square].sum(), rel=1e-5)


def test_lamp_global_cut_never_empties_a_layer() -> None:
    rng = np.random.default_rng(1)
    layers = [rng.standard_normal((8, 8)).astype(np.float32) * size for size in (1e-6, 1.0, 1e6)]
    ranked = [scores.lamp(scores.magnitude(layer)) for layer in layers]
    edge = scores.cut(lambda: ranked, 3 * 64 - 3)
    for layer in ranked:
        keep, edge = edge.mask(layer)
        assert keep.sum() == 1


def test_lamp_layer_scale_does_not_matter() -> None:
    weight = np.random.default_rng(2).standard_normal((5, 7)).astype(np.float32)
    np.testing.assert_allclose(scores.lamp(np.abs(weight)), scores.lamp(np.abs(weight) * np.float32(1024)), rtol=1e-6)


def test_unfolded_folded_rows_rank_as_before_folding() -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((4, 3, 2, 2)).astype(np.float32)
    gain = np.array([0.01, -3.0, 40.0, 1.0], np.float32)
    folded = weight * gain[:, None, None, None]
    np.testing.assert_allclose(scores.unfolded(folded, gain.reshape(4, 1, 1, 1)), np.abs(weight), rtol=1e-6)
    np.testing.assert_allclose(scores.unfolded(folded.T, gain), np.abs(weight.T), rtol=1e-6)


def test_unfolded_dead_and_odd_scales_stay_finite() -> None:
    weight = np.full((4, 2), 1e30, np.float32)
    got = scores.unfolded(weight, np.array([[0.0], [1e-40], [np.nan], [np.inf]]))
    assert np.isfinite(got).all()
    assert (got[0] == 0).all()
    assert (got[2] == np.float32(1e30)).all()
    assert (got[3] == np.float32(1e30)).all()


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9, 1.0])
def test_erk_densities_keep_the_wanted_share(density: float) -> None:
    shapes = [(16, 3, 3, 3), (64, 64, 3, 3), (512, 512), (10, 64)]
    densities = scores.erk_densities(shapes, density)
    sizes = [np.prod(shape) for shape in shapes]
    assert all(0 <= share <= 1 for share in densities)
    assert sum(d * s for d, s in zip(densities, sizes, strict=True)) == pytest.approx(density * sum(sizes))


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9, 1.0])
def test_size_densities_keep_the_wanted_share_and_spare_small_layers_a_little(density: float) -> None:
    sizes = [2304, 9216, 36864]
    found = scores.size_densities(sizes, density)
    assert all(0 <= share <= 1 for share in found)
    assert sum(d * s for d, s in zip(found, sizes, strict=True)) == pytest.approx(density * sum(sizes))
    assert found == sorted(found, reverse=True)
    if density < 0.5:
        assert found[0] / found[2] == pytest.approx(16 ** (1 / 8))


def test_erk_densities_large_layers_become_sparser() -> None:
    small, large = scores.erk_densities([(16, 16), (256, 256)], 0.1)
    assert small > large


def test_cut_transposed_blocks_are_masked_in_their_own_order() -> None:
    block = np.zeros((2, 3), np.float32).T
    keep, _ = scores.cut(lambda: [block], 2).mask(block)
    assert keep.tolist() == [[False, False], [True, True], [True, True]]
