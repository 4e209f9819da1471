"""The model as it was before weights were removed: what a repair aims at."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from graphopt.analysis.base import Analysis

if TYPE_CHECKING:
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model


class DenseReference(Analysis):
    """A copy of the model from before the first pass that removed weights; its weights are shared until they change.

    The pass that removes weights records it; nobody can recompute it.

    Attributes:
        model: The copy, or None where no pass recorded one.
    """

    depends: ClassVar[frozenset[str]] = frozenset()
    sticky: ClassVar[bool] = True

    def __init__(self, model: Model | None = None) -> None:
        self.model = model

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        """Return that nothing was recorded."""
        return cls()

    @classmethod
    def remember(cls, model: Model, facts: Facts) -> None:
        """Record a copy of the model as it is now, unless there is one already."""
        if facts.get(cls).model is None:
            facts.record(cls(model.copy()))

    def same_as(self, other: Self) -> bool:
        """Tell whether both hold the same copy."""
        return self.model is other.model
