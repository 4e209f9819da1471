"""The weights of recurrent layers as y = W x: one group per direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics.rows import Form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class RecurrentForm(Form):
    """A weight of LSTM, GRU or RNN, stored as [directions, rows, columns].

    Attributes:
        reads: ``input``: every step of the input, for W. ``states``: the state that each step but the first of a
            direction finds, taken from the output Y, for R. ``start``: the initial state, for R.
        batch_first: The layout puts the batch axis first.
        backward: Per direction, whether it runs from the end.
    """

    reads: str = "input"
    batch_first: bool = False
    backward: tuple[bool, ...] = (False,)

    @property
    def layout(self) -> tuple[object, ...]:
        """How the weight is stored."""
        return ("recurrent", self.groups)

    def columns(self, shape: Sequence[int]) -> int:
        """Return the columns of each direction's matrix."""
        return int(shape[-1])

    def matrices(self, weight: Array) -> list[NDArray[np.float64]]:
        """Return W of every direction as float64."""
        return list(weight.astype(np.float64))

    def weight(self, matrices: Sequence[NDArray[np.float64]], like: Array) -> Array:
        """Return the matrices of all directions as a weight, in the type of ``like``."""
        return np.stack(list(matrices)).astype(like.dtype)

    def sample(self, inputs: Sequence[Array], count: int, draw: np.random.Generator) -> list[list[Array]]:
        """Return rows of each direction for each of several arrays of the same shape."""
        if self.reads == "input":
            chosen = draw.permutation(int(np.prod(inputs[0].shape[:-1])))[:count]
            return [[array.reshape(-1, array.shape[-1])[chosen]] * self.groups for array in inputs]
        found = [self._states(array) for array in inputs]
        chosen = draw.permutation(len(found[0][0]))[:count]
        return [[rows[chosen] for rows in each] for each in found]

    def channels(self, array: Array) -> Array:
        """Return what the layer reads; its last axis counts channels."""
        return array

    def _states(self, array: Array) -> list[Array]:
        """Return per direction the states that are read, [steps, columns]."""
        if self.reads == "start":  # [directions, batch, columns], or [batch, directions, columns]
            array = array if not self.batch_first else np.moveaxis(array, 1, 0)
            return list(array)
        # [steps, directions, batch, columns], or [batch, steps, directions, columns]
        array = np.moveaxis(array, 0, 2) if self.batch_first else array
        parts = (array[1:, at] if back else array[:-1, at] for at, back in enumerate(self.backward))
        return [part.reshape(-1, array.shape[-1]) for part in parts]
