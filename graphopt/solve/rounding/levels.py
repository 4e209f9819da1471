"""The integers that a weight may become."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Levels:
    """Consecutive integers, low to high, that stand for (integer - zero point) * scale.

    Attributes:
        low: Smallest integer.
        high: Largest integer.
        symmetric: The zero point is the same for every scale; else it is found with the scale.
        middle: That zero point. One half for two levels, which then stand for minus and plus half a scale.
    """

    low: int
    high: int
    symmetric: bool = True
    middle: float = 0.0

    @property
    def holds_zero(self) -> bool:
        """Tell whether a weight of zero stays zero exactly."""
        return not self.symmetric or self.middle == int(self.middle)

    @property
    def count(self) -> int:
        """Number of levels."""
        return self.high - self.low + 1


def integer_levels(bits: int, *, symmetric: bool = True, narrow: bool = False) -> Levels:
    """Return the levels of an integer type.

    Args:
        bits: 2 to 8.
        symmetric: Signed with the zero point 0; else unsigned with a zero point of its own for every scale.
        narrow: Leave out the lowest signed integer, so that both signs reach equally far; fast 8-bit kernels need it.

    Raises:
        ValueError: So many bits have no such type.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits, but integers of 2 to 8 bits are rounded to")
    if not symmetric:
        return Levels(0, 2**bits - 1, symmetric=False)
    return Levels(-(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1)


TERNARY = Levels(-1, 1)
"""Minus, nothing, plus."""

BINARY = Levels(0, 1, middle=0.5)
"""Minus or plus. No weight is zero."""
