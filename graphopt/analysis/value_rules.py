"""Partial evaluation of small tensors: what shape computations compute, element by element and symbolically.

A value rule takes a :class:`Site` and the facts its shape rule found, and returns the values of the outputs, None where
they are unknown. Elements are exact integers, booleans, floats of constants, symbolic expressions, or None.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from onnx import TensorProto

from graphopt.analysis.dims import Expr, lower, product, upper
from graphopt.analysis.shape_rules_movement import SLICE_END
from graphopt.analysis.site import INTEGERS, VALUE_LIMIT, as_value, normalized, permuted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.analysis.site import Known, Site, Value

Element: TypeAlias = "int | float | bool | Expr | None"
ValueRule: TypeAlias = "Callable[[Site, list[Known]], Sequence[Value | None]]"

VALUE_RULES: dict[str, ValueRule] = {}
"""The value rule of each operator of the default domain."""

FLOATS: frozenset[int] = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE})

RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT64: (-(2**63), 2**63 - 1),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
    TensorProto.INT16: (-(2**15), 2**15 - 1),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT64: (0, 2**64 - 1),
    TensorProto.UINT32: (0, 2**32 - 1),
    TensorProto.UINT16: (0, 2**16 - 1),
    TensorProto.UINT8: (0, 255),
}


def value_rule(*ops: str) -> Callable[[ValueRule], ValueRule]:
    """Register a function as the value rule of these operators."""

    def register(function: ValueRule) -> ValueRule:
        for op in ops:
            VALUE_RULES[op] = function
        return function

    return register


def fits(dtype: int, value: Value) -> Value | None:
    """Return the value if every known element is one its type can hold exactly, else None.

    An integer outside the range of its type would wrap around at run time, so it counts as unknown. So does a symbolic
    one that may be: in types of less than 32 bits, and below 0 in those without a sign.
    """
    bounds = RANGES.get(dtype)
    if value.size > VALUE_LIMIT:
        return None
    for entry in value.ravel().tolist():
        if bounds is not None and type(entry) is int and not bounds[0] <= entry <= bounds[1]:
            return None
        if bounds is not None and isinstance(entry, float):
            return None
        if bounds is not None and isinstance(entry, Expr) and not _is_within(entry, *bounds):
            return None
    return value


def _is_within(entry: Expr, least: int, most: int) -> bool:
    low, high = lower(entry), upper(entry)
    if least == 0 and (low is None or low < 0):
        return False
    return most >= 2**31 - 1 or (low is not None and low >= least and high is not None and high <= most)


def static_shape(known: Known) -> tuple[int, ...] | None:
    """Return the shape where every size is a number, else None."""
    if known.shape is None or not all(isinstance(dim, int) for dim in known.shape):
        return None
    return tuple(dim for dim in known.shape if isinstance(dim, int))


# ----------------------------------------------------------------------------------------------------- from shapes


@value_rule("Shape")
def shape_value(site: Site, _outputs: list[Known]) -> Sequence[Value | None]:
    """The sizes of the input."""
    shape = site.shape(0)
    if shape is None:
        return (None,)
    end = site.attrs.get("end")
    return (as_value(shape[site.attr_int("start", 0) : None if end is None else int(end)]),)


@value_rule("Size")
def size_value(site: Site, _outputs: list[Known]) -> Sequence[Value | None]:
    """The number of elements of the input."""
    shape = site.shape(0)
    if shape is None or None in shape:
        return (None,)
    return (as_value([product([dim for dim in shape if dim is not None])], ()),)


@value_rule("ConstantOfShape")
def constant_of_shape_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """One number, repeated."""
    shape = static_shape(outputs[0])
    if shape is None or prod(shape) > VALUE_LIMIT or outputs[0].dtype not in INTEGERS | FLOATS | {TensorProto.BOOL}:
        return (None,)
    fill = site.attrs.get("value")
    entry = 0.0 if fill is None else fill.array().ravel()[0].item()
    return (as_value([entry] * prod(shape), shape),)


@value_rule("Range")
def range_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """Start, start + delta and so on."""
    shape = static_shape(outputs[0])
    start, delta = site.value(0), site.value(2)
    if shape is None or shape[0] > VALUE_LIMIT or outputs[0].dtype not in INTEGERS or start is None or delta is None:
        return (None,)
    first, step = start.ravel()[0], delta.ravel()[0]
    if first is None or step is None:
        return (None,)
    return (as_value([first + index * step for index in range(shape[0])]),)


# -------------------------------------------------------------------------------------------------------- movement


@value_rule("Identity")
def same_value(site: Site, _outputs: list[Known]) -> Sequence[Value | None]:
    """The value itself."""
    return (site.value(0),)


@value_rule("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def reshaped_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The same elements in another shape."""
    value, shape = site.value(0), static_shape(outputs[0])
    if value is None or shape is None or prod(shape) != value.size:
        return (None,)
    return (value.reshape(shape),)


