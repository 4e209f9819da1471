"""What all passes share that replace a layer by a kernel where the cost table says that it is faster."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from graphopt.analysis.cost_table import ANY_ISA, CostTable
from graphopt.analysis.types import Types
from graphopt.passes.lower.rows import RowCounts
from graphopt.passes.lower.settling import C, settle
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Patch, Skip

if TYPE_CHECKING:
    from collections.abc import Generator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node


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


@dataclass(frozen=True, slots=True)
class Known:
    """What the layers of a model are judged by.

    Attributes:
        table: What is faster.
        types: Shapes of the activations.
        counts: Counts their rows.
    """

    table: CostTable
    types: Types
    counts: RowCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLowering(CostedLowering, Generic[C]):
    """A pass that judges layer by layer, and leaves those whose weights another node needs as they are."""

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per lowered node, in topological order.

        Raises:
            RecipeError: The cost table cannot be read, or does not have the instruction set.
        """
        known = Known(CostTable.find(self.cost_table), facts.get(Types), self.counts(model, facts))
        packed: dict[Any, Any] = {}
        for node, chosen in settle(model, lambda node, taken: self.judge(node, known, taken)).items():
            yield Skip(node, chosen) if isinstance(chosen, str) else self.lowered(chosen, packed)

    @abstractmethod
    def judge(self, node: Node, known: Known, taken: set[Node]) -> C | str | None:
        """Return how a node is lowered, why it stays, or None where it is no layer of this pass.

        Args:
            node: Any node.
            known: What it is judged by.
            taken: Nodes that go with layers before it.
        """

    @abstractmethod
    def lowered(self, chosen: C, packed: dict[Any, Any]) -> Patch:
        """Return the patch that lowers a layer.

        Args:
            chosen: The layer and how it is lowered.
            packed: Weights packed so far, by what they hold.
        """
