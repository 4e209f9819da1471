"""The base class of every analysis: what it depends on, how it is computed, when two results mean the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model

COUNTERS: tuple[str, ...] = ("structure", "types", "weights")
"""The version counters of a model that an analysis can depend on."""


class Analysis(ABC):
    """What is known about a model at one version of it; read-only once computed.

    A subclass names the version counters it depends on, computes itself from a model, and compares by meaning in
    ``same_as``: full verification recomputes a preserved analysis and compares, so the answer must be yes exactly where
    a reader could not tell the two results apart. An analysis must be deterministic.
    """

    depends: ClassVar[frozenset[str]] = frozenset(COUNTERS)
    """The counters whose change makes the result stale: a subset of ``structure``, ``types``, ``weights``."""

    sticky: ClassVar[bool] = False
    """True for a result that is recorded by a pass and cannot be recomputed from the model."""

    @classmethod
    @abstractmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        """Compute the analysis; other analyses come from ``facts.get``, and their dependencies are inherited."""

    @abstractmethod
    def same_as(self, other: Self) -> bool:
        """Return whether a reader could not tell this result from another one of its class."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.same_as(other)

    __hash__ = object.__hash__

    may_survive: ClassVar[frozenset[str]] = frozenset()
    """The counters whose change need not make the result stale; :meth:`survives` is asked only about these."""

    def survives(self, model: Model) -> bool:
        """Return whether the result still holds although counters in ``may_survive`` moved.

        Asked when a stale result is wanted again. The answer must be exact and cheaper than computing: an analysis that
        reads only shape constants says True where no weight it read has changed.
        """
        return False

    def covers(self, fresh: Self) -> bool:
        """Return whether this result is right and complete where ``fresh`` was just computed from the same model.

        Differs from ``==`` only where a result may keep entries of objects that have left the model.
        """
        return self == fresh

    def follow(self, model: Model) -> Self:
        """Return this sticky result as it holds for the present model: without what has left the model."""
        return self