@value_rule("Transpose")
def transposed_value(site: Site, _outputs: list[Known]) -> Sequence[Value | None]:
    """The same elements in another order."""
    value, perm = site.value(0), site.attr_ints("perm")
    if value is None:
        return (None,)
    return (value.transpose(None if perm is None else permuted(perm, value.ndim)),)


@value_rule("Concat")
def concat_value(site: Site, _outputs: list[Known]) -> Sequence[Value | None]:
    """The elements of all inputs, where every one is known."""
    values = [site.value(index) for index in range(len(site.known))]
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return (None,)
    return (np.concatenate(known, axis=normalized(site.attr_int("axis", 1), known[0].ndim)),)


@value_rule("Split")
def split_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """A range of elements for each output."""
    value = site.value(0)
    shapes = [static_shape(output) for output in outputs]
    if value is None or any(shape is None for shape in shapes):
        return [None] * len(outputs)
    axis = normalized(site.attr_int("axis", 0), value.ndim)
    cuts = np.cumsum([shape[axis] for shape in shapes if shape is not None])[:-1]
    return list(np.split(value, cuts, axis=axis))


@value_rule("Slice")
def slice_value(site: Site, _outputs: list[Known]) -> Sequence[Value | None]:
    """A range of elements of each axis."""
    value = site.value(0)
    if site.opset < 10:
        starts, ends, axes, steps = site.attr_ints("starts"), site.attr_ints("ends"), site.attr_ints("axes"), None
    else:
        starts, ends, axes, steps = site.ints(1), site.ints(2), site.ints(3), site.ints(4)
        if (axes is None and site.has(3)) or (steps is None and site.has(4)):
            return (None,)
    if value is None or starts is None or ends is None:
        return (None,)
    index = [slice(None)] * value.ndim
    for position, axis in enumerate(axes if axes is not None else range(len(starts))):
        step = 1 if steps is None else steps[position]
        end: int | None = ends[position]
        if step < 0 and (ends[position] >= SLICE_END or starts[position] < -value.shape[axis]):
            return (None,)
        if step < 0 and ends[position] < -value.shape[axis]:
            end = None
        index[axis] = slice(starts[position], end, step)
    return (value[tuple(index)],)


@value_rule("Gather")
def gather_value(site: Site, _outputs: list[Known]) -> Sequence[Value | None]:
    """The elements at constant indices."""
    value, indices, at = site.value(0), site.ints(1), site.value(1)
    if value is None or indices is None or at is None or value.ndim == 0:
        return (None,)
    axis = normalized(site.attr_int("axis", 0), value.ndim)
    if any(not -value.shape[axis] <= index < value.shape[axis] for index in indices):
        return (None,)
    taken = value.take(np.asarray(indices, np.int64).reshape(at.shape), axis=axis)
    return (np.asarray(taken, dtype=np.object_),)


@value_rule("Expand")
def expand_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The elements, repeated."""
    value, shape = site.value(0), static_shape(outputs[0])
    if value is None or shape is None or prod(shape) > VALUE_LIMIT:
        return (None,)
    return (np.broadcast_to(value, shape),)


@value_rule("Tile")
def tile_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The elements, repeated."""
    value, counts, shape = site.value(0), site.ints(1), static_shape(outputs[0])
    if value is None or counts is None or shape is None or prod(shape) > VALUE_LIMIT:
        return (None,)
    return (np.tile(value, counts),)


@value_rule("ScatterElements", "ScatterND")
def scatter_value(site: Site, _outputs: list[Known]) -> Sequence[Value | None]:
    """A vector with some elements replaced, where every index is known."""
    value, at, updates, indices = site.value(0), site.value(1), site.value(2), site.ints(1)
    if value is None or at is None or updates is None or indices is None or value.ndim != 1:
        return (None,)
    wanted_rank = 1 if site.op == "ScatterElements" else 2
    replaces = site.attr_text("reduction", "none") == "none"
    if at.ndim != wanted_rank or not replaces or any(not -value.size <= index < value.size for index in indices):
        return (None,)
    result = value.copy()
    for index, entry in zip(indices, updates.ravel().tolist(), strict=True):
        result[index] = entry
    return (result,)
