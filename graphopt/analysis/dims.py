"""Symbolic dimensions: interned integer polynomials over named symbols, floor divisions, remainders and extremes.

A :data:`Dim` is a plain ``int`` or an :class:`Expr`. Expressions are canonical and interned: two expressions that
simplify to the same polynomial are the same object, so equality is ``is`` and costs nothing. An expression never grows
beyond :data:`SIZE_CAP`: a larger result becomes one opaque symbol that is named after the digest of what it stands for,
so that equal oversized results still compare equal and nothing ever depends on the order of creation.

Everything here is exact. Nothing is assumed about a symbol but its bounds: a dimension is at least 0 (never "at least
1"), a value of an integer tensor can be anything.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TypeAlias
from weakref import WeakValueDictionary

from graphopt.analysis import monomials
from graphopt.analysis.monomials import Atom, Monomial

SIZE_CAP = 48
"""Largest number of atoms, counted with their powers and arguments, that one expression may hold."""

_MEMO_LIMIT = 1 << 16

_STEPS = 2
"""How many calls are replaced, one in the other, to prove that an expression is never negative."""


class Expr:
    """An integer polynomial over :class:`Atom`; never a constant (those are ``int``). Made by the functions below.

    Supports ``+ - * // %`` with integers and other expressions; ``//`` and ``%`` round towards minus infinity as in
    Python. ``==`` is identity, which is equality of the polynomials because expressions are interned.
    """

    __slots__ = ("__weakref__", "_bounds", "_text", "size", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...], size: int) -> None:
        self.terms = terms
        self.size = size
        self._text: str | None = None
        self._bounds: tuple[int | None, int | None] | None = None

    def __add__(self, other: Dim) -> Dim:
        return add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return add(self, mul(-1, other))

    def __rsub__(self, other: Dim) -> Dim:
        return add(other, mul(-1, self))

    def __neg__(self) -> Dim:
        return mul(-1, self)

    def __mul__(self, other: Dim) -> Dim:
        return mul(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __rmod__(self, other: Dim) -> Dim:
        return mod(other, self)

    def __str__(self) -> str:
        if self._text is None:
            ordered = sorted(self.terms, key=lambda term: (-monomials.degree(term[0]), monomials.text_of(term[0])))
            parts = [monomials.term_text(mono, coefficient) for mono, coefficient in ordered]
            self._text = " + ".join(parts).replace("+ -", "- ")
        return self._text

    def __repr__(self) -> str:
        return f"Expr({self})"

    def __copy__(self) -> Expr:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Expr:
        return self


Dim: TypeAlias = int | Expr

_atoms: WeakValueDictionary[tuple[object, ...], Atom] = WeakValueDictionary()
_exprs: WeakValueDictionary[frozenset[tuple[Monomial, int]], Expr] = WeakValueDictionary()
memo: dict[tuple[str, Dim, Dim], Dim] = {}
"""Results of operations by their names and operands."""


# ------------------------------------------------------------------------------------------------------ construction


def symbol(name: str, *, low: int | None = 0, high: int | None = None) -> Expr:
    """Return the symbol of this name; the same name and bounds give the same object.

    Args:
        name: Any text, unique for what it stands for.
        low: Largest value it can never be below; 0 for a dimension, None for a value of any sign.
        high: Smallest value it can never exceed, None where unknown.
    """
    atom = _atom("symbol", name, (), low, high)
    made = _from_terms({((atom, 1),): 1})
    assert isinstance(made, Expr)
    return made


def add(a: Dim, b: Dim) -> Dim:
    """Return ``a + b``."""
    if isinstance(a, int):
        if isinstance(b, int):
            return a + b
        a, b = b, a
    if isinstance(b, int) and b == 0:
        return a
    key = ("+", a, b)
    known = memo.get(key)
    if known is None:
        terms = dict(a.terms)
        for mono, coefficient in (((), b),) if isinstance(b, int) else b.terms:
            terms[mono] = terms.get(mono, 0) + coefficient
        known = remember(key, _from_terms(terms))
    return known


def mul(a: Dim, b: Dim) -> Dim:
    """Return ``a * b``."""
    if isinstance(a, int):
        if isinstance(b, int):
            return a * b
        a, b = b, a
    if isinstance(b, int):
        if b == 1:
            return a
        if b == 0:
            return 0
    key = ("*", a, b)
    known = memo.get(key)
    if known is None:
        known = remember(key, _multiply(a, b))
    return known


def floordiv(a: Dim, b: Dim) -> Dim:
    """Return ``a // b`` rounded towards minus infinity.

    A symbolic divisor that evaluates to 0 is an error at run time, so ``(x * n) // n`` is ``x``.

    Raises:
        ZeroDivisionError: The divisor is the constant 0.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if isinstance(b, int) and b in {0, 1}:
        if b == 0:
            msg = "division of a symbolic dimension by 0"
            raise ZeroDivisionError(msg)
        return a
    key = ("/", a, b)
    known = memo.get(key)
    if known is None:
        known = remember(key, _floor_divide(a, b))
    return known


