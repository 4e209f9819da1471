"""Name the type that CastLike takes from another tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.types import Types
from graphopt.passes.simplify.purity import refers_to_function
from graphopt.passes.simplify.removal import restate
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceCastLike(RulePass):
    """Replace CastLike by Cast where the type is known.

    Matches:   CastLike whose second input has a known element type.
    Produces:  Cast to that type. It no longer waits for the second input, so that what was only computed for its type
               goes, and of a constant it can be folded.
    Requires:  The type holds in every call: a body of a function that is called with several types is left alone.
    Preserves: Every output bitwise; names, types and shapes.
    Source:    ONNX operator CastLike, version 15: it is defined as a Cast.
    """

    name: ClassVar[str] = "replace-cast-like"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule for CastLike."""
        types = facts.get(Types)

        def replaced(node: Node) -> Patch | None:
            wanted = types.dtype(node.inputs[1])
            if not wanted or refers_to_function(node):
                return None

            def apply(rewriter: Rewriter) -> None:
                restate(rewriter, node, "Cast", [node.inputs[0]], {**node.attrs, "to": wanted})

            return Patch(f"cast to type {wanted}", (node,), apply)

        return [Rule(("CastLike",), replaced)]
