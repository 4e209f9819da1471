"""Why single operators cannot take an integer form, in words for the owner of the model; targets share them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value
from graphopt.target.stored import NOT_FINITE, stored_weight, weight_value

if TYPE_CHECKING:
    from graphopt.graph import Node


def refuse_weight(node: Node, axis: int) -> str | None:
    """Return why the grid of a weight that is rounded already suits no integer kernel, or None where it does.

    Args:
        node: The operator.
        axis: The axis of its weight that counts outputs.
    """
    value = constant_value(node.inputs[1])
    if value is not None and value.dtype.kind == "f" and not np.isfinite(value).all():
        return NOT_FINITE
    stored = stored_weight(node.inputs[1])
    if isinstance(stored, str):
        return stored
    if stored is not None and stored.axis not in {None, axis}:
        return "its weight has scales along another axis than its outputs"
    return None


def refuse_conv(node: Node) -> str | None:
    """Return why a Conv cannot convolve integers."""
    return _refuse_convolution(node, 0)


def refuse_conv_transpose(node: Node) -> str | None:
    """Return why a ConvTranspose cannot convolve integers."""
    return _refuse_convolution(node, 1)


def _refuse_convolution(node: Node, axis: int) -> str | None:
    """Return why a convolution whose weight has its outputs along an axis cannot convolve integers."""
    weight = weight_value(node.inputs[1])
    if weight is None:
        return refuse_weight(node, axis) or "the weight is not a constant"
    if not 3 <= weight.ndim <= 5:
        return f"a weight of rank {weight.ndim}: the integer kernel convolves over 1 to 3 axes"
    return refuse_weight(node, axis)


def refuse_gemm(node: Node) -> str | None:
    """Return why a Gemm cannot multiply integers."""
    weight = weight_value(node.inputs[1])
    if weight is None:
        return refuse_weight(node, 0) or "the second factor is not a constant"
    if node.attrs.get("transA", 0):
        return "transA = 1: the integer kernel reads the first factor as it is"
    if len(node.inputs) > 2 and node.inputs[2] is not None and not node.inputs[2].is_empty():
        bias = constant_value(node.inputs[2])
        if bias is None:
            return "the bias is not a constant"
        outputs = weight.shape[0] if node.attrs.get("transB", 0) else weight.shape[1]
        if bias.shape not in {(), (1,), (1, 1), (outputs,), (1, outputs)}:
            return f"a bias of shape {list(bias.shape)}: the integer kernel adds one value per output"
    return refuse_weight(node, 0 if node.attrs.get("transB", 0) else 1)


def refuse_matmul(node: Node) -> str | None:
    """Return why a MatMul cannot multiply integers."""
    weight = weight_value(node.inputs[1])
    if weight is None:
        return refuse_weight(node, 1) or "the second factor is not a constant (attention scores and values stay float)"
    if weight.ndim != 2:
        return f"a weight of rank {weight.ndim}: only matrices have one scale per output"
    return refuse_weight(node, 1)


def refuse_max_pool(node: Node) -> str | None:
    """Return why a MaxPool cannot move integers."""
    return "it also returns indices" if len(node.outputs) > 1 else None


def refuse_resize(node: Node) -> str | None:
    """Return why a Resize cannot move integers."""
    mode = node.attrs.get("mode", "nearest")
    return None if mode == "nearest" else f"mode {mode} computes new values and has no integer kernel"


def refuse_pad(node: Node) -> str | None:
    """Return why a Pad cannot move integers."""
    if node.attrs.get("mode", "constant") != "constant":
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and not node.inputs[2].is_empty():
        value = constant_value(node.inputs[2])
        if value is None or float(value.reshape(-1)[0]) != 0.0:
            return "it pads with a value other than 0, which the grid may not hold"
    return None


def refuse_average_pool(node: Node) -> str | None:
    """Return why an AveragePool cannot average integers."""
    dilations = node.attrs.get("dilations", [])
    return "dilations: the integer kernel has none" if any(d != 1 for d in dilations) else None
