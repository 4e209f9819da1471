"""The pass ``restore-sparse``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphopt.graph import producer, uses
from graphopt.passes.lower import bitmaps
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, Patch, Skip

if TYPE_CHECKING:
    from collections.abc import Generator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSparse(Pass):
    """Make initializers again of weights that store-sparse stored as a bitmap and values.

    Matches: The Reshape behind a ScatterElements of constant values at the places of a constant bitmap.
    Produces: The dense weight.
    Requires: Nothing.
    Preserves: Every bit of the weights; see store-sparse. The file grows to what it was.
    Source: The inverse of store-sparse.
    """

    name: ClassVar[str] = "restore-sparse"
    contract: ClassVar[Contract] = Contract.ROUNDING

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per weight."""
        for _, node in list(model.walk()):
            found = bitmaps.read(node) if node.op == "Reshape" else None
            if found is not None:
                yield _patch(found)


def _patch(found: bitmaps.Restored) -> Patch:
    node = found.last

    def apply(rw: Rewriter) -> None:
        weight = rw.constant(found.values, name=found.stem, near=node, onnx_dtype=found.onnx_dtype)
        rw.replace_tensor(node.outputs[0], weight)
        _erase_idle(rw, node)

    kept = int(np.count_nonzero(bitmaps.nonzero(found.values)))
    return Patch(f"restore '{found.stem}' from a bitmap and {kept} values", (node,), apply)


def _erase_idle(rw: Rewriter, last: Node) -> None:
    """Erase a node and those above it that nobody else reads."""
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if any(uses(tensor) or tensor.roles for tensor in node.outputs):
            continue
        above = [made for tensor in node.inputs if (made := producer(tensor)) is not None]
        rw.erase(node)
        waiting += above
