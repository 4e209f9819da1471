"""Repairs of weights and biases, and of a BatchNormalization that stands behind a rounded weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.tensor_grid import restored_values, spread, written_grid
from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.passes.quantize.pairing.writing import PairWriter
from graphopt.passes.quantize.repairing.pair import (
    Pair,
    behind,
    drop,
    grid_before,
    mended,
    pair_before,
    read_pair,
    roundings_of,
    stands_for_relu,
    stored_values,
)
from graphopt.passes.quantize.restoring.conversions import erase_idle
from graphopt.passes.quantize.writing import conversion, short_name
from graphopt.target.checks import SAME_SCALE
from graphopt.target.grid import BIAS_LIMIT, quantize_bias, quantize_weight, weight_scales
from graphopt.target.numbers import INT8
from graphopt.target.operators import output_axis
from graphopt.target.reading import restored
from graphopt.target.rules import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.rewrite.patch import Patch
    from graphopt.target.reading import Restored
    from graphopt.target.rules import OpRule, Target

EPSILON = 1e-5
"""Of a BatchNormalization that names none."""


def turn_scales(model: Model, target: Target) -> Iterator[Patch]:
    """Round weights anew whose scales lie along another axis than the outputs, where they cannot leave the sum."""
    for node, _, weight in _weighted(model, target):
        if weight.axis is None or weight.block or weight.values is None or pair_before(node.inputs[0]) is None:
            continue
        rank = weight.values.ndim
        axis = output_axis(node, rank)
        real = restored_values(weight.values, written_grid(weight.node))
        if weight.axis % rank == axis or real is None:
            continue
        values = real.astype(np.float32)
        limit = target.weights.limit
        found = quantize_weight(values, axis, weight_scales(values, axis, limit), limit)

        def apply(rw: Rewriter, node: Node = node, codes: Any = found.values, scales: Any = found.scales) -> None:
            _replace_weight(rw, model, node, codes, scales, output_axis(node, codes.ndim))

        yield mended("weight-axis", node, f"weight rounded anew, scales along axis {axis}", apply)


def take_factors(model: Model, target: Target) -> Iterator[Patch]:
    """Take the factors of a Gemm into the scales of its weight and into its bias.

    With a factor it is fused only where it is rounded behind.
    """
    for node, rule, weight in _weighted(model, target):
        alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
        if node.op != "Gemm" or (alpha, beta) == (1.0, 1.0) or not alpha or not _is_int8(weight):
            continue
        bias = node.inputs[rule.bias] if rule.bias is not None and len(node.inputs) > rule.bias else None
        value = None if bias is None or bias.is_empty() else _bias_value(bias)
        if weight.scale is None or (bias is not None and not bias.is_empty() and value is None):
            continue
        added = None if value is None else _per_output(node, weight, np.asarray(value * np.float32(beta), np.float32))

        def apply(
            rw: Rewriter,
            node: Node = node,
            weight: Restored = weight,
            alpha: float = alpha,
            added: Any = added,
        ) -> None:
            assert weight.values is not None
            codes = np.clip(weight.values.astype(np.int64) * int(np.sign(alpha)), INT8.bottom, INT8.top).astype(np.int8)
            scales = (np.asarray(weight.scale, np.float64) * abs(alpha)).astype(np.float32)
            _replace_weight(rw, model, node, codes, scales, weight.axis)
            if added is not None:
                old = node.inputs[2]
                rw.set_input(node, 2, rw.constant(added, name=f"{short_name(node.outputs[0])}_bias", near=node))
                erase_idle(rw, [old])
            for name in ("alpha", "beta"):
                rw.set_attr(node, name, None)

        yield mended("gemm-factor", node, f"factors {alpha:g} and {beta:g} into weight and bias", apply)


def store_integers(model: Model, target: Target) -> Iterator[Patch]:
    """Write weights that are kept in float before a pair as the integers that the pair makes of them."""
    for node, _, weight in _weighted(model, target):
        if weight.rounding is None or weight.values is None or weight.block or weight.scale is None:
            continue
        if weight.values.dtype != np.int8 or constant_value(weight.rounding.inputs[0]) is None:
            continue
        if weight.zero is not None and weight.zero.astype(np.int64).any():
            continue

        def apply(rw: Rewriter, node: Node = node, weight: Restored = weight) -> None:
            assert weight.values is not None
            _replace_weight(rw, model, node, weight.values, np.asarray(weight.scale, np.float32), weight.axis)

        yield mended("weight-form", node, "float weight to the integers it was rounded to", apply)


def center_weights(model: Model, target: Target) -> Iterator[Patch]:
    """Give weights the zero point 0, with one scale per output: the fast kernels take no other.

    A channel whose integers lie within 127 of its zero point keeps them and its scale; the others are rounded anew.
    """
    for node, _, weight in _weighted(model, target):
        if weight.values is None or weight.block or weight.scale is None or grid_before(node.inputs[0]) is None:
            continue
        centered = weight.zero is None or not weight.zero.astype(np.int64).any()
        if weight.number not in {"uint8", "int8"} or (centered and weight.number == "int8"):
            continue
        if model.opset < target.per_channel_since or not _is_along_outputs(node, weight):
            continue
        axis = output_axis(node, weight.values.ndim)
        grid = written_grid(weight.node)
        zero = np.zeros(1, np.int64) if weight.zero is None else weight.zero.astype(np.int64)
        moved = weight.values.astype(np.int64) - spread(zero, weight.values.shape, grid)
        others = tuple(each for each in range(moved.ndim) if each != axis)
        reach = np.abs(moved).max(axis=others, initial=0)
        factor = np.maximum(reach / target.weights.limit, 1.0)
        shape = [-1 if each == axis else 1 for each in range(moved.ndim)]
        codes = np.rint(moved / factor.reshape(shape)).astype(np.int8)
        given = np.broadcast_to(np.asarray(weight.scale, np.float64).reshape(-1), factor.shape)
        scales = (given * factor).astype(np.float32)

        def apply(rw: Rewriter, node: Node = node, codes: Any = codes, scales: Any = scales, axis: int = axis) -> None:
            _replace_weight(rw, model, node, codes, scales, axis)

        kept = int((factor == 1.0).sum())
        yield mended("weight-zeros", node, f"zero point 0, {kept} of {factor.size} channels keep their integers", apply)


def lower_weights(model: Model, target: Target) -> Iterator[Patch]:
    """Halve integers that are too large for products of 16 bits, and double their scales."""
    for node, _, weight in _weighted(model, target):
        if target.weights.limit >= INT8.top or weight.values is None or weight.block or weight.values.dtype != np.int8:
            continue
        top = int(np.abs(weight.values.astype(np.int64)).max(initial=0))
        zeros = weight.zero is not None and weight.zero.astype(np.int64).any()
        if top <= target.weights.limit or zeros or weight.scale is None or pair_before(node.inputs[0]) is None:
            continue
        factor = np.float32(top / target.weights.limit)
        codes = np.rint(weight.values / factor).astype(np.int8)
        scales = np.asarray(weight.scale, np.float32) * factor

        def apply(
            rw: Rewriter, node: Node = node, weight: Restored = weight, codes: Any = codes, s: Any = scales
        ) -> None:
            _replace_weight(rw, model, node, codes, s, weight.axis)

        yield mended("weight-limit", node, f"weight up to {target.weights.limit} instead of {top}", apply)


def _replace_weight(
    rw: Rewriter, model: Model, node: Node, codes: NDArray[np.int8], scales: NDArray[np.float32], axis: int | None
) -> None:
    old = node.inputs[1]
    steps = scales.reshape(()) if axis is None else scales.reshape(-1)
    made = PairWriter(model.opset).integers(rw, node, old, codes, INT8, steps, axis=axis)
    rw.set_input(node, 1, made)
    erase_idle(rw, [old])


def round_biases(model: Model, target: Target) -> Iterator[Patch]:
    """Put biases on the product of the scales of input and weight: those on another one, and those that are float."""
    for node, rule, weight in _weighted(model, target):
        grid = grid_before(node.inputs[0])
        bias = None if rule.bias is None or len(node.inputs) <= rule.bias else node.inputs[rule.bias]
        if grid is None or bias is None or bias.is_empty() or weight.scale is None:
            continue
        if float(node.attrs.get("beta", 1.0)) != 1.0 or float(node.attrs.get("alpha", 1.0)) != 1.0 or weight.block:
            continue
        value, step = _bias_value(bias), grid.scale
        scales = np.asarray(weight.scale, np.float32).reshape(-1)
        if value is None or not _is_along_outputs(node, weight):
            continue
        full = value if node.op != "Gemm" else _per_output(node, weight, value)
        rounds_itself = constant_value(bias) is not None and (
            rule.needs_output_grid or bool(roundings_of(behind(node)))
        )
        if full.size == value.size and (rounds_itself or _lies_on(bias, step, scales)):
            continue
        value = full
        codes, steps = quantize_bias(value, step, scales)
        if np.abs(codes.astype(np.int64)).max(initial=0) >= BIAS_LIMIT:
            continue

        def apply(rw: Rewriter, node: Node = node, codes: Any = codes, steps: Any = steps) -> None:
            old, name = node.inputs[2], f"{short_name(node.outputs[0])}_bias"
            one = steps.size == 1
            rounded = rw.constant(codes, name=f"{name}_quantized", near=node)
            scale = rw.constant(steps.reshape(()) if one else steps, name=f"{name}_scale", near=node)
            attrs: dict[str, object] = {} if one else {"axis": 0}
            made = conversion(rw, "DequantizeLinear", [rounded, scale], attrs=attrs, near=node)
            rw.set_type(made, np.dtype(np.float32), list(codes.shape))
            rw.set_input(node, 2, made)
            erase_idle(rw, [old])

        what = "bias to int32" if constant_value(bias) is not None else "bias on the product of the scales"
        yield mended("bias-scale", node, what, apply)


def _is_along_outputs(node: Node, weight: Restored) -> bool:
    if weight.axis is None:
        return True
    return weight.values is not None and weight.axis % weight.values.ndim == output_axis(node, weight.values.ndim)


def _bias_value(bias: Tensor) -> NDArray[np.float32] | None:
    """Return the real values of a bias with one value per output, constant or restored from a constant."""
    value = constant_value(bias)
    value = stored_values(bias) if value is None else value
    if value is None or value.dtype != np.float32 or not np.isfinite(value).all():
        return None
    if value.size != max(value.shape, default=1):
        return None
    return np.asarray(value, np.float32).reshape(-1)


def _per_output(node: Node, weight: Restored, bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a bias with one value per output: the integer kernel reads as many, also where there is one for all."""
    if bias.size > 1 or weight.values is None:
        return bias
    return np.ascontiguousarray(np.broadcast_to(bias, weight.values.shape[output_axis(node, weight.values.ndim)]))


