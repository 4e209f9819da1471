"""What a rewrite promises about the numbers that leave the model."""

from __future__ import annotations

from enum import Enum


class Contract(Enum):
    """The numeric promise of a pass; it selects the oracle that checks it.

    Attributes:
        EXACT: Every output is bitwise the same (all NaN count as one value; -0 and +0 differ).
        ROUNDING: Outputs differ by no more than the rounding bound derived from the model (see ``verify.bound``).
        LOSSY: Outputs may differ; what was lost is measured and held against the budget.
    """

    EXACT = "exact"
    ROUNDING = "rounding"
    LOSSY = "lossy"

    @property
    def looseness(self) -> int:
        """Return 0, 1 or 2: the larger one of two contracts is the contract of both run in turn."""
        return ("exact", "rounding", "lossy").index(self.value)


def weakest(contracts: list[Contract] | tuple[Contract, ...]) -> Contract:
    """Return the contract that holds after passes with these contracts ran one after another.

    Args:
        contracts: The contracts; empty means that nothing ran.
    """
    return max(contracts, key=lambda contract: contract.looseness, default=Contract.EXACT)
