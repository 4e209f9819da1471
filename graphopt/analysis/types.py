"""Types: the element type and the shape of every tensor, with symbolic dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from graphopt.analysis.base import Analysis
from graphopt.analysis.dims import product
from graphopt.analysis.inference import Failure, Sweep
from graphopt.analysis.merging import same_value
from graphopt.analysis.site import as_value
from graphopt.graph.dtypes import packed_size_bytes
from graphopt.graph.objects import Constant

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.analysis.declarations import Conflict
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.analysis.site import Known, Value
    from graphopt.graph.model import Model
    from graphopt.graph.objects import Node, Tensor


class Types(Analysis):
    """The element type and shape of every tensor of every scope.

    A size is a number or an interned expression (see :mod:`graphopt.analysis.dims`) over the names of the input
    dimensions; a size that cannot be expressed is a symbol of its own, and two such symbols are never taken for equal.
    Inside the body of a loop the facts hold for every iteration, inside a function for every call.

    A tensor that was added after the analysis was computed is inferred when it is asked for. While edits let every
    tensor keep its meaning, as all rule passes do, the facts stay true and need not be computed again.

    Attributes:
        failures: Nodes whose outputs could not be inferred, with the reason; their outputs have what they declare.
        conflicts: Declared types that contradict the inferred ones, which hold.
    """

    depends = frozenset({"structure", "types", "weights"})
    may_survive = frozenset({"weights"})

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self.failures = tuple(Failure(node, reason) for node, reason in sweep.failures.items())
        self.conflicts: tuple[Conflict, ...] = tuple(sweep.conflicts.values())

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:  # noqa: D102
        return cls(Sweep(model))

    def dtype(self, tensor: Tensor) -> int:
        """Return the element type as the ONNX enum, 0 where it is unknown or the tensor is a sequence or a map."""
        return self._sweep.of(tensor).dtype

    def shape(self, tensor: Tensor) -> tuple[Dim, ...] | None:
        """Return the shape, None where not even the rank is known."""
        return self._sweep.of(tensor).shape  # type: ignore[return-value]  # every unknown size has become a symbol

    def rank(self, tensor: Tensor) -> int | None:
        """Return the number of axes, None where it is unknown."""
        shape = self._sweep.of(tensor).shape
        return None if shape is None else len(shape)

    def static_shape(self, tensor: Tensor) -> tuple[int, ...] | None:
        """Return the shape where every size is a number, else None."""
        shape = self.shape(tensor)
        if shape is None:
            return None
        sizes = tuple(size for size in shape if isinstance(size, int))
        return sizes if len(sizes) == len(shape) else None

    def elements(self, tensor: Tensor) -> Dim | None:
        """Return the number of elements, None where the rank is unknown."""
        shape = self.shape(tensor)
        return None if shape is None else product(shape)

    def size_bytes(self, tensor: Tensor) -> int | None:
        """Return the bytes of the packed tensor, None where a size or the element type is unknown."""
        shape, dtype = self.static_shape(tensor), self.dtype(tensor)
        return packed_size_bytes(dtype, shape) if shape is not None and dtype else None

    def elements_of(self, tensor: Tensor) -> Value | None:
        """Return what is known of the elements of a small tensor; see :class:`ShapeValues`."""
        return self._sweep.value(tensor)

    def refine(self, nodes: Iterable[Node]) -> list[Node]:
        """Infer nodes again, and what depends on them as far as that tells more: they read values that are known now.

        Args:
            nodes: Nodes whose inputs were replaced by equal ones of which more is known.

        Returns:
            The nodes of whose outputs more is known now.
        """
        return self._sweep.refine(nodes)

    def covers_elements(self, fresh: Self) -> bool:
        """True where the same is known of the elements of every tensor of the present model.

        Constants count where both have read them: who read one is no finding.
        """
        for tensor, theirs in fresh._sweep.known.items():
            mine = self._sweep.known.get(tensor)
            value = None if mine is None else mine.value
            if isinstance(tensor, Constant) and (value is None or theirs.value is None):
                continue
            if not same_value(value, theirs.value):
                return False
        return True

    def knows(self, tensor: Tensor) -> bool:
        """Return whether the tensor was there when the analysis was computed, or was asked for since."""
        return tensor in self._sweep.known

    def survives(self, model: Model) -> bool:
        """New weights leave types alone unless an element type, a shape or a value that was read changed."""
        for constant, weight in self._sweep.weights.items():
            if not isinstance(constant, Constant):
                return False
            now = constant.weight
            if now is weight:
                continue
            if now.onnx_dtype != weight.onnx_dtype or tuple(now.shape) != tuple(weight.shape):
                return False
            if constant in self._sweep.values_read:
                value = constant.array()
                if not same_value(self._sweep.known[constant].value, as_value(value.ravel().tolist(), value.shape)):
                    return False
        return True

    def covers(self, fresh: Self) -> bool:
        """True where every tensor of the present model has the same type here; entries of removed ones may remain."""
        mine, theirs = self._sweep.known, fresh._sweep.known
        return all(tensor in mine and _same_type(mine[tensor], known) for tensor, known in theirs.items())

    def contradicts(self, fresh: Self) -> Tensor | None:
        """Return a tensor whose type here cannot be the one that the present model gives; None where all agree.

        Unlike `covers` it lets one of the two know more than the other.
        """
        for tensor, theirs in fresh._sweep.known.items():
            mine = self._sweep.known.get(tensor)
            if mine is not None and not _may_be_equal(mine, theirs):
                return tensor
        return None

    def same_as(self, other: Self) -> bool:
        """True where both know the same tensors, and the same of each."""
        return self._sweep.known.keys() == other._sweep.known.keys() and self.covers(other)


def _may_be_equal(a: Known, b: Known) -> bool:
    if a.dtype and b.dtype and a.dtype != b.dtype:
        return False
    if a.shape is None or b.shape is None:
        return True
    return len(a.shape) == len(b.shape) and all(
        x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in zip(a.shape, b.shape, strict=True)
    )


def _same_type(a: Known, b: Known) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.proto == b.proto)
