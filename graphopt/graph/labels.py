"""What a node is called in messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.graph.nodes import Node


def node_label(node: Node | str) -> str:
    """Return a readable name for a node: its name, else its operator and first output."""
    if isinstance(node, str):
        return node
    if node.name:
        return str(node.name)
    output = next((tensor.name for tensor in node.outputs if tensor.name), "nothing")
    return f"{node.op} -> {output}"
