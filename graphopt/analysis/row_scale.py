"""RowScale: what folding a batch normalization multiplied into the rows of a weight, kept for scores.

A folded weight is the original one with each output channel multiplied by gamma / sigma of the normalization behind it.
A pruning score of the folded weight would rank channels by that factor; dividing it out gives back the score of the
layer as it was trained. The factor cannot be recomputed from the folded model, so the pass that folds records it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from graphopt.analysis.base import Analysis

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from graphopt.analysis.manager import Facts
    from graphopt.graph.model import Model
    from graphopt.graph.objects import Constant


class RowScale(Analysis):
    """The factor of each output channel of each folded weight, by the name of the weight.

    Recorded with ``facts.record(facts.get(RowScale).with_scale(name, scale))``. It survives every edit; an entry goes
    when no initializer of its name and of its number of channels is left.
    """

    depends = frozenset({"structure", "types", "weights"})
    sticky = True

    def __init__(self, scales: Mapping[str, tuple[int, NDArray[np.floating[Any]]]] | None = None) -> None:
        self._scales = dict(scales or {})

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        """Return an empty record: nothing has been folded yet."""
        return cls()

    def of(self, weight: Constant | str) -> NDArray[np.floating[Any]] | None:
        """Return the factor per output channel, shape (channels,), None for a weight into which nothing was folded."""
        found = self._scales.get(weight if isinstance(weight, str) else weight.name)
        return None if found is None else found[1]

    def axis(self, weight: Constant | str) -> int | None:
        """Return the axis of the weight that counts output channels, None where nothing was folded into it."""
        found = self._scales.get(weight if isinstance(weight, str) else weight.name)
        return None if found is None else found[0]

    def with_scale(self, weight: Constant | str, scale: NDArray[np.floating[Any]], *, axis: int = 0) -> Self:
        """Return a record in which a weight has this factor, times the one it may have already.

        Args:
            weight: The folded weight or its name.
            scale: The factor per output channel, shape (channels,).
            axis: The axis of the weight that counts output channels: 0 for Conv, 1 for MatMul and ConvTranspose.
        """
        record = self.copy()
        record.add(weight, scale, axis=axis)
        return record

    def copy(self) -> Self:
        """Return a record of the same entries, for a pass that adds many."""
        return type(self)(self._scales)

    def add(self, weight: Constant | str, scale: NDArray[np.floating[Any]], *, axis: int = 0) -> None:
        """Enter a factor into this record, which nobody else may hold yet; see `with_scale`."""
        name = weight if isinstance(weight, str) else weight.name
        earlier = self._scales.get(name)
        factor = np.array(scale) if earlier is None else earlier[1] * scale
        factor.setflags(write=False)
        self._scales[name] = (axis, factor)

    def renamed(self, old: str, new: str) -> Self:
        """Return a record in which the entry of a weight belongs to the weight that replaced it."""
        if old not in self._scales:
            return self
        rest = {name: entry for name, entry in self._scales.items() if name != old}
        return type(self)({**rest, new: self._scales[old]})

    def cut(self, name: str, stays: NDArray[np.bool_]) -> Self:
        """Return a record in which a weight has only some of its output channels; one for another number stays."""
        known = self._scales.get(name)
        if known is None or len(known[1]) != len(stays):
            return self
        factor = known[1][stays]
        factor.setflags(write=False)
        return type(self)({**self._scales, name: (known[0], factor)})

    def reordered(self, name: str, order: NDArray[np.intp]) -> Self:
        """Return a record in which the output channels of a weight stand in another order."""
        known = self._scales[name]
        factor = known[1][order]
        factor.setflags(write=False)
        return type(self)({**self._scales, name: (known[0], factor)})

    def __len__(self) -> int:
        return len(self._scales)

    def __iter__(self) -> Iterator[str]:
        return iter(self._scales)

    def follow(self, model: Model) -> Self:
        """Return the record without the weights that the model no longer has, or has with other channels."""
        if not self._scales:
            return self
        kept = {}
        for graph in model.graphs():
            for constant in graph.initializers:
                entry = self._scales.get(constant.name)
                if entry is not None and _counts_channels(constant, *entry):
                    kept[constant.name] = entry
        return self if len(kept) == len(self._scales) else type(self)(kept)

    def same_as(self, other: Self) -> bool:
        """True where the same weights have the same factors."""
        return self._scales.keys() == other._scales.keys() and all(
            axis == other._scales[name][0] and np.array_equal(scale, other._scales[name][1])
            for name, (axis, scale) in self._scales.items()
        )


def _counts_channels(constant: Constant, axis: int, scale: NDArray[np.floating[Any]]) -> bool:
    shape = constant.shape
    return -len(shape) <= axis < len(shape) and shape[axis] == scale.size
