"""Give Reshape a constant target where the sizes it computes are those of its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.simplify.purity import is_constant, is_op, refers_to_function
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Generator

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter


@dataclass(frozen=True, slots=True, kw_only=True)
class FixReshapeTargets(Pass):
    """Replace computed targets of Reshape by constants that copy and infer the sizes that vary.

    Matches:   Reshape whose target is computed from shapes, such as Concat of Gather of Shape, where every element of
               the target is a number, or the size that the input has on the same axis, or the only one that is neither.
    Produces:  A constant target: 0 copies the size of the same axis, -1 stands for the one that is left. The nodes that
               computed the target are left to eliminate-dead.
    Requires:  The element is proved to be that size. -1 stands only beside numbers above 0, so that tensors without
               elements keep their shape. Where allowzero is 1 no number is 0 and -1 stands beside
               numbers only, and it becomes 0.
    Preserves: Every output bitwise; names, types and shapes.
    Source:    ONNX operator Reshape, version 5: the meaning of 0 and -1.
    """

    name: ClassVar[str] = "fix-reshape-targets"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per Reshape, in topological order."""
        types, values = facts.get(Types), facts.get(ShapeValues)
        for graph, node in list(model.walk()):
            if not is_op(node, "Reshape") or graph.opset < 5 or refers_to_function(node):
                continue
            if len(node.inputs) < 2 or is_constant(node.inputs[1]):
                continue
            entries, shape = values.value(node.inputs[1]), types.shape(node.inputs[0])
            if entries is None or shape is None:
                yield Skip(node, "what its target is computed from is not known")
            else:
                target = _constant_target(entries, shape, allow_zero=bool(int(node.attrs.get("allowzero", 0))))
                if isinstance(target, str):
                    yield Skip(node, target)
                else:
                    yield _patch(node, target)


def _constant_target(entries: tuple[Dim, ...], shape: tuple[Dim, ...], *, allow_zero: bool) -> list[int] | str:
    """Return the target with 0 and -1 for the sizes that vary, or the reason why there is none."""
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
    if left and (len(left) > 1 or any(size <= 0 for size in target if size != -1) or target.count(-1) > 1):
        return f"the sizes {', '.join(left)} of its target cannot be copied from its input"
    return target


def _patch(node: Node, target: list[int]) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        name = f"{node.outputs[0].name}__target"
        rewriter.set_input(node, 1, rewriter.constant(np.array(target, np.int64), name=name, near=node))
        if "allowzero" in node.attrs:
            rewriter.set_attr(node, "allowzero", None)  # from here on a 0 copies

    return Patch(f"make the target {target}", (node,), apply)
