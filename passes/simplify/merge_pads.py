"""Make one Pad of a Pad of a Pad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.simplify.look import Look, chained
from graphopt.passes.simplify.removal import restate
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Rewriter

_SUMMED = ("constant", "edge")


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePads(RulePass):
    """Make one Pad of two that follow each other.

    Matches:   Pad whose input another Pad makes for it alone; both add the same constant, or both repeat the edge.
    Produces:  One Pad by the sum of both. Saves a node and a copy of the tensor.
    Requires:  All pads are known and none is negative, since cutting and then padding does not add up; the constants
               have the same bits.
    Preserves: Every output bitwise; names, types and shapes of the last Pad.
    Source:    Padding by a and then by b puts a + b elements there.
    """

    name: ClassVar[str] = "merge-pads"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule."""
        return [chained("Pad", facts.get(Types), facts.get(ShapeValues), _merge)]


def _merge(look: Look, before: Look) -> Patch | Skip | None:
    mode = look.attr("mode", "constant")
    if mode != before.attr("mode", "constant") or mode not in _SUMMED or look.opset < 2:
        return None
    first, second, source = pads_of(before), pads_of(look), before.first()
    if first is None or second is None or source is None or len(first) != len(second):
        return None
    if min(first + second, default=0) < 0:
        return Skip(look.node, f"it or '{node_label(before.node)}' before it cuts: pads {first} and {second}")
    if mode == "constant" and _filling(look) != _filling(before):
        return None
    pads = [a + b for a, b in zip(first, second, strict=True)]

    def apply(rewriter: Rewriter) -> None:
        kept = {key: value for key, value in look.node.attrs.items() if key != "pads"}
        if look.opset < 11:
            restate(rewriter, look.node, "Pad", [source], {**kept, "pads": pads})
            return
        constant = rewriter.constant(np.array(pads, np.int64), near=look.node)
        restate(rewriter, look.node, "Pad", [source, constant, look.input(2)], kept)

    reason = f"Pad '{node_label(look.node)}' takes over the pads of '{node_label(before.node)}'"
    return Patch(reason, (before.node, look.node), apply)


def pads_of(look: Look) -> list[int] | None:
    """Return the pads of a Pad, first those in front of every axis, then those behind; None where not known."""
    source = look.first()
    rank = None if source is None else look.types.rank(source)
    pads = look.ints(1, "pads")
    if rank is None or pads is None:
        return None
    if look.input(3) is None:
        return pads if len(pads) == 2 * rank else None
    axes = look.ints(3, "axes")
    if axes is None or len(pads) != 2 * len(axes):
        return None
    found = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        found[axis % rank], found[rank + axis % rank] = pads[place], pads[len(axes) + place]
    return found


def _filling(look: Look) -> object:
    """Return the bits of the constant that a Pad adds; those of 0 where none is given, itself where it is not known."""
    if look.opset < 11:
        return np.float32(look.attr("value", 0.0)).tobytes()
    if look.input(2) is None:
        return _ZERO
    value = look.scalar(2)
    if value is None:
        return look.input(2)
    return _ZERO if not any(value.tobytes()) else value.tobytes()


_ZERO = "zero"
