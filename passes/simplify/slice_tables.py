"""Take the first rows of a table without listing them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.dims import Expr, at_least
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import constant_value, is_graph_output, producer
from graphopt.passes.simplify.look import read_once
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.passes.simplify.removal import erase_unread
from graphopt.passes.simplify.shapes.extents import axes_operands
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_NUMPY_TYPES: dict[int, Any] = {6: np.int32, 7: np.int64}
_LONGEST = 1 << 17
_CHECKING = ("Add", "Div", "Mul", "Sub")


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceTables(RulePass):
    """Replace Gather of the first rows of a table by Slice.

    Matches:   Gather whose indices are a Range from 0 in steps of 1 that nothing else reads, and whose output is only
               added to, or multiplied with, tensors that have as many rows: learned position embeddings. Gather of rows
               by a Slice of a constant list of all of them in order, which nothing else reads.
    Produces:  Slice of the table itself. The indices are no longer computed, and whole blocks are copied. The end of a
               Range becomes a vector by an Unsqueeze in its place, which simplify-shape-computations then takes from
               the shape itself. A list with axes of size 1 in front leaves an Unsqueeze behind the Slice.
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

        def listed(node: Node) -> Patch | None:
            cut = producer(node.inputs[1])
            if cut is None or not is_op(cut, "Slice") or cut.graph is not node.graph or not read_once(node.inputs[1]):
                return None
            return _listed(node, cut, types)

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

        return [Rule(("Gather",), sliced, depth=2, below=1), Rule(("Gather",), listed, depth=2)]


def _listed(node: Node, cut: Node, types: Types) -> Patch | None:
    """Return the patch for rows that are named by a part of a list of all rows."""
    assert node.graph is not None
    data, rows = types.shape(node.inputs[0]), types.static_shape(cut.inputs[0])
    if not data or not rows or node.graph.opset < 10 or len(cut.inputs) < 4 or not cut.inputs[3].name:
        return None
    if int(node.attrs.get("axis", 0)) or data[0] != rows[-1] or prod(rows) != rows[-1] or rows[-1] > _LONGEST:
        return None
    axes, listed = constant_value(cut.inputs[3]), constant_value(cut.inputs[0])
    if axes is None or axes.tolist() not in ([len(rows) - 1], [-1]) or listed is None:
        return None
    if not np.array_equal(listed.reshape(-1), np.arange(rows[-1])) or refers_to_function(node):
        return None
    opset = node.graph.opset

    def apply(rewriter: Rewriter) -> None:
        output = node.outputs[0]
        where = rewriter.constant(np.zeros(1, axes.dtype), near=node)
        bounds = [cut.inputs[1], cut.inputs[2], where, *cut.inputs[4:5]]
        like = output if len(rows) == 1 else None
        part = rewriter.op("Slice", [node.inputs[0], *bounds], like=like, near=node)
        if len(rows) > 1:
            operands, attrs = axes_operands(rewriter, node, range(len(rows) - 1), opset)
            part = rewriter.op("Unsqueeze", [part, *operands], attrs=attrs, like=output, near=node)
        rewriter.replace_tensor(output, part)
        erase_unread(rewriter, [output])

    return Patch("slice the table, not the list of its rows", (node, cut), apply)


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
