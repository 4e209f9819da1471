"""Code books: a few shared values anywhere on the line, found by k-means in which important weights count more.

Source: Han et al. 2016, arXiv:1510.00149, section 3 (linear start); Choi et al. 2017, arXiv:1612.01543, section 4
(weighting by the diagonal of the second moments).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.rounding.coordinate_descent import LEAST_GAIN, descend
from graphopt.solve.rounding.grids import layer_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.solve.rounding.problem import Problem

Cube = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Codebook:
    """The values that weights may have.

    Attributes:
        values: Ascending float32 numbers, [K].
    """

    values: NDArray[np.float64]

    def codes(self, weights: Cube) -> NDArray[np.int64]:
        """Return the positions of the values nearest to weights of any shape."""
        between = (self.values[1:] + self.values[:-1]) / 2
        return np.asarray(np.searchsorted(between, weights))

    def nearest(self, weights: Cube, mask: NDArray[np.bool_] | None = None) -> Cube:
        """Return the values nearest to weights of any shape; zero off the mask."""
        found = self.values[self.codes(weights)]
        return np.asarray(found if mask is None else np.where(mask, found, 0.0))

    def rounder(self, columns: int) -> Callable[[int, Cube], Cube]:
        """Return the function that rounds column j of every row, [G, R]: the same for every column."""
        return lambda _, values: self.nearest(values)


def lloyd(problem: Problem, count: int, *, iterations: int = 30) -> Codebook:
    """Return a code book for all rows by k-means on single weights, each weighted with H_jj.

    The first values lie evenly between the smallest and the largest weight. With a mask one value is 0 and stays so.
    Cost: N log N once, then K log N per iteration.

    Args:
        problem: What is minimised; only the diagonal of its moments counts here.
        count: Number of values K, 2 or more.
        iterations: At most.

    Raises:
        ValueError: There would be fewer than two values.
    """
    if count < 2:
        raise ValueError(f"a code book of {count} values, but it needs 2 or more")
    importance = np.broadcast_to(np.einsum("gcc->gc", problem.moment)[:, None], problem.target.shape)
    chosen = slice(None) if problem.mask is None else problem.mask
    weights, counts = problem.target[chosen].ravel(), importance[chosen].ravel()
    order = np.argsort(weights, kind="stable")
    weights, counts = weights[order], counts[order]
    mass, moment = (np.concatenate([[0.0], np.cumsum(part)]) for part in (counts, counts * weights))
    low, high = (float(weights[0]), float(weights[-1])) if len(weights) else (-1.0, 1.0)
    values = np.linspace(low, high, count)
    fixed = _zero_place(values) if problem.mask is not None else None
    if fixed is not None:
        values[fixed] = 0.0
        values.sort()
        fixed = int(np.searchsorted(values, 0.0))
    for _ in range(iterations):
        cuts = np.searchsorted(weights, (values[1:] + values[:-1]) / 2)
        ends = np.concatenate([[0], cuts, [len(weights)]])
        inside = np.diff(mass[ends])
        found = np.divide(np.diff(moment[ends]), inside, out=values.copy(), where=inside > 0)
        if fixed is not None:
            found[fixed] = 0.0
        if np.allclose(found, values, rtol=1e-9, atol=0):
            break
        values = found
    return Codebook(np.sort(values.astype(np.float32).astype(np.float64)))


def _zero_place(values: NDArray[np.float64]) -> int:
    return int(np.argmin(np.abs(values)))


def alternate_codebook(problem: Problem, book: Codebook, *, rounds: int = 3, sweeps: int = 2) -> tuple[Codebook, Cube]:
    """Descend on a code book and refit its values in turn; return both.

    The values are fitted to their places by least squares in the metric of the problem. The error falls in every round.
    Cost of a round: (sweeps + K) G R C^2.

    Args:
        problem: What is minimised.
        book: The first code book.
        rounds: At most so many.
        sweeps: Of each descent.
    """
    weights = book.nearest(problem.target, problem.mask)
    error = layer_error(problem, weights)
    for _ in range(rounds):
        weights = descend(problem, book, weights, sweeps=sweeps)
        fitted = _fit_values(problem, book, weights)
        moved = fitted.nearest(weights, problem.mask) if fitted is book else _moved(book, fitted, weights, problem)
        now = layer_error(problem, moved)
        if now <= error:
            book, weights = fitted, moved
        done = now > error * (1 - LEAST_GAIN)
        error = min(error, now)
        if done:
            break
    return book, descend(problem, book, weights, sweeps=1)


def _moved(book: Codebook, fitted: Codebook, weights: Cube, problem: Problem) -> Cube:
    """Return the weights with each value replaced by its successor at the same place of the book."""
    found = fitted.values[book.codes(weights)]
    return np.asarray(found if problem.mask is None else np.where(problem.mask, found, 0.0))


def _fit_values(problem: Problem, book: Codebook, weights: Cube) -> Codebook:
    """Return the book whose values, at the places that the weights took, give the least error."""
    places = book.codes(weights)
    zero = -1 if problem.mask is None else int(np.searchsorted(book.values, 0.0))
    free = [place for place in range(len(book.values)) if place != zero]
    system = np.zeros((len(free), len(free)))
    aim = np.zeros(len(free))
    target = problem.target @ problem.moment
    picks = [np.asarray(places == place, np.float64) for place in free]
    if problem.mask is not None:
        picks = [pick * problem.mask for pick in picks]
    for row, pick in enumerate(picks):
        pushed = pick @ problem.moment
        system[row] = [float(np.vdot(pushed, other)) for other in picks]
        aim[row] = float(np.vdot(target, pick))
    used = np.diag(system) > 0
    values = book.values.copy()
    if used.any():
        found = np.linalg.lstsq(system[np.ix_(used, used)], aim[used], rcond=1e-12)[0]
        values[np.array(free)[used]] = found
    values = values.astype(np.float32).astype(np.float64)
    # Values that changed places would have to be sorted with the codes; such a fit is not taken.
    return book if (np.diff(values) < 0).any() else Codebook(values)
