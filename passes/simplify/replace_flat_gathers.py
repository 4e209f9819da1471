"""Take a tensor as it is where Gather lists all of its elements in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.dims import product
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import producer
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.passes.simplify.removal import erase_unread
from graphopt.passes.simplify.shapes.counts import row_major, strides_of
from graphopt.passes.simplify.shapes.extents import axes_operands
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceFlatGathers(RulePass):
    """Replace Gather by Unsqueeze where its computed indices list all elements of a flattened tensor in order.

    Matches:   Gather along the first axis of a tensor that Flatten or Reshape flattened, whose indices are made of
               Range, products with sizes and sums: the export of ``mask[batch[:, None], position]`` with two aranges,
               as the attention masks of transformers have it.
    Produces:  Unsqueeze of the tensor before it was flattened. The indices are no longer computed: about eight nodes.
    Requires:  The indices are proved to be 0, 1, 2, ... in row-major order, as many as there are rows, and the shapes
               to differ by axes of size 1 only.
    Preserves: Every output bitwise; names, types and shapes.
    Source:    ONNX operators Gather 1, Flatten 1, Unsqueeze 1: their definitions.
    """

    name: ClassVar[str] = "replace-flat-gathers"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule for Gather."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def replaced(node: Node) -> Patch | None:
            flat = producer(node.inputs[0])
            indexer = producer(node.inputs[1])
            if not is_op(flat, "Flatten", "Reshape") or not is_op(indexer, "Add", "Range", "Unsqueeze", "Reshape"):
                return None
            assert flat is not None
            if int(node.attrs.get("axis", 0)) or refers_to_function(node) or refers_to_function(flat):
                return None
            source = types.shape(flat.inputs[0])
            data, indices = types.shape(node.inputs[0]), types.shape(node.inputs[1])
            if source is None or not data or indices is None or product(indices) != data[0]:
                return None
            axes = _inserted(source, (*indices, *data[1:]))
            if not axes or strides_of(node.inputs[1], types, values) != row_major(indices):
                return None
            return _patch(node, flat.inputs[0], axes)

        return [Rule(("Gather",), replaced, depth=4)]


def _inserted(source: tuple[Dim, ...], result: tuple[Dim, ...]) -> list[int] | None:
    """Return the axes of size 1 that make one shape the other, None where there are none."""
    axes = []
    rest = list(source)
    for axis, size in enumerate(result):
        if rest and rest[0] == size:
            rest.pop(0)
        elif size == 1:
            axes.append(axis)
        else:
            return None
    return None if rest else axes


def _patch(node: Node, source: Tensor, axes: list[int]) -> Patch:
    assert node.graph is not None
    opset = node.graph.opset

    def apply(rewriter: Rewriter) -> None:
        operands, attrs = axes_operands(rewriter, node, axes, opset)
        output = node.outputs[0]
        made = rewriter.op("Unsqueeze", [source, *operands], attrs=attrs, like=output, near=node)
        rewriter.replace_tensor(output, made)
        erase_unread(rewriter, [output])

    return Patch("take all elements in order", (node,), apply)
