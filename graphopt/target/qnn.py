"""QNN on Qualcomm HTP: every tensor is quantized, what is not runs on the CPU and cuts the model in pieces.

* Activations are uint8, uint16 or int16 with any zero point, one scale per tensor, no range below 0.0001.
* Weights of Conv and ConvTranspose are int8, symmetric, one scale per output channel; those of MatMul and Gemm uint8
  with one scale. Biases are int32 on the product of the scales of input and weight of their own consumer.
* Operators that only move data have equal grids before and behind them.
* Sigmoid and Softmax give 0 to 1; in 16 bits the scale is 1/65536 and the zero point 0, that of Tanh 1/32768 and 32768.
* Models that normalize, divide or take powers have activations of 16 bits unless told otherwise.
* Attention masks become -64: what a Softmax makes of it is below the smallest step of its output.
* A Relu or Clip that the grid behind it makes redundant is taken out.

Source: ONNX Runtime 1.31, execution provider QNN; Qualcomm AI Engine Direct operator definitions.
"""

from __future__ import annotations

from typing import Any

from graphopt.target import checks
from graphopt.target.numbers import INT16, UINT8, UINT16
from graphopt.target.refusals import (
    refuse_conv,
    refuse_conv_transpose,
    refuse_gemm,
    refuse_matmul,
    refuse_max_pool,
)
from graphopt.target.rules import BiasForm, OpRule, Pairs, Role, Target, WeightForm, WeightKind

ONE_SCALE = WeightKind(number=UINT8, symmetric=False, channels=False)
PER_CHANNEL = WeightKind()
UNIT_16 = {"uint16": (1 / 65536, 0), "int16": (1 / 32768, 0)}
TANH_16 = {"uint16": (1 / 32768, 32768), "int16": (1 / 32768, 0)}


def _weighted(op: str, bias: int | None, weights: WeightKind, **options: Any) -> OpRule:
    return OpRule(op=op, role=Role.WEIGHTED, kernel=f"quantized {op}", weight=1, bias=bias, weights=weights, **options)


def _join(op: str, data: tuple[int, ...] | None = None, **options: Any) -> OpRule:
    return OpRule(op=op, role=Role.JOIN, kernel=f"quantized {op}", data=data, constant_operand=True, **options)


def _move(op: str, **options: Any) -> OpRule:
    return OpRule(op=op, role=Role.MOVE, kernel=f"quantized {op}", **options)


RULES = (
    # operator, what it needs
    _weighted("Conv", 2, PER_CHANNEL, refuse=refuse_conv, otherwise=_join("Conv", (0, 1))),
    _weighted("ConvTranspose", 2, PER_CHANNEL, refuse=refuse_conv_transpose),
    _weighted("Gemm", 2, ONE_SCALE, refuse=refuse_gemm, otherwise=_join("Gemm")),
    _weighted("MatMul", None, ONE_SCALE, refuse=refuse_matmul, otherwise=_join("MatMul")),
    _join("Sigmoid", (0,), fixed_range=(0.0, 1.0), exact=UNIT_16),
    _join("Softmax", (0,), fixed_range=(0.0, 1.0), exact=UNIT_16),
    _join("Tanh", (0,), fixed_range=(-1.0, 1.0), exact=TANH_16),
    _join("Where", (1, 2)),
    _join("Resize", (0,)),
    *(_join(op, (0,)) for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "CumSum", "TopK")),
    _move("MaxPool", refuse=refuse_max_pool),
    *(_move(op) for op in ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Tile", "Slice")),
    *(_move(op) for op in ("Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "Expand")),
    *(_move(op) for op in ("Pad", "Identity")),
    OpRule(op="Relu", role=Role.ABSORBED, kernel="the grid of what it makes"),
    OpRule(op="Clip", role=Role.ABSORBED, kernel="the grid of what it makes"),
)

SENSITIVE = frozenset(
    (
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "ReduceL2", "Sqrt"),
        *("Exp", "Log", "Pow", "Div", "Reciprocal", "GRU", "LSTM"),
    )
)
"""Operators whose results span more than 8 bits hold: a model that has one takes 16."""

NOT_ON_HTP = (
    *("If", "Loop", "Scan", "Cast", "CastLike", "Constant", "ConstantOfShape", "Shape", "Size", "Range", "NonZero"),
    *("LSTM", "GRU", "RNN", "NonMaxSuppression", "OneHot", "RandomNormal", "RandomUniform", "Dropout", "EyeLike"),
    *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf"),
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ScatterND", "ScatterElements", "ArgMax"),
    *("ArgMin", "Einsum"),
)

QNN = Target(
    name="qnn",
    runtime="QNN",
    rules={rule.op: rule for rule in RULES},
    float_reason=dict.fromkeys(NOT_ON_HTP, "it has no quantized form; it and its neighbours run on the CPU"),
    default_rule=_join,
    activations=(UINT8, UINT16, INT16),
    wide=UINT16,
    wide_operators=SENSITIVE,
    least_range=1e-4,
    mask=-64.0,
    weights=PER_CHANNEL,
    pairs=Pairs.EVERYTHING,
    weight_form=WeightForm.INTEGERS,
    bias_form=BiasForm.INT32,
    absorbs=True,
    checks=(
        checks.OPERATORS,
        checks.TYPES,
        checks.ONE_SCALE,
        checks.COVERED,
        checks.WEIGHT_AXIS,
        checks.WEIGHT_CHANNELS,
        checks.BIAS_SCALE,
        checks.EQUAL_GRIDS,
        checks.FIXED_GRIDS,
        checks.LEAST_RANGE,
    ),
)
