"""Merge layers that read the same input into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.types import Types
from graphopt.graph import Constant, LazyWeight, constant_value
from graphopt.passes.simplify.linear.changes import exchange_names, replace, users
from graphopt.passes.simplify.linear.following import with_bias
from graphopt.passes.simplify.linear.layers import Layer, layer_of
from graphopt.passes.simplify.purity import is_constant, is_op
from graphopt.rewrite.driver import Batch, RulePass
from graphopt.rewrite.patch import Patch, node_label
from graphopt.verify.contract import Contract
from graphopt.verify.legality import in_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor, Weight
    from graphopt.rewrite.pass_ import Steps

Array = np.ndarray[Any, Any]

_STREAMED_BYTES = 16 << 20
_SPLIT_OPSET = 13  # sizes are an input since
_LEVELS, _WIDEST_LEVEL = 5, 16
_MOST_LAYERS = 8  # results that are needed late would stay in memory for long


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeParallelLayers(RulePass):
    """Merge MatMul and Gemm layers that read the same input, such as the Q, K and V of attention.

    Matches:   MatMul (with or without an Add of a bias) and Gemm with constant weights, of the same input.
    Produces:  One layer whose weight is the weights side by side, one bias, and a Split of the result. n layers of
               which b have an Add are n + b nodes before and 2 nodes, or 3 with a bias, after; only where that is less.
               The input is read once in place of n times, the output is copied once more; the weights keep their size.
    Requires:  At most 8 layers at once. Weights of one type that nothing else reads; biases with one number, or one per
               column; equal alpha, beta and transpositions of Gemm. Runs when no rule applies any more, since folding
               comes first.
    Preserves: Names, types and shapes of all outputs; values up to rounding.
    Source:    x [W1 W2] = [x W1, x W2].
    """

    name: ClassVar[str] = "merge-parallel-layers"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Batch]:
        """Return one batch: layers are merged when nothing can be folded into them any more."""
        types = facts.get(Types)
        return [Batch(("MatMul", "Gemm"), _is_wanted, lambda nodes: _merge_all(nodes, types))]


def _is_wanted(node: Node) -> bool:
    inputs = node.inputs
    return len(inputs) > 1 and len(inputs[0].outputs) > 1 and is_constant(inputs[1])


def _merge_all(nodes: Sequence[Node], types: Types) -> Steps:
    for tensor in dict.fromkeys(node.inputs[0] for node in nodes if in_model(node)):
        kinds: dict[object, list[Layer]] = {}
        for node in dict.fromkeys(tensor.outputs):
            layer = _mergeable(node, tensor, types)
            if layer is not None:
                kinds.setdefault(_kind(layer), []).append(layer)
        for layers in kinds.values():
            for start in range(0, len(layers), _MOST_LAYERS):
                patch = _merge(layers[start : start + _MOST_LAYERS], types)
                if patch is not None:
                    yield patch


def _mergeable(node: Node, tensor: Tensor, types: Types) -> Layer | None:
    graph = node.graph
    if graph is None or graph.opset < _SPLIT_OPSET or not is_op(node, "MatMul", "Gemm") or node.inputs[0] is not tensor:
        return None
    layer = layer_of(node, types)
    if isinstance(layer, str) or len(layer.shape) != 2:
        return None
    if not isinstance(layer.weight, Constant) or users(layer.weight) != 1:
        return None
    if node.op == "MatMul":
        layer = with_bias(layer) or layer
    return layer if _bias(layer) is not None else None


def _kind(layer: Layer) -> object:
    """Return what layers share that can be merged."""
    attrs = layer.node.attrs
    numbers = tuple(float(attrs.get(key, default)) for key, default in _GEMM)
    return layer.node.graph, layer.node.op, layer.weight.dtype, numbers, layer.shape[1 - (layer.output_axis or 0)]


_GEMM = (("alpha", 1.0), ("beta", 1.0), ("transA", 0), ("transB", 0))


def _bias(layer: Layer) -> Array | None:
    """Return the bias per column (zeros where there is none), None where it is something else."""
    frame = layer.output_frame
    if layer.add is not None:
        constant = layer.add.inputs[0] if is_constant(layer.add.inputs[0]) else layer.add.inputs[1]
    elif layer.node.op == "Gemm" and len(layer.node.inputs) > 2 and layer.node.inputs[2].name:
        constant = layer.node.inputs[2]
    else:
        return np.zeros(frame.channels, layer.weight.dtype)
    value = constant_value(constant) if is_constant(constant) and frame.may_hold(constant) else None
    if value is None or value.ndim > frame.rank or any(size != 1 for size in value.shape[:-1]):
        return None
    if value.shape[-1:] not in ((), (1,), (frame.channels,)):
        return None
    return np.broadcast_to(value.reshape(-1), (frame.channels,))


def _has_bias(layer: Layer) -> bool:
    return layer.add is not None or (len(layer.node.inputs) > 2 and bool(layer.node.inputs[2].name))


def _merge(layers: Sequence[Layer], types: Types) -> Patch | None:
    biased = any(_has_bias(layer) for layer in layers)
    gemm = layers[0].node.op == "Gemm"
    before = sum(len(layer.nodes) for layer in layers)
    after = 2 + (biased and not gemm)
    if len(layers) < 2 or after >= before:
        return None
    graph = layers[0].node.graph
    assert graph is not None
    nodes = tuple(node for layer in layers for node in layer.nodes)
    first = min((layer.node for layer in layers), key=graph.nodes.label)
    layers = sorted(layers, key=lambda layer: (_readers(layer.output), graph.nodes.label(layer.node)))
    rank = 2 if gemm else types.rank(layers[0].node.outputs[0])
    if rank is None:
        return None

    def apply(rewriter: Rewriter) -> None:
        axis = layers[0].output_axis or 0
        sizes = [layer.output_frame.channels for layer in layers]
        weight = rewriter.constant(
            _beside([layer.weight for layer in layers], axis), name=_joint_name(layers), near=first
        )
        inputs = [first.inputs[0], weight]
        bias: Any = None
        if biased:
            value = np.concatenate([_required(_bias(layer)) for layer in layers])
            bias = rewriter.constant(value, name=f"{_joint_name(layers)}__bias", near=first)
            if gemm:
                inputs.append(bias)
        origin = [layer.node for layer in layers]
        output = rewriter.op(str(first.op), inputs, attrs=dict(first.attrs), near=first, origin=origin)
        exchange_names(output.inputs[0], first)
        if biased and not gemm:
            adds = [layer.add for layer in layers if layer.add is not None]
            output = rewriter.op("Add", [output, bias], near=first, origin=adds)
        parts = rewriter.constant(np.array(sizes, np.int64), name=f"{_joint_name(layers)}__sizes", near=first)
        results = [layer.output for layer in layers]
        made = rewriter.op(
            "Split",
            [output, parts],
            attrs={"axis": rank - 1},
            outputs=len(layers),
            like=results,
            near=first,
            origin=origin,
        )
        for old, new in zip(results, made, strict=True):
            replace(rewriter, old, new)
        rewriter.erase(nodes)

    into = ", ".join(f"'{node_label(layer.node)}'" for layer in layers)
    return Patch(f"merge {into}, which read '{first.inputs[0].name}'", nodes, apply)


def _readers(tensor: Tensor) -> tuple[tuple[str, ...], ...]:
    """Return the operators behind a tensor, level by level: what is treated alike becomes neighbours."""
    levels: list[tuple[str, ...]] = []
    level = list(dict.fromkeys(tensor.outputs))
    for _ in range(_LEVELS):
        levels.append(tuple(sorted(str(node.op) for node in level)))
        level = list(dict.fromkeys(user for node in level for made in node.outputs for user in made.outputs))
        if len(level) > _WIDEST_LEVEL:
            break
    return tuple(levels)


def _joint_name(layers: Sequence[Layer]) -> str:
    return f"{layers[0].weight.name}__merged"


def _required(value: Array | None) -> Array:
    assert value is not None
    return value


def _beside(constants: Sequence[Tensor], axis: int) -> Array | Weight:
    """Return weights side by side; large ones are put together when they are written."""
    weights = [constant.weight for constant in constants if isinstance(constant, Constant)]
    shape = list(weights[0].shape)
    shape[axis] = sum(weight.shape[axis] for weight in weights)
    if sum(weight.nbytes for weight in weights) <= _STREAMED_BYTES:
        return np.concatenate([weight.load() for weight in weights], axis=axis)
    return LazyWeight(
        lambda: np.concatenate([weight.load() for weight in weights], axis=axis), weights[0].onnx_dtype, shape
    )
