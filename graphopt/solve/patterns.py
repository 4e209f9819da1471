"""Where the zeros of a pruned weight may lie: anywhere, in blocks, or N of every M."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Mask = NDArray[np.bool_]
Matrix = NDArray[np.floating]

BLOCKS = ("4x1", "8x1", "16x1", "1x4", "4x4")
"""Blocks that the sparse kernels have formats for: output rows by columns."""

_N_OF_M = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True, slots=True)
class Pattern:
    """The shape in which weights of a matrix W, [R, C], go together.

    Rows are outputs; columns are what a product sums over. Blocks start at row 0 and column 0; the last ones may be
    smaller where R or C is no multiple.

    Attributes:
        rows: Output rows of a block.
        columns: Columns of a block.
        keep: N of N:M, blocks that may stay of every `of` side by side; 0 for the other patterns.
        of: M of N:M; 0 for the other patterns.
    """

    rows: int = 1
    columns: int = 1
    keep: int = 0
    of: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the pattern of a name: ``unstructured``, ``4x1`` and the like, or ``N:M``.

        Raises:
            ValueError: It is none of these.
        """
        if text == "unstructured":
            return cls()
        if text in BLOCKS:
            rows, columns = map(int, text.split("x"))
            return cls(rows, columns)
        found = _N_OF_M.fullmatch(text)
        if found is None or not 0 < int(found[1]) < int(found[2]) <= 64:
            known = f"unstructured, {', '.join(BLOCKS)} or N:M with 0 < N < M <= 64"
            raise ValueError(f"pattern is {text!r}, but it is one of {known}")
        return cls(keep=int(found[1]), of=int(found[2]))

    @property
    def share(self) -> float | None:
        """The share of zeros that N:M fixes, None where it is free."""
        return 1 - self.keep / self.of if self.of else None

    def __str__(self) -> str:
        if self.of:
            return f"{self.keep}:{self.of}"
        return f"{self.rows}x{self.columns}" if self.rows * self.columns > 1 else "unstructured"

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how many blocks lie below and beside each other in a matrix of this shape."""
        return -(-shape[0] // self.rows), -(-shape[1] // self.columns)

    def sizes(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Return how many weights each block has, [groups of rows, blocks]."""
        down, beside = self.grid(shape)
        high = np.minimum(self.rows, shape[0] - self.rows * np.arange(down))
        return np.outer(high, np.minimum(self.columns, shape[1] - self.columns * np.arange(beside)))

    def pooled(self, scores: Matrix) -> Matrix:
        """Return the sum of the scores in each block, [groups of rows, blocks]."""
        if self.rows * self.columns == 1:
            return scores
        across = np.add.reduceat(scores, np.arange(0, scores.shape[1], self.columns), axis=1)
        return np.asarray(np.add.reduceat(across, np.arange(0, scores.shape[0], self.rows), axis=0))

    def spread(self, blocks: Mask, shape: tuple[int, ...]) -> Mask:
        """Return a mask of blocks as a mask of the weights of a matrix of this shape."""
        if self.rows * self.columns == 1:
            return blocks
        wide = np.repeat(np.repeat(blocks, self.rows, axis=0), self.columns, axis=1)
        return wide[: shape[0], : shape[1]]

    def holds(self, mask: ArrayLike) -> bool:
        """Tell whether the weights that stay (True) follow the pattern."""
        kept = np.asarray(mask, bool)
        if self.of:
            starts = np.arange(0, kept.shape[1], self.of)
            return bool((np.add.reduceat(kept, starts, axis=1, dtype=np.int64) <= self.keep).all())
        filled = self.spread(self.pooled(kept.astype(np.float64)) > 0, kept.shape)
        return bool((filled == kept).all())


UNSTRUCTURED = Pattern()


def keep_best(scores: Matrix, pattern: Pattern, share: float, *, per_row: bool = False) -> Mask:
    """Return which weights stay where those of least score go.

    Args:
        scores: What each weight is worth, [R, C], finite and not negative; a block is worth the mean of its weights.
        pattern: N:M keeps its own share and looks at no other.
        share: Share of weights that goes, 0..1, to the nearest block.
        per_row: Every group of rows loses the same number, instead of one ranking over the matrix.

    Returns:
        True where a weight stays, [R, C]. Of equal scores those to the left and above go first.

    Cost: one sort.
    """
    if pattern.of:
        return _keep_of_groups(scores, pattern)
    blocks = pattern.pooled(scores)
    sizes = pattern.sizes(scores.shape)
    shape = blocks.shape if per_row else (1, blocks.size)
    order = np.argsort((blocks / sizes).reshape(shape), axis=1, kind="stable")
    kept = np.ones(shape, bool)
    going = within(np.take_along_axis(sizes.reshape(shape), order, axis=1), share)
    np.put_along_axis(kept, order, ~going, axis=1)
    return pattern.spread(kept.reshape(blocks.shape), scores.shape)


def _keep_of_groups(scores: Matrix, pattern: Pattern) -> Mask:
    rows, columns = scores.shape
    width = -(-columns // pattern.of) * pattern.of
    padded = np.full((rows, width), -1.0)
    padded[:, :columns] = scores
    groups = padded.reshape(rows, -1, pattern.of)
    kept = np.ones(groups.shape, bool)
    going = np.argsort(groups, axis=2, kind="stable")[:, :, : pattern.of - pattern.keep]
    np.put_along_axis(kept, going, values=False, axis=2)
    return np.ascontiguousarray(kept.reshape(rows, width)[:, :columns])


def within(sizes: NDArray[np.int64], share: float) -> Mask:
    """Return which blocks of a ranking go, [..., blocks], so that the weights gone are nearest to a share of all."""
    total = sizes.sum(axis=-1, keepdims=True)
    return np.asarray(np.cumsum(sizes, axis=-1) - sizes / 2 <= share * total * (1 + 1e-12))


def channels_last(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the columns of a convolution in the order kernel place, then channel: neighbours share a place.

    Args:
        shape: Of the weight of one group: (out, in, kernel...). Its matrix has the columns channel, then place.
    """
    places = int(np.prod(shape[2:], dtype=np.int64))
    return np.arange(shape[1] * places).reshape(shape[1], places).T.reshape(-1)
