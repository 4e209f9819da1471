"""Channels with both ends known: who writes them and who reads them, and the move of a scale between the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, constant_value, is_graph_output, uses
from graphopt.graph.labels import node_label
from graphopt.passes.quantize.channels.readers import LAYERS, STANDARD, Layer, layer_of, readers_of
from graphopt.passes.quantize.channels.writers import Writer, writer_of
from graphopt.rewrite import Skip
from graphopt.rewrite.new_weight import drop_unread

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from numpy.typing import NDArray

    from graphopt.graph import Model, Node, Rewriter, Tensor

    Array = NDArray[Any]
    Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Link:
    """Channels that one place writes and layers read.

    Attributes:
        tensor: What the layers read.
        writer: Where the channels are written.
        readers: The layers.
    """

    tensor: Tensor
    writer: Writer
    readers: tuple[Layer, ...]

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.readers[0].inputs

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes whose constants a scale changes."""
        written = (self.writer.node, *(node for node, _ in self.writer.constants))
        return tuple(dict.fromkeys((*written, *(reader.node for reader in self.readers))))

    def changes(self, scales: Vector) -> dict[tuple[Node, int], Array] | str:
        """Return the constants with each channel divided by its scale where it is written, multiplied where it is read.

        Args:
            scales: Above 0, [channels].

        Returns:
            New values by node and input, or why the types cannot hold them.
        """
        found: dict[tuple[Node, int], Array] = {}
        if self.writer.layer is not None:
            found[self.writer.node, 1] = _present(self.writer.layer).written_with(scales)
        for node, index in self.writer.constants:
            value = constant_value(node.inputs[index])
            assert value is not None
            behind = max(self.readers[0].spatial, 0) if node is not self.writer.node or node.op == "Mul" else 0
            factor = scales.reshape(-1, *[1] * behind)
            with np.errstate(over="ignore"):
                found[node, index] = (value.astype(np.float64) / factor).astype(value.dtype)
        for reader in self.readers:
            found[reader.node, 1] = _present(reader).read_with(scales)
        for (node, _), value in found.items():
            if not np.isfinite(value.astype(np.float64)).all():
                return f"the scaled constants of {node.op} '{node.name}' do not fit {value.dtype.name}"
        return found


def _present(layer: Layer) -> Layer:
    """Return a layer with the weight that it has now."""
    found = layer_of(layer.node)
    assert isinstance(found, Layer)
    return found


def find_links(
    model: Model, keep: Collection[str] = (), *, ops: Collection[str] = LAYERS, observed: bool = False
) -> Iterator[Link | Skip]:
    """Yield the channels that layers read, with where they are written, in model order; else why no scale can move.

    Args:
        model: The model.
        keep: Names of nodes whose weights stay as they are.
        ops: Operators whose inputs are looked at.
        observed: Refuse what lies in bodies, where activations cannot be observed.
    """
    seen: set[Tensor] = set()
    for graph, node in model.walk(functions=False):
        if node.domain not in STANDARD or node.op not in ops:
            continue
        if observed and graph is not model.graph:
            yield Skip(node, "it lies in a body, whose activations cannot be observed")
            continue
        layer = layer_of(node)
        if isinstance(layer, str):
            yield Skip(node, layer)
            continue
        if node.inputs[0] in seen:
            continue
        tensor = node.inputs[0]
        seen.add(tensor)
        readers = readers_of(tensor)
        if isinstance(readers, str):
            yield Skip(node, readers)
            continue
        writer = writer_of(tensor, layer.inputs, layer.spatial)
        if isinstance(writer, str):
            yield Skip(node, writer)
            continue
        found = Link(tensor, writer, tuple(readers))
        kept = next((label for label in map(node_label, found.nodes) if label in keep), None)
        yield found if kept is None else Skip(node, f"'{kept}' is to be kept")


def write(rewriter: Rewriter, node: Node, index: int, value: Array) -> None:
    """Give a node's constant input another value; a constant that others read too stays as it is for them."""
    old = node.inputs[index] if index < len(node.inputs) else None
    alone = isinstance(old, Constant) and len(uses(old)) == 1 and not is_graph_output(old)
    if alone and isinstance(old, Constant) and tuple(old.shape) == value.shape:
        rewriter.set_weight(old, value)
        return
    name = old.name if old is not None and old.name else f"{node.outputs[0].name}_bias"
    rewriter.set_input(node, index, rewriter.constant(value, name=name, near=node))
    if old is not None:
        drop_unread(rewriter, old)
