"""Products of powers of atoms: what the terms of a symbolic dimension are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim


class Atom:
    """What a polynomial is over: a named symbol, or a floor division, remainder, minimum or maximum.

    Attributes:
        kind: ``symbol``, ``floordiv``, ``mod``, ``min`` or ``max``.
        args: The operands; empty for a symbol.
        text: The name of a symbol, else the call as text; orders atoms and is unique.
        low: Largest known lower bound, None where there is none.
        high: Smallest known upper bound, None where there is none.
        size: What the atom counts towards :data:`SIZE_CAP`.
    """

    __slots__ = ("__weakref__", "args", "high", "kind", "low", "size", "text")

    def __init__(self, kind: str, text: str, args: tuple[Dim, ...], low: int | None, high: int | None) -> None:
        self.kind = kind
        self.text = text
        self.args = args
        self.low = low
        self.high = high
        self.size = 1 + sum(1 if isinstance(arg, int) else arg.size for arg in args)


Monomial: TypeAlias = "tuple[tuple[Atom, int], ...]"
"""A product of powers of atoms, sorted; the empty product is the constant term."""


def join(a: Monomial, b: Monomial) -> Monomial:
    """Return the product of two monomials."""
    if not a or not b:
        return a or b
    powers = dict(a)
    for atom, power in b:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: atom_order(item[0])))


def atom_order(atom: Atom) -> tuple[str, int, int]:
    """Return the key that sorts atoms: by text, then by bounds; never by when they were made."""
    low = -(1 << 62) if atom.low is None else atom.low
    high = 1 << 62 if atom.high is None else atom.high
    return atom.text, low, high


def divide(a: Monomial, b: Monomial) -> Monomial | None:
    """Return ``a / b``, None where ``b`` does not divide ``a``."""
    powers = dict(a)
    for atom, power in b:
        left = powers.get(atom, 0) - power
        if left < 0:
            return None
        if left:
            powers[atom] = left
        else:
            del powers[atom]
    return tuple((atom, powers[atom]) for atom, _ in a if atom in powers)


def order(mono: Monomial) -> tuple[object, ...]:
    """Return the key of a total order of monomials that multiplication respects."""
    # Graded lexicographic over atoms sorted by name: a total order that multiplication respects needs all exponents,
    # and spelling each power out as repeated names gives the same comparison without knowing every atom in advance.
    spelled = [atom_order(atom) for atom, power in mono for _ in range(power)]
    return (len(spelled), *([_Reversed(entry) for entry in spelled]))


class _Reversed:
    """Orders the earlier name as the larger one, as lexicographic order of exponents does."""

    __slots__ = ("entry",)

    def __init__(self, entry: tuple[str, int, int]) -> None:
        self.entry = entry

    def __lt__(self, other: _Reversed) -> bool:
        return self.entry > other.entry

    def __gt__(self, other: _Reversed) -> bool:
        return self.entry < other.entry

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and self.entry == other.entry

    def __hash__(self) -> int:
        return hash(self.entry)


def bounds(mono: Monomial) -> tuple[int | None, int | None]:
    """Return the bounds of a product, None where there is none; atoms that may be negative have none in a product."""
    if len(mono) == 1 and mono[0][1] == 1:
        return mono[0][0].low, mono[0][0].high
    low, high = 1, 1
    bounded = True
    for atom, power in mono:
        if atom.low is None or atom.low < 0:
            return None, None
        low *= atom.low**power
        if atom.high is None:
            bounded = False
        else:
            high *= atom.high**power
    return low, high if bounded else None


def degree(mono: Monomial) -> int:
    """Return the sum of the powers."""
    return sum(power for _, power in mono)


def text_of(mono: Monomial) -> str:
    """Return the product as text."""
    return "*".join(atom.text if power == 1 else f"{atom.text}^{power}" for atom, power in mono)


def term_text(mono: Monomial, coefficient: int) -> str:
    """Return a term of a polynomial as text."""
    if not mono:
        return str(coefficient)
    if coefficient == 1:
        return text_of(mono)
    return f"-{text_of(mono)}" if coefficient == -1 else f"{coefficient}*{text_of(mono)}"
