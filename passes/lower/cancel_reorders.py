"""Let chains of sparse convolutions pass padded planes to each other."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output, producer, uses
from graphopt.passes.lower.chaining import DOMAIN, PADDED, RESIDUAL, Chain, chains, is_kernel, spatial
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.solve.pack_sparse_conv import padded_plane
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Generator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor, Variable

_SPATIAL_FROM = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelReorders(Pass):
    """Remove reorders between sparse convolutions, and let chains of them pass padded planes to each other.

    Matches:   ToPadded of FromPadded and back; a reorder beside a SparseConv that can read or write the other layout
               itself; results of SparseConv whose height and width are known.
    Produces:  SparseConv with layout_in and layout_out "padded", the residuals with them. What else reads such a result
               gets it through FromPadded, what else is added to one comes through ToPadded.
    Requires:  Convolutions of one tap save copying more elements than reorders copy, each taken 1.5 times. Planes are
               of no whole number of vectors, or at distances at which they would compete for the sets of a cache: else
               padded planes are no better. FromPadded of ToPadded restores the sizes that there were.
    Preserves: Every output bitwise.
    Source:    Memory format propagation as in oneDNN Graph, "Layout Propagation"; layout in
               kernels/sparse_conv/contract.h.
    """

    name: ClassVar[str] = "cancel-reorders"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)
    lowers: ClassVar[bool] = True

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per reorder that goes, then one per chain that changes its layout."""
        for _, node in list(model.walk()):
            if node.graph is not None and is_kernel(node, "ToPadded", "FromPadded"):
                patch = _cancelled(node, facts.get(Types))
                if patch is not None:
                    yield patch
        types = facts.get(Types)
        for chain in list(chains([node for _, node in model.walk()], types)):
            if chain.gain > 0:
                yield _padded(chain, types)


def _cancelled(node: Node, types: Types) -> Patch | None:
    before = producer(node.inputs[0])
    if before is None or before.graph is not node.graph:
        return None
    if node.op == "ToPadded" and is_kernel(before, "FromPadded"):
        return _bypass(node, before)
    if node.op == "FromPadded" and is_kernel(before, "ToPadded"):
        return _bypass(node, before) if spatial(before.inputs[0], types) == list(node.attrs["spatial"]) else None
    if node.op == "ToPadded":
        return _write_padded(node, before)
    return _read_padded(node)


def _bypass(node: Node, before: Node) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        rewriter.replace_tensor(node.outputs[0], before.inputs[0])
        rewriter.erase(node)
        _erase_unread(rewriter, before)

    what = f"{node.op} '{node_label(node)}' undoes {before.op} '{node_label(before)}'"
    return Patch(what, (node, before), apply)


def _write_padded(node: Node, conv: Node) -> Patch | None:
    """The convolution before a ToPadded writes padded planes itself, if no one else reads its result."""
    y = conv.outputs[0]
    plain = is_kernel(conv, "SparseConv") and conv.attrs.get("layout_out") != PADDED and len(conv.inputs) <= RESIDUAL
    if not plain or is_graph_output(y) or len(uses(y)) != 1:
        return None

    def apply(rewriter: Rewriter) -> None:
        shape = node.outputs[0].shape
        rewriter.set_attr(conv, "layout_out", PADDED)
        rewriter.set_type(y, np.float32, shape)
        rewriter.replace_tensor(node.outputs[0], y)
        rewriter.erase(node)

    return Patch(f"SparseConv '{node_label(conv)}' writes padded planes itself", (conv, node), apply)


def _read_padded(node: Node) -> Patch | None:
    """The convolutions behind a FromPadded read padded planes themselves."""
    readers = [
        use.node
        for use in uses(node.outputs[0])
        if use.index == 0 and is_kernel(use.node, "SparseConv") and use.node.graph is node.graph
    ]
    if not readers:
        return None

    def apply(rewriter: Rewriter) -> None:
        for reader in readers:
            _let_read(rewriter, reader, node.inputs[0], list(node.attrs["spatial"]))
        _erase_unread(rewriter, node)

    names = ", ".join(f"'{node_label(reader)}'" for reader in readers)
    return Patch(f"SparseConv {names} reads padded planes itself", (node, *readers), apply)


def _padded(chain: Chain, types: Types) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        sizes = {result: _sizes(result, types) for result in chain.results}
        for residual in chain.residuals:
            _pad_residual(rewriter, chain, residual, types)
        for conv, result in zip(chain.convs, chain.results, strict=True):
            others = [use for use in chain.others if use.node.inputs[use.index] is result]
            if others:
                restored = rewriter.op(
                    "FromPadded", [result], attrs=sizes[result], domain=DOMAIN, like=result, near=conv
                )
                for use in others:
                    rewriter.set_input(use.node, use.index, restored)
            for use in chain.readers:
                if use.node.inputs[0] is result:
                    _let_read(rewriter, use.node, result, sizes[result]["spatial"])
            rewriter.set_attr(conv, "layout_out", PADDED)
            rewriter.set_type(result, np.float32, _padded_shape(result, sizes[result]["spatial"]))

    readers = list(dict.fromkeys(use.node for use in (*chain.readers, *chain.others)))
    names = ", ".join(f"'{node_label(conv)}'" for conv in chain.convs)
    return Patch(f"padded planes from SparseConv {names} on", tuple(dict.fromkeys((*chain.convs, *readers))), apply)


def _pad_residual(rewriter: Rewriter, chain: Chain, residual: Tensor, types: Types) -> None:
    adding = [conv for conv in chain.convs if len(conv.inputs) > RESIDUAL and conv.inputs[RESIDUAL] is residual]
    padded = rewriter.op("ToPadded", [residual], domain=DOMAIN, near=adding[0])
    shape = residual.shape
    sizes = spatial(residual, types)
    assert sizes is not None
    rewriter.set_type(
        padded, np.float32, None if shape is None else [*shape[:_SPATIAL_FROM], padded_plane(prod(sizes))]
    )
    for conv in adding:
        rewriter.set_input(conv, RESIDUAL, padded)


def _let_read(rewriter: Rewriter, reader: Node, x: Tensor, sizes: list[int]) -> None:
    rewriter.set_input(reader, 0, x)
    rewriter.set_attr(reader, "layout_in", PADDED)
    rewriter.set_attr(reader, "spatial", sizes)


def _erase_unread(rewriter: Rewriter, node: Node) -> None:
    if not uses(node.outputs[0]) and not is_graph_output(node.outputs[0]):
        rewriter.erase(node)


def _sizes(result: Variable, types: Types) -> dict[str, list[int]]:
    sizes = spatial(result, types)
    assert sizes is not None
    return {"spatial": sizes}


def _padded_shape(tensor: Tensor, sizes: list[int]) -> list[Any] | None:
    """What is declared of the shape, in the other layout."""
    return None if tensor.shape is None else [*tensor.shape[:_SPATIAL_FROM], padded_plane(prod(sizes))]
