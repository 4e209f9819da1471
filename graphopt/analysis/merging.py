"""Facts of several runs or branches brought together: what holds in all of them, without what only one can name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.analysis.dim_values import symbols
from graphopt.analysis.dims import Expr
from graphopt.analysis.site import Known, as_value

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim
    from graphopt.analysis.site import PartialShape, Value


def join(a: Known, b: Known) -> Known:
    """Return what holds for both: sizes and elements on which they disagree become unknown."""
    if a is b:
        return a
    return Known(
        a.dtype if a.dtype == b.dtype else 0,
        _join_shapes(a.shape, b.shape),
        _join_values(a.value, b.value),
        a.proto if a.proto == b.proto else None,
    )


def _join_shapes(a: PartialShape | None, b: PartialShape | None) -> PartialShape | None:
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else None for x, y in zip(a, b, strict=True))


def _join_values(a: Value | None, b: Value | None) -> Value | None:
    if a is None or b is None or a.shape != b.shape:
        return None
    pairs = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    return as_value([x if type(x) is type(y) and x == y else None for x, y in pairs], a.shape)


def same(a: Known, b: Known) -> bool:
    """Return whether two facts say the same."""
    return a.dtype == b.dtype and same_shape(a.shape, b.shape) and same_value(a.value, b.value) and a.proto == b.proto


def same_shape(a: PartialShape | None, b: PartialShape | None) -> bool:
    """Return whether two shapes say the same."""
    return a == b


def same_value(a: Value | None, b: Value | None) -> bool:
    """Return whether two values have the same elements of the same types."""
    if a is None or b is None:
        return a is b
    if a is b:
        return True
    if a.shape != b.shape:
        return False
    pairs = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    return all(type(x) is type(y) and x == y for x, y in pairs)


def outside(known: Known, prefix: str) -> Known:
    """Return the facts of a tensor as the scope around it may use them.

    A symbol that was made inside a body stands for one run of that body, and an oversized expression may hide such a
    symbol, so sizes and elements that mention either become unknown.

    Args:
        known: The facts inside.
        prefix: What the names of the symbols made inside begin with.
    """
    shape = known.shape
    if shape is not None and any(_is_inner(dim, prefix) for dim in shape):
        shape = tuple(None if _is_inner(dim, prefix) else dim for dim in shape)
    value = known.value
    if value is not None:
        entries = value.ravel().tolist()
        if any(_is_inner(entry, prefix) for entry in entries):
            value = as_value([None if _is_inner(entry, prefix) else entry for entry in entries], value.shape)
    return Known(known.dtype, shape, value, known.proto)


def _is_inner(dim: Dim | object | None, prefix: str) -> bool:
    return isinstance(dim, Expr) and any(name.startswith((prefix, "~")) for name in symbols(dim))


def signature(known: Known | None) -> tuple[object, ...] | None:
    """Return a hashable form of the facts: equal for facts that say the same."""
    if known is None:
        return None
    entries = None
    if known.value is not None:
        entries = (known.value.shape, tuple((type(entry), entry) for entry in known.value.ravel().tolist()))
    proto = None if known.proto is None else known.proto.SerializeToString(deterministic=True)
    return known.dtype, known.shape, entries, proto
