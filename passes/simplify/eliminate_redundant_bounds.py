"""Remove bounds that nothing exceeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import producer
from graphopt.passes.simplify.algebra.bounds import BOUNDED, DEEPEST, bounds_of
from graphopt.passes.simplify.algebra.clamps import CLAMPS, Clamp
from graphopt.passes.simplify.look import FLOATS, Look
from graphopt.passes.simplify.purity import refers_to_function
from graphopt.passes.simplify.removal import bypass
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Tensor
    from graphopt.rewrite.patch import Patch, Skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EliminateRedundantBounds(RulePass):
    """Remove Relu, Clip, Min, Max and LeakyRelu that change no value, because none is out of their bounds.

    Matches:   Relu, Clip with constant bounds, Min or Max with one constant, LeakyRelu, whose input is known to lie
               within the bounds: computed by Sigmoid, Softmax, Tanh, Exp, Abs, Sqrt, Softplus, a norm, another clamp,
               or sums, products, selections and views of such.
    Produces:  The readers read the input. Saves the node and one pass over the tensor.
    Requires:  The range is proved from up to four producers. Functions that runtimes approximate may pass their upper
               bound by some units in the last place: 1 is no bound for Sigmoid.
    Preserves: Every output bitwise: a clamp lets NaN and a zero that meets a bound of 0 pass as they are.
    Source:    The ranges of the functions; sums, products and square roots of numbers that are not negative.
    """

    name: ClassVar[str] = "eliminate-redundant-bounds"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Patch | Skip | None:
            if not any(map(_is_bounded, node.inputs[:2])):
                return None
            return None if refers_to_function(node) else _remove(Look(node, types, values))

        return [Rule((*CLAMPS, "LeakyRelu"), rewrite, depth=DEEPEST)]


def _is_bounded(tensor: Tensor) -> bool:
    """Whether the producer of a tensor may bound it."""
    before = producer(tensor)
    return before is not None and before.op in BOUNDED


def _remove(look: Look) -> Patch | Skip | None:
    if look.dtype(look.output) not in FLOATS:
        return None
    source = look.first()
    if look.node.op == "LeakyRelu":
        if source is None or bounds_of(source, look)[0] < 0:
            return None
        return bypass(look.node, source, f"'{source.name}' has nothing below 0")
    if look.node.op == "Relu" and (source is None or bounds_of(source, look)[0] < 0):
        return None
    clamp = Clamp.of(look)
    if clamp is None:
        return None
    low, high = bounds_of(clamp.source, look)
    if low < clamp.low or high > clamp.high:
        return None
    return bypass(look.node, clamp.source, f"'{clamp.source.name}' lies within [{clamp.low}, {clamp.high}]")
