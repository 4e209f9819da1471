"""Replace an If by one branch where the node fails whenever the other is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.bodies import Bodies
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Node, producer, uses
from graphopt.passes.simplify.control.bodies import body_batch, branches
from graphopt.passes.simplify.inline_if import inlining
from graphopt.passes.simplify.look import Look
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, refers_to_function
from graphopt.rewrite.driver import Batch, Rule, RulePass
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Tensor
    from graphopt.rewrite.pass_ import Steps

_FURTHEST = 8
_MOST_RANKS = 8
_MOST_READERS = 16

_KEEPS_RANK = frozenset(
    {
        *("Abs", "Cast", "Ceil", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
        *("HardSwish", "Identity", "IsNaN", "LeakyRelu", "Log", "LogSoftmax", "Neg", "Not", "Reciprocal", "Relu"),
        *("Round", "Selu", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus", "Sqrt", "Tanh", "Tile"),
    }
)
"""Operators whose first output has the rank of their first input."""

_RECURRENT = {0: 3, 1: 3, 2: 3, 3: 2, 4: 1, 5: 3, 6: 3}
_DEMANDED: dict[str, dict[int, int]] = {"LSTM": _RECURRENT, "GRU": _RECURRENT, "RNN": _RECURRENT}
"""Rank that an operator demands of an input, by position; with any other it fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EliminateFailingBranches(RulePass):
    """Replace an If by one branch where the node fails whenever the other is taken.

    Matches:   If of whose branches exactly one gives a tensor of a rank that its readers can take. Exporters write
               such branches for layers that take batched and unbatched inputs: the rank then follows from an LSTM, GRU,
               RNN, Conv or Transpose further on.
    Produces:  The branch that can be taken, in place of the If; what depends on the rank is known from there on.
    Requires:  The reader runs whenever the If does: it lies in the same graph, and so do the nodes between, all of
               which let the rank follow (Squeeze and Unsqueeze by constant axes, element-wise operators, Transpose).
               A run that takes the other branch fails in that reader, so it has no result that could change.
    Preserves: Every output bitwise of every run that gives outputs; public names, types and shapes.
    Source:    ONNX operators LSTM, GRU, RNN, Conv, Transpose: ranks of their inputs; unreachable code after a failing
               assertion, Muchnick, Advanced Compiler Design and Implementation, 1997, 18.1.
    """

    name: ClassVar[str] = "eliminate-failing-branches"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule | Batch]:
        """Return the rule for If; none for a model without bodies."""
        if not facts.get(Bodies):
            return []
        ranks = _Ranks(facts.get(Types), facts.get(ShapeValues))

        def rewrite(node: Node) -> Steps:
            pair = branches(node)
            if pair is None or refers_to_function(node):
                return
            for index, output in enumerate(node.outputs):
                wanted = ranks.demanded(output)
                if wanted is None:
                    continue
                possible = [ranks.possible(body.outputs[index]) for body in pair]
                fails = [found is not None and wanted not in found for found in possible]
                if fails.count(True) == 1:
                    why = f"with the other, '{output.name}' has not the rank {wanted} that its readers take"
                    yield inlining(node, pair[fails.index(False)], why, ranks.types)
                    return

        return [body_batch(rewrite, "If", everywhere=True)]


class _Ranks:
    """Which ranks a tensor may have, and which one the nodes that read it can take."""

    def __init__(self, types: Types, values: ShapeValues) -> None:
        self.types = types
        self.values = values

    def possible(self, tensor: Tensor, steps: int = _FURTHEST) -> frozenset[int] | None:
        """Return the ranks that a tensor may have, None where they are not known."""
        rank = self.types.rank(tensor)
        if rank is not None:
            return frozenset((rank,))
        node = producer(tensor)
        if node is None or steps == 0 or node.domain not in DEFAULT_DOMAINS:
            return None
        if node.op == "If":
            pair = branches(node)
            index = next(i for i, output in enumerate(node.outputs) if output is tensor)
            found = [self.possible(body.outputs[index], steps - 1) for body in pair or ()]
            if not found or any(ranks is None for ranks in found):
                return None
            union = frozenset(rank for ranks in found for rank in ranks or ())
            return union if len(union) <= _MOST_RANKS else None
        change = self._change(node, 0)
        if change is None or tensor is not node.outputs[0]:
            return None
        before = self.possible(node.inputs[0], steps - 1)
        return None if before is None else frozenset(rank + change for rank in before)

    def demanded(self, tensor: Tensor, steps: int = _FURTHEST) -> int | None:
        """Return the only rank that the nodes beside the producer of a tensor can take, None where any may do."""
        made = producer(tensor)
        if made is None or steps == 0 or len(tensor.outputs) > _MOST_READERS:
            return None
        for use in uses(tensor):
            if use.node.graph is made.graph and use.node.domain in DEFAULT_DOMAINS:
                rank = self._demanded_at(use.node, use.index, steps)
                if rank is not None:
                    return rank
        return None

    def _demanded_at(self, node: Node, index: int, steps: int) -> int | None:
        fixed = _DEMANDED.get(node.op, {}).get(index)
        if fixed is not None:
            return fixed
        if node.op in {"Conv", "ConvTranspose"} and index == 0:
            return self.types.rank(node.inputs[1])
        if node.op == "Transpose" and "perm" in node.attrs and not refers_to_function(node):
            return len(node.attrs["perm"])
        change = self._change(node, index)
        if change is None:
            return None
        after = self.types.rank(node.outputs[0])
        if after is None:
            after = self.demanded(node.outputs[0], steps - 1)
        return None if after is None else after - change

    def _change(self, node: Node, index: int) -> int | None:
        """Return how many axes a node adds to an input, None where that is not known."""
        if index != 0 or refers_to_function(node):
            return None
        if node.op in _KEEPS_RANK:
            return 0
        if node.op not in {"Squeeze", "Unsqueeze"}:
            return None
        axes = Look(node, self.types, self.values).ints(1, "axes")
        if axes is None:
            return None
        return len(axes) if node.op == "Unsqueeze" else -len(axes)
