"""The pass ``fuse-kept-axes``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.fuse.matching import above, are_private, only_first_output, reduced_axes, replacement
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node
    from graphopt.rewrite.patch import Patch

_REDUCTIONS = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum"),
    *("ReduceLogSumExp", "ReduceSumSquare", "ArgMax", "ArgMin"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseKeptAxes(RulePass):
    """Let a reduction keep its axes, where a view puts them back, or drop them, where a view takes them away.

    Matches:   A reduction, ArgMax or ArgMin with a Reshape, Unsqueeze, Squeeze or Flatten behind it, whose result has
               the shape that the reduction has with the other value of keepdims.
    Produces:  The reduction with that keepdims. One node less.
    Requires:  Shapes and axes proved; the result of the reduction is read by the view alone.
    Preserves: Every output bitwise; names, types and shapes.
    Source:    ONNX ReduceSum-13, attribute keepdims.
    """

    name: ClassVar[str] = "fuse-kept-axes"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return one rule, rooted at the view."""
        types, values = facts.get(Types), facts.get(ShapeValues)
        return (Rule(("Reshape", "Unsqueeze", "Squeeze", "Flatten"), lambda root: _kept(root, types, values), depth=2),)


def _kept(root: Node, types: Types, values: ShapeValues) -> Patch | None:
    node = above(root.inputs[0], *_REDUCTIONS)
    if node is None or not only_first_output(node) or not are_private([node], root):
        return None
    keeps = int(node.attrs.get("keepdims", 1))
    source, wanted = types.shape(node.inputs[0]), types.shape(root.outputs[0])
    axes = [int(node.attrs.get("axis", 0))] if str(node.op).startswith("Arg") else reduced_axes(node, values)
    if source is None or wanted is None or axes is None or not source:
        return None
    places = {axis % len(source) for axis in axes} or set(range(len(source)))
    if keeps:
        after = tuple(size for place, size in enumerate(source) if place not in places)
    else:
        after = tuple(1 if place in places else size for place, size in enumerate(source))
    if wanted != after:
        return None
    attrs = {**node.attrs, "keepdims": 1 - keeps}
    reason = f"{node.op} gives '{root.outputs[0].name}' with keepdims = {1 - keeps}"
    return replacement(root, [node], str(node.op), list(node.inputs), attrs, reason=reason)
