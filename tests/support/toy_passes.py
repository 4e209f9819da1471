"""Passes for testing the engine: small, right, or wrong in one known way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.rewrite import Contract, Patch, Rule, RulePass, Skip
from graphopt.rewrite.pass_ import Pass, Steps
from graphopt.rewrite.pattern import Op, Wild

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Constant, Model, Rewriter
    from graphopt.rewrite.pattern import Match


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRelu(RulePass):
    """Merge two Relu in a row.

    Matches:   Relu of a Relu that nothing else reads.
    Produces:  one Relu.
    Requires:  nothing.
    Preserves: every value.
    Source:    max(max(x, 0), 0) = max(x, 0).
    """

    name: ClassVar[str] = "merge-relu"
    contract: ClassVar[Contract] = Contract.EXACT

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        pattern = Op("Relu", Op("Relu", Wild("x"), name="inner"), name="outer")
        return [Rule.of(pattern, self._merge, model)]

    @staticmethod
    def _merge(found: Match) -> Patch:
        def apply(rewriter: Rewriter) -> None:
            rewriter.set_input(found.node("outer"), 0, found.tensor("x"))
            rewriter.erase(found.node("inner"))

        return Patch("merge two Relu", found.nodes, apply)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleWeights(Pass):
    """Multiply every weight by a factor, one patch each: as wrong as the factor is, and where it starts.

    Matches:   float initializers.
    Produces:  the same, times ``factor`` from the patch ``first`` on.
    Requires:  nothing.
    Preserves: shapes and types.
    Source:    none.
    """

    name: ClassVar[str] = "scale-weights"
    contract: ClassVar[Contract] = Contract.ROUNDING
    factor: float = 1.0
    first: int = 1

    def run(self, model: Model, facts: Facts) -> Steps:
        weights = [c for c in model.graph.initializers if c.dtype == np.float32]
        for number, constant in enumerate(weights, 1):
            users = tuple(dict.fromkeys(constant.outputs))
            if not users:
                yield Skip(constant.name, "nothing reads it")
                continue
            factor = self.factor if number >= self.first else 1.0

            def apply(rewriter: Rewriter, constant: Constant = constant, factor: float = factor) -> None:
                rewriter.set_weight(constant, constant.array() * np.float32(factor))

            yield Patch(f"scale {constant.name}", users, apply)


def edits(name: str, contract: Contract = Contract.EXACT, **attributes: Any) -> Callable[..., Pass]:
    """Return a pass class whose single patch is the function in its field ``edit``, applied at the first node."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Edit(Pass):
        edit: Any = None
        matches: Any = None

        def run(self, model: Model, facts: Facts) -> Steps:
            if self.matches is not None:
                self.matches(model)
            node = model.graph.nodes[0]
            yield Patch("edit", (node,), lambda rewriter: self.edit(rewriter, model))

    for key, value in {"name": name, "contract": contract, **attributes}.items():
        setattr(Edit, key, value)
    return Edit
