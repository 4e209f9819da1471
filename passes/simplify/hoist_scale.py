"""Move multiplications by a number up into constant weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output, producer
from graphopt.passes.simplify.linear.affine import Frame, terms_of
from graphopt.passes.simplify.linear.changes import exchange_names, replace
from graphopt.passes.simplify.linear.homogeneous import PASSING, Search
from graphopt.passes.simplify.purity import is_op
from graphopt.rewrite.driver import Batch, RulePass
from graphopt.rewrite.patch import Patch, node_label
from graphopt.verify.contract import Contract
from graphopt.verify.legality import in_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.rewrite.pass_ import Steps

_FLOAT, _DOUBLE = 1, 11
_WIDE_RANGE = (2.0**-24, 2.0**24)
_NARROW_RANGE = (2.0**-6, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoistScale(RulePass):
    """Move a multiplication by one number up to a constant, such as the 1 / sqrt(d) of attention into a projection.

    Matches:   Mul or Div by a constant of one element, and Neg, whose input is computed by nodes that such a factor
               passes through: Reshape, Transpose, Slice, Split, Concat, Gather, MatMul of two activations, Mul, Add,
               Relu (a positive factor) and the like, up to Conv, Gemm, MatMul, a normalization or a factor that are
               constant; also where the MatMul that alone reads the product can take the factor from its other side.
    Produces:  The same nodes without the multiplication, with s W and s b as constants. One node less, and one pass
               over the activation less; for attention that is the largest one, of all pairs of positions.
    Requires:  All that read what changes lies on the way; no output of a graph does. The new constants are finite, in
               the normal range, and copied only where they are small. The factor lies between 2^-24 and 2^24, and
               between 2^-6 and 1 for types of 16 bits, so that nothing on the way leaves its range.
    Preserves: Names, types and shapes of all outputs; values up to rounding (bitwise for powers of two).
    Source:    Homogeneity: f(s x) = s f(x) for linear f, and for positive s where f is piecewise linear through 0.
    """

    name: ClassVar[str] = "hoist-scale"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Batch]:
        """Return one batch: a factor moves up when nothing above it changes any more."""
        types = facts.get(Types)
        return [Batch(("Mul", "Div", "Neg"), lambda node: terms_of(node) is not None, lambda nodes: _all(nodes, types))]


def _all(nodes: Sequence[Node], types: Types) -> Steps:
    for node in nodes:
        patch = _hoist(node, types) if in_model(node) else None
        if patch is not None:
            yield patch


def _hoist(node: Node, types: Types) -> Patch | None:
    terms = terms_of(node)
    if terms is None:
        return None
    before = producer(terms.data)
    passes = is_op(before, *PASSING)
    other = _other_side(node)
    if not passes and other is None:
        return None
    rank = types.rank(terms.data)
    affine = terms.affine(Frame(0 if rank is None else rank, 0, 1))
    if affine is None or affine.shifts:
        return None
    factor = float(affine.scale)
    low, high = _WIDE_RANGE if types.dtype(node.outputs[0]) in {_FLOAT, _DOUBLE} else _NARROW_RANGE
    if not low <= abs(factor) <= high:
        return None
    if passes and len(terms.data.outputs) == 1 and not is_graph_output(terms.data):
        origin = Search(factor, node, types).find(terms.data)
        if origin is not None:
            nodes = (*origin.slots, node)
            data = terms.data

            def apply(rewriter: Rewriter) -> None:
                replace(rewriter, node.outputs[0], origin.build(rewriter, data, node))
                rewriter.erase(nodes)

            return Patch(f"move '{node_label(node)}' up into constants", nodes, apply)
    return None if other is None else _cross(node, terms.data, other, factor, types)


def _other_side(node: Node) -> tuple[Node, int] | None:
    """Return the MatMul of two activations that alone reads a node, and the index of its other operand."""
    output = node.outputs[0]
    if len(output.outputs) != 1 or is_graph_output(output):
        return None
    product = output.outputs[0]
    if not is_op(product, "MatMul") or product.graph is not node.graph:
        return None
    return product, 1 if product.inputs[0] is output else 0


def _cross(node: Node, data: Tensor, other: tuple[Node, int], factor: float, types: Types) -> Patch | None:
    """Return the move of a factor of one operand of a MatMul to the other operand, where a constant takes it."""
    product, index = other
    opposite = product.inputs[index]
    before = producer(opposite)
    if not is_op(before, *PASSING) or len(opposite.outputs) != 1 or is_graph_output(opposite):
        return None
    origin = Search(factor, product, types).find(opposite)
    if origin is None or node in origin.slots:
        return None
    nodes = (*origin.slots, node, product)

    def apply(rewriter: Rewriter) -> None:
        operands: list[Tensor] = [data, data]
        operands[index] = origin.build(rewriter, opposite, product)
        result = product.outputs[0]
        made = rewriter.op("MatMul", operands, like=result, near=product, origin=[product])
        exchange_names(made.inputs[0], product)
        replace(rewriter, result, made)
        rewriter.erase(nodes)

    return Patch(f"move '{node_label(node)}' across '{node_label(product)}' up into constants", nodes, apply)
