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

from typing import TYPE_CHECKING

from graphopt.graph import constant_value
from graphopt.target.rules import OpRule, Role, Target
from graphopt.target.stored import stored_weight, weight_value

if TYPE_CHECKING:
    from graphopt.graph import Node


def _not_multiplied(node: Node, axis: int) -> str | None:
    """Return why the grid of a weight that is rounded already suits no integer kernel, or None where it does."""
    stored = stored_weight(node.inputs[1])
    if isinstance(stored, str):
        return stored
    if stored is not None and stored.axis not in {None, axis}:
        return "its weight has scales along another axis than its outputs"
    return None


def _refuse_conv(node: Node) -> str | None:
    weight = weight_value(node.inputs[1])
    if weight is None:
        return _not_multiplied(node, 0) or "the weight is not a constant"
    if not 3 <= weight.ndim <= 5:
        return f"a weight of rank {weight.ndim}: the integer kernel convolves over 1 to 3 axes"
    if weight.shape[1] == 1 and int(node.attrs.get("group", 1)) == 1:
        return "one input channel: gathering its patches byte by byte costs more than integer products save"
    return _not_multiplied(node, 0)


def _refuse_gemm(node: Node) -> str | None:
    weight = weight_value(node.inputs[1])
    if weight is None:
        return _not_multiplied(node, 0) or "the second factor is not a constant"
    if node.attrs.get("transA", 0):
        return "transA = 1: the integer kernel reads the first factor as it is"
    if len(node.inputs) > 2 and node.inputs[2] is not None and not node.inputs[2].is_empty():
        bias = constant_value(node.inputs[2])
        if bias is None:
            return "the bias is not a constant"
        outputs = weight.shape[0] if node.attrs.get("transB", 0) else weight.shape[1]
        if bias.shape not in {(), (1,), (1, 1), (outputs,), (1, outputs)}:
            return f"a bias of shape {list(bias.shape)}: the integer kernel adds one value per output"
    return _not_multiplied(node, 0 if node.attrs.get("transB", 0) else 1)


def _refuse_matmul(node: Node) -> str | None:
    weight = weight_value(node.inputs[1])
    if weight is None:
        return (
            _not_multiplied(node, 1) or "the second factor is not a constant (attention scores and values stay float)"
        )
    if weight.ndim != 2:
        return f"a weight of rank {weight.ndim}: only matrices have one scale per output"
    return _not_multiplied(node, 1)


def _refuse_max_pool(node: Node) -> str | None:
    return "it also returns indices" if len(node.outputs) > 1 else None


def _refuse_resize(node: Node) -> str | None:
    mode = node.attrs.get("mode", "nearest")
    return None if mode == "nearest" else f"mode {mode} computes new values and has no integer kernel"


def _refuse_pad(node: Node) -> str | None:
    if node.attrs.get("mode", "constant") != "constant":
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and not node.inputs[2].is_empty():
        value = constant_value(node.inputs[2])
        if value is None or float(value.reshape(-1)[0]) != 0.0:
            return "it pads with a value other than 0, which the grid may not hold"
    return None


def _refuse_average_pool(node: Node) -> str | None:
    dilations = node.attrs.get("dilations", [])
    return "dilations: the integer kernel has none" if any(d != 1 for d in dilations) else None


def _weighted(op: str, kernel: str, **options: object) -> OpRule:
    return OpRule(op=op, role=Role.WEIGHTED, kernel=kernel, weight=1, bias=2, **options)  # type: ignore[arg-type]


def _join(op: str, kernel: str, **options: object) -> OpRule:
    return OpRule(op=op, role=Role.JOIN, kernel=kernel, **options)  # type: ignore[arg-type]


def _move(op: str, since: int = 10, **options: object) -> OpRule:
    return OpRule(op=op, role=Role.MOVE, kernel=f"{op} of uint8", since=since, **options)  # type: ignore[arg-type]


RULES = (
    # operator            integer kernel             what it needs
    _weighted("Conv", "QLinearConv", refuse=_refuse_conv),
    _weighted("Gemm", "QGemm", refuse=_refuse_gemm, needs_output_grid=False),
    OpRule(
        op="MatMul",
        role=Role.WEIGHTED,
        kernel="MatMulIntegerToFloat",
        weight=1,
        needs_output_grid=False,
        refuse=_refuse_matmul,
    ),
    _join("Add", "QLinearAdd", data=(0, 1), constant_operand=True),
    _join("Mul", "QLinearMul", data=(0, 1), constant_operand=True),
    _join("Concat", "QLinearConcat", data=None),
    _join("AveragePool", "QLinearAveragePool", refuse=_refuse_average_pool),
    _join("GlobalAveragePool", "QLinearGlobalAveragePool"),
    _join("Sigmoid", "QLinearSigmoid", fixed_range=(0.0, 1.0)),
    _join("Softmax", "QLinearSoftmax", fixed_range=(0.0, 1.0)),
    _join("LeakyRelu", "QLinearLeakyRelu"),
    _move("MaxPool", since=12, refuse=_refuse_max_pool),
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
    _move("Pad", since=11, refuse=_refuse_pad),
    _move("Resize", since=11, refuse=_refuse_resize),
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
    activation_type="uint8",
    per_channel_since=13,
)
