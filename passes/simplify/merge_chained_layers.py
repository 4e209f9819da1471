"""Merge two layers in a row into one where that is the smaller product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.types import Types
from graphopt.graph import constant_value
from graphopt.passes.simplify.linear.changes import exchange_names, replace, users
from graphopt.passes.simplify.linear.following import with_bias
from graphopt.passes.simplify.linear.layers import Layer, layer_before, layer_of
from graphopt.passes.simplify.linear.scaling import fits
from graphopt.passes.simplify.purity import is_constant, is_op
from graphopt.rewrite.driver import Batch, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract
from graphopt.verify.legality import in_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Constant, Model, Node, Rewriter
    from graphopt.rewrite.pass_ import Steps

Array = np.ndarray[Any, Any]

_LARGEST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeChainedLayers(RulePass):
    """Merge MatMul and Gemm layers that follow each other with nothing but a bias between.

    Matches:   MatMul or Gemm with constant weight that alone reads another such layer, each with or without a bias.
    Produces:  One layer with W = W1 W2 and b = b1 W2 + b2, computed in float64 and rounded once. One or two nodes less.
               From K over R to N features that is K N multiplications and weights in place of R (K + N); only where it
               is not more, so a factorization of low rank stays as it is.
    Requires:  Weights that are matrices, not larger than 64 MiB and read by nothing else; biases that are constant with
               one number, or one per column; the new values are finite and not all subnormal.
    Preserves: Names, types and shapes of all outputs; values up to rounding.
    Source:    Associativity: (x W1 + b1) W2 + b2 = x (W1 W2) + (b1 W2 + b2).
    """

    name: ClassVar[str] = "merge-chained-layers"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Batch]:
        """Return one batch: layers are merged when nothing can be folded into them any more."""
        types = facts.get(Types)
        return [Batch(("MatMul", "Gemm"), _is_wanted, lambda nodes: _merge_all(nodes, types), depth=2)]


def _is_wanted(node: Node) -> bool:
    return len(node.inputs) > 1 and is_constant(node.inputs[1]) and not is_constant(node.inputs[0])


def _merge_all(nodes: Sequence[Node], types: Types) -> Steps:
    for node in nodes:
        patch = _merge(node, types) if in_model(node) else None
        if patch is not None:
            yield patch


def _merge(node: Node, types: Types) -> Patch | None:
    before = node.inputs[0].inputs.first()
    if not is_op(before, "MatMul", "Gemm", "Add"):
        return None
    first, second = layer_before(node.inputs[0], node, types), layer_of(node, types)
    if isinstance(first, str) or isinstance(second, str):
        return None
    if second.node.op == "MatMul":
        second = with_bias(second) or second
    matrices, biases = (_matrix(first), _matrix(second)), (_bias(first), _bias(second))
    if matrices[0] is None or matrices[1] is None or biases[0] is None or biases[1] is None:
        return None
    (inputs, inner), outputs = matrices[0].shape, matrices[1].shape[1]
    if matrices[1].shape[0] != inner or inputs * outputs > inner * (inputs + outputs):
        return None
    weight = matrices[0].astype(np.float64) @ matrices[1].astype(np.float64)
    bias = biases[0] @ matrices[1].astype(np.float64) + biases[1]
    dtype = matrices[0].dtype
    biased = first.own_bias() is not None or second.own_bias() is not None
    if dtype != matrices[1].dtype or not fits(weight, dtype) or not np.isfinite(bias.astype(dtype).astype(float)).all():
        return None
    gemm = "Gemm" in {first.node.op, second.node.op}
    nodes = (*first.nodes, *second.nodes)

    def apply(rewriter: Rewriter) -> None:
        result, near, data = second.output, nodes[-1], first.node.inputs[0]
        made = rewriter.constant(weight.astype(dtype), name=f"{first.weight.name}__merged", near=near)
        operands = [data, made]
        added = rewriter.constant(bias.astype(dtype), name=f"{first.weight.name}__bias", near=near) if biased else None
        if gemm and added is not None:
            operands.append(added)
        output = rewriter.op("Gemm" if gemm else "MatMul", operands, like=result, near=near, origin=nodes)
        exchange_names(output.inputs[0], second.node)
        if added is not None and not gemm:
            output = rewriter.op("Add", [output, added], like=result, near=near, origin=nodes)
        replace(rewriter, result, output)
        rewriter.erase(nodes)

    return Patch(f"merge {first.label} and {second.label}", nodes, apply)


def _matrix(layer: Layer) -> Array | None:
    """Return the matrix that a layer multiplies by from the right, None where it is something else."""
    weight: Constant | Any = layer.weight
    if layer.node.op not in {"MatMul", "Gemm"} or len(layer.shape) != 2 or int(layer.node.attrs.get("transA", 0)):
        return None
    if users(weight) != 1 or 0 in layer.shape:
        return None
    value = constant_value(weight)
    if value is None or value.nbytes > _LARGEST_BYTES:
        return None
    matrix = value.T if int(layer.node.attrs.get("transB", 0)) else value
    alpha = float(layer.node.attrs.get("alpha", 1.0))
    return matrix if alpha == 1 else (matrix.astype(np.float64) * alpha).astype(value.dtype)


def _bias(layer: Layer) -> Array | None:
    """Return the bias per column, zeros where there is none, None where it is something else."""
    own = layer.own_bias()
    channels = layer.output_frame.channels
    if own is None:
        return np.zeros(channels)
    if isinstance(own, str) or own.size not in {1, channels} or (own.size > 1 and own.shape[-1] != channels):
        return None
    return np.broadcast_to(own.reshape(-1), (channels,))
