"""Let a node take over the Reciprocal or Not in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output, producer
from graphopt.passes.simplify.look import FLOATS, Look, read_once
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.passes.simplify.removal import restate
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_MOST_READERS = 64
_FEW = 1 << 14
_QUOTIENTS = ("Reciprocal", "Div")


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsorbUnary(RulePass):
    """Divide instead of multiplying by a reciprocal, and exchange the branches of Where instead of negating.

    Matches:   Mul by a Reciprocal or by 1 / y, Div by one, of floats, which nothing else reads; Where whose condition
               is a Not that only Where reads as a condition.
    Produces:  Div, Mul, or Where with the operand of the Not and its branches exchanged. Saves the node in front, and
               one rounding.
    Requires:  The 1 is a constant of one element that does not enlarge the result. A quotient costs more than a
               product: there are no more quotients than reciprocals before, or at most 16384.
    Preserves: Names, types and shapes; values up to one rounding, and where 1 / y is out of range the new value is the
               exact one. ONNX Runtime gives +0 for -0 in one branch of Where.
    Source:    x (1 / y) = x / y, rounded once instead of twice.
    """

    name: ClassVar[str] = "absorb-unary"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rules for products and for Where."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def product(node: Node) -> Patch | None:
            if not any(map(_is_quotient, node.inputs)) or refers_to_function(node):
                return None
            return _product(Look(node, types, values))

        def where(node: Node) -> Patch | None:
            return _where(Look(node, types, values))

        return [Rule(("Mul", "Div"), product), Rule(("Where",), where, below=1)]


def _is_quotient(tensor: Tensor) -> bool:
    before = producer(tensor)
    return before is not None and before.op in _QUOTIENTS


def _product(look: Look) -> Patch | None:
    node = look.node
    if look.opset < 7 or look.dtype(look.output) not in FLOATS:
        return None
    for index in (1, 0) if node.op == "Mul" else (1,):
        divisor = _inverted(look, index)
        if divisor is not None and _is_cheaper(look, divisor):
            op = "Div" if node.op == "Mul" else "Mul"
            inputs = [node.inputs[1 - index], divisor]
            return _restated(look, op, inputs, f"{node.op} '{node_label(node)}' by a reciprocal is a {op}")
    return None


def _is_cheaper(look: Look, divisor: Tensor) -> bool:
    """Whether dividing costs less: there are no more quotients than reciprocals before, or few."""
    if look.node.op == "Div" or look.same_shape(divisor):
        return True
    shape = look.types.static_shape(look.output)
    return shape is not None and prod(shape) <= _FEW


def _inverted(look: Look, index: int) -> Tensor | None:
    """Return the tensor of which an operand is the reciprocal, for this node alone."""
    before = look.above(index, *_QUOTIENTS)
    if before is None or not read_once(before.output):
        return None
    if before.node.op == "Reciprocal":
        return before.first()
    divisor = before.input(1)
    if divisor is None or before.scalar(0) != 1 or not before.same_shape(divisor):
        return None
    return divisor


def _where(look: Look) -> Patch | None:
    before = look.above(0, "Not")
    source = None if before is None else before.first()
    if before is None or source is None or is_graph_output(before.output) or len(look.node.inputs) != 3:
        return None
    readers = before.output.outputs
    if len(readers) > _MOST_READERS or not all(_chooses(reader, before.output) for reader in readers):
        return None
    _, first, second = look.node.inputs
    return _restated(look, "Where", [source, second, first], f"Where '{node_label(look.node)}' exchanges its branches")


def _chooses(reader: Node, condition: Tensor) -> bool:
    """Whether a node is a Where that reads a tensor as its condition and nothing else."""
    if not is_op(reader, "Where") or reader.inputs[0] is not condition:
        return False
    return all(tensor is not condition for tensor in reader.inputs[1:])


def _restated(look: Look, op: str, inputs: Sequence[Tensor], reason: str) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        restate(rewriter, look.node, op, inputs)

    return Patch(reason, (look.node,), apply)
