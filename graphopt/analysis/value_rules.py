"""Partial evaluation of small tensors: what shape computations compute, element by element and symbolically.

A value rule takes a :class:`Site` and the facts its shape rule found, and returns the values of the outputs, None where
they are unknown. Elements are exact integers, booleans, floats of constants, symbolic expressions, or None.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, isfinite, prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from onnx import TensorProto

from graphopt.analysis.dims import Expr, at_least, compare, exact_div, floordiv, maximum, minimum, mod, product
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

_RANGES = {
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

    An integer outside the range of its type would wrap around at run time, so it counts as unknown.
    """
    bounds = _RANGES.get(dtype)
    if value.size > VALUE_LIMIT:
        return None
    for entry in value.ravel().tolist():
        if bounds is not None and type(entry) is int and not bounds[0] <= entry <= bounds[1]:
            return None
        if bounds is not None and isinstance(entry, float):
            return None
    return value


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
        if step < 0 and ends[position] >= SLICE_END:
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


# ------------------------------------------------------------------------------------------------- element by element


def _elementwise(site: Site, outputs: list[Known], function: Callable[..., Element]) -> Sequence[Value | None]:
    values = [site.value(index) for index in range(len(site.known))]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return (None,)
    arrays = np.broadcast_arrays(*known)
    if arrays[0].size > VALUE_LIMIT:
        return (None,)
    entries = [function(*row) for row in zip(*[array.ravel().tolist() for array in arrays], strict=True)]
    return (fits(outputs[0].dtype, as_value(entries, arrays[0].shape)),)


def _is_size(entry: object) -> bool:
    """Return whether the element is an integer or a symbolic one."""
    return type(entry) is int or isinstance(entry, Expr)


def _add(a: Element, b: Element) -> Element:
    return a + b if isinstance(a, int | Expr) and isinstance(b, int | Expr) else None


def _sub(a: Element, b: Element) -> Element:
    return a - b if isinstance(a, int | Expr) and isinstance(b, int | Expr) else None


def _mul(a: Element, b: Element) -> Element:
    return a * b if isinstance(a, int | Expr) and isinstance(b, int | Expr) else None


@value_rule("Add", "Sub", "Mul")
def arithmetic_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """Sums, differences and products of integers; of floats only where symbols and numbers are integral."""
    if site.opset < 7 or outputs[0].dtype not in INTEGERS | FLOATS:
        return (None,)
    function = {"Add": _add, "Sub": _sub, "Mul": _mul}[site.op]
    if outputs[0].dtype in INTEGERS:
        return _elementwise(site, outputs, function)
    return _elementwise(site, outputs, _on_integral(function))


def _on_integral(function: Callable[[Element, Element], Element]) -> Callable[[Element, Element], Element]:
    """Apply the function to floats that hold integers: a result below 2**24 is then exact in every float type."""

    def apply(a: Element, b: Element) -> Element:
        result = function(_integral(a), _integral(b))
        if isinstance(result, int):
            return float(result) if abs(result) < 2**24 else None
        return result

    return apply


def _integral(entry: Element) -> Element:
    if isinstance(entry, float):
        return int(entry) if entry.is_integer() else None
    return entry


@value_rule("Div")
def division_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """Integer division, which rounds towards zero; of floats only where it is exact."""
    if site.opset < 7 or outputs[0].dtype not in INTEGERS | FLOATS:
        return (None,)
    if outputs[0].dtype in INTEGERS:
        return _elementwise(site, outputs, _truncated)
    return _elementwise(site, outputs, _on_integral(_exact_quotient))


def _truncated(a: Element, b: Element) -> Element:
    if not isinstance(a, int | Expr) or not isinstance(b, int | Expr) or b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    exact = exact_div(a, b)
    if exact is not None:
        return exact
    return floordiv(a, b) if at_least(a, 0) and at_least(b, 0) else None


def _exact_quotient(a: Element, b: Element) -> Element:
    return exact_div(a, b) if isinstance(a, int | Expr) and isinstance(b, int | Expr) and b != 0 else None


@value_rule("Mod")
def mod_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The remainder with the sign of the divisor."""
    if site.attr_int("fmod", 0) or outputs[0].dtype not in INTEGERS:
        return (None,)
    return _elementwise(site, outputs, _remainder)


def _remainder(a: Element, b: Element) -> Element:
    return mod(a, b) if isinstance(a, int | Expr) and isinstance(b, int | Expr) and b != 0 else None


@value_rule("Max", "Min")
def extreme_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The largest or smallest of the inputs."""
    if outputs[0].dtype not in INTEGERS:
        return (None,)
    choose = maximum if site.op == "Max" else minimum

    def fold(*entries: Element) -> Element:
        result = entries[0]
        for entry in entries[1:]:
            if not isinstance(result, int | Expr) or not isinstance(entry, int | Expr):
                return None
            result = choose(result, entry)
        return result

    return _elementwise(site, outputs, fold)


