"""Fold multiplications by and additions of constants into the weights of the layers around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.types import Types
from graphopt.graph import producer
from graphopt.passes.simplify.linear.affine import AFFINE_OPS, Affine, Terms, only_reader_of, terms_of
from graphopt.passes.simplify.linear.changes import followed, why_shared
from graphopt.passes.simplify.linear.following import layers_behind
from graphopt.passes.simplify.linear.layers import LAYERS, Layer, layer_before
from graphopt.passes.simplify.linear.norms import NORMS, norm_of
from graphopt.passes.simplify.linear.tied import fold_tied
from graphopt.passes.simplify.purity import is_constant, is_op
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldAffine(RulePass):
    """Fold Mul, Div, Add, Sub by constants and Neg into the weights of the layer before or behind them.

    Matches:   Mul, Div, Add, Sub with a constant (one number, or one per channel) and Neg that alone read a Conv,
               ConvTranspose, Gemm or MatMul with constant weight, with or without an Add of a bias, or a
               BatchNormalization, InstanceNormalization or LayerNormalization with constant scale and bias; else such
               nodes that only such layers, or one BatchNormalization, read.
    Produces:  The layer with W' = W s per output channel and b' = b s + t; a layer behind with W' = W s per input
               channel and b' = b + W t. Computed in float64, rounded once. One node less, one pass over the activation
               less; the weights keep their size.
    Requires:  The constant does not enlarge the tensor; its channels are those of the layer (axis 1 of a convolution,
               the last axis of a product of matrices); all values are finite in their type, and not all subnormal; a
               weight that others read too is small, or the same stands behind all of them. A Conv behind an addition
               pads with nothing. An addition alone stays behind and before a MatMul without bias, where it is the
               bias. What ends a normalization or GELU written out in steps stays, since runtimes look for these as a
               whole.
    Preserves: Names, types and shapes of all outputs; values up to rounding.
    Source:    Linearity: s (W x + b) + t = (s W) x + (s b + t) and W (s x + t) + b = (W s) x + (W t + b).
    """

    name: ClassVar[str] = "fold-affine"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the one rule."""
        types = facts.get(Types)
        return [Rule(AFFINE_OPS, lambda node: _fold(node, types), depth=4, below=2)]


def _fold(node: Node, types: Types) -> Patch | Skip | None:
    terms = terms_of(node)
    if terms is None:
        return None
    before = producer(terms.data)
    refusal: Patch | Skip | None = None
    if is_op(before, *LAYERS, "Add"):
        refusal = _into_layer_before(node, terms, types)
    elif is_op(before, *NORMS):
        refusal = _into_norm_before(node, terms, types)
    if isinstance(refusal, Patch):
        return refusal
    return _behind(node, terms, types) or refusal


def _into_layer_before(node: Node, terms: Terms, types: Types) -> Patch | Skip | None:
    layer = layer_before(terms.data, node, types)
    if isinstance(layer, str):
        return None
    affine = terms.affine(layer.output_frame)
    if affine is None or (layer.node.op == "MatMul" and layer.add is None and affine.shifts):
        return None
    change = followed(layer, affine)
    if isinstance(change, str):
        tied = fold_tied(layer, affine, types) if why_shared(layer) else None
        return tied or Skip(node, change)
    origin = (*layer.nodes, node)
    data, result = layer.node.inputs[0], node.outputs[0]
    return Patch(
        f"fold '{node_label(node)}' into {layer.label}",
        origin,
        lambda rewriter: change.build(rewriter, data, result, origin),
    )


def _into_norm_before(node: Node, terms: Terms, types: Types) -> Patch | Skip | None:
    before = only_reader_of(terms.data, node)
    norm = before if isinstance(before, str) else norm_of(before, types)
    if isinstance(norm, str) or isinstance(before, str):
        return None
    affine = terms.affine(norm.frame)
    values = None if affine is None else norm.followed(affine)
    if values is None or isinstance(values, str):
        return None if values is None else Skip(node, values)
    origin = (before, node)
    data, result = before.inputs[0], node.outputs[0]
    return Patch(
        f"fold '{node_label(node)}' into {norm.label}",
        origin,
        lambda rewriter: norm.build(rewriter, values, data, result, origin),
    )


def _behind(node: Node, terms: Terms, types: Types) -> Patch | Skip | None:
    output = node.outputs[0]
    readers = output.outputs
    if not readers or not is_op(readers[0], *LAYERS, "BatchNormalization") or _ends_a_whole(terms.data):
        return None
    shape = types.shape(output)
    if shape is None or types.shape(terms.data) != shape:
        return None  # the constant may make the tensor larger
    if is_op(readers[0], "BatchNormalization"):
        return _into_batch_norm_behind(node, terms, types)

    def along(layer: Layer) -> Affine | None:
        return terms.affine(layer.input_frame)

    return layers_behind(node, terms.data, along, types)


def _into_batch_norm_behind(node: Node, terms: Terms, types: Types) -> Patch | Skip | None:
    reader = node.outputs[0].outputs[0]
    if only_reader_of(node.outputs[0], reader) is not node:
        return None
    norm = norm_of(reader, types)
    affine = None if isinstance(norm, str) else terms.affine(norm.frame)
    if isinstance(norm, str) or affine is None:
        return None
    values = norm.preceded(affine)
    if isinstance(values, str):
        return Skip(node, values)
    origin = (node, reader)
    data, result = terms.data, reader.outputs[0]
    return Patch(
        f"fold '{node_label(node)}' into {norm.label}",
        origin,
        lambda rewriter: norm.build(rewriter, values, data, result, origin),
    )


def _ends_a_whole(tensor: Tensor) -> bool:
    """Whether a tensor comes out of a normalization or GELU in steps, whose last step is with a constant."""
    node = producer(tensor)
    if is_op(node, "Mul") and node is not None and is_constant(node.inputs[-1]):  # the scale, before a shift
        node = producer(node.inputs[0])
    if node is None or not is_op(node, "Mul", "Div") or len(node.inputs) != 2:
        return False
    if is_op(node, "Div"):
        return is_op(producer(node.inputs[1]), "Sqrt", "Pow")
    return any(_is_gate(producer(tensor)) for tensor in node.inputs)


def _is_gate(node: Node | None) -> bool:
    """Whether a node is 1 / sqrt, or 1 + erf, or 1 + tanh."""
    if node is None:
        return False
    if is_op(node, "Add"):
        return any(is_op(producer(tensor), "Erf", "Tanh") for tensor in node.inputs)
    if is_op(node, "Reciprocal"):
        return is_op(producer(node.inputs[0]), "Sqrt")
    if is_op(node, "Div") and len(node.inputs) == 2:
        return is_op(producer(node.inputs[1]), "Sqrt")
    return is_op(node, "Pow", "Rsqrt") and len(node.inputs) == 2
