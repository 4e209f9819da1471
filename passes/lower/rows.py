"""How many rows of activations a matrix product gets, or positions a convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.analysis.dim_values import evaluate
from graphopt.analysis.dims import product

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.analysis.types import Types
    from graphopt.graph import Model, Tensor

_SAMPLES = 8


class RowCounts:
    """Counts rows, with the sizes that the model leaves open taken from the first samples where there are data.

    Args:
        model: The model.
        types: Its shapes.
        facts: What holds the data.
        assumed: Rows to assume where model and data leave them open; 0 for none.
    """

    def __init__(self, model: Model, types: Types, facts: Facts, assumed: int = 0) -> None:
        self._types = types
        self._assumed = assumed
        self._sizes: list[Mapping[str, int]] = []
        for feed in facts.feeds.take(_SAMPLES) if facts.feeds is not None else ():
            sizes: dict[str, int] = {}
            for tensor in model.graph.inputs:
                shape = types.shape(tensor)
                if tensor.name in feed and shape is not None:
                    pairs = zip(shape, feed[tensor.name].shape, strict=False)
                    sizes.update({str(dim): size for dim, size in pairs if not isinstance(dim, int)})
            self._sizes.append(sizes)

    def of(self, x: Tensor) -> int | None:
        """Return the fewest rows of x, over all axes but the last; None where unknown."""
        shape = self._types.shape(x)
        return self._fewest(None if shape is None else shape[:-1])

    def positions(self, y: Tensor) -> int | None:
        """Return the fewest positions of a convolution's result, over all axes but channels; None where unknown."""
        shape = self._types.shape(y)
        return self._fewest(None if shape is None else (*shape[:1], *shape[2:]))

    def _fewest(self, dims: tuple[Dim, ...] | None) -> int | None:
        if dims is None:
            return self._assumed or None
        counts = [evaluate(product(dims), named) for named in self._sizes or ({},)]
        known = [count for count in counts if count is not None]
        return min(known) if len(known) == len(counts) else self._assumed or None
