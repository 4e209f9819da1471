"""Move Transposes to where they cancel, through nodes whose results stay the same bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.simplify.layout import axes, elementwise, views
from graphopt.passes.simplify.layout.motion import TransposeMotion
from graphopt.rewrite.driver import RulePass
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model
    from graphopt.rewrite.driver import Batch

EXACT = {**elementwise.EXACT, **axes.EXACT, **views.EXACT}


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkTransposes(RulePass):
    """Move Transposes through nodes that compute the same in another layout, to where they cancel.

    Matches:   Transpose, and Reshape that only moves axes of size 1, with the region around it of nodes that can
               compute in the other layout: elementwise operators with broadcasting, Concat, Split, Slice, Pad, Gather,
               Tile, Expand, TopK, Resize, quantization pairs, Reshape and its kin that keep groups of axes together,
               Max, Min and short sums of integers, LayerNormalization beside its axes.
    Produces:  The layouts of all nodes of the region with the fewest Transposes, and of these with the fewest bytes
               moved: a minimum cut, so no other choice of layouts has fewer. Constants are laid out anew. Nothing is
               changed unless nodes or bytes are saved, or a Transpose leaves the side of a layer.
    Requires:  Ranks are known, axes and pads are constant; a constant is laid out anew only if it is small or has no
               other reader; graph outputs keep their names.
    Preserves: Every output bitwise; public names, types and shapes.
    Source:    Boykov and Kolmogorov 2004, doi:10.1109/TPAMI.2004.60: labels that minimise a sum of pairwise costs.
    """

    name: ClassVar[str] = "sink-transposes"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Batch]:
        """Return the one rewrite, of all Transposes together."""
        _ = model
        return (TransposeMotion(facts.get(Types), facts.get(ShapeValues), EXACT).batch(),)
