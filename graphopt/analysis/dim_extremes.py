"""Minimum and maximum of symbolic dimensions: what is proved never to be taken is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.analysis.dims import at_least, atom_of, call, lower, memo, remember, upper

if TYPE_CHECKING:
    from graphopt.analysis.dims import Dim


def minimum(a: Dim, b: Dim) -> Dim:
    """Return the smaller of two dimensions."""
    return _extreme("min", a, b)


def maximum(a: Dim, b: Dim) -> Dim:
    """Return the larger of two dimensions."""
    return _extreme("max", a, b)


def _extreme(kind: str, a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b) if kind == "min" else max(a, b)
    key = (kind, a, b)
    known = memo.get(key)
    if known is not None:
        return known
    kept: list[Dim] = []
    for candidate in (*_operands(kind, a), *_operands(kind, b)):
        if any(_dominates(kind, other, candidate) for other in kept):
            continue
        kept = [other for other in kept if not _dominates(kind, candidate, other)]
        kept.append(candidate)
    if len(kept) == 1:
        return remember(key, kept[0])
    kept.sort(key=str)
    low, high = _extreme_bounds(kind, [lower(dim) for dim in kept], [upper(dim) for dim in kept])
    return remember(key, call(kind, tuple(kept), low, high))


def _operands(kind: str, dim: Dim) -> tuple[Dim, ...]:
    call = atom_of(dim)
    return (dim,) if call is None or call.kind != kind else call.args


def _dominates(kind: str, winner: Dim, loser: Dim) -> bool:
    return at_least(loser, winner) if kind == "min" else at_least(winner, loser)


def _extreme_bounds(kind: str, lows: list[int | None], highs: list[int | None]) -> tuple[int | None, int | None]:
    known_lows, known_highs = [low for low in lows if low is not None], [high for high in highs if high is not None]
    if kind == "min":
        return min(known_lows) if len(known_lows) == len(lows) else None, min(known_highs, default=None)
    return max(known_lows, default=None), max(known_highs) if len(known_highs) == len(highs) else None
