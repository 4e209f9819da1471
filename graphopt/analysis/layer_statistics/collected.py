"""Statistics that were collected before, apart from the run that uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from graphopt.analysis.base import Analysis

if TYPE_CHECKING:
    from graphopt.analysis.layer_statistics.statistics import LayerStatistics
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model


class CollectedStatistics(Analysis):
    """What the layers of the dense model read, collected before: in place of calibration data.

    Passes between may have changed the model; `LayerStatistics.read_by` tells for which layers they still hold.

    Attributes:
        found: The statistics, or None where none were given.
    """

    depends: ClassVar[frozenset[str]] = frozenset()
    sticky: ClassVar[bool] = True

    def __init__(self, found: LayerStatistics | None = None) -> None:
        self.found = found

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        """Return that none were given."""
        return cls()

    def same_as(self, other: Self) -> bool:
        """Tell whether both hold the same object."""
        return self.found is other.found
