"""What rules about the bodies of If, Loop and Scan share: when to look at them again, and how their results go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph import Constant, Graph, constant_value, enclosing, owner, producer, subgraphs
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, is_op
from graphopt.rewrite.driver import EVERY, Batch, position
from graphopt.verify.legality import in_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.graph import Node, Rewriter, Tensor
    from graphopt.rewrite.pass_ import Steps

CONTROL_FLOW = ("If", "Loop", "Scan")


def body_batch(rewrite: Callable[[Node], Steps], *ops: str, everywhere: bool = False) -> Batch:
    """Return a batch that looks at nodes with bodies whenever something in the bodies has changed.

    Args:
        rewrite: Called with a node; the patches it yields are applied one by one.
        ops: Operators whose bodies are looked at.
        everywhere: Look again at all of them whenever anything has changed.
    """
    known: dict[Node, None] = {}

    def wants(node: Node) -> bool:
        if is_op(node, *ops):
            known[node] = None
            return True
        return everywhere or (node.graph is not None and node.graph.parent_node is not None)

    def run(nodes: Sequence[Node]) -> Steps:
        for holder in _holders(known if everywhere else nodes, ops):
            if not in_model(holder):
                known.pop(holder, None)  # a patch has removed it
                continue
            yield from rewrite(holder)

    return Batch((EVERY,), wants, run, domain=EVERY)


def _holders(nodes: Iterable[Node], ops: tuple[str, ...]) -> list[Node]:
    """Return the nodes with bodies among and around these, inner before outer."""
    found: dict[Node, int] = {}
    for node in nodes:
        chain = [node, *[graph.parent_node for graph in enclosing(node.graph) if graph.parent_node is not None]]
        found.update((holder, level) for level, holder in enumerate(reversed(chain)) if is_op(holder, *ops))
    return sorted(found, key=lambda holder: (-found[holder], position(holder)))


def branches(node: Node) -> tuple[Graph, Graph] | None:
    """Return the then-branch and the else-branch of an If; None where an attribute is missing."""
    held = dict(subgraphs(node))
    then, otherwise = held.get("then_branch"), held.get("else_branch")
    if then is None or otherwise is None or not len(then.outputs) == len(otherwise.outputs) == len(node.outputs):
        return None
    return then, otherwise


def behind_identities(tensor: Tensor) -> Tensor:
    """Return the tensor that Identity nodes pass on as this one, as far outside as they lead."""
    node = producer(tensor)
    while node is not None and node.op == "Identity" and node.domain in DEFAULT_DOMAINS:
        tensor = node.inputs[0]
        node = producer(tensor)
    return tensor


def is_around(tensor: Tensor, body: Graph) -> bool:
    """Whether a tensor belongs to a graph around a body."""
    home = owner(tensor)
    return home is not None and home is not body and home in set(enclosing(body))


def drop_results(rewriter: Rewriter, node: Node, results: Sequence[tuple[int, Sequence[tuple[Graph, int]]]]) -> None:
    """Remove outputs of a node together with the outputs of its bodies that give them.

    Args:
        rewriter: The rewriter of the patch.
        node: The node.
        results: Index of each output, which nobody reads, with the outputs of bodies that go with it.
    """
    gone: dict[Graph, set[int]] = {}
    for _, places in results:
        for body, index in places:
            gone.setdefault(body, set()).add(index)
    for body, indices in gone.items():
        for index in sorted(indices, reverse=True):
            made = producer(body.outputs[index])
            del body.outputs[index]
            if made is not None and made.graph is not None:
                rewriter.mark(made)
    for index in sorted((index for index, _ in results), reverse=True):
        del node.outputs[index]
    rewriter.mark(node)


def truth(condition: Tensor, values: ShapeValues) -> bool | None:
    """Return the value of a condition, None where it is not known."""
    found = values.array(condition)
    if found is None:
        found = constant_value(condition) if not isinstance(condition, Constant) or condition.nbytes == 1 else None
    if found is None or found.size != 1:
        return None
    entry = found.ravel().tolist()[0]
    return entry if isinstance(entry, bool) else None
