"""The grammar of legal graphs, as rules on nodes, on graphs and on the model.

After one patch only the touched nodes are checked, which costs no more than the patch did. After a pass the whole model
is. A model that breaks a rule raises `GraphError`; the manager turns that into a `VerificationError` that names the
patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.graph import Model, Node, Tensor


@dataclass(frozen=True, slots=True)
class Port:
    """A public input or output.

    Attributes:
        name: Its name.
        dtype: Its element type as text, ``"None"`` where it has none.
        shape: Its dimensions: numbers, symbol names or None; None where even the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class Interface:
    """The public inputs and outputs of a model; no rewrite may change them."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @classmethod
    def of(cls, model: Model) -> Interface:
        """Return the interface of a model as it is now."""
        return cls(tuple(map(_port, model.graph.inputs)), tuple(map(_port, model.graph.outputs)))


def check_legal(model: Model, touched: Iterable[Node] | None = None, *, interface: Interface | None = None) -> None:
    """Check that a model is legal.

    Args:
        model: The model.
        touched: Check these nodes alone; None checks everything.
        interface: What the public inputs and outputs must be.

    Raises:
        GraphError: A rule is broken; the message names the node or tensor.
    """
    if interface is not None:
        _check_interface(model, interface)
    if touched is not None:
        for node in touched:
            _check_edges(node)
        return
    for _, node in model.walk():
        _check_edges(node)


def _check_interface(model: Model, expected: Interface) -> None:
    now = Interface.of(model)
    for what, before, after in (("input", expected.inputs, now.inputs), ("output", expected.outputs, now.outputs)):
        if before != after:
            gone = next((pair for pair in zip(before, after, strict=False) if pair[0] != pair[1]), None)
            detail = f"{gone[0]} became {gone[1]}" if gone else f"there are {len(after)} instead of {len(before)}"
            raise GraphError(
                f"the public {what}s changed: {detail}",
                where="interface",
                must="Names, order, types and shapes of public inputs and outputs never change",
            )


def _check_edges(node: Node) -> None:
    """Uses are recorded on both ends, by identity, and every output has exactly this producer."""
    for tensor in node.inputs:
        uses = sum(1 for other in node.inputs if other is tensor)
        if tensor.name and sum(1 for user in tensor.outputs if user is node) != uses:
            raise GraphError(
                f"tensor {tensor.name!r} is used {uses} times but does not record as many uses",
                where=f"node {node.name or node.op!r}",
                must="Both ends of an edge name each other",
            )
    for tensor in node.outputs:
        if tensor.name and not (len(tensor.inputs) == 1 and tensor.inputs[0] is node):
            producers = ", ".join(str(producer.name or producer.op) for producer in tensor.inputs) or "nothing"
            raise GraphError(
                f"tensor {tensor.name!r} is produced by {producers}",
                where=f"node {node.name or node.op!r}",
                must="A tensor has exactly one producer",
            )


def _port(tensor: Tensor) -> Port:
    shape = None if tensor.shape is None else tuple(tensor.shape)
    return Port(str(tensor.name), str(tensor.dtype), shape)
