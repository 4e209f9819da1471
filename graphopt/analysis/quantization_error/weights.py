"""The weights of two models side by side: what rounding left of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics import stream
from graphopt.analysis.tensor_grid import is_conversion, restored_values, written_grid
from graphopt.graph import constant_value, producer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.analysis.quantization_error.matching import Pair
    from graphopt.analysis.quantization_error.view import View
    from graphopt.graph import Node, Tensor

WEIGHTS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1, "LSTM": 1, "GRU": 1, "RNN": 1, "Gather": 1}
"""Operator to the axis of its weight that counts output channels."""

BIASED = frozenset(("Conv", "ConvTranspose", "Gemm"))
SMALLEST_STEP = 1e-6
"""Differences below this share of the largest magnitude are rounding of float32."""

MOST_STEPS = 300
"""Steps of 8 bits, symmetric or not, with room to spare."""
INT32_TOP = 2**31 - 2
"""A rounded bias of this size or more stands at the end of its type: it did not fit."""


@dataclass(frozen=True, slots=True)
class WeightError:
    """What became of the weight of one layer.

    Attributes:
        sqnr_db: Energy of the float weight over that of the difference; infinite for equal ones.
        channel_ratio: Largest magnitude of a channel over the smallest, channels of zeros aside.
        shared_scale: Whether all channels lie on one grid.
        bias_sqnr_db: The same as ``sqnr_db`` of the bias, or None where there is none to compare.
        bias_overflows: Whether a rounded bias stands at the end of int32.
    """

    sqnr_db: float
    channel_ratio: float
    shared_scale: bool
    bias_sqnr_db: float | None = None
    bias_overflows: bool = False


def compare_weights(model: View, quantized: View, pair: Pair) -> WeightError | None:
    """Return what became of the weight of the layer that makes a tensor; None where there is none to compare.

    A weight into which something was folded differs for other reasons than rounding, and is not compared.
    """
    if pair.node is None or pair.counterpart is None or pair.node.op not in WEIGHTS or pair.how == "absorbed":
        return None
    mine, theirs = constant_values(model, pair.node), constant_values(quantized, _multiplying(pair.counterpart))
    if mine is None or theirs is None:
        return None
    other = _turned(mine, theirs)
    if other is None:
        return None
    axis = WEIGHTS[pair.node.op] % mine.ndim
    if pair.node.op == "Gemm" and pair.node.attrs.get("transB", 0):
        axis = 0
    tops = np.abs(mine).max(axis=tuple(i for i in range(mine.ndim) if i != axis), initial=0.0)
    tops = tops[tops > 0]
    ratio = float(tops.max() / tops.min()) if tops.size else 1.0
    bias, overflows = _bias(model, quantized, pair)
    return WeightError(_sqnr_db(mine, other), ratio, _has_one_step(other), bias, overflows)


def _multiplying(node: Node) -> Node:
    """Return the product that an Add of a bias stands behind, or the node itself."""
    makers = [producer(each) for each in node.inputs] if node.op == "Add" else []
    return next((each for each in makers if each is not None and each.op == "MatMul"), node)


def constant_values(view: View, node: Node) -> NDArray[Any] | None:
    """Return the largest constant that a node reads, restored from whatever form it is stored in; None for none."""
    found = [each for each in node.inputs if not each.is_empty() and view.is_constant(each)]
    values = [value for value in (constant_of(view, each) for each in found[:3]) if value is not None]
    values = [value for value in values if value.dtype.kind == "f" and value.ndim > 1]
    return max(values, key=lambda value: value.size, default=None)


def constant_of(view: View, tensor: Tensor) -> NDArray[Any] | None:
    """Return the value of a tensor that is computed from constants, in float64 where it is real."""
    value = constant_value(tensor)
    node = producer(tensor)
    if value is None and node is not None and is_conversion(node, "DequantizeLinear"):
        codes = constant_value(node.inputs[0])
        value = None if codes is None else restored_values(codes, written_grid(node))
    if value is None and tensor.name and view.is_constant(tensor):
        value = next(stream(view.model, [tensor.name], [{}]))[tensor.name]
    return value


def likeness(one: NDArray[Any] | None, other: NDArray[Any] | None) -> float:
    """Return the cosine between two weights; -1 where their shapes do not fit, or there is none."""
    if one is None or other is None:
        return -1.0
    turned = _turned(one, other)
    if turned is None:
        return -1.0
    a, b = one.astype(np.float64).ravel(), turned.astype(np.float64).ravel()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0


def _turned(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any] | None:
    """Return the other weight in the layout of the one, or None where it has no such form."""
    if one.shape != other.shape:
        return np.ascontiguousarray(other.T) if one.shape == other.shape[::-1] and one.ndim == 2 else None
    if one.ndim == 2 and one.shape[0] == one.shape[1]:
        straight = np.square(one - other, dtype=np.float64).sum()
        return other if straight <= np.square(one - other.T, dtype=np.float64).sum() else np.ascontiguousarray(other.T)
    return other


def _sqnr_db(signal: NDArray[Any], other: NDArray[Any]) -> float:
    power = float(np.square(signal, dtype=np.float64).sum())
    noise = float(np.square(signal.astype(np.float64) - other).sum())
    if noise == 0.0:
        return float("inf")
    return float(10 * np.log10(power / noise)) if power > 0 else float("-inf")


def _has_one_step(weight: NDArray[Any]) -> bool:
    """Tell whether all values are small whole multiples of one step, as those of 8 bits with one scale are."""
    found = np.unique(np.append(np.abs(weight.ravel()).astype(np.float64), 0.0))
    gaps = np.diff(found)
    gaps = gaps[gaps > SMALLEST_STEP * (found[-1] or 1.0)]
    if not gaps.size or found[-1] / gaps.min() > MOST_STEPS:
        return False
    multiples = found / gaps.min()
    return bool((np.abs(multiples - np.rint(multiples)) < 0.02).all())


def _bias(model: View, quantized: View, pair: Pair) -> tuple[float | None, bool]:
    node, other = pair.node, pair.counterpart
    assert node is not None
    assert other is not None
    if node.op not in BIASED or node.op != other.op or len(node.inputs) < 3 or len(other.inputs) < 3:
        return None, False
    mine, theirs = (constant_of(view, each.inputs[2]) for view, each in ((model, node), (quantized, other)))
    if mine is None or theirs is None or mine.size != theirs.size:
        return None, False
    maker = producer(other.inputs[2])
    codes = None if maker is None or not maker.inputs else constant_value(maker.inputs[0])
    overflows = (
        codes is not None and codes.dtype == np.int32 and bool((np.abs(codes.astype(np.int64)) >= INT32_TOP).any())
    )
    return _sqnr_db(mine.ravel(), theirs.ravel()), overflows