def _lies_on(bias: Tensor, step: np.float32, scales: NDArray[np.float32]) -> bool:
    found = restored(bias)
    if found is None or found.scale is None or found.number != "int32" or found.axis not in {None, 0, -1}:
        return False
    given = np.asarray(found.scale, np.float64).reshape(-1)
    wanted = float(step) * scales.astype(np.float64)
    return given.size == wanted.size and bool(np.allclose(given, wanted, rtol=SAME_SCALE, atol=0.0))


def fold_normalization(model: Model, target: Target) -> Iterator[Patch]:
    """Let the scales of a convolution's weight take a BatchNormalization behind it, a pair between the two included.

    The integers stay, but for the sign of channels whose factor is negative.
    """
    for node, rule, weight in _weighted(model, target):
        found = _normalization(node) if node.op == "Conv" and _is_symmetric(weight) else None
        if found is None:
            continue
        norm, pair = found
        gamma, beta, mean, variance = (np.asarray(constant_value(each), np.float64) for each in norm.inputs[1:5])
        factor = gamma / np.sqrt(variance + float(norm.attrs.get("epsilon", EPSILON)))
        bias = node.inputs[rule.bias] if rule.bias is not None and len(node.inputs) > rule.bias else None
        given = np.zeros(factor.size) if bias is None or bias.is_empty() else _bias_value(bias)
        if given is None or not np.isfinite(factor).all() or not factor.any():
            continue
        shifted = ((given - mean) * factor + beta).astype(np.float32)

        def apply(
            rw: Rewriter,
            node: Node = node,
            norm: Node = norm,
            pair: Pair | None = pair,
            weight: Restored = weight,
            factor: Any = factor,
            shifted: Any = shifted,
        ) -> None:
            assert weight.values is not None
            signs = np.sign(factor).reshape(-1, *[1] * (weight.values.ndim - 1))
            codes = np.clip(weight.values.astype(np.int64) * signs, INT8.bottom, INT8.top).astype(np.int8)
            scales = np.broadcast_to(np.asarray(weight.scale, np.float64).reshape(-1), factor.shape) * np.abs(factor)
            scales = np.where(factor == 0, scales.max(), scales)  # of zeros; any scale restores them
            _replace_weight(rw, model, node, codes, scales.astype(np.float32), 0)
            old = list(node.inputs[2:])
            rw.set_input(node, 2, rw.constant(shifted, name=f"{short_name(node.outputs[0])}_bias", near=node))
            erase_idle(rw, old)
            if pair is not None:
                drop(rw, pair, pair.rounding.inputs[0])
            rw.replace_tensor(norm.outputs[0], node.outputs[0])
            rw.erase([norm])

        yield mended("batch-norm", node, "BatchNormalization into the scales of its weight", apply)


