"""Take out of bodies what is the same whenever they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.bodies import Bodies
from graphopt.analysis.types import Types
from graphopt.graph import Constant, Graph, Node, Tensor, is_graph_input, producer
from graphopt.graph.moving import move_initializer, move_nodes
from graphopt.passes.simplify.control.bodies import behind_identities, body_batch, branches, drop_results
from graphopt.passes.simplify.control.loops import LoopForm, State, remove_from_loop
from graphopt.passes.simplify.control.totality import cannot_fail
from graphopt.passes.simplify.folding.plan import attributes_key, constant_key
from graphopt.passes.simplify.inline_if import clash, replace_result
from graphopt.passes.simplify.purity import is_constant_node, is_op, why_impure
from graphopt.rewrite.driver import EVERY, Batch, Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Rewriter
    from graphopt.rewrite.pass_ import Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class HoistInvariants(RulePass):
    """Take out of bodies what is the same whenever they run.

    Matches:   Nodes in the bodies of Loop and Scan that read nothing but outer tensors and constants; equal nodes in
               both branches of an If that read the same outer tensors and equal constants; values that a Loop or Scan
               carries and never changes.
    Produces:  The node in the graph around the body, where a loop computes it once instead of in every iteration, and
               two branches hold it once instead of twice; an output of the If that is this node's in either branch is
               read from it directly. A carried value that never changes is read from outside, which saves the copy in
               every iteration.
    Requires:  Pure nodes. A loop may run no iteration, so what leaves it must not be able to fail: element-wise
               operators, and with static shapes and constant parameters also matrix products, convolutions, reductions
               and movements of elements. What is itself a result of the body stays.
    Preserves: Every output bitwise; names of all tensors, where they are unique; metadata.
    Source:    Loop-invariant code motion and code hoisting; Muchnick, Advanced Compiler Design and Implementation,
               1997, 13.2 and 13.5.
    """

    name: ClassVar[str] = "hoist-invariants"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule | Batch]:
        """Return one rule for nodes in loops and one for what needs the whole body; none for a model without bodies."""
        if not facts.get(Bodies):
            return []
        types = facts.get(Types)
        failed = frozenset(failure.node for failure in types.failures)

        def whole(node: Node) -> Steps:
            proposal = _shared_node(node, types) if is_op(node, "If") else _constant_states(node, types)
            while proposal is not None:
                yield proposal
                proposal = _shared_node(node, types) if is_op(node, "If") and node.graph is not None else None

        return [
            Rule((EVERY,), lambda node: _from_loop(node, types, failed)),
            body_batch(whole, "If", "Loop", "Scan"),
        ]


# ---------------------------------------------------------------------------------------------------------------- loops


def _from_loop(node: Node, types: Types, failed: frozenset[Node]) -> Patch | None:
    body = node.graph
    holder = None if body is None else body.parent_node
    if body is None or holder is None or not is_op(holder, "Loop", "Scan") or is_constant_node(node):
        return None
    if not node.inputs or is_op(node, "Identity") or any(tensor.roles for tensor in node.outputs):
        return None
    if not _reads_outside(node, body) or not cannot_fail(node, types, failed):
        return None

    def apply(rewriter: Rewriter) -> None:
        _move(rewriter, node, holder)

    return Patch(f"compute '{node.outputs[0].name}' before {holder.op} '{holder.name}'", (node,), apply)


def _reads_outside(node: Node, body: Graph) -> bool:
    """Whether a node reads nothing that its body computes or is given."""
    for tensor in node.inputs:
        if not tensor.name:
            continue
        made = producer(tensor)
        if made is not None:
            if made.graph is body and not is_constant_node(made):
                return False
        elif isinstance(tensor, Constant):
            if is_graph_input(tensor) and tensor.home is body:
                return False
        elif any(role == "input" and graph is body for role, graph in tensor.roles):
            return False
    return True


def _move(rewriter: Rewriter, node: Node, holder: Node) -> None:
    """Move a node out of a body with the constants that it reads."""
    body = node.graph
    for tensor in dict.fromkeys(node.inputs):
        made = producer(tensor)
        if isinstance(tensor, Constant) and tensor.home is body:
            move_initializer(rewriter, tensor, holder)
        elif made is not None and made.graph is body:
            move_nodes(rewriter, [made], holder)
    move_nodes(rewriter, [node], holder)


def _constant_states(node: Node, types: Types) -> Patch | None:
    form = LoopForm.of(node)
    if form is None:
        return None
    same = [state for state in form.states if _is_kept(form, state)]
    if not same:
        return None
    inputs, outputs, body = node.inputs, node.outputs, form.body
    left = len(outputs) - len(same)
    if left == 0 and node.op == "Scan":
        return None
    if left and form.needs_a_state() and len(same) == len(form.states):
        return None

    def apply(rewriter: Rewriter) -> None:
        for state in same:
            start = inputs[state.start]
            inside = body.inputs[state.inside]
            readers = list(dict.fromkeys(inside.outputs))
            rewriter.replace_uses(inside, start)
            if outputs[state.output].name:
                replace_result(rewriter, outputs[state.output], start, types)
            for reader in types.refine(readers):
                rewriter.mark(reader)
        if left == 0:
            rewriter.erase(node)
            return
        _drop_copies(rewriter, form, same)
        remove_from_loop(rewriter, form, states=same)

    names = ", ".join(f"'{body.inputs[state.inside].name}'" for state in same)
    return Patch(f"{node.op} '{node.name}' never changes {names}", (node,), apply)


def _is_kept(form: LoopForm, state: State) -> bool:
    inside = form.body.inputs[state.inside]
    if behind_identities(form.body.outputs[state.result]) is not inside:
        return False
    if any(out is inside for i, out in enumerate(form.body.outputs) if i != state.result):
        return False  # it is another result too, which has to be computed in the body
    output, start = form.node.outputs[state.output], form.node.inputs[state.start]
    return not clash(output, start)


def _drop_copies(rewriter: Rewriter, form: LoopForm, same: list[State]) -> None:
    """Erase the Identity nodes that pass a carried value on and nothing else."""
    for state in same:
        tensor = form.body.outputs[state.result]
        if any(out is tensor for i, out in enumerate(form.body.outputs) if i != state.result):
            continue
        made = producer(tensor)
        if made is not None and not tensor.outputs:
            rewriter.erase(made)


# ------------------------------------------------------------------------------------------------------------- branches


def _shared_node(node: Node, types: Types) -> Patch | None:
    pair = branches(node)
    if pair is None:
        return None
    then, otherwise = pair
    known: dict[object, list[Node]] = {}
    for other in otherwise.nodes:
        if _is_candidate(other, otherwise):
            known.setdefault(_key(other), []).append(other)
    for mine in then.nodes if known else ():
        if not _is_candidate(mine, then):
            continue
        for twin in known.get(_key(mine), ()):
            places = _common_places(mine, twin, pair)
            if places is not None and not any(clash(node.outputs[i], mine.outputs[o]) for i, o in places):
                return _sharing(node, mine, twin, pair, places, types)
    return None


def _is_candidate(node: Node, body: Graph) -> bool:
    return bool(node.inputs) and not is_constant_node(node) and not why_impure(node) and _reads_outside(node, body)


def _key(node: Node) -> object:
    """Return what is equal for nodes that compute the same."""
    inputs: list[object] = []
    for tensor in node.inputs:
        made = producer(tensor)
        if isinstance(tensor, Constant):
            inputs.append(tensor if is_graph_input(tensor) else constant_key(tensor))
        elif made is not None and is_constant_node(made) and isinstance(made.attrs.get("value"), Constant):
            inputs.append(constant_key(made.attrs["value"]))
        else:
            inputs.append(tensor if tensor.name else None)
    return node.op, tuple(inputs), tuple(bool(tensor.name) for tensor in node.outputs), attributes_key(node)


def _common_places(mine: Node, twin: Node, pair: tuple[Graph, Graph]) -> list[tuple[int, int]] | None:
    """Return which outputs of the If both nodes give, as pairs of its output and theirs; None where they differ."""
    places = []
    for index, (one, other) in enumerate(zip(mine.outputs, twin.outputs, strict=True)):
        found = [
            [place for place, output in enumerate(body.outputs) if output is tensor]
            for body, tensor in zip(pair, (one, other), strict=True)
        ]
        if found[0] != found[1]:
            return None
        places += [(place, index) for place in found[0]]
    return sorted(places)


def _sharing(
    node: Node, mine: Node, twin: Node, pair: tuple[Graph, Graph], places: list[tuple[int, int]], types: Types
) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        whole = len(places) == len(node.outputs)
        results: list[tuple[Tensor, Tensor]] = [(node.outputs[i], mine.outputs[o]) for i, o in places]
        for place, _ in reversed(places):
            for body in pair:
                del body.outputs[place]
        _move(rewriter, mine, node)
        for old, new in zip(twin.outputs, mine.outputs, strict=True):
            if old.name:
                rewriter.replace_uses(old, new)
        rewriter.erase(twin)
        for output, result in results:
            if output.name:
                replace_result(rewriter, output, result, types)
        if whole:
            rewriter.erase(node)
        else:
            drop_results(rewriter, node, [(place, ()) for place, _ in places])

    return Patch(f"both branches of If '{node.name}' compute {mine.op}: compute it before", (node, mine, twin), apply)
