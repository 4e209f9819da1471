"""Value rules element by element: arithmetic, conversions, comparisons, choices, reductions of a vector.

Integers wrap around at run time, and expressions do not. Sums and products of what wrapped are still equal where their
expressions are, as long as the type stays; whatever asks for the size of a number, such as a comparison, a quotient or
a conversion, takes only elements that are `settled`.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, isfinite, prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from onnx import TensorProto

from graphopt.analysis.dim_extremes import maximum, minimum
from graphopt.analysis.dim_values import made_of_sizes
from graphopt.analysis.dims import Expr, at_least, atom_of, compare, exact_div, floordiv, lower, mod, upper
from graphopt.analysis.site import INTEGERS, VALUE_LIMIT, as_value
from graphopt.analysis.value_rules import FLOATS, RANGES, fits, static_shape, value_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.analysis.site import Known, Site, Value

Element: TypeAlias = "int | float | bool | Expr | None"


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


def settled(entry: Element) -> bool:
    """Return whether the tensor holds the very number that the element states, because nothing wrapped around.

    An element of unknown value is what it is; arithmetic on it may leave its type. Arithmetic on dimensions does not:
    no tensor is that large.
    """
    if not isinstance(entry, Expr):
        return type(entry) is int
    return atom_of(entry) is not None or made_of_sizes(entry)


def _are_sizes(*entries: Element) -> bool:
    """Return whether every element is an integer, or a symbolic one, that its tensor holds."""
    return all(map(settled, entries))


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
    if not isinstance(a, int | Expr) or not isinstance(b, int | Expr) or b == 0 or not _are_sizes(a, b):
        return None
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    exact = exact_div(a, b)
    if exact is not None:
        return exact
    return floordiv(a, b) if at_least(a, 0) and at_least(b, 0) else None


def _exact_quotient(a: Element, b: Element) -> Element:
    if not isinstance(a, int | Expr) or not isinstance(b, int | Expr) or b == 0 or not _are_sizes(a, b):
        return None
    return exact_div(a, b)


@value_rule("Mod")
def mod_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The remainder with the sign of the divisor."""
    if site.attr_int("fmod", 0) or outputs[0].dtype not in INTEGERS:
        return (None,)
    return _elementwise(site, outputs, _remainder)


def _remainder(a: Element, b: Element) -> Element:
    if not isinstance(a, int | Expr) or not isinstance(b, int | Expr) or b == 0 or not _are_sizes(a, b):
        return None
    return mod(a, b)


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
            if not _are_sizes(result, entry):
                return None
            result = choose(result, entry)
        return result

    return _elementwise(site, outputs, fold)


@value_rule("Clip")
def clipped_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The number, at least the lower limit, then at most the upper one."""
    value, low, high = site.value(0), site.value(1), site.value(2)
    unknown = any(site.has(index) and limit is None for index, limit in ((1, low), (2, high)))
    if site.opset < 12 or value is None or outputs[0].dtype not in INTEGERS or unknown:
        return (None,)
    limits = [(limit.ravel()[0], choose) for limit, choose in ((low, maximum), (high, minimum)) if limit is not None]

    def clip(entry: Element) -> Element:
        for limit, choose in limits:
            if not isinstance(entry, int | Expr) or not isinstance(limit, int | Expr):
                return None
            if not _are_sizes(entry, limit):
                return None
            entry = choose(entry, limit)
        return entry

    return (as_value([clip(entry) for entry in value.ravel().tolist()], value.shape),)


@value_rule("Neg")
def negative_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The opposite number."""
    return _elementwise(site, outputs, lambda a: -a if _is_size(a) else None)


@value_rule("Abs")
def absolute_value(site: Site, outputs: list[Known]) -> Sequence[Value | None]:
    """The number without its sign."""
    return _elementwise(site, outputs, lambda a: maximum(a, -a) if settled(a) else None)


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
        return _elementwise(site, outputs, lambda entry: _to_integer(entry, target))
    if target in FLOATS:
        return _elementwise(site, outputs, _to_float)
    if target == TensorProto.BOOL and source in INTEGERS | {TensorProto.BOOL}:
        return _elementwise(site, outputs, _to_bool)
    return (None,)


def _to_integer(entry: Element, target: int) -> Element:
    if isinstance(entry, Expr):
        return entry if settled(entry) and _may_hold(target, entry) else None
    if isinstance(entry, float):
        return int(Fraction(entry)) if isfinite(entry) else None
    return int(entry) if isinstance(entry, bool) else entry


def _may_hold(target: int, entry: Expr) -> bool:
    """Return whether an integer type holds a symbolic number: 32 bits and more hold what is made of dimensions."""
    least, most = RANGES[target]
    low, high = lower(entry), upper(entry)
    if least == 0 and (low is None or low < 0):
        return False
    if high is not None and low is not None and least <= low and high <= most:
        return True
    return (most >= RANGES[TensorProto.INT32][1] and made_of_sizes(entry)) or target == TensorProto.INT64


def _to_float(entry: Element) -> Element:
    if isinstance(entry, Expr):
        return entry if _may_hold(TensorProto.INT32, entry) and settled(entry) else None
    if entry is None:
        return None
    return float(entry) if abs(entry) < 2**24 or isinstance(entry, float) else None


def _to_bool(entry: Element) -> Element:
    order = compare(entry, 0) if isinstance(entry, int | Expr) and settled(entry) else None
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
        if a is not b and not _are_sizes(a, b):
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
            case _ if not _are_sizes(result, entry):
                return (None,)
            case "ReduceMax":
                result = maximum(result, entry)
            case _:
                result = minimum(result, entry)
    return (fits(outputs[0].dtype, as_value([result], shape)),)
