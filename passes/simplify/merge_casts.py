"""Make one Cast of two, and drop the Cast of indices that are read as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.simplify.look import BOOL, FLOATS, INTEGERS, Look, read_once
from graphopt.passes.simplify.purity import refers_to_function
from graphopt.passes.simplify.removal import bypass, erase_unread, restate
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter

_FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16 = 1, 10, 11, 16
_INT32, _INT64 = 6, 7

_BITS = {2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 12: 32, 13: 64}
_UNSIGNED = (2, 4, 12, 13)
_DIGITS = {_FLOAT: 24, _FLOAT16: 11, _DOUBLE: 53, _BFLOAT16: 8}  # of the significand: integers up to 2 ** n are exact
_WIDER = {_FLOAT16: (_FLOAT, _DOUBLE), _BFLOAT16: (_FLOAT, _DOUBLE), _FLOAT: (_DOUBLE,), _DOUBLE: ()}
_READS_INDICES = ("Gather", "GatherElements")


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeCasts(RulePass):
    """Make one Cast of a Cast of a Cast, and drop the Cast of indices.

    Matches:   Cast or CastLike of a Cast or CastLike whose result has every value of its input (bool to numbers,
               integers to wider ones or to floats that hold them, floats to wider floats); Cast to an integer type of
               no more bits of a Cast between integers; Gather and GatherElements of indices that a Cast from int32 to
               int64 makes.
    Produces:  One Cast of the first input, or that input itself where it has the type already; the indices as they
               were. Saves a node and a copy where nobody else reads the result between.
    Requires:  The direct Cast is defined by the same value: a float that leaves its range as an integer is not, so
               floats followed by integers stay. The first Cast of two serves the second alone.
    Preserves: Every output bitwise (the payload of a NaN aside); names, types and shapes of the last Cast.
    Source:    IEEE 754-2019, section 5.4.2: widening is exact, so that only the last conversion rounds.
    """

    name: ClassVar[str] = "merge-casts"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule for two Casts and the rule for indices."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def cast(node: Node) -> Patch | Skip | None:
            look = Look(node, types, values)
            before = look.above(0, "Cast", "CastLike")
            return None if before is None or refers_to_function(node) else _merge(look, before)

        def indices(node: Node) -> Patch | None:
            look = Look(node, types, values)
            before = look.above(1, "Cast", "CastLike")
            return None if before is None else _take_indices(look, before)

        return [Rule(("Cast", "CastLike"), cast), Rule(_READS_INDICES, indices)]


def _merge(look: Look, before: Look) -> Patch | Skip | None:
    source = before.first()
    if source is None or not read_once(before.output):
        return None
    first, between, last = look.dtype(source), look.dtype(before.output), look.dtype(look.output)
    if not _is_direct(first, between, last):
        return None
    if first == last:
        return bypass(look.node, source, f"Cast '{node_label(look.node)}' restores the type of '{source.name}'")

    def apply(rewriter: Rewriter) -> None:
        restate(rewriter, look.node, "Cast", [source], {"to": last})

    return Patch(f"Cast '{node_label(look.node)}' reads '{source.name}'", (before.node, look.node), apply)


def _take_indices(look: Look, before: Look) -> Patch | None:
    source = before.first()
    if source is None or look.dtype(source) != _INT32 or look.dtype(before.output) != _INT64:
        return None
    if not read_once(before.output):
        return None

    def apply(rewriter: Rewriter) -> None:
        rewriter.set_input(look.node, 1, source)
        erase_unread(rewriter, [before.output])

    return Patch(
        f"{look.node.op} '{node_label(look.node)}' reads indices of type int32", (before.node, look.node), apply
    )


def _is_direct(first: int, between: int, last: int) -> bool:
    """Whether two conversions do what one does."""
    if last not in _BITS and last not in _DIGITS and last != BOOL:
        return False
    if first in _BITS and between in _BITS and last in _BITS and _BITS[last] <= _BITS[between]:
        return True  # whole numbers modulo a power of two, then modulo one that divides it
    if not _holds(between, first):
        return False
    if BOOL in {first, last}:
        return True
    if last in INTEGERS and between in FLOATS:
        return first in INTEGERS and _holds(last, first)
    return not (first in FLOATS and last in INTEGERS)


def _holds(wide: int, narrow: int) -> bool:
    """Whether a type has every value of another."""
    if wide == narrow:
        return True
    if narrow == BOOL:
        return wide in _BITS or wide in _DIGITS
    if narrow in _DIGITS:
        return wide in _WIDER[narrow]
    if narrow not in _BITS:
        return False
    signed = narrow not in _UNSIGNED
    digits = _BITS[narrow] - signed
    if wide in _DIGITS:
        return digits <= _DIGITS[wide]
    if wide not in _BITS or (signed and wide in _UNSIGNED):
        return False
    return digits <= _BITS[wide] - (wide not in _UNSIGNED)
