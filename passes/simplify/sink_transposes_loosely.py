"""Move Transposes to where they cancel, through nodes whose results may differ in the last bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.simplify import sink_transposes
from graphopt.passes.simplify.layout import axes, elementwise
from graphopt.passes.simplify.layout.motion import TransposeMotion
from graphopt.rewrite.driver import RulePass
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model
    from graphopt.rewrite.driver import Batch

ALL = {**sink_transposes.EXACT, **elementwise.ROUNDING, **axes.ROUNDING}


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkTransposesLoosely(RulePass):
    """Move Transposes as sink-transposes does, also through sums and functions that runtimes approximate.

    Matches:   As sink-transposes; besides Exp, Tanh, Sigmoid and the like, reductions of floats, Softmax, MatMul,
               BatchNormalization and InstanceNormalization that keep their channels, interpolating Resize.
    Produces:  As sink-transposes. A Softmax that would no longer work along the last axis counts as a Transpose in
               bytes, because runtimes lay it out anew.
    Requires:  As sink-transposes. A constant operand of MatMul changes sides only for results at least 32 wide.
    Preserves: Every output up to the order of summation and to how the runtime computes elements at the end of a
               vector; public names, types and shapes.
    Source:    Boykov and Kolmogorov 2004, doi:10.1109/TPAMI.2004.60: labels that minimise a sum of pairwise costs.
    """

    name: ClassVar[str] = "sink-transposes-loosely"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Batch]:
        """Return the one rewrite, of all Transposes together."""
        _ = model
        return (TransposeMotion(facts.get(Types), facts.get(ShapeValues), ALL).batch(),)
