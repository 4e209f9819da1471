"""Makes infinite masks finite, so that what holds them has a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value
from graphopt.rewrite.patch import Patch, node_label

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphopt.graph import Model, Node, Rewriter

FINITE = np.float32(-1e30)
"""What stands in for minus infinity: as good as it before a Softmax, and the sum of several is still a number."""

CHOOSE = frozenset(("Where", "Add"))
"""Operators that masks come in by."""


def make_finite(model: Model) -> Iterator[Patch]:
    """Yield a patch per constant that masks with minus infinity.

    Softmax gives such entries 0 either way. A row of nothing else becomes even numbers instead of NaN.
    """
    for node in list(model.graph.nodes):
        if node.op not in CHOOSE:
            continue
        for place, tensor in enumerate(node.inputs):
            value = constant_value(tensor)
            if value is None or value.dtype != np.float32 or not np.isneginf(value).any():
                continue
            if np.isnan(value).any() or np.isposinf(value).any():
                continue

            def apply(rw: Rewriter, node: Node = node, place: int = place) -> None:
                tensor = node.inputs[place]
                found = np.asarray(constant_value(tensor), np.float32)
                rw.set_input(node, place, rw.constant(np.maximum(found, FINITE), name=f"{tensor.name}_mask", near=node))

            yield Patch(f"mask with a finite number in {node.op} '{node_label(node)}'", (node,), apply)
