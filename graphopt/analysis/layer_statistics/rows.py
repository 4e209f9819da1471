"""Every linear layer as y = W x on vectors x: its weight as matrices, what it reads as rows.

Rows are drawn by a seeded generator that sees shapes only, so that the dense and the compressed model, whose
activations have the same shapes, give the same rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Form(ABC):
    """How a layer's weight is read as matrices W, [rows, columns], one per group, and its input as rows.

    Forms that are equal read the same input in the same way.

    Attributes:
        op: The operator.
        groups: Number of groups, each with a matrix of its own.
    """

    op: str
    groups: int = 1

    @property
    @abstractmethod
    def layout(self) -> tuple[object, ...]:
        """How the weight is stored: forms of one layout agree on what its rows and columns are."""

    @abstractmethod
    def columns(self, shape: Sequence[int]) -> int:
        """Return the columns of each group's matrix, for the shape of the weight."""

    @abstractmethod
    def matrices(self, weight: Array) -> list[NDArray[np.float64]]:
        """Return W of every group as float64."""

    @abstractmethod
    def weight(self, matrices: Sequence[NDArray[np.float64]], like: Array) -> Array:
        """Return the matrices of all groups as a weight, in the layout and type of ``like``."""

    @abstractmethod
    def sample(self, inputs: Sequence[Array], count: int, draw: np.random.Generator) -> list[list[Array]]:
        """Return rows of each group, [at most count, columns], for each of several arrays of the same shape.

        Args:
            inputs: What the layer reads, in the models that are compared.
            count: Rows drawn from each array.
            draw: Decides which.
        """

    @abstractmethod
    def channels(self, array: Array) -> Array:
        """Return what the layer reads as a view whose last axis counts input channels."""


@dataclass(frozen=True, slots=True)
class MatrixForm(Form):
    """A Gemm, or a MatMul with a weight on either side, stacked matrices included.

    Attributes:
        index: Which input of the node is the weight.
        transposed: The weight is stored as [columns, rows].
        flipped: A Gemm that reads its input transposed.
        stack: The axes of a MatMul weight before its last two: one group per matrix.
    """

    index: int = 1
    transposed: bool = False
    flipped: bool = False
    stack: tuple[int, ...] = ()

    @property
    def layout(self) -> tuple[object, ...]:
        """How the weight is stored."""
        return ("matrix", self.transposed, self.stack)

    def columns(self, shape: Sequence[int]) -> int:
        """Return the columns of each group's matrix."""
        return int(shape[-2 if self.transposed else -1])

    def matrices(self, weight: Array) -> list[NDArray[np.float64]]:
        """Return W of every group as float64."""
        parts = weight.reshape(-1, *weight.shape[-2:])
        return [(part.T if self.transposed else part).astype(np.float64) for part in parts]

    def weight(self, matrices: Sequence[NDArray[np.float64]], like: Array) -> Array:
        """Return the matrices of all groups as a weight, in the layout and type of ``like``."""
        parts = [np.ascontiguousarray(part.T if self.transposed else part) for part in matrices]
        return np.stack(parts).reshape(like.shape).astype(like.dtype)

    def sample(self, inputs: Sequence[Array], count: int, draw: np.random.Generator) -> list[list[Array]]:
        """Return rows of each group for each of several arrays of the same shape."""
        if self.groups == 1:
            tables = [self._table(array) for array in inputs]
            chosen = draw.permutation(len(tables[0]))[:count]
            return [[table[chosen]] for table in tables]
        return self._stacked(inputs, count, draw)

    def channels(self, array: Array) -> Array:
        """Return what the layer reads with its channels last."""
        if self.op == "Gemm":
            return array.T if self.flipped else array
        return np.moveaxis(array, -2, -1) if self.index == 0 and array.ndim > 1 else array

    def _table(self, array: Array) -> Array:
        array = self.channels(array)
        return array.reshape(-1, array.shape[-1])

    def _stacked(self, inputs: Sequence[Array], count: int, draw: np.random.Generator) -> list[list[Array]]:
        """Draw for many matrices: axes along which they change divide into groups, all others count rows."""
        views = [self._aligned(self.channels(array)) for array in inputs]
        shape = views[0].shape[len(self.stack) : -1]
        total = int(np.prod(shape))
        chosen = draw.permutation(total)[:count] if total < 1 << 20 else draw.integers(0, total, count)
        places = np.unravel_index(chosen, shape)
        chooser: Any = (*[slice(None)] * len(self.stack), *places)
        return [list(view[chooser].reshape(self.groups, len(chosen), -1)) for view in views]

    def _aligned(self, array: Array) -> Array:
        """Return a view with the axes of the stack first: [*stack, rows, ..., columns]."""
        if array.ndim == 1:
            array = array[None]
        rank = max(array.ndim - 2, len(self.stack))
        array = array.reshape(*[1] * (rank + 2 - array.ndim), *array.shape)
        stack = [1] * (rank - len(self.stack)) + list(self.stack)
        divided = [axis for axis in range(rank) if stack[axis] > 1]
        counted = [axis for axis in range(rank) if stack[axis] == 1]
        array = np.transpose(array, [*divided, *counted, rank, rank + 1])
        sizes = [stack[axis] for axis in divided]
        array = np.broadcast_to(array, (*sizes, *array.shape[len(divided) :]))
        return array.reshape(*self.stack, *array.shape[len(divided) :])
