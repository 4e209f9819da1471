"""How a pass gives a weight new values, wherever the old ones stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.graph import Constant, is_graph_output, producer, uses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor


def write_weight(rewriter: Rewriter, weight: Tensor, values: NDArray[Any], near: Node) -> Constant:
    """Give a weight new values in all its uses and return what holds them.

    Args:
        rewriter: The rewriter.
        weight: An initializer, or the output of a Constant node, in whose place an initializer comes.
        values: The new values.
        near: A node that reads it.
    """
    if isinstance(weight, Constant):
        rewriter.set_weight(weight, values)
        return weight
    # Nodes of an outer graph may read it too, so it stands where it stood.
    added: Constant = rewriter.constant(values, name=weight.name, near=producer(weight) or near)
    rewriter.replace_uses(weight, added)
    drop_unread(rewriter, weight)
    return added


def drop_unread(rewriter: Rewriter, weight: Tensor) -> None:
    """Remove the Constant node of a weight that nothing reads any more: its values would stay in the file."""
    made = producer(weight)
    if made is not None and made.op == "Constant" and not uses(weight) and not is_graph_output(weight):
        rewriter.erase([made])
