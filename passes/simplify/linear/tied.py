"""Folding the same factor into all layers that share one weight."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import Constant, is_graph_output
from graphopt.passes.simplify.linear.affine import Affine, terms_of
from graphopt.passes.simplify.linear.changes import Change, followed
from graphopt.passes.simplify.linear.layers import Layer, layer_of
from graphopt.passes.simplify.linear.scaling import product_of
from graphopt.rewrite.patch import Patch, node_label

if TYPE_CHECKING:
    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter, Tensor

_MOST_LAYERS = 64


def fold_tied(layer: Layer, affine: Affine, types: Types) -> Patch | None:
    """Return the fold of an affine step that stands behind every layer with the weight of this one, alike.

    Args:
        layer: One of the layers; its bias is within.
        affine: What stands behind it.
        types: The types of the model.
    """
    weight = layer.weight
    if not isinstance(weight, Constant) or weight.roles or len(weight.outputs) > _MOST_LAYERS or layer.add is not None:
        return None
    steps: list[tuple[Layer, Node]] = []
    for node in weight.outputs:
        other = layer_of(node, types) if node.op == layer.node.op and node.graph is layer.node.graph else ""
        step = None if isinstance(other, str) or other.weight is not weight else _step(other, affine)
        if isinstance(other, str) or step is None or node.attrs.get("group") != layer.node.attrs.get("group"):
            return None
        steps.append((other, step))
    scaled = product_of(weight, layer.output_factor(np.asarray(affine.scale)))
    if isinstance(scaled, str):
        return None
    pool: dict[tuple[Tensor, bytes], Tensor] = {}
    changes: list[tuple[Change, Node]] = []
    for other, step in steps:
        change = followed(other, affine, scaled)
        if isinstance(change, str) or (other.node.op == "MatMul" and change.bias is not None):
            return None
        changes.append((replace(change, pool=pool), step))
    nodes = tuple(node for change, step in changes for node in (change.layer.node, step))

    def apply(rewriter: Rewriter) -> None:
        for change, step in changes:
            node = change.layer.node
            change.build(rewriter, node.inputs[0], step.outputs[0], (node, step))

    return Patch(f"fold '{node_label(steps[0][1])}' and its like into all layers with '{weight.name}'", nodes, apply)


def _step(layer: Layer, affine: Affine) -> Node | None:
    """Return the node that alone reads a layer, where it is the affine step; None elsewhere."""
    output = layer.output
    if len(output.outputs) != 1 or is_graph_output(output):
        return None
    step: Node = output.outputs[0]
    terms = terms_of(step)
    if terms is None or terms.data is not output or step.graph is not layer.node.graph:
        return None
    found = terms.affine(layer.output_frame)
    if found is None or not np.array_equal(found.scale, affine.scale) or not np.array_equal(found.shift, affine.shift):
        return None
    return step