def _is_symmetric(weight: Restored) -> bool:
    return _is_int8(weight) and weight.axis in {None, 0}


def _is_int8(weight: Restored) -> bool:
    """Tell whether a weight is int8 around 0."""
    if weight.values is None or weight.values.dtype != np.int8 or weight.block:
        return False
    return weight.scale is not None and not (weight.zero is not None and weight.zero.astype(np.int64).any())


def _normalization(node: Node) -> tuple[Node, Pair | None] | None:
    """Return the BatchNormalization that alone reads a node, with the pair between them."""
    tensor, pair = node.outputs[0], None
    readers = uses(tensor)
    if len(readers) != 1 or is_graph_output(tensor):
        return None
    if (pair := read_pair(readers[0].node)) is not None:
        if len(pair.restores) != 1 or is_graph_output(pair.restores[0].outputs[0]) or stands_for_relu(pair):
            return None
        readers = uses(pair.restores[0].outputs[0])
    norm = readers[0].node if len(readers) == 1 else None
    if norm is None or norm.op != "BatchNormalization" or readers[0].index != 0 or len(norm.inputs) < 5:
        return None
    is_plain = not norm.attrs.get("training_mode") and sum(not each.is_empty() for each in norm.outputs) == 1
    return (norm, pair) if is_plain and all(constant_value(each) is not None for each in norm.inputs[1:5]) else None


def _weighted(model: Model, target: Target) -> Iterator[tuple[Node, OpRule, Restored]]:
    """Yield the operators with a rounded constant weight."""
    for node in list(model.graph.nodes):
        rule = target.rule(node)
        if rule is None or rule.role is not Role.WEIGHTED or rule.weight is None or len(node.inputs) <= rule.weight:
            continue
        weight = restored(node.inputs[rule.weight])
        if weight is None or not weight.is_constant or producer(node.inputs[0]) is None:
            continue
        if weight.scale is not None and weight.scale.dtype == np.float32:
            yield node, rule, weight