def mod(a: Dim, b: Dim) -> Dim:
    """Return ``a % b`` with the sign of ``b``, as in Python.

    Raises:
        ZeroDivisionError: The divisor is the constant 0.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if isinstance(b, int):
        if b == 0:
            msg = "remainder of a symbolic dimension by 0"
            raise ZeroDivisionError(msg)
        if b in {1, -1}:
            return 0
    key = ("%", a, b)
    known = memo.get(key)
    if known is None:
        known = remember(key, _remainder(a, b))
    return known


def ceildiv(a: Dim, b: Dim) -> Dim:
    """Return ``a / b`` rounded towards plus infinity."""
    if isinstance(b, int) and b > 0:
        return floordiv(add(a, b - 1), b)
    return mul(-1, floordiv(mul(-1, a), b))


def exact_div(a: Dim, b: Dim) -> Dim | None:
    """Return ``a / b`` where the polynomial ``b`` divides ``a`` without a rest, else None."""
    if isinstance(b, int):
        if b == 0:
            return None
        if isinstance(a, int):
            return a // b if a % b == 0 else None
        if any(coefficient % b for _, coefficient in a.terms):
            return None
        return _from_terms({mono: coefficient // b for mono, coefficient in a.terms})
    if isinstance(a, int):
        return 0 if a == 0 else None
    if a is b:
        return 1
    return _divide_polynomials(a, b)


def product(dims: tuple[Dim, ...] | list[Dim]) -> Dim:
    """Return the product of the dimensions; 1 for none."""
    constant = 1
    symbolic: Dim = 1
    for dim in dims:
        if isinstance(dim, int):
            constant *= dim
        else:
            symbolic = mul(symbolic, dim)
    return mul(symbolic, constant)


# ----------------------------------------------------------------------------------------------------------- questions


def lower(dim: Dim) -> int | None:
    """Return a lower bound that always holds, or None."""
    return dim if isinstance(dim, int) else _bounds(dim)[0]


def upper(dim: Dim) -> int | None:
    """Return an upper bound that always holds, or None."""
    return dim if isinstance(dim, int) else _bounds(dim)[1]


def compare(a: Dim, b: Dim) -> int | None:
    """Return -1, 0 or 1 where ``a < b``, ``a == b`` or ``a > b`` holds for every value of the symbols, else None."""
    if a is b or a == b:
        return 0
    difference = add(a, mul(-1, b))
    low, high = lower(difference), upper(difference)
    if low is not None and low > 0:
        return 1
    if high is not None and high < 0:
        return -1
    return None


def at_least(a: Dim, b: Dim) -> bool:
    """Return whether ``a >= b`` is proved."""
    return _is_never_negative(add(a, mul(-1, b)), _STEPS)


def differ(a: Dim, b: Dim) -> bool:
    """Return whether ``a != b`` is proved."""
    return compare(a, b) in {-1, 1}


def atom_of(dim: Dim) -> Atom | None:
    """Return the atom that the expression consists of, None where it is more than one atom or a number."""
    if isinstance(dim, int) or len(dim.terms) != 1:
        return None
    mono, coefficient = dim.terms[0]
    return mono[0][0] if coefficient == 1 and len(mono) == 1 and mono[0][1] == 1 else None


# ------------------------------------------------------------------------------------------------------------ internals


def _atom(kind: str, text: str, args: tuple[Dim, ...], low: int | None, high: int | None) -> Atom:
    key = (kind, text, low, high) if kind == "symbol" else (kind, *args)
    known = _atoms.get(key)
    if known is None:
        known = Atom(kind, text, args, low, high)
        _atoms[key] = known
    return known


def _is_never_negative(dim: Dim, steps: int) -> bool:
    """Return whether an expression is proved to be at least 0, with some calls replaced by what they never exceed."""
    low = lower(dim)
    if low is not None and low >= 0:
        return True
    if steps == 0 or isinstance(dim, int):
        return False
    for mono, coefficient in dim.terms:
        if len(mono) != 1 or mono[0][1] != 1 or mono[0][0].kind == "symbol":
            continue
        rest = add(dim, mul(-coefficient, _from_terms({mono: 1})))
        if any(_is_never_negative(add(rest, other), steps - 1) for other in _not_above(mono[0][0], coefficient)):
            return True
    return False


def _not_above(atom: Atom, coefficient: int) -> list[Dim]:
    """Return expressions that are never above ``coefficient * atom``."""
    if coefficient > 0:
        return [mul(coefficient, arg) for arg in atom.args] if atom.kind == "max" else []
    if atom.kind == "min":
        return [mul(coefficient, arg) for arg in atom.args]
    if atom.kind not in {"floordiv", "mod"} or not at_least(atom.args[0], 0):
        return []
    whole, divisor = atom.args
    if not isinstance(divisor, int) or divisor < 1:
        return []
    found = [mul(coefficient, whole)]
    if atom.kind == "floordiv" and coefficient % divisor == 0:
        found.insert(0, mul(coefficient // divisor, whole))
    return found


def _from_terms(terms: dict[Monomial, int]) -> Dim:
    kept = {mono: coefficient for mono, coefficient in terms.items() if coefficient}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    key = frozenset(kept.items())
    known = _exprs.get(key)
    if known is not None:
        return known
    size = sum(1 + sum(atom.size * power for atom, power in mono) for mono in kept)
    made = Expr(tuple(kept.items()), size)
    if size > SIZE_CAP:
        return _opaque(str(made), *_bounds(made))
    _exprs[key] = made
    return made


def _opaque(text: str, low: int | None, high: int | None) -> Expr:
    return symbol("~" + blake2b(text.encode(), digest_size=8).hexdigest(), low=low, high=high)


def remember(key: tuple[str, Dim, Dim], value: Dim) -> Dim:
    """Keep the result of an operation for the next time, and return it."""
    if len(memo) >= _MEMO_LIMIT:
        memo.clear()
    memo[key] = value
    return value


def call(kind: str, args: tuple[Dim, ...], low: int | None, high: int | None) -> Dim:
    """Return the expression that is one operation that does not simplify, with bounds that always hold."""
    text = f"{kind}({', '.join(map(str, args))})"
    if 2 + sum(1 if isinstance(arg, int) else arg.size for arg in args) > SIZE_CAP:
        return _opaque(text, low, high)
    return _from_terms({((_atom(kind, text, args, low, high), 1),): 1})


def _multiply(a: Expr, b: Dim) -> Dim:
    if isinstance(b, int):
        return _from_terms({mono: coefficient * b for mono, coefficient in a.terms})
    if len(a.terms) * len(b.terms) > SIZE_CAP:
        first, second = sorted((str(a), str(b)))
        low = 0 if at_least(a, 0) and at_least(b, 0) else None
        return _opaque(f"({first}) * ({second})", low, None)
    terms: dict[Monomial, int] = {}
    for mono_a, coefficient_a in a.terms:
        for mono_b, coefficient_b in b.terms:
            mono = monomials.join(mono_a, mono_b)
            terms[mono] = terms.get(mono, 0) + coefficient_a * coefficient_b
    return _from_terms(terms)


def _floor_divide(a: Dim, b: Dim) -> Dim:
    exact = exact_div(a, b)
    if exact is not None:
        return exact
    if isinstance(b, int):
        if b < 0:
            return floordiv(mul(-1, a), -b)
        assert isinstance(a, Expr)
        # floor((b*q + r) / b) = q + floor(r / b) for every integer q.
        whole = _from_terms({mono: coefficient // b for mono, coefficient in a.terms})
        rest = _from_terms({mono: coefficient % b for mono, coefficient in a.terms})
        if whole != 0:
            return add(whole, floordiv(rest, b))
        nested = _nested_division(a, b)
        if nested is not None:
            return nested
    elif isinstance(a, Expr) and len(b.terms) == 1:
        whole, rest = _split_by(a, b)
        if whole != 0:
            return add(whole, floordiv(rest, b))
    low, high = _quotient_bounds(a, b)
    if low is not None and low == high:
        return low
    return call("floordiv", (a, b), low, high)


def _nested_division(a: Expr, b: int) -> Dim | None:
    """Return ``((x // n) + k) // b`` as ``(x + n*k) // (n*b)`` for positive ``n``, else None."""
    constant = sum(coefficient for mono, coefficient in a.terms if not mono)
    inner = atom_of(add(a, -constant))
    if inner is None or inner.kind != "floordiv":
        return None
    top, n = inner.args
    if not isinstance(n, int) or n <= 0:
        return None
    return floordiv(add(top, n * constant), n * b)


def _split_by(a: Expr, b: Expr) -> tuple[Dim, Dim]:
    """Split ``a`` into ``whole * b + rest`` where every term of ``whole * b`` is a term of ``a``."""
    whole: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    mono_b, coefficient_b = b.terms[0]
    for mono, coefficient in a.terms:
        quotient = monomials.divide(mono, mono_b)
        if quotient is None or coefficient % coefficient_b:
            rest[mono] = coefficient
        else:
            whole[quotient] = coefficient // coefficient_b
    return _from_terms(whole), _from_terms(rest)


def _quotient_bounds(a: Dim, b: Dim) -> tuple[int | None, int | None]:
    low_a, high_a, low_b, high_b = lower(a), upper(a), lower(b), upper(b)
    if low_a is None or low_a < 0 or low_b is None or low_b < 0:
        return None, None
    low = low_a // high_b if high_b else 0
    high = None if high_a is None else high_a // max(low_b, 1)
    return low, high


def _remainder(a: Dim, b: Dim) -> Dim:
    if exact_div(a, b) is not None:
        return 0
    if isinstance(b, int) and b > 0:
        assert isinstance(a, Expr)
        reduced = _from_terms({mono: coefficient % b for mono, coefficient in a.terms})
        low, high = lower(reduced), upper(reduced)
        if low is not None and high is not None and low >= 0 and high < b:
            return reduced
        if isinstance(reduced, int):
            return reduced
        return call("mod", (reduced, b), 0, b - 1)
    low = 0 if isinstance(b, Expr) and at_least(b, 0) else None
    return call("mod", (a, b), low, None)


def _divide_polynomials(a: Expr, b: Expr) -> Dim | None:
    """Divide by leading terms under one monomial order; a rest at any step means ``b`` does not divide ``a``."""
    lead_b = max(b.terms, key=lambda term: monomials.order(term[0]))
    rest: Dim = a
    quotient: Dim = 0
    for _ in range(SIZE_CAP):
        if isinstance(rest, int):
            return quotient if rest == 0 else None
        lead = max(rest.terms, key=lambda term: monomials.order(term[0]))
        mono = monomials.divide(lead[0], lead_b[0])
        if mono is None or lead[1] % lead_b[1]:
            return None
        step = _from_terms({mono: lead[1] // lead_b[1]})
        quotient = add(quotient, step)
        rest = add(rest, mul(-1, mul(step, b)))
    return None


def _bounds(expr: Expr) -> tuple[int | None, int | None]:
    if expr._bounds is None:
        low: int | None = 0
        high: int | None = 0
        for mono, coefficient in expr.terms:
            mono_low, mono_high = monomials.bounds(mono)
            if coefficient < 0:
                mono_low, mono_high = mono_high, mono_low
            low = None if low is None or mono_low is None else low + coefficient * mono_low
            high = None if high is None or mono_high is None else high + coefficient * mono_high
        expr._bounds = low, high
    return expr._bounds
