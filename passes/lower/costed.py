"""What all passes share that replace a layer by a kernel where the cost table says that it is faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.cost_table import ANY_ISA
from graphopt.analysis.types import Types
from graphopt.passes.lower.rows import RowCounts
from graphopt.rewrite.pass_ import Pass

if TYPE_CHECKING:
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class CostedLowering(Pass):
    """A pass that lowers by the cost table.

    Attributes:
        cost_table: Path of a measured cost table; empty for the one that ``graphopt tune`` made, else the package's.
        isa: Instruction set whose figures count: one of the cost table's, or ``any`` for the least favourable.
        rows: Rows of activations, of convolutions output positions over the batch, to assume where model and data
            leave them open; 0 assumes the least favourable.
    """

    requires: ClassVar[tuple[type[Any], ...]] = (Types,)
    lowers: ClassVar[bool] = True

    cost_table: str = ""
    isa: str = ANY_ISA
    rows: int = 0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: ``rows`` is negative.
        """
        if self.rows < 0:
            msg = f"rows is {self.rows}, and must be 0 or more"
            raise ValueError(msg)

    def counts(self, model: Model, facts: Facts) -> RowCounts:
        """Return what counts the rows of a model's layers."""
        return RowCounts(model, facts.get(Types), facts, self.rows)
