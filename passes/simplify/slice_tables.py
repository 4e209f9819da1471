"""Take the first rows of a table without listing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.dims import Expr, at_least
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output, producer
from graphopt.passes.simplify.extents import axes_operands
from graphopt.passes.simplify.look import read_once
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.passes.simplify.removal import erase_unread
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_NUMPY_TYPES: dict[int, Any] = {6: np.int32, 7: np.int64}
_CHECKING = ("Add", "Div", "Mul", "Sub")


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceTables(RulePass):
    """Replace Gather of the first rows of a table by Slice.

    Matches:   Gather whose indices are a Range from 0 in steps of 1 that nothing else reads, and whose output is only
               added to, or multiplied with, tensors that have as many rows: learned position embeddings.
    Produces:  Slice up to the end of the range. The indices are no longer computed, and whole blocks are copied. The
               end becomes a vector by an Unsqueeze in place of the Range, which simplify-shape-computations then takes
               from the shape itself.
    Requires:  The end is proved to be a size, so it is not negative. The table has at least two rows: where it has
               fewer rows than asked for Gather fails, and so do the readers then, since their operands do not fit.
    Preserves: Every output bitwise; names, types and shapes.
    Source:    ONNX operators Gather 1, Range 11, Slice 10: their definitions.
    """

    name: ClassVar[str] = "slice-tables"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule for Gather."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def sliced(node: Node) -> Patch | None:
            counted = producer(node.inputs[1])
            if counted is None or not is_op(counted, "Range") or counted.graph is not node.graph:
                return None
            start, limit, delta = counted.inputs
            data, output = types.shape(node.inputs[0]), node.outputs[0]
            if not data or is_graph_output(output) or not read_once(node.inputs[1]) or refers_to_function(node):
                return None
            if values.constant(start) != (0,) or values.constant(delta) != (1,) or types.rank(limit) != 0:
                return None
            end = values.value(limit)
            axis = int(node.attrs.get("axis", 0)) % len(data)
            if end is None or not isinstance(end[0], Expr) or not at_least(end[0], 0) or not at_least(data[axis], 2):
                return None
            if types.dtype(limit) not in _NUMPY_TYPES or not _readers_need(output, axis - len(data), end[0], types):
                return None
            return _patch(node, limit, axis, _NUMPY_TYPES[types.dtype(limit)])

        return [Rule(("Gather",), sliced, depth=2, below=1)]


def _readers_need(tensor: Tensor, back: int, size: Dim, types: Types) -> bool:
    """Whether every reader fails unless the tensor has this size on an axis, counted from behind."""
    for node in dict.fromkeys(tensor.outputs):
        if not is_op(node, *_CHECKING) or node.graph is None or node.graph.opset < 7:
            return False
        shapes = [types.shape(other) for other in node.inputs if other is not tensor]
        if not any(shape is not None and len(shape) >= -back and shape[back] == size for shape in shapes):
            return False
    return bool(tensor.outputs)


def _patch(node: Node, limit: Tensor, axis: int, element: Any) -> Patch:
    assert node.graph is not None
    opset = node.graph.opset

    def apply(rewriter: Rewriter) -> None:
        axes, attrs = axes_operands(rewriter, node, [0], opset)
        end = rewriter.op("Unsqueeze", [limit, *axes], attrs=attrs, near=node)
        start, where = (rewriter.constant(np.array([each], element), near=node) for each in (0, axis))
        output = node.outputs[0]
        part = rewriter.op("Slice", [node.inputs[0], start, end, where], like=output, near=node)
        rewriter.replace_tensor(output, part)
        erase_unread(rewriter, [output])

    return Patch("take the first rows with Slice", (node,), apply)
