"""Permutations of axes mean what numpy makes of them."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.analysis.dims import symbol
from graphopt.passes.simplify.layout.permutations import (
    between,
    compose,
    extend,
    inverse,
    keeps_order,
    permuted,
    restrict,
    same_on,
)
from graphopt.passes.simplify.layout.views import blocks_of, constant_target, through

Shape = tuple[int, ...]
SHAPES = st.lists(st.sampled_from([1, 1, 2, 3, 4, 6]), min_size=1, max_size=5).map(tuple)


def counted(shape: Shape) -> np.ndarray[Any, Any]:
    return np.arange(math.prod(shape)).reshape(shape)


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return one.shape == other.shape and bool((one == other).all())


@given(st.data(), SHAPES)
def test_on_arrays(data: st.DataObject, shape: Shape) -> None:
    one = tuple(data.draw(st.permutations(range(len(shape)))))
    other = tuple(data.draw(st.permutations(range(len(shape)))))
    array = counted(shape)
    moved = array.transpose(one)
    assert same(moved.transpose(inverse(one)), array)
    assert same(moved.transpose(other), array.transpose(compose(one, other)))
    assert permuted(shape, one) == moved.shape
    assert same_on(shape, one, other) == same(moved, array.transpose(other))
    assert keeps_order(shape, one) == bool((moved.ravel() == array.ravel()).all())
    found = between(shape, moved.shape)
    assert found is not None or not keeps_order(shape, one)
    assert found is None or same(array.transpose(found), array.reshape(moved.shape))


@given(st.data(), st.integers(1, 5))
def test_extend_undoes_restrict(data: st.DataObject, rank: int) -> None:
    kept = sorted(data.draw(st.sets(st.integers(0, rank - 1), min_size=1)))
    part = tuple(data.draw(st.permutations(range(len(kept)))))
    hint = tuple(data.draw(st.permutations(range(rank))))
    whole = extend(part, kept, rank, hint)
    assert sorted(whole) == list(range(rank))
    assert restrict(whole, kept) == part
    assert whole == hint or restrict(hint, kept) != part


@given(st.data())
def test_through_a_reshape(data: st.DataObject) -> None:
    """Where a permutation passes, reshaping what is permuted is permuting what is reshaped."""
    source = data.draw(SHAPES)
    choices = [shape for shape in ([math.prod(source)], [1, *source], [*source, 1]) if shape] + [
        [*source[:place], source[place] * source[place + 1], *source[place + 2 :]] for place in range(len(source) - 1)
    ]
    target = tuple(data.draw(st.sampled_from(choices)))
    perm = tuple(data.draw(st.permutations(range(len(source)))))
    found = through(blocks_of(source, target), perm, len(target), tuple(range(len(target))))
    array = counted(source)
    if found is not None:
        assert same(array.transpose(perm).reshape(permuted(target, found)), array.reshape(target).transpose(found))
        return
    ways = [array.reshape(target).transpose(way) for way in permutations(range(len(target)))]
    reshaped = [array.transpose(perm).reshape(way.shape) for way in ways]
    assert not any(same(way, other) for way, other in zip(ways, reshaped, strict=True))


N, M = symbol("n"), symbol("m")


@pytest.mark.parametrize(
    ("source", "target", "blocks"),
    [
        ((N, 12), (N, 3, 4), [((0,), (0,)), ((1,), (1, 2))]),
        ((N, M, 4), (N * M, 4), [((0, 1), (0,)), ((2,), (1,))]),
        ((N, M), (M, N), [((0, 1), (0, 1))]),
        ((N, 1, 6), (6, N), [((1,), ()), ((0, 2), (0, 1))]),
    ],
)
def test_blocks_with_open_sizes(source: tuple[Any, ...], target: tuple[Any, ...], blocks: list[Any]) -> None:
    assert blocks_of(source, target) == blocks


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ((2, 3), (3, 2), [3, 2]),
        ((N, 6), (N, 2, 3), [-1, 2, 3]),
        ((N, M, 6), (N, M, 2, 3), [0, 0, 2, 3]),
        ((N, M), (M, N), None),
        ((0, 3), (0, 3), None),
    ],
)
def test_targets(source: tuple[Any, ...], target: tuple[Any, ...], expected: list[int] | None) -> None:
    assert constant_target(source, target) == expected
