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
    def blocks(self) -> int:
        """How many blocks there are, those that never go included."""
        down, beside = self.pattern.grid(self.shape)
        return down * beside

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
        """Return for each step the largest loss up to it: what a threshold must reach for the step to be taken."""
        return np.maximum.accumulate(self.losses, axis=1)


def damped(inner: Matrix, damping: float) -> Matrix:
    """Return H + d I with d = damping * mean of the diagonal of H, [C, C]; positive definite for damping above 0."""
    strength = damping * float(np.mean(np.diag(inner))) + np.finfo(np.float64).tiny
    system = inner.copy()
    system[np.diag_indices_from(system)] += strength
    return system


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


def cut_paths(paths: Sequence[RemovalPath], count: int) -> list[NDArray[np.int64]]:
    """Return how far to follow each path so that together so many blocks go, at the least threshold of losses.

    Steps are taken while the largest loss so far is below one threshold for all rows of all paths; ties go in order.

    Args:
        paths: Of one layer, of several groups of it, or of layers whose losses are comparable.
        count: Blocks that go, at most as many as the paths have steps.

    Returns:
        One array per path: blocks that go, per group of rows.

    Raises:
        ValueError: The paths have fewer steps.
    """
    levels = np.concatenate([path.highest_so_far().reshape(-1) for path in paths])
    if count > len(levels):
        raise ValueError(f"{count} blocks cannot go: the paths have {len(levels)}")
    taken = np.zeros(len(levels), bool)
    taken[np.argsort(levels, kind="stable")[:count]] = True
    found, start = [], 0
    for path in paths:
        size = path.losses.size
        found.append(taken[start : start + size].reshape(path.losses.shape).sum(axis=1))
        start += size
    return found


def path_flops(shape: tuple[int, ...], pattern: Pattern) -> float:
    """Return about how many floating-point operations `removal_path` takes."""
    rows, columns = shape[0], shape[1]
    share = 1.0 if not pattern.of else 1 - pattern.keep / pattern.of
    return 2 * -(-rows // pattern.rows) * columns**3 * (share**2 / 2 - share**3 / 3) + 2 * columns**3
