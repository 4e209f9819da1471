"""Where a generator's decisions come from: a seed, or hypothesis, which can then shrink them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


class Choices(Protocol):
    """Decisions; everything a model is made of follows from them."""

    def integer(self, low: int, high: int) -> int:
        """Return an integer, both ends included."""
        ...


class Decider:
    """What a generator asks, in terms of `Choices`."""

    def __init__(self, source: Choices) -> None:
        self._source = source
        self._arrays = 0

    def integer(self, low: int, high: int) -> int:
        """Return an integer, both ends included; ``low`` is the simplest."""
        return self._source.integer(low, high)

    def chance(self, percent: int) -> bool:
        """Return True in so many of a hundred cases; False is the simplest."""
        return self._source.integer(0, 99) >= 100 - percent

    def pick(self, items: Sequence[T]) -> T:
        """Return one item; the first is the simplest."""
        return items[self._source.integer(0, len(items) - 1)]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Return different items, in any order."""
        left = list(items)
        return [left.pop(self._source.integer(0, len(left) - 1)) for _ in range(count)]

    def permutation(self, size: int) -> list[int]:
        """Return the numbers below ``size`` in any order; the ordered one is the simplest."""
        return self.sample(range(size), size)

    def generator(self) -> np.random.Generator:
        """Return a source of array elements; they differ from call to call and are not worth shrinking."""
        self._arrays += 1
        return np.random.default_rng([self._arrays, self._source.integer(0, 3)])


class Seeded:
    """Decisions that follow from a seed."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)


class Drawn:
    """Decisions that hypothesis makes."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))
