"""Make one constant of those that a chain of sums or of products applies one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import producer
from graphopt.graph.dtypes import numpy_dtype
from graphopt.passes.simplify.look import FLOATS, INTEGERS, Look, read_once
from graphopt.passes.simplify.purity import is_constant, is_op, refers_to_function
from graphopt.passes.simplify.removal import restate
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.passes.simplify.look import Array

_SUMS = ("Add", "Sub")
_PRODUCTS = ("Mul", "Div")
_LARGEST_FACTOR = 24  # in powers of two: nothing between may leave its range where the whole does not


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeConstantOperands(RulePass):
    """Make one Add, Sub, Mul or Div of two with constants that follow each other.

    Matches:   Add or Sub of a constant behind Add or Sub of a constant; Mul or Div by a constant behind Mul or Div by a
               constant, also c / x; the first is read by the second alone.
    Produces:  One node with the combined constant, computed in float64 and rounded once; for integers modulo their
               range. Saves a node and one pass over the tensor.
    Requires:  The constants broadcast to no larger shape than before, and the combined one has no more elements than
               the larger of them. Factors lie between 2^-24 and 2^24, or 2^-6 and 2^6 for types of 16 bits, so that
               nothing leaves the range of its type that stayed in it; summands do not cancel, since then the first may
               be there to round. Every new constant is a number of its type. Div of integers stays.
    Preserves: Names, types and shapes; values up to rounding, integers bitwise.
    Source:    Associativity and distributivity, up to one rounding per removed node.
    """

    name: ClassVar[str] = "merge-constant-operands"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Patch | Skip | None:
            family = _SUMS if node.op in _SUMS else _PRODUCTS
            for index in (0, 1):
                tensor = node.inputs[index]
                before = producer(tensor)
                if before is None or before.op not in family or not is_constant(node.inputs[1 - index]):
                    continue
                if is_op(before, *family) and read_once(tensor) and any(map(is_constant, before.inputs)):
                    return _merge(Look(node, types, values), Look(before, types, values), index)
            return None

        return [Rule((*_SUMS, *_PRODUCTS), rewrite)]


@dataclass(frozen=True, slots=True)
class _Form:
    """What a node makes of x: ``x ** power * factor`` for a product, ``power * x + summand`` for a sum.

    Attributes:
        source: The operand x.
        power: 1 or -1.
        constant: The factor or the summand, as float64, or int64 modulo its range.
    """

    source: Tensor
    power: int
    constant: Array


def _merge(look: Look, before: Look, index: int) -> Patch | Skip | None:
    dtype = look.dtype(look.output)
    if look.opset < 7 or (dtype not in FLOATS and dtype not in INTEGERS) or refers_to_function(look.node):
        return None
    sums = look.node.op in _SUMS
    if dtype in INTEGERS and not sums and "Div" in {look.node.op, before.node.op}:
        return None
    first, second = _form(before, dtype, None), _form(look, dtype, index)
    if first is None or second is None or refers_to_function(before.node):
        return None
    constant = _combined(first, second, sums=sums, dtype=dtype)
    if isinstance(constant, str):
        return Skip(look.node, constant) if constant else None
    power = first.power * second.power
    kept = look.shape(first.source)
    if kept is None or not _fits(constant, look, before, first.source):
        return None

    def apply(rewriter: Rewriter) -> None:
        made = rewriter.constant(constant, near=look.node)
        if power == 1:
            restate(rewriter, look.node, "Add" if sums else "Mul", [first.source, made])
        else:
            restate(rewriter, look.node, "Sub" if sums else "Div", [made, first.source])

    reason = f"{look.node.op} '{node_label(look.node)}' takes over the constant of '{node_label(before.node)}'"
    return Patch(reason, (before.node, look.node), apply)


def _form(look: Look, dtype: int, index: int | None) -> _Form | None:
    """Return what a node makes of its operand that is not constant."""
    node = look.node
    if index is None:
        index = 1 if is_constant(node.inputs[0]) else 0
    value = look.constant(1 - index)
    if value is None or value.size == 0 or is_constant(node.inputs[index]):
        return None
    wide = value.astype(np.float64 if dtype in FLOATS else np.int64)
    if not np.isfinite(wide).all():
        return None
    source: Tensor = node.inputs[index]
    if node.op == "Sub":
        return _Form(source, 1, -wide) if index == 0 else _Form(source, -1, wide)
    if node.op == "Div":
        if index == 1:
            return _Form(source, -1, wide)
        return None if (wide == 0).any() else _Form(source, 1, 1.0 / wide)
    return _Form(source, 1, wide)


def _combined(first: _Form, second: _Form, *, sums: bool, dtype: int) -> Array | str:
    """Return the constant of both, in its type; a reason, or nothing, why there is none."""
    one, two = first.constant, second.constant
    if dtype in INTEGERS:
        kind = numpy_dtype(dtype)
        with np.errstate(over="ignore"):
            both = second.power * one + two if sums else one * two
            return both.astype(kind)
    if sums:
        moved = second.power * one
        if (2 * np.abs(moved + two) < np.abs(moved)).any():
            return "its constants nearly cancel, so what the first sum rounds away would come back"
        return _rounded(moved + two, dtype)
    if not (_is_moderate(one, dtype) and _is_moderate(two, dtype)):
        return "its factors are far from 1, so a product between may leave the range of its type"
    return _rounded(one**second.power * two, dtype)


def _is_moderate(factor: Array, dtype: int) -> bool:
    """Whether a factor is so near to 1 that no product leaves the range of its type that was not far out before."""
    most = 2.0 ** (_LARGEST_FACTOR if dtype in {1, 11} else 6)
    size = np.abs(factor)
    return bool(((size >= 1 / most) & (size <= most)).all())


def _rounded(value: Array, dtype: int) -> Array | str:
    """Return a constant in its type where that is a normal number or 0."""
    kind = numpy_dtype(dtype)
    assert kind is not None
    with np.errstate(over="ignore", under="ignore"):
        made = value.astype(kind)
    wide = made.astype(np.float64)
    if not np.isfinite(wide).all() or ((wide == 0) & (value != 0)).any():
        return "the combined constant is out of the range of its type"
    return made


def _fits(constant: Array, look: Look, before: Look, source: Tensor) -> bool:
    """Whether the combined constant is no larger than before and gives the same shape."""
    values = [
        each.constant(index) for each in (look, before) for index in (0, 1) if is_constant(each.node.inputs[index])
    ]
    if constant.size > max(value.size for value in values if value is not None):
        return False
    shape, made = look.shape(source), look.shape(look.output)
    if shape is None or made is None or max(len(shape), constant.ndim) != len(made):
        return False
    given = (1,) * (len(made) - constant.ndim) + constant.shape
    seen = (1,) * (len(made) - len(shape)) + tuple(shape)
    return all(
        size == want or (size == 1 and other == want) for size, other, want in zip(seen, given, made, strict=True)
    )
