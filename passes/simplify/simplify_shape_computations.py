"""Compute each size once, from the shapes of the inputs of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import enclosing, is_graph_output, producer
from graphopt.passes.simplify.purity import refers_to_function
from graphopt.passes.simplify.removal import erase_unread
from graphopt.passes.simplify.shapes.extents import SIZE_OPS, SizeForms
from graphopt.rewrite.driver import Batch, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract
from graphopt.verify.legality import in_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.passes.simplify.shapes.extents import Plan
    from graphopt.rewrite.pass_ import Steps

_ROOTS = tuple(sorted(SIZE_OPS - {"Range"}))
_MOST_GONE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SimplifyShapeComputations(RulePass):
    """Replace computations of sizes by the cheapest that gives the same, shared by all that need it.

    Matches:   Integer tensors of at most 16 elements, made by Shape, Gather, Concat, Unsqueeze, Where, arithmetic and
               the like, whose elements are known as expressions of the dimensions of the inputs of the model.
    Produces:  Shape of an input of the model (of a range of its axes from opset 15 on), Gather of it, Concat of such
               and of constants; or a tensor that holds the same already. The nodes that computed it before go unless
               something else reads them. It is done where fewer nodes are left, or as many that no longer wait for an
               intermediate tensor.
    Requires:  Every element is proved to be the same expression, computed in whole numbers. Dimensions of inputs are
               equal where the model declares them by the same name. Outputs of graphs stay.
    Preserves: Every output bitwise; names, types and shapes.
    Source:    Value numbering: Cocke, Global Common Subexpression Elimination, 1970, SIGPLAN Notices 5(7).
    """

    name: ClassVar[str] = "simplify-shape-computations"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Batch]:
        """Return the batch that looks at all computations of sizes together."""
        types, values = facts.get(Types), facts.get(ShapeValues)
        sharing = _Sharing(model, SizeForms(model, types, values))
        return [Batch(_ROOTS, sharing.wants, sharing.rewrite)]


class _Sharing:
    def __init__(self, model: Model, forms: SizeForms) -> None:
        self._model = model
        self._forms = forms
        self._live: dict[Node, None] = {}

    def wants(self, node: Node) -> bool:
        """Whether a node computes sizes."""
        return (
            len(node.outputs) == 1
            and not refers_to_function(node)
            and any(not isinstance(entry, int) for entry in (self._forms.key(node.outputs[0]) or (0, 0, ()))[2])
        )

    def rewrite(self, nodes: Sequence[Node]) -> Steps:
        """Yield the patches: first what saves nodes, from the last computation on; then what is merely equal."""
        self._live.update(dict.fromkeys(nodes))
        again: Sequence[Node] = nodes
        while again:
            for node in again:
                self._register(node)
            found = 0
            for least, order in ((1, reversed(again)), (0, iter(again))):
                for node in order:
                    patch = self._improved(node, at_least=least)
                    if patch is not None:
                        found += 1
                        yield patch
            self._live = {node: None for node in self._live if in_model(node)}
            again = list(self._live) if found else ()  # what there is now may serve others better

    def _register(self, node: Node) -> None:
        if node.graph is not self._model.graph:
            return
        tensor = node.outputs[0]
        key = self._forms.key(tensor)
        if key is not None and self._forms.known(key) is None and self._forms.is_grounded(tensor):
            self._forms.register(key, tensor)

    def _improved(self, node: Node, at_least: int) -> Patch | None:
        """Return the patch that states a tensor in another way.

        Args:
            node: The node that computes it.
            at_least: How many nodes it has to save; for 0 the tensor must depend on more than inputs of the model.
        """
        if not in_model(node) or not self._sees_inputs(node):
            return None
        tensor = node.outputs[0]
        key = self._forms.key(tensor)
        if key is None or is_graph_output(tensor) or not tensor.outputs:
            return None
        self._register(node)
        grounded = at_least == 0 and self._forms.is_grounded(tensor)
        best: Plan | None = None
        most = at_least - 1
        for plan in self._forms.plans(key, instead_of=tensor):
            saved = len(_gone(node, plan.reads)) - plan.cost
            if saved > most and not (grounded and plan.cost):
                best, most = plan, saved
        if best is None or not self._forms.is_whole(tensor):
            return None
        return None if any(self._forms.depends_on(read, node) for read in best.reads) else self._patch(node, best)

    def _sees_inputs(self, node: Node) -> bool:
        *_, root = enclosing(node.graph)
        return root is self._model.graph

    def _patch(self, node: Node, plan: Plan) -> Patch:
        def apply(rewriter: Rewriter) -> None:
            rewriter.replace_uses(node.outputs[0], self._forms.apply(plan, rewriter))
            erase_unread(rewriter, node.outputs)

        text = ", ".join(str(entry) for entry in self._forms.key(node.outputs[0])[2])  # type: ignore[index]
        return Patch(f"compute ({text}) from shapes of inputs", (node,), apply)


def _gone(node: Node, kept: Iterable[Tensor]) -> set[Node]:
    """Return the nodes that nothing needs once a node is gone and what is to be kept is read still."""
    stay = {producer(tensor) for tensor in kept}
    gone: set[Node] = {node}
    stack = list(node.inputs)
    while stack and len(gone) < _MOST_GONE:
        before = producer(stack.pop())
        if before is None or before in gone or before in stay or before.op == "Constant":
            continue
        if all(_is_unread(tensor, gone) for tensor in before.outputs):
            gone.add(before)
            stack.extend(before.inputs)
    return gone


def _is_unread(tensor: Tensor, gone: set[Node]) -> bool:
    return not is_graph_output(tensor) and all(user in gone for user in tensor.outputs)
