"""ShapeValues: the elements of small integer tensors that shape computations compute, symbolically."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from graphopt.analysis.base import Analysis
from graphopt.analysis.dims import Expr
from graphopt.analysis.types import Types

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.analysis.site import Value
    from graphopt.graph.model import Model
    from graphopt.graph.objects import Tensor


class ShapeValues(Analysis):
    """What is known of the elements of small integer and boolean tensors.

    Found together with :class:`Types`: a Shape node gives dimensions, Gather, Concat, arithmetic and so on give
    expressions over them, and Reshape, Expand, Slice and others turn them into shapes again.
    """

    depends = frozenset({"structure", "types", "weights"})
    may_survive = frozenset({"weights"})

    def __init__(self, types: Types) -> None:
        self._types = types

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:  # noqa: D102
        return cls(facts.get(Types))

    def value(self, tensor: Tensor) -> tuple[Dim, ...] | None:
        """Return the elements of an integer tensor in row-major order, None unless every one is known.

        An element is a number or an expression; a symbol stands for an element that is only known at run time.
        """
        found = self.array(tensor)
        if found is None:
            return None
        entries = found.ravel().tolist()
        if not all(type(entry) is int or isinstance(entry, Expr) for entry in entries):
            return None
        return tuple(entries)

    def constant(self, tensor: Tensor) -> tuple[int, ...] | None:
        """Return the elements where every one is a number, else None."""
        found = self.value(tensor)
        if found is None:
            return None
        numbers = tuple(entry for entry in found if isinstance(entry, int))
        return numbers if len(numbers) == len(found) else None

    def array(self, tensor: Tensor) -> Value | None:
        """Return the elements in the shape of the tensor: int, float, bool, expression, or None for unknown."""
        return self._types.elements_of(tensor)

    def survives(self, model: Model) -> bool:
        """Hold exactly as long as the types they were found with."""
        return self._types.survives(model)

    def covers(self, fresh: Self) -> bool:
        """True where every tensor of the present model has the same elements here."""
        return self._types.covers_elements(fresh._types)

    def same_as(self, other: Self) -> bool:
        """True where both know the same tensors, and the same of each."""
        return self.covers(other) and other.covers(self)
