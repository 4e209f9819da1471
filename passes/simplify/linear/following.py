"""Folding a scale and a shift into all layers that read the result."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from graphopt.graph import is_graph_output
from graphopt.passes.simplify.linear.changes import Change, preceded
from graphopt.passes.simplify.linear.layers import LAYERS, Layer, layer_of
from graphopt.passes.simplify.purity import is_constant, is_op
from graphopt.rewrite.patch import Patch, node_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter, Tensor
    from graphopt.passes.simplify.linear.affine import Affine

_MOST_READERS = 8


def layers_behind(node: Node, data: Tensor, affine_in: Callable[[Layer], Affine | None], types: Types) -> Patch | None:
    """Return the patch that takes a node out by folding it into every layer that reads it, None where that is illegal.

    Args:
        node: The node, which computes scale * x + shift along an axis.
        data: The tensor x.
        affine_in: Returns scale and shift along the input channels of a layer, None where they are none there.
        types: The types of the model.
    """
    output = node.outputs[0]
    readers = list(dict.fromkeys(output.outputs))
    if not 0 < len(readers) <= _MOST_READERS or is_graph_output(output):
        return None
    if any(reader.graph is not node.graph or not is_op(reader, *LAYERS) for reader in readers):
        return None
    if any(reader.inputs[0] is not output or output in reader.inputs[1:] for reader in readers):
        return None
    changes: list[Change] = []
    for reader in readers:
        layer = layer_of(reader, types)
        affine = None if isinstance(layer, str) else affine_in(layer)
        if isinstance(layer, str) or affine is None:
            return None
        if reader.op == "MatMul" and affine.shifts:
            biased = with_bias(layer)
            if biased is None:
                return None  # it would need an Add of its own
            layer = biased
        change = preceded(layer, affine)
        if isinstance(change, str):
            return None
        changes.append(change)

    def apply(rewriter: Rewriter) -> None:
        for change in changes:
            change.build(rewriter, data, change.layer.output, change.layer.nodes)
        rewriter.erase(node)

    into = ", ".join(change.layer.label for change in changes)
    return Patch(f"fold '{node_label(node)}' into {into}", (node, *(c.layer.node for c in changes)), apply)


def with_bias(layer: Layer) -> Layer | None:
    """Return a MatMul together with the Add of a constant that alone reads it."""
    output = layer.node.outputs[0]
    if len(output.outputs) != 1 or is_graph_output(output):
        return None
    add = output.outputs[0]
    graph = layer.node.graph
    if not is_op(add, "Add") or add.graph is not graph or graph is None or graph.opset < 7 or len(add.inputs) != 2:
        return None
    constant = add.inputs[1] if add.inputs[0] is output else add.inputs[0]
    if not is_constant(constant) or constant.shape is None or len(constant.shape) > layer.output_rank:
        return None
    return replace(layer, add=add) if layer.output_frame.may_hold(constant) else None