@value_rule("Neg")
def negative_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The opposite number."""
    return _elementwise(site, outputs, lambda a: -a if _is_size(a) else None)


@value_rule("Abs")
def absolute_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The number without its sign."""
    return _elementwise(site, outputs, lambda a: maximum(a, -a) if _is_size(a) else None)


@value_rule("Ceil", "Floor")
def rounded_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The next integral float."""
    function = ceil if site.op == "Ceil" else floor

    def apply(entry: Element) -> Element:
        if isinstance(entry, float):
            return float(function(entry)) if isfinite(entry) else None
        return entry

    return _elementwise(site, outputs, apply)


@value_rule("Cast")
def cast_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The element in another type, where the type holds it."""
    source, target = site.dtype(0), outputs[0].dtype
    if target in INTEGERS:
        return _elementwise(site, outputs, _to_integer)
    if target in FLOATS:
        return _elementwise(site, outputs, _to_float)
    if target == TensorProto.BOOL and source in INTEGERS | {TensorProto.BOOL}:
        return _elementwise(site, outputs, _to_bool)
    return (None,)


def _to_integer(entry: Element) -> Element:
    if isinstance(entry, float):
        return int(Fraction(entry)) if isfinite(entry) else None
    return int(entry) if isinstance(entry, bool) else entry


def _to_float(entry: Element) -> Element:
    if isinstance(entry, Expr | None):
        return entry
    return float(entry) if abs(entry) < 2**24 or isinstance(entry, float) else None


def _to_bool(entry: Element) -> Element:
    order = compare(entry, 0) if isinstance(entry, int | Expr) else None
    return None if order is None else order != 0


# ------------------------------------------------------------------------------------------------------------ choices


_COMPARISONS: dict[str, Callable[[int], bool]] = {
    "Equal": lambda order: order == 0,
    "Greater": lambda order: order > 0,
    "GreaterOrEqual": lambda order: order >= 0,
    "Less": lambda order: order < 0,
    "LessOrEqual": lambda order: order <= 0,
}


@value_rule(*_COMPARISONS)
def comparison_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """Whether the relation holds for every value of the symbols; None where that depends on them."""
    if site.opset < 7 or site.dtype(0) not in INTEGERS:
        return (None,)
    holds = _COMPARISONS[site.op]

    def apply(a: Element, b: Element) -> Element:
        if not isinstance(a, int | Expr) or not isinstance(b, int | Expr):
            return None
        order = compare(a, b)
        if order is not None:
            return holds(order)
        if at_least(a, b) and holds(1) == holds(0):
            return holds(0)
        if at_least(b, a) and holds(-1) == holds(0):
            return holds(0)
        return None

    return _elementwise(site, outputs, apply)


@value_rule("Not")
def not_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The opposite truth."""
    return _elementwise(site, outputs, lambda a: not a if isinstance(a, bool) else None)


@value_rule("And", "Or")
def logical_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """Both, or one; one side can decide."""
    deciding = site.op == "Or"

    def apply(a: Element, b: Element) -> Element:
        if a is deciding or b is deciding:
            return deciding
        return not deciding if isinstance(a, bool) and isinstance(b, bool) else None

    return _elementwise(site, outputs, apply)


@value_rule("Where")
def where_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The chosen element; where the condition is open, the two choices if they are the same."""

    def apply(condition: Element, a: Element, b: Element) -> Element:
        if isinstance(condition, bool):
            return a if condition else b
        same = a is b or (type(a) is type(b) and a == b)
        return a if same else None

    return _elementwise(site, outputs, apply)


@value_rule("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum")
def reduced_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """All elements of a vector of integers folded into one."""
    value, shape = site.value(0), static_shape(outputs[0])
    if value is None or shape is None or value.ndim != 1 or prod(shape) != 1 or site.dtype(0) not in INTEGERS:
        return (None,)
    entries = value.tolist()
    if not entries or not all(_is_size(entry) for entry in entries):
        return (None,)
    result = entries[0]
    for entry in entries[1:]:
        match site.op:
            case "ReduceSum":
                result = result + entry
            case "ReduceProd":
                result = result * entry
            case "ReduceMax":
                result = maximum(result, entry)
            case _:
                result = minimum(result, entry)
    return (fits(outputs[0].dtype, as_value([result], shape)),)
