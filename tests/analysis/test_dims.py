"""Symbolic dimensions: canonical, interned, bounded, and equal to what plain integers give."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis.dim_extremes import maximum, minimum
from graphopt.analysis.dim_values import evaluate, substitute, symbols
from graphopt.analysis.dims import (
    SIZE_CAP,
    Dim,
    Expr,
    add,
    at_least,
    ceildiv,
    compare,
    differ,
    exact_div,
    floordiv,
    lower,
    mod,
    mul,
    product,
    symbol,
    upper,
)

if TYPE_CHECKING:
    from collections.abc import Callable

b, s, p = symbol("b"), symbol("s"), symbol("p")
signed = symbol("v", low=None)


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (s + 1, "s + 1"),
        (1 + s, "s + 1"),
        (s - s, "0"),
        ((s + p) * (s - p), "-p^2 + s^2"),
        (2 * s - 3 * s + s, "0"),
        (b * s * 768 // (b * 12 * 64), "s"),
        ((p + s) * b * 64 // ((p + s) * b), "64"),
        ((s * b + b) // (s + 1), "b"),
        ((7 * s + 5) // 4, "floordiv(3*s + 1, 4) + s + 1"),
        (((s - 1) // 2 + 1 - 1) // 2 + 1, "floordiv(s + 3, 4)"),
        ((4 * s + 6) % 4, "2"),
        ((5 * s) % 4, "mod(s, 4)"),
        (minimum(s, s + 1), "s"),
        (maximum(s - 1, s), "s"),
        (minimum(minimum(s, 5), minimum(p, 3)), "min(3, p, s)"),
        (maximum(s, 0), "s"),
        (maximum(s - 1, 0), "max(0, s - 1)"),
        (ceildiv(s, 2), "floordiv(s + 1, 2)"),
        (ceildiv(s, 2) - ((s - 1) // 2 + 1), "0"),
        (ceildiv(s, b), "-floordiv(-s, b)"),
        (ceildiv(2 * s, 2), "s"),
    ],
)
def test_expressions_have_one_canonical_form(dim: Dim, text: str) -> None:
    assert str(dim) == text


def test_equal_expressions_are_one_object() -> None:
    assert (s + b) * (s + b) is s * s + 2 * b * s + b * b
    assert symbol("s") is s
    assert symbol("s", low=1) is not s


def test_a_copy_is_the_same_object() -> None:
    dim = minimum((s + 3) // 4, b * 2) + maximum(s - 1, 0) % 3
    assert deepcopy({"shape": [dim]})["shape"][0] is dim


def test_oversized_expression_becomes_one_opaque_symbol_and_stays_equal() -> None:
    def large() -> Dim:
        total: Dim = 0
        for index in range(SIZE_CAP):
            total = add(total, mul(symbol(f"x{index}"), symbol(f"y{index}")))
        return total

    dim = large()
    assert isinstance(dim, Expr)
    assert dim.size <= SIZE_CAP
    assert large() is dim
    assert lower(dim) == 0


def test_size_never_passes_the_cap() -> None:
    dim: Dim = s
    for _ in range(200):
        dim = dim * s + p // 3
        assert isinstance(dim, Expr)
        assert dim.size <= SIZE_CAP


def test_division_by_zero_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        floordiv(s, 0)
    with pytest.raises(ZeroDivisionError):
        mod(s, 0)
    assert exact_div(s, 0) is None


def test_a_dimension_may_be_zero_and_a_value_may_be_negative() -> None:
    assert lower(s) == 0
    assert not at_least(s, 1)
    assert lower(signed) is None
    assert compare(s, -1) == 1
    assert compare(s, 0) is None
    assert not differ(signed, -1)
    assert upper(minimum(s, 512)) == 512


@pytest.mark.parametrize(
    ("more", "less"),
    [
        (s, s // 3),
        (s, s // 2 * 2),
        (s + 1, (s + 1) // 2),
        (s, minimum(s, p)),
        (s, s % 5),
        (maximum(s, p) + 2, p),
        (b * s, (b * s) // 7),
        (s, minimum(s // 2, p)),
    ],
)
def test_a_part_is_never_more_than_the_whole(more: Dim, less: Dim) -> None:
    assert at_least(more, less)
    assert minimum(more, less) is less
    assert not at_least(less, more + 1)


def test_what_may_be_more_is_not_proved_to_be_less() -> None:
    assert not at_least(s // 2, 1)
    assert not at_least(s // 2 * 2, s)
    assert not at_least(s, signed // 2)
    assert not at_least(minimum(s, p), p)


def test_two_symbols_are_never_taken_for_equal() -> None:
    assert compare(s, p) is None
    assert not differ(s, p)
    assert exact_div(s, p) is None


def test_substitution_simplifies() -> None:
    dim = (b * s + 3) // 4
    assert substitute(dim, {"b": 4}) == s
    assert substitute(dim, {"s": 5, "b": 1}) == 2
    assert substitute(s, {"p": 7}) is s
    assert symbols(dim) == {"b", "s"}


def test_evaluation_needs_every_symbol_unless_there_is_a_default() -> None:
    assert evaluate(b * s, {"b": 3}) is None
    assert evaluate(b * s, {"b": 3}, default=2) == 6
    assert evaluate(floordiv(s, b), {"s": 3, "b": 0}) is None


def test_product_of_none_is_one() -> None:
    assert product([]) == 1
    assert product([2, s, 3]) == 6 * s


_OPERATIONS: tuple[Callable[[Any, Any], Any], ...] = (add, mul, floordiv, mod, minimum, maximum)
_leaves = st.one_of(st.sampled_from(["b", "s", "p", "v"]), st.integers(-6, 9))
_trees = st.recursive(_leaves, lambda inner: st.tuples(st.sampled_from(_OPERATIONS), inner, inner), max_leaves=12)
_SYMBOLS = {"b": b, "s": s, "p": p, "v": signed}


def _apply(tree: Any, values: dict[str, Any]) -> Any:
    if isinstance(tree, tuple):
        return tree[0](_apply(tree[1], values), _apply(tree[2], values))
    return values.get(tree, tree) if isinstance(tree, str) else tree


@settings(max_examples=600, deadline=None)
@given(_trees, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(-9, 9))
def test_expressions_agree_with_integers(tree: Any, b: int, s: int, p: int, v: int) -> None:
    values = {"b": b, "s": s, "p": p, "v": v}
    try:
        expected = _apply(tree, dict(values))
        dim = _apply(tree, dict(_SYMBOLS))
    except ZeroDivisionError:
        return
    low, high = lower(dim), upper(dim)
    assert low is None or low <= expected
    assert high is None or expected <= high
    for other in ("b", "v"):
        assert not at_least(dim, _SYMBOLS[other]) or expected >= values[other]
        assert not at_least(_SYMBOLS[other], dim) or values[other] >= expected
    found = evaluate(dim, values)
    assert found == expected or (found is None and (_has_opaque(dim) or _divides_by_zero(dim, values)))


def _has_opaque(dim: Dim) -> bool:
    return any(name.startswith("~") for name in symbols(dim))


def _divides_by_zero(dim: Dim, values: dict[str, int]) -> bool:
    """Simplification may leave a quotient whose divisor is 0 only where the original had one too."""
    return isinstance(dim, Expr) and any(
        atom.kind in {"floordiv", "mod"} and (evaluate(atom.args[1], values) == 0 or _nested(atom.args, values))
        for mono, _ in dim.terms
        for atom, _ in mono
    )


def _nested(args: tuple[Dim, ...], values: dict[str, int]) -> bool:
    return any(_divides_by_zero(arg, values) for arg in args)
