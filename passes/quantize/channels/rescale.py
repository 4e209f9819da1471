"""Moves a scale through a link, and through what the facts remember of the model: they must keep meaning the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from graphopt.analysis.dense_reference import DenseReference
from graphopt.analysis.row_scale import RowScale
from graphopt.graph import Rewriter
from graphopt.passes.quantize.channels.links import Link, write
from graphopt.passes.quantize.channels.readers import Layer, layer_of
from graphopt.rewrite import Patch, Skip

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from graphopt.analysis import Facts
    from graphopt.graph import Model, Node
    from graphopt.rewrite import LayerRecord

    Vector = NDArray[np.float64]


def rescale(
    link: Link, scales: Vector, facts: Facts, reason: str, records: Sequence[LayerRecord]
) -> Generator[Patch | Skip, frozenset[Node], None]:
    """Yield the patch that divides channels where they are written and multiplies them where they are read, or a skip.

    The model that later passes aim at, where one is remembered, is scaled alike: a layer solved for channels of another
    scale than the next one reads would break the model.

    Args:
        link: The channels.
        scales: Above 0, [channels].
        facts: Of the model.
        reason: What the patch does.
        records: Rows of the per-layer table.
    """
    node = link.readers[0].node
    changes = link.changes(scales)
    if isinstance(changes, str):
        yield Skip(node, changes)
        return
    reference = facts.get(DenseReference).model
    scaled: Model | None = None
    if reference is not None:
        made = _scaled_reference(reference, link, scales)
        if isinstance(made, str):
            yield Skip(node, made)
            return
        scaled = made

    def apply(rewriter: Rewriter) -> None:
        for (changed, index), value in changes.items():
            write(rewriter, changed, index, value)

    yield Patch(reason, link.nodes, apply, tuple(records))
    if scaled is not None:
        facts.record(DenseReference(scaled))
    written = link.writer.layer
    if written is not None:
        name, known = written.node.inputs[1].name, facts.get(RowScale)
        axis = known.axis(name)
        if axis is not None:
            facts.record(known.with_scale(name, 1 / scales, axis=axis))


def _scaled_reference(reference: Model, link: Link, scales: Vector) -> Model | str:
    """Return a copy of the remembered model with the same channels scaled, or why that cannot be."""
    copy = reference.copy()
    twin = _twin(link, copy)
    if twin is None:
        return "the model that compression aims at has no such channels"
    changes = twin.changes(scales)
    if isinstance(changes, str):
        return changes
    with Rewriter(copy) as rewriter:
        for (node, index), value in changes.items():
            write(rewriter, node, index, value)
    return copy


def _twin(link: Link, model: Model) -> Link | None:
    """Return the same channels of another model, whose nodes have outputs of the same names, or None."""
    nodes = {tensor.name: node for _, node in model.walk() for tensor in node.outputs if tensor.name}

    def same(node: Node) -> Node | None:
        found = nodes.get(next((tensor.name for tensor in node.outputs if tensor.name), ""))
        return found if found is not None and found.op == node.op and len(found.inputs) == len(node.inputs) else None

    def layer(old: Layer) -> Layer | None:
        found = same(old.node)
        made = None if found is None else layer_of(found)
        alike = isinstance(made, Layer) and (made.inputs, made.outputs) == (old.inputs, old.outputs)
        return made if alike and isinstance(made, Layer) else None

    writer = same(link.writer.node)
    written = None if link.writer.layer is None else layer(link.writer.layer)
    constants = [(same(node), index) for node, index in link.writer.constants]
    readers = [layer(reader) for reader in link.readers]
    if writer is None or (link.writer.layer is not None and written is None):
        return None
    known = [(node, index) for node, index in constants if node is not None]
    found = [reader for reader in readers if reader is not None]
    if len(known) < len(constants) or len(found) < len(readers):
        return None
    return Link(
        found[0].node.inputs[0], replace(link.writer, node=writer, layer=written, constants=tuple(known)), tuple(found)
    )
