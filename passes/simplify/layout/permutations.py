"""Permutations of axes, as Transpose writes them: axis k of the result is axis ``perm[k]`` of the input."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim

Perm: TypeAlias = "tuple[int, ...]"


def inverse(perm: Perm) -> Perm:
    """Return the permutation that undoes another."""
    back = [0] * len(perm)
    for place, axis in enumerate(perm):
        back[axis] = place
    return tuple(back)


def compose(first: Perm, second: Perm) -> Perm:
    """Return the one permutation that does first one, then another."""
    return tuple(first[axis] for axis in second)


def is_identity(perm: Perm) -> bool:
    """Whether a permutation moves nothing."""
    return all(place == axis for place, axis in enumerate(perm))


def permuted(shape: Sequence[Dim], perm: Perm) -> tuple[Dim, ...]:
    """Return the shape that a permutation gives a tensor."""
    return tuple(shape[axis] for axis in perm)


def order_of(shape: Sequence[Dim], perm: Perm) -> tuple[int, ...]:
    """Return the axes of a permuted tensor without those of size 1: what decides the order of its elements."""
    return tuple(axis for axis in perm if shape[axis] != 1)


def same_on(shape: Sequence[Dim], one: Perm, other: Perm) -> bool:
    """Whether two permutations give the same tensor: axes of size 1 may stand for each other."""
    if one == other:
        return True
    return order_of(shape, one) == order_of(shape, other) and permuted(shape, one) == permuted(shape, other)


def keeps_order(shape: Sequence[Dim], perm: Perm) -> bool:
    """Whether a permutation moves axes of size 1 only, so that no element moves in memory."""
    order = order_of(shape, perm)
    return all(before < after for before, after in pairwise(order))


def restrict(perm: Perm, kept: Sequence[int]) -> Perm:
    """Return what a permutation does to some of the axes, which are numbered anew in their order.

    Args:
        perm: The permutation.
        kept: The axes that are left, ascending.
    """
    number = {axis: place for place, axis in enumerate(kept)}
    return tuple(number[axis] for axis in perm if axis in number)


def extend(part: Perm, kept: Sequence[int], rank: int, hint: Perm) -> Perm:
    """Return a permutation of more axes that does the same to some of them.

    Args:
        part: What it does to the axes that are kept, numbered in their order.
        kept: These axes, ascending.
        rank: How many axes there are.
        hint: The permutation to return if it fits; else the others stay where they are.
    """
    if len(hint) == rank and restrict(hint, kept) == part:
        return hint
    moving = iter([kept[axis] for axis in part])
    staying = set(range(rank)).difference(kept)
    return tuple(place if place in staying else next(moving) for place in range(rank))


def between(source: Sequence[Dim], target: Sequence[Dim]) -> Perm | None:
    """Return the permutation that a Reshape between two shapes is; None where it is none: it regroups elements.

    Only axes of size 1 change places, and each place of size 1 takes the first that is left.
    """
    if len(source) != len(target):
        return None
    ones = iter([axis for axis, size in enumerate(source) if size == 1])
    others = iter([axis for axis, size in enumerate(source) if size != 1])
    perm: list[int] = []
    for size in target:
        axis = next(ones if size == 1 else others, None)
        if axis is None or source[axis] != size:
            return None
        perm.append(axis)
    return tuple(perm)
