"""What symbolic dimensions become once values are known: evaluation, substitution, the symbols an expression holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.analysis.dim_extremes import maximum, minimum
from graphopt.analysis.dims import Expr, add, floordiv, mod, mul, symbol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.monomials import Atom


def symbols(dim: Dim) -> frozenset[str]:
    """Return the names of all symbols in the expression, nested ones included."""
    if isinstance(dim, int):
        return frozenset()
    return frozenset(atom.text for atom in _leaves(dim))


def made_of_sizes(dim: Dim) -> bool:
    """Return whether the expression holds dimensions and numbers alone, no element of a tensor of unknown value."""
    return isinstance(dim, int) or all(atom.low is not None for atom in _leaves(dim))


def evaluate(dim: Dim, values: Mapping[str, int], default: int | None = None) -> int | None:
    """Return the value of the expression, or None where a symbol has no value or a divisor is 0.

    Args:
        dim: The expression.
        values: The value of each symbol, by name.
        default: The value of the symbols that are not named; None for none.
    """
    if isinstance(dim, int):
        return dim
    total = 0
    for mono, coefficient in dim.terms:
        value = coefficient
        for atom, power in mono:
            base = _evaluate_atom(atom, values, default)
            if base is None:
                return None
            value *= base**power
        total += value
    return total


def substitute(dim: Dim, replacements: Mapping[str, Dim]) -> Dim:
    """Return the expression with symbols replaced by other dimensions.

    Raises:
        ZeroDivisionError: A replacement makes a divisor the constant 0.
    """
    if isinstance(dim, int) or not replacements or symbols(dim).isdisjoint(replacements):
        return dim
    total: Dim = 0
    for mono, coefficient in dim.terms:
        value: Dim = coefficient
        for atom, power in mono:
            base = _substitute_atom(atom, replacements)
            for _ in range(power):
                value = mul(value, base)
        total = add(total, value)
    return total


def _leaves(expr: Expr) -> Iterator[Atom]:
    for mono, _ in expr.terms:
        for atom, _ in mono:
            if atom.kind == "symbol":
                yield atom
            for arg in atom.args:
                if isinstance(arg, Expr):
                    yield from _leaves(arg)


def _evaluate_atom(atom: Atom, values: Mapping[str, int], default: int | None) -> int | None:
    if atom.kind == "symbol":
        return values.get(atom.text, default)
    args = []
    for arg in atom.args:
        value = evaluate(arg, values, default)
        if value is None:
            return None
        args.append(value)
    if atom.kind == "min":
        return min(args)
    if atom.kind == "max":
        return max(args)
    if args[1] == 0:
        return None
    return args[0] // args[1] if atom.kind == "floordiv" else args[0] % args[1]


def _substitute_atom(atom: Atom, replacements: Mapping[str, Dim]) -> Dim:
    if atom.kind == "symbol":
        replaced = replacements.get(atom.text)
        return symbol(atom.text, low=atom.low, high=atom.high) if replaced is None else replaced
    args = [substitute(arg, replacements) for arg in atom.args]
    if atom.kind == "floordiv":
        return floordiv(args[0], args[1])
    if atom.kind == "mod":
        return mod(args[0], args[1])
    result = args[0]
    for arg in args[1:]:
        result = minimum(result, arg) if atom.kind == "min" else maximum(result, arg)
    return result
