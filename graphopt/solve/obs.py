"""Exact OBS: in which order the weights of a layer go, and what each costs, from one matrix of second moments.

A row w of the weight has the error (v - w) H (v - w)' when v takes its place, with H = E[z z'] of the layer's inputs.
The weight whose loss raises the least error reachable goes first, those that stay make up for it, and so on. The order
and the costs give every sparsity at once: the cost of a prefix is exactly the error of the best weights on what stays.

Source: Frantar and Alistarh 2022, arXiv:2208.11580.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from graphopt.solve import least_squares
from graphopt.solve.obs_library import call_path
from graphopt.solve.patterns import UNSTRUCTURED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.solve.patterns import Mask, Pattern

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RemovalPath:
    """The order in which the blocks of a weight go.

    Attributes:
        shape: Of the weight, (R, C).
        pattern: What a block is.
        order: Which block goes, first to last, [groups of rows, steps].
        losses: By how much each raises the error, summed over the rows of the group, [groups of rows, steps].
    """

    shape: tuple[int, int]
    pattern: Pattern
    order: NDArray[np.int32]
    losses: Matrix

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many weights go with each step, [groups of rows, steps]."""
        return np.take_along_axis(self.pattern.sizes(self.shape), self.order.astype(np.int64), axis=1)

    def mask(self, counts: NDArray[np.integer]) -> Mask:
        """Return which weights stay, [R, C], where each group of rows loses the first so many of its path.

        Args:
            counts: Blocks that go, one number per group of rows.
        """
        kept = np.ones(self.pattern.grid(self.shape), bool)
        row, step = np.nonzero(np.arange(self.order.shape[1]) < counts[:, None])
        kept[row, self.order[row, step]] = False
        return self.pattern.spread(kept, self.shape)

    def highest_so_far(self) -> Matrix:
        """Return for each step the largest loss per weight up to it: what a threshold must reach for it to be taken."""
        return np.maximum.accumulate(self.losses / self.sizes, axis=1)


def damped(inner: Matrix, damping: float) -> Matrix:
    """Return H + d I, [C, C], positive definite; see `least_squares.damped`."""
    return least_squares.damped(inner, damping)[0]


def removal_path(
    weight: Matrix, inner: Matrix, pattern: Pattern = UNSTRUCTURED, *, steps: int | None = None, threads: int = 1
) -> RemovalPath:
    """Return in which order the blocks of a weight go, and what each costs.

    Weights that are zero already go first and cost nothing; the others must be the best on what is not zero (every
    weight is, of itself), else the losses are those of a step from where they are.

    Args:
        weight: W, [R, C].
        inner: H, [C, C], positive definite: damped. Where weights start from the best for other inputs, the H of these.
        pattern: What goes together. N:M ends when no group of M has more than N.
        steps: Blocks that go in each group of rows at most; all that may, by default.
        threads: Threads that share the rows; the result does not depend on it.

    Returns:
        The path. Its losses are in units of the error, w H w'.

    Raises:
        numpy.linalg.LinAlgError: H is not positive definite in float64.
        KernelError: The compiled solver is missing or refuses the sizes.

    Cost: R C^3 / (6 rows of the pattern) multiply-adds, C^2 numbers per thread, and one inverse.
    """
    rows, columns = weight.shape
    blocks = pattern.grid(weight.shape)[1]
    most = blocks
    if pattern.of:
        sizes = np.diff(np.append(np.arange(0, columns, pattern.of), columns))
        most = int(np.maximum(sizes - pattern.keep, 0).sum())
    order, losses = call_path(
        weight,
        inverted(inner),
        group_rows=pattern.rows,
        block=pattern.columns,
        keep=pattern.keep,
        of=pattern.of,
        steps=most if steps is None else min(most, steps),
        threads=threads,
    )
    return RemovalPath((rows, columns), pattern, order, losses)


def inverted(system: Matrix) -> Matrix:
    """Return the inverse of a positive definite matrix, symmetric to the bit.

    Raises:
        numpy.linalg.LinAlgError: It is not positive definite in float64.
    """
    lower = np.linalg.cholesky(system)
    half = np.linalg.solve(lower, np.eye(len(system)))
    inverse = half.T @ half
    return np.asarray((inverse + inverse.T) / 2)


def cut_paths(paths: Sequence[RemovalPath], share: float) -> list[NDArray[np.int64]]:
    """Return how far to follow each path so that together a share of the weights goes, at the least threshold.

    Steps are taken while the largest loss so far is below one threshold for all rows of all paths; ties go in order.

    Args:
        paths: Of one layer, of several groups of it, or of layers whose losses are comparable.
        share: Share of the weights that goes, 0..1, to the nearest block; all steps where the paths end before.

    Returns:
        One array per path: blocks that go, per group of rows.
    """
    order, sizes = _ranking(paths)
    total = sum(path.shape[0] * path.shape[1] for path in paths)
    taken = np.zeros(len(order), bool)
    taken[order] = np.cumsum(sizes) - sizes / 2 <= share * total * (1 + 1e-12)
    found, start = [], 0
    for path in paths:
        size = path.losses.size
        found.append(taken[start : start + size].reshape(path.losses.shape).sum(axis=1))
        start += size
    return found


def losses_at(paths: Sequence[RemovalPath], shares: NDArray[np.float64]) -> Matrix:
    """Return what it costs together to cut paths at each of several shares, in units of the error.

    Args:
        paths: Of one layer: one per group.
        shares: Shares of the weights that go, 0..1.
    """
    order, sizes = _ranking(paths)
    total = sum(path.shape[0] * path.shape[1] for path in paths)
    spent = np.concatenate([[0.0], np.cumsum(np.concatenate([path.losses.reshape(-1) for path in paths])[order])])
    return np.asarray(spent[np.searchsorted(np.cumsum(sizes) - sizes / 2, shares * total, side="right")])


def _ranking(paths: Sequence[RemovalPath]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the steps of all paths in the order in which a rising threshold takes them, and their sizes."""
    levels = np.concatenate([path.highest_so_far().reshape(-1) for path in paths])
    order = np.argsort(levels, kind="stable")
    return order, np.concatenate([path.sizes.reshape(-1) for path in paths])[order]


def path_flops(shape: tuple[int, ...], pattern: Pattern) -> float:
    """Return about how many floating-point operations `removal_path` takes."""
    rows, columns = shape[0], shape[1]
    share = 1.0 if not pattern.of else 1 - pattern.keep / pattern.of
    return 2 * -(-rows // pattern.rows) * columns**3 * (share**2 / 2 - share**3 / 3) + 2 * columns**3
