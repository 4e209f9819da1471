"""ONNX Runtime on x86 CPUs: which operators have integer kernels, and what each needs to be fused into one.

Activations are uint8 always: ONNX Runtime turns signed activations into unsigned ones only where one node reads them,
so every residual branch would stay float. Weights are int8, symmetric, one scale per output channel: the only pair that
VNNI instructions multiply at full speed.

Conditions that every group of DequantizeLinear, operator and QuantizeLinear must meet (the audit names them):

* G1: every input that the operator has comes from a DequantizeLinear;
* G2: the output goes to one QuantizeLinear and nothing else, and is not an output of the graph;
* G3: a dequantized input is not an output of the graph;
* G4: a Relu or Clip between operator and QuantizeLinear cuts off nothing that the grid can express: after Relu the zero
  point is 0, after Clip the grid ends inside the bounds;
* G5: scales and zero points of activations are constants with one element, and zero points are written out.

Rules below were checked one by one on ONNX Runtime 1.31; ``tests/target/test_ort_cpu_fusion.py`` checks them again on
the version installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.target.fusion_checks import FUSION
from graphopt.target.refusals import (
    refuse_average_pool,
    refuse_conv,
    refuse_gemm,
    refuse_matmul,
    refuse_max_pool,
    refuse_pad,
    refuse_resize,
)
from graphopt.target.rules import OpRule, Role, Target
from graphopt.target.stored import weight_shape

if TYPE_CHECKING:
    from graphopt.graph import Node


def _refuse_conv(node: Node) -> str | None:
    shape = weight_shape(node.inputs[1])
    if shape is not None and len(shape) >= 3 and shape[1] == 1 and int(node.attrs.get("group", 1)) == 1:
        return "one input channel: gathering its patches byte by byte costs more than integer products save"
    return refuse_conv(node)


def _weighted(op: str, kernel: str, **options: Any) -> OpRule:
    return OpRule(op=op, role=Role.WEIGHTED, kernel=kernel, weight=1, bias=2, **options)


def _join(op: str, kernel: str, **options: Any) -> OpRule:
    return OpRule(op=op, role=Role.JOIN, kernel=kernel, **options)


def _move(op: str, since: int = 10, **options: Any) -> OpRule:
    return OpRule(op=op, role=Role.MOVE, kernel=f"{op} of uint8", since=since, **options)


RULES = (
    # operator            integer kernel             what it needs
    _weighted("Conv", "QLinearConv", refuse=_refuse_conv),
    _weighted("Gemm", "QGemm", refuse=refuse_gemm, needs_output_grid=False),
    OpRule(
        op="MatMul",
        role=Role.WEIGHTED,
        kernel="MatMulIntegerToFloat",
        weight=1,
        needs_output_grid=False,
        refuse=refuse_matmul,
    ),
    _join("Add", "QLinearAdd", data=(0, 1), constant_operand=True),
    _join("Mul", "QLinearMul", data=(0, 1), constant_operand=True),
    _join("Concat", "QLinearConcat", data=None),
    _join("AveragePool", "QLinearAveragePool", refuse=refuse_average_pool),
    _join("GlobalAveragePool", "QLinearGlobalAveragePool"),
    _join("Sigmoid", "QLinearSigmoid", fixed_range=(0.0, 1.0)),
    _join("Softmax", "QLinearSoftmax", fixed_range=(0.0, 1.0)),
    _join("LeakyRelu", "QLinearLeakyRelu"),
    _move("MaxPool", since=12, refuse=refuse_max_pool),
    _move("Reshape"),
    _move("Transpose"),
    _move("Flatten"),
    _move("Squeeze"),
    _move("Unsqueeze"),
    _move("Slice"),
    _move("Gather"),
    _move("GatherElements", since=11),
    _move("Expand"),
    _move("Tile"),
    _move("Split"),
    _move("Identity"),
    _move("Pad", since=11, refuse=refuse_pad),
    _move("Resize", since=11, refuse=refuse_resize),
    _move("DepthToSpace", since=13),
    OpRule(op="Relu", role=Role.ABSORBED, kernel="none: the rounding of the tensor before it"),
    OpRule(op="Clip", role=Role.ABSORBED, kernel="none: the rounding of the tensor before it"),
)

FLOAT_ONLY = (
    *("HardSwish", "HardSigmoid", "Tanh", "Gelu", "Erf", "Exp", "Sqrt", "Neg", "Sub", "Div", "Pow", "Min", "Max"),
    *("ReduceMean", "ReduceSum", "SpaceToDepth", "LayerNormalization", "InstanceNormalization", "Elu", "Selu"),
    *("BatchNormalization", "ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "PRelu"),
)

NO_INTEGER_KERNEL = "ONNX Runtime has no integer kernel for it"

ORT_CPU = Target(
    name="ort-cpu",
    rules={rule.op: rule for rule in RULES},
    float_reason=dict.fromkeys(FLOAT_ONLY, NO_INTEGER_KERNEL),
    integer_kernels=frozenset(
        (
            *("QLinearConv", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool", "QLinearSigmoid"),
            *("QLinearGlobalAveragePool", "QLinearSoftmax", "QLinearLeakyRelu", "QLinearMatMul", "QGemm"),
            *("QLinearWhere", "QLinearReduceMean", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
            *("ConvInteger", "MatMulNBits", "DynamicQuantizeLSTM"),
        )
    ),
    runtime="ONNX Runtime",
    dynamic=True,
    integer_tables=True,
    session={},
    checks=FUSION,
    per_channel_since=13,
)
