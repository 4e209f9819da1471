"""Remove pairs of nodes that undo each other, and nodes that repeat what is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output, producer
from graphopt.passes.simplify.look import INTEGERS, Look, read_once
from graphopt.passes.simplify.purity import refers_to_function
from graphopt.passes.simplify.removal import bypass, erase_unread, restate
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_ROUNDING = ("Ceil", "Floor", "Round")
_NEGATED = {"Less": "GreaterOrEqual", "Greater": "LessOrEqual", "LessOrEqual": "Greater", "GreaterOrEqual": "Less"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelInverses(RulePass):
    """Remove nodes that undo or repeat the node before them, and negations that the next node can take over.

    Matches:   Not of Not, Neg of Neg, BitwiseNot of BitwiseNot; Abs of Abs or Neg; Ceil, Floor and Round of each other;
               Sign of Sign; And and Or of a tensor with itself; DepthToSpace of SpaceToDepth and back; Concat of all
               outputs of a Split in order, Split into the operands of a Concat; Add and Sub of a Neg; Not of a
               comparison of integers.
    Produces:  The first input, or one node: Sub for Add of a Neg, the opposite comparison. Saves one or two nodes.
    Requires:  A Split has the sizes of what the Concat joins, proved. A Neg or comparison is read by this node alone.
    Preserves: Every output bitwise (the payload and sign of NaN aside).
    Source:    IEEE 754-2019: x + (-y) is x - y; rounding to integers is idempotent. Comparisons of integers are total.
    """

    name: ClassVar[str] = "cancel-inverses"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return one rule for all operators."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Patch | Skip | None:
            return None if refers_to_function(node) else _RULES[node.op](Look(node, types, values))

        return [Rule(tuple(_RULES), rewrite, depth=2)]


def _involution(look: Look) -> Patch | Skip | None:
    before = look.above(0, look.node.op)
    source = None if before is None else before.first()
    return None if source is None else bypass(look.node, source, f"two {look.node.op} undo each other")


def _repeated(*ops: str) -> Callable[[Look], Patch | Skip | None]:
    def rule(look: Look) -> Patch | Skip | None:
        before = look.above(0, *ops)
        return None if before is None else bypass(look.node, before.output, f"{look.node.op} changes nothing any more")

    return rule


def _abs(look: Look) -> Patch | Skip | None:
    before = look.above(0, "Neg")
    source = None if before is None else before.first()
    if before is None or source is None or not read_once(before.output):
        return _repeated("Abs")(look)
    return _restated(look, "Abs", [source], f"Abs '{node_label(look.node)}' drops the Neg before it")


def _with_itself(look: Look) -> Patch | Skip | None:
    source = look.first()
    if source is None or source is not look.input(1) or not look.same_shape(source):
        return None
    return bypass(look.node, source)


def _not(look: Look) -> Patch | Skip | None:
    before = look.above(0, *_NEGATED)
    if before is None:
        return _involution(look)
    operands = list(before.node.inputs)
    op = _NEGATED[before.node.op]
    if not read_once(before.output) or look.dtype(operands[0]) not in INTEGERS or look.opset < 12:
        return None
    return _restated(look, op, operands, f"Not of {before.node.op} '{node_label(before.node)}' is {op}")


def _add(look: Look) -> Patch | Skip | None:
    for index in (1, 0):
        negated = _negated(look, index)
        if negated is not None:
            inputs = [look.node.inputs[1 - index], negated]
            return _restated(look, "Sub", inputs, f"Add '{node_label(look.node)}' of a Neg is a Sub")
    return None


def _sub(look: Look) -> Patch | Skip | None:
    negated = _negated(look, 1)
    if negated is None:
        return None
    inputs = [look.node.inputs[0], negated]
    return _restated(look, "Add", inputs, f"Sub '{node_label(look.node)}' of a Neg is an Add")


def _negated(look: Look, index: int) -> Tensor | None:
    """Return the operand of a Neg that only this node reads."""
    before = look.above(index, "Neg") if look.opset >= 7 else None
    if before is None or not read_once(before.output):
        return None
    return before.first()


def _depth_to_space(look: Look) -> Patch | Skip | None:
    before = look.above(0, "SpaceToDepth")
    if before is None or look.attr("mode", "DCR") != "DCR":
        return None
    return _undo_blocks(look, before)


def _space_to_depth(look: Look) -> Patch | Skip | None:
    before = look.above(0, "DepthToSpace")
    if before is None or before.attr("mode", "DCR") != "DCR":
        return None
    return _undo_blocks(look, before)


def _undo_blocks(look: Look, before: Look) -> Patch | Skip | None:
    source = before.first()
    if source is None or look.attr("blocksize", 0) != before.attr("blocksize", 0):
        return None
    return bypass(look.node, source, f"{look.node.op} undoes '{node_label(before.node)}'")


def _concat(look: Look) -> Patch | Skip | None:
    """A Concat of all outputs of one Split, in order."""
    split = look.above(0, "Split")
    inputs = list(look.node.inputs)
    source = None if split is None else split.first()
    if split is None or source is None or len(inputs) != len(split.node.outputs):
        return None
    if any(given is not made for given, made in zip(inputs, split.node.outputs, strict=True)):
        return None
    rank = look.types.rank(source)
    axis = look.axis("axis", 1, rank)
    if axis is None or axis != split.axis("axis", 0, rank):
        return None
    return bypass(look.node, source, f"Concat puts the parts of '{source.name}' together again")


def _split(look: Look) -> Patch | Skip | None:
    """A Split into exactly the operands of a Concat."""
    concat = look.above(0, "Concat")
    node = look.node
    if concat is None or len(concat.node.inputs) != len(node.outputs):
        return None
    rank = look.types.rank(concat.output)
    axis = look.axis("axis", 0, rank)
    if axis is None or axis != concat.axis("axis", 1, rank):
        return None
    operands: list[Tensor] = list(concat.node.inputs)
    for operand, part in zip(operands, node.outputs, strict=True):
        shape = look.shape(operand)
        if not part.name or shape is None or shape != look.shape(part):
            return None
    if any(map(is_graph_output, node.outputs)):
        return Skip(node, "an output of the graph would be an operand of the Concat under another name")
    return _parts(look, operands)


def _parts(look: Look, operands: list[Tensor]) -> Patch:
    node = look.node

    def apply(rewriter: Rewriter) -> None:
        before = list(node.inputs)
        for operand, part in zip(operands, list(node.outputs), strict=True):
            rewriter.replace_tensor(part, operand)
        rewriter.erase(node)
        erase_unread(rewriter, before)

    return Patch(f"Split '{node_label(node)}' gives out the {len(operands)} operands of a Concat", (node,), apply)


def _restated(look: Look, op: str, inputs: Sequence[Tensor], reason: str) -> Patch:
    before = [producer(tensor) for tensor in look.node.inputs]
    nodes = tuple(node for node in before if node is not None and node.graph is look.node.graph)

    def apply(rewriter: Rewriter) -> None:
        restate(rewriter, look.node, op, inputs, look.node.attrs if look.node.op == op else {})

    return Patch(reason, (*nodes[:1], look.node), apply)


_RULES: dict[str, Callable[[Look], Patch | Skip | None]] = {
    **dict.fromkeys(("Neg", "BitwiseNot"), _involution),
    "Not": _not,
    "Abs": _abs,
    **dict.fromkeys(_ROUNDING, _repeated(*_ROUNDING)),
    "Sign": _repeated("Sign"),
    **dict.fromkeys(("And", "Or", "BitwiseAnd", "BitwiseOr"), _with_itself),
    "Add": _add,
    "Sub": _sub,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Concat": _concat,
    "Split": _split,
}
