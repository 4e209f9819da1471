"""The pass ``raise-opset``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import onnx

from graphopt.analysis.types import Types
from graphopt.passes.convert.change import SAME, Change, Site, is_bound
from graphopt.passes.convert.flattened import FLATTENED
from graphopt.passes.convert.kernels import lost
from graphopt.passes.convert.meanings import MEANINGS
from graphopt.passes.convert.operands import OPERANDS
from graphopt.passes.convert.resizing import RESIZING
from graphopt.passes.convert.unchanged import UNCHANGED
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, Patch, Skip

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter

LOWEST = 13
"""The opset that 0 stands for: the first with one scale per channel."""

OLDEST = 7
"""Below this opset operators broadcast by attributes."""

NEWEST = 26
"""The newest opset that models are raised to: the last that ONNX Runtime 1.31 loads."""

CHANGES: dict[tuple[str, int], Change] = {
    **dict.fromkeys(UNCHANGED, SAME),
    **OPERANDS,
    **FLATTENED,
    **RESIZING,
    **MEANINGS,
}
"""Every operator of the ONNX domain with every opset above 7 that changed it."""

_DEFAULT_DOMAINS = (None, "", "ai.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseOpset(Pass):
    """Raise a model of an older opset to a newer one, every operator in its newer form.

    Matches:   models of opset 7 or newer, with their bodies and functions, whose every operator has a known equal form
               in the opset asked for (option to; 0 stands for 13, the first opset that can quantize per channel).
    Produces:  the same operators; attributes that became inputs as constants; defaults that changed stated; Upsample as
               Resize, Scatter as ScatterElements; a Softmax that sees its input as a matrix between Flatten and Reshape
               where its axis is not the only one. The weights of newer forms are as large, so the file hardly grows.
    Requires:  no operator whose older meaning has no newer form: those are named with the reason and nothing changes.
               Examples are training forms, a Dropout whose mask is read, AveragePool that rounds up from opset 19 on,
               and operators whose newer version ONNX Runtime has no kernel for, perhaps of that type alone, as of
               LeakyRelu of double from opset 19 on.
    Preserves: names, types and shapes, and the version of the file format, which decides whether a caller may override
               initializers; values up to the rounding of another kernel that a runtime may have for the newer form;
               ONNX Runtime has one for AveragePool-19.
    Source:    ONNX operator changelog, versions 7 to 26.
    """

    to: int = 0

    name: ClassVar[str] = "raise-opset"
    contract: ClassVar[Contract] = Contract.ROUNDING
    uses_data: ClassVar[bool] = False

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch for the whole model: an opset holds for all nodes at once."""
        where = model.graph.name or "the model"
        target = self.to or LOWEST
        scopes = [graph for graph in (model.graph, *model.functions) if 0 < graph.opset < target]
        if not scopes:
            return
        if target > NEWEST:
            yield Skip(where, f"opset {target}: operators are converted up to opset {NEWEST}")
            return
        old = [graph.opset for graph in scopes if graph.opset < OLDEST]
        if old:
            yield Skip(where, f"opset {min(old)}: operators broadcast otherwise below opset {OLDEST}")
            return
        types = facts.get(Types)
        sites = {id(graph.imports): Site(types, graph.opset, target) for graph in scopes}
        work = [
            (node, sites[id(owner.imports)])
            for owner, node in model.walk()
            if id(owner.imports) in sites and node.domain in _DEFAULT_DOMAINS
        ]
        refused = False
        for node, site in work:
            reason = refusal(node, site)
            if reason is not None:
                refused = True
                yield Skip(node, f"the model stays at opset {site.source}: {reason}")
        if refused:
            return
        before = model.opset

        def apply(rw: Rewriter) -> None:
            for node, site in work:
                for change in steps(node, site):
                    if change.apply is not None:
                        change.apply(rw, node, site)
            for graph in scopes:
                graph.opset = target

        yield Patch(f"raise opset {before} to {target}", (), apply)


def steps(node: Node, site: Site) -> Iterator[Change]:
    """Yield the changes that a node goes through, in order.

    Args:
        node: The node, in the form of the source opset.
        site: Where it is.
    """
    op = str(node.op)
    for opset in range(site.source + 1, site.target + 1):
        change = CHANGES.get((op, opset))
        if change is not None:
            op = change.becomes or op
            yield change


def refusal(node: Node, site: Site) -> str | None:
    """Return why a node has no equal form in the target opset, or None.

    Args:
        node: The node, in the form of the source opset.
        site: Where it is.
    """
    op = str(node.op)
    if not onnx.defs.has(op, site.source, ""):
        return f"{op} is no operator of opset {site.source}"
    element = site.types.dtype(node.inputs[0]) if node.inputs else None
    reason = lost(op, element, site.source, site.target)
    if reason is not None:
        return reason
    for change in steps(node, site):
        if change is SAME:
            continue
        if is_bound(node):
            return f"{op} has an attribute that the call of the function sets, and it changed"
        reason = None if change.refuse is None else change.refuse(node, site)
        if reason is not None:
            return reason
    return None
