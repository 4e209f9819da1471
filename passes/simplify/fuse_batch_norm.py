"""Fold BatchNormalization into the weights of the layer before or behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.row_scale import RowScale
from graphopt.analysis.types import Types
from graphopt.passes.simplify.linear.affine import Affine, only_reader_of
from graphopt.passes.simplify.linear.changes import Change, followed
from graphopt.passes.simplify.linear.following import layers_behind
from graphopt.passes.simplify.linear.layers import Layer, layer_before
from graphopt.passes.simplify.linear.norms import Norm, as_affine, norm_of
from graphopt.passes.simplify.purity import is_op
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseBatchNorm(RulePass):
    """Fold BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before or behind it, or into another one.

    Matches:   BatchNormalization in inference mode with constant parameters behind Conv, ConvTranspose, Gemm or
               MatMul with constant weight (grouped and depthwise too), or behind such a layer and an Add of a
               constant; behind another BatchNormalization; else one that only such layers read.
    Produces:  The layer with W' = W g per output channel and b' = (b - mean) g + beta, where g = gamma / sqrt(var +
               eps); a MatMul gets an Add of b'. A layer behind gets W' = W g per input channel and b' = b + W (beta -
               mean g). Computed in float64, rounded once. One node less (none behind a bare MatMul, where an Add,
               which is cheaper, takes the place), one pass over the activation less.
    Requires:  The layer's output is read by the BatchNormalization alone and is no graph output; MatMul has a matrix as
               its output, whose columns are the channels; a Conv behind pads with nothing, since zeros behind the
               normalization are none before it; all new values are finite in the type of the weight, and not all
               subnormal; a weight that others read too is small.
    Preserves: Names, types and shapes of all outputs; values up to rounding. The factor g is recorded as RowScale.
    Source:    Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """

    name: ClassVar[str] = "fuse-batch-norm"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types, RowScale)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the one rule."""
        folding = _Folding(facts, facts.get(Types), facts.get(RowScale).copy())
        return [Rule(("BatchNormalization",), folding.at, depth=2, below=2)]


class _Folding:
    def __init__(self, facts: Facts, types: Types, scales: RowScale) -> None:
        self.facts = facts
        self.types = types
        self.scales = scales

    def at(self, node: Node) -> Patch | Skip | None:
        """Return the fold of a normalization, or why there is none."""
        norm = norm_of(node, self.types)
        if isinstance(norm, str):
            return Skip(node, norm)
        layer = layer_before(node.inputs[0], node, self.types)
        if isinstance(layer, str):
            return self._into_another(norm, layer) or self._behind(norm) or Skip(node, layer)
        frame = layer.output_frame
        if layer.node.op == "MatMul" and not (norm.frame.rank == 2 and len(layer.shape) == 2):
            return self._behind(norm) or Skip(
                node, "the output of the MatMul is not known to be a matrix, so its columns are not the channels"
            )
        if frame.channels != norm.frame.channels:
            return Skip(node, f"the weight has shape {list(layer.shape)}, not {norm.frame.channels} output channels")
        affine = as_affine(norm)
        change = followed(layer, affine)
        if isinstance(change, str):
            return Skip(node, change)
        origin = (*layer.nodes, node)
        data, result, axis = layer.node.inputs[0], node.outputs[0], layer.output_axis

        def apply(rewriter: Rewriter) -> None:
            change.build(rewriter, data, result, origin)
            if axis is not None:
                self._record(change, np.asarray(affine.scale), axis)

        return Patch(f"fold '{node_label(node)}' into {layer.label}", origin, apply)

    def _record(self, change: Change, factor: Any, axis: int) -> None:
        self.scales.add(change.names[-1], factor, axis=axis)
        self.facts.record(self.scales)

    def _into_another(self, norm: Norm, reason: str) -> Patch | Skip | None:
        """Return the merge of two normalizations in a row."""
        before = only_reader_of(norm.node.inputs[0], norm.node)
        if isinstance(before, str) or not is_op(before, "BatchNormalization"):
            return None
        first = norm_of(before, self.types)
        if isinstance(first, str) or first.frame.channels != norm.frame.channels:
            return None
        values = first.followed(as_affine(norm))
        if isinstance(values, str):
            return Skip(norm.node, values)
        origin = (before, norm.node)
        data, result = before.inputs[0], norm.node.outputs[0]
        return Patch(
            f"fold '{node_label(norm.node)}' into {first.label}",
            origin,
            lambda rewriter: first.build(rewriter, values, data, result, origin),
        )

    def _behind(self, norm: Norm) -> Patch | None:
        """Return the fold into all layers that read a normalization."""
        return layers_behind(norm.node, norm.node.inputs[0], lambda layer: _along(norm, layer), self.types)


def _along(norm: Norm, layer: Layer) -> Affine | None:
    """Return what a normalization does along the input channels of a layer, None where its channels are others."""
    frame = layer.input_frame
    if frame.rank != norm.frame.rank or frame.behind != norm.frame.behind or frame.channels != norm.frame.channels:
        return None
    return as_affine(norm)
