"""What one opset changed in one operator, and how a node of the older form is written in the newer one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import RawAttribute, is_graph_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter, Tensor


@dataclass(frozen=True, slots=True)
class Site:
    """Where a conversion takes place.

    Attributes:
        types: Element types and shapes.
        source: The opset that the nodes have.
        target: The opset that they get.
    """

    types: Types
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Change:
    """One operator in one opset. Without anything set, the older form is the newer one.

    Attributes:
        apply: Writes the node in the newer form; its attributes and inputs are then those of the opset before.
        refuse: Returns why the node has no newer form, or None. It sees the node as the source opset has it.
        becomes: The operator that the node is afterwards, where that is another.
    """

    apply: Callable[[Rewriter, Node, Site], None] | None = None
    refuse: Callable[[Node, Site], str | None] | None = None
    becomes: str = ""


SAME = Change()


def never(reason: str) -> Change:
    """Return the change of an operator that is never converted.

    Args:
        reason: Why.
    """
    return Change(refuse=lambda node, site: reason)


def all_of(*changes: Change) -> Change:
    """Return changes as one: each may refuse, and they are applied in order.

    Args:
        changes: The changes; the last that renames the operator decides its name.
    """

    def apply(rw: Rewriter, node: Node, site: Site) -> None:
        for change in changes:
            if change.apply is not None:
                change.apply(rw, node, site)

    def refuse(node: Node, site: Site) -> str | None:
        reasons = (change.refuse(node, site) for change in changes if change.refuse is not None)
        return next((reason for reason in reasons if reason is not None), None)

    return Change(apply, refuse, next((change.becomes for change in reversed(changes) if change.becomes), ""))


def only_where(holds: Callable[[Node, Site], bool], otherwise: str) -> Change:
    """Return the change of an operator that stays as it is, under a condition.

    Args:
        holds: The condition.
        otherwise: Why a node that does not fulfil it is refused.
    """
    return Change(refuse=lambda node, site: None if holds(node, site) else otherwise)


def has(node: Node, index: int) -> bool:
    """Whether an input of a node is there."""
    return index < len(node.inputs) and bool(node.inputs[index].name)


def is_read(tensor: Tensor) -> bool:
    """Whether a node or the outside reads a tensor."""
    return bool(tensor.name) and (len(tensor.outputs) > 0 or is_graph_output(tensor))


def is_bound(node: Node) -> bool:
    """Whether an attribute has its value from the call of the function around the node."""
    return any(isinstance(value, gs.Node.AttributeRef | RawAttribute) for value in node.attrs.values())


def integers(rw: Rewriter, node: Node, label: str, value: object) -> Tensor:
    """Return a new constant of int64.

    Args:
        rw: The rewriter.
        node: The node that reads it.
        label: What it means.
        value: An integer or a list.
    """
    made: Tensor = rw.constant(np.asarray(value, np.int64), name=f"{node.name or node.op}_{label}", near=node)
    return made
