"""Give Reshape a constant target where the sizes it computes are those of its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.dims import at_least
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.simplify.purity import is_constant, refers_to_function
from graphopt.passes.simplify.removal import erase_unread
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter


@dataclass(frozen=True, slots=True, kw_only=True)
class FixReshapeTargets(RulePass):
    """Replace computed targets of Reshape by constants that copy and infer the sizes that vary.

    Matches:   Reshape whose target is computed from shapes, such as Concat of Gather of Shape, where every element of
               the target is a number, or the size that the input has on the same axis, or the only one that is neither.
    Produces:  A constant target: 0 copies the size of the same axis, -1 stands for the one that is left. The nodes that
               computed the target go unless something else reads them: one to dozens of small nodes.
    Requires:  The element is proved to be that size. -1 stands only beside sizes that are proved to be above 0, since a
               tensor without elements does not tell what is left. Where allowzero is 1 no number is 0 and -1 stands
               beside numbers only, and it becomes 0.
    Preserves: Every output bitwise; names, types and shapes.
    Source:    ONNX operator Reshape, version 5: the meaning of 0 and -1.
    """

    name: ClassVar[str] = "fix-reshape-targets"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule for Reshape."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def fixed(node: Node) -> Patch | Skip | None:
            assert node.graph is not None
            if node.graph.opset < 5 or len(node.inputs) < 2 or is_constant(node.inputs[1]) or refers_to_function(node):
                return None
            entries, shape = values.value(node.inputs[1]), types.shape(node.inputs[0])
            if entries is None or shape is None:
                return Skip(node, "what its target is computed from is not known")
            target = constant_target(entries, shape, allow_zero=bool(int(node.attrs.get("allowzero", 0))))
            return Skip(node, target) if isinstance(target, str) else _patch(node, target)

        return [Rule(("Reshape",), fixed)]


def constant_target(entries: tuple[Dim, ...], shape: tuple[Dim, ...], *, allow_zero: bool) -> list[int] | str:
    """Return the target with 0 and -1 for the sizes that vary, or the reason why there is none.

    Args:
        entries: The target as it is computed.
        shape: The shape of the input.
        allow_zero: Whether a 0 in the computed target means a size of 0 rather than a copy.
    """
    if allow_zero and 0 in entries:
        return "its target has a size of 0, which is not to be copied (allowzero is 1)"
    if allow_zero and -1 in entries and not all(isinstance(entry, int) for entry in entries):
        return "its target has -1 beside sizes that may be 0, which only allowzero = 1 takes"
    target: list[int] = []
    left: list[str] = []
    for axis, entry in enumerate(entries):
        if isinstance(entry, int):
            target.append(entry)
        elif axis < len(shape) and shape[axis] == entry:
            target.append(0)
        else:
            target.append(-1)
            left.append(str(entry))
    if left and (len(left) > 1 or target.count(-1) > 1 or not _are_positive(target, shape)):
        return f"the sizes {', '.join(left)} of its target cannot be copied from its input"
    return target


def _are_positive(target: list[int], shape: tuple[Dim, ...]) -> bool:
    """Whether every size beside -1 is proved to be above 0, also the copied ones."""
    sizes = [shape[axis] if size == 0 and axis < len(shape) else size for axis, size in enumerate(target)]
    return all(size == -1 or at_least(size, 1) for size in sizes)


def _patch(node: Node, target: list[int]) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        name = f"{node.outputs[0].name}__target"
        computed = node.inputs[1]
        rewriter.set_input(node, 1, rewriter.constant(np.array(target, np.int64), name=name, near=node))
        if "allowzero" in node.attrs:
            rewriter.set_attr(node, "allowzero", None)  # from here on a 0 copies
        erase_unread(rewriter, [computed])

    return Patch(f"make the target {target}", (node,), apply)
