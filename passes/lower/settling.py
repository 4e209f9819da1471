"""Which layers of a model a pass lowers: each is judged alone, but those stay whose weights others read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from graphopt.graph import is_graph_output, uses
from graphopt.rewrite.patch import node_label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from graphopt.graph import Model, Node, Tensor, Use

_RESTORING = ("DequantizeLinear", "Transpose")
_WEIGHT = 1  # its place among the inputs of a layer


class Layer(Protocol):
    """A layer as it stands in the graph."""

    @property
    def node(self) -> Node:
        """The node that multiplies."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The node and those that go with it, in order."""

    @property
    def stored_weight(self) -> Tensor:
        """The tensor that holds the weight."""


class Chosen(Protocol):
    """A layer and how it is to be lowered."""

    @property
    def layer(self) -> Layer:
        """The layer."""


C = TypeVar("C", bound=Chosen)


def settle(model: Model, judge: Callable[[Node, set[Node]], C | str | None]) -> dict[Node, C | str]:
    """Return for each layer how it is lowered or why it stays, in topological order.

    A weight stays where a layer that reads it stays: the file would hold it twice.

    Args:
        model: The model.
        judge: Gives for a node, and the nodes that go with layers before it, how it is lowered, why it stays, or None
            where it is no layer.
    """
    found: dict[Node, C | str] = {}
    taken: set[Node] = set()
    for _, node in model.walk():
        verdict = judge(node, taken)
        if verdict is None:
            continue
        found[node] = verdict
        taken.update(() if isinstance(verdict, str) else verdict.layer.nodes)
    return {node: _why_weight_stays(verdict, found) or verdict for node, verdict in found.items()}


def _why_weight_stays(verdict: C | str, found: Mapping[Node, C | str]) -> str:
    """The reader of the weight that needs it dense, as a reason; nothing if there is none."""
    if isinstance(verdict, str):
        return ""
    layer = verdict.layer
    weight = layer.stored_weight
    if is_graph_output(weight):
        return f"its weight '{weight.name}' is an output of the graph, so that the file would grow"
    for use in _uses(weight):
        other = found.get(use.node)
        lowered = other is not None and not isinstance(other, str) and other.layer.stored_weight is weight
        if not lowered or use.index != _WEIGHT or use.node.graph is not layer.node.graph:
            return f"its weight '{weight.name}' is also read by '{node_label(use.node)}', so that the file would grow"
    return ""


def _uses(tensor: Tensor) -> Iterator[Use]:
    """Who reads a weight, through what restores or turns it."""
    for use in uses(tensor):
        through = use.index == 0 and use.node.op in _RESTORING and not is_graph_output(use.node.outputs[0])
        if through:
            yield from _uses(use.node.outputs[0])
        else:
            yield use
