"""TensorRT with explicit quantization: QuantizeLinear and DequantizeLinear say what is int8, the builder does the rest.

* Activations are int8, symmetric, one scale per tensor; fp8 (E4M3) from opset 19 on.
* Weights stay float behind a QuantizeLinear and a DequantizeLinear, one scale per output channel; biases stay float.
* Pairs stand before the inputs of operators that are to compute on integers, never behind them: the builder moves them
  through what commutes and fuses BatchNormalization, Relu and the residual Add itself.
* Of a residual Add only the skip branch has a pair: between the convolution and its Add there is none, so that both
  become one kernel.
* What reaches a Concat has one scale.
* Layers that tensor cores do not take (few channels, vectors) stay float: converting costs more than they save.

Source: NVIDIA TensorRT documentation, "Working with Quantized Types"; the settings of TensorRT Model Optimizer 0.47.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.target import checks
from graphopt.target.numbers import FP8, INT8
from graphopt.target.reading import shape_of, source_of
from graphopt.target.refusals import refuse_conv, refuse_conv_transpose, refuse_gemm, refuse_matmul, refuse_max_pool
from graphopt.target.rules import BiasForm, OpRule, Pairs, Role, Target, WeightForm, WeightKind

if TYPE_CHECKING:
    from graphopt.graph import Node

FEWEST_CHANNELS = 16
FEWEST_COLUMNS = 16
MOST_FP8_TAPS = 32


def few_channels(node: Node) -> str | None:
    """Return why a convolution is too narrow for tensor cores, or None where it is not."""
    shape = shape_of(node.inputs[1])
    if shape is None or len(shape) < 3:
        return None
    group, kernel = int(node.attrs.get("group", 1)), shape[2:]
    per_group, outputs = shape[1], shape[0]
    if node.op == "ConvTranspose":
        per_group, outputs = shape[0] // group, shape[1] * group
    if group > 1:
        fits = outputs % 8 == 0 and all(size >= 3 for size in kernel)
        return None if fits else f"{group} groups, {outputs} outputs, kernel {list(kernel)}: no integer kernel pays"
    if per_group >= FEWEST_CHANNELS and outputs >= FEWEST_CHANNELS:
        return None
    wide = max(per_group, outputs) >= FEWEST_CHANNELS or source_of(node.inputs[0]) is None
    square = len(set(kernel)) == 1
    if (per_group % 8 == 0 or outputs % 8 == 0) and wide and square:
        return None
    return f"{per_group} input and {outputs} output channels: fewer than {FEWEST_CHANNELS} leave tensor cores idle"


def narrow_matrix(node: Node) -> str | None:
    """Return why a matrix product is too narrow for tensor cores, or None where it is not."""
    shape = shape_of(node.inputs[1])
    if shape is None or len(shape) != 2:
        return None
    if min(shape) < FEWEST_COLUMNS:
        return f"a factor of {shape[0]} by {shape[1]}: below {FEWEST_COLUMNS} tensor cores do not multiply it"
    rows = list(node.inputs[0].shape or [])
    if node.op == "MatMul" and rows and all(isinstance(size, int) and size == 1 for size in rows[:-1]):
        return "one row: tensor cores do not multiply vectors"
    return None


def _weighted(op: str, bias: int | None, **options: Any) -> OpRule:
    return OpRule(
        op=op, role=Role.WEIGHTED, kernel=f"int8 {op}", weight=1, bias=bias, needs_output_grid=False, **options
    )


def _move(op: str, **options: Any) -> OpRule:
    return OpRule(op=op, role=Role.MOVE, kernel=f"{op} of int8", **options)


ONE_SCALE = WeightKind(channels=False)

RULES = (
    # operator, what it needs
    _weighted("Conv", 2, refuse=refuse_conv, unprofitable=few_channels),
    _weighted("ConvTranspose", 2, refuse=refuse_conv_transpose, unprofitable=few_channels),
    _weighted("Gemm", 2, refuse=refuse_gemm, unprofitable=narrow_matrix, weights=ONE_SCALE),
    _weighted("MatMul", None, refuse=refuse_matmul, unprofitable=narrow_matrix, weights=ONE_SCALE),
    OpRule(
        op="Add",
        role=Role.JOIN,
        kernel="the convolution before it",
        data=(0, 1),
        skip_only=True,
        needs_output_grid=False,
    ),
    OpRule(op="AveragePool", role=Role.JOIN, kernel="int8 AveragePool", needs_output_grid=False),
    OpRule(op="GlobalAveragePool", role=Role.JOIN, kernel="int8 GlobalAveragePool", needs_output_grid=False),
    OpRule(op="Concat", role=Role.MOVE, kernel="Concat of int8", data=None, one_grid=True),
    _move("MaxPool", refuse=refuse_max_pool),
)

COPIES = (
    *("ArgMax", "Gather", "GatherElements", "GatherND", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose"),
    *("Unsqueeze", "Where", "Flatten", "Expand", "Tile", "Identity"),
)
ACTIVATIONS = ("LeakyRelu", "Relu", "Sigmoid", "Softmax", "Tanh", "HardSigmoid", "HardSwish", "Clip", "Elu", "Gelu")

TENSORRT = Target(
    name="tensorrt",
    runtime="TensorRT",
    rules={rule.op: rule for rule in RULES},
    float_reason={
        **dict.fromkeys(COPIES, "it only copies: TensorRT moves the pairs through it"),
        **dict.fromkeys(ACTIVATIONS, "TensorRT fuses it into the layer before it"),
        "InstanceNormalization": "TensorRT normalizes in float",
        "LayerNormalization": "TensorRT normalizes in float",
        "BatchNormalization": "TensorRT fuses it into the convolution before it",
    },
    transparent=frozenset((*COPIES, *ACTIVATIONS)),
    activations=(INT8, FP8),
    symmetric=True,
    weights=WeightKind(),
    pairs=Pairs.INPUTS,
    weight_form=WeightForm.PAIRS,
    bias_form=BiasForm.FLOAT,
    checks=(
        checks.OPERATORS,
        checks.TYPES,
        checks.SYMMETRIC,
        checks.ONE_SCALE,
        checks.WEIGHT_AXIS,
        checks.WEIGHT_ROUNDED,
        checks.FLOAT_BIAS,
        checks.SKIP_ONLY,
        checks.NO_COPIES,
        checks.UNPROFITABLE,
        checks.CONCAT_GRID,
    ),
)
