"""Random layers with random neighbours, lowered and run beside what they were."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.analysis.cost_table import CostTable, KernelGrid
from graphopt.passes.lower.lower_low_bit_matmul import LowerLowBitMatmul
from graphopt.passes.lower.lower_sparse_conv import LowerSparseConv
from graphopt.passes.lower.lower_sparse_int8_conv import LowerSparseInt8Conv
from graphopt.passes.lower.lower_sparse_int8_matmul import LowerSparseInt8Matmul
from graphopt.passes.lower.lower_sparse_matmul import LowerSparseMatmul
from graphopt.runtime import run, session
from pass_oracle import check_pass, parse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx

    from graphopt.passes.lower.costed import CostedLowering

SPARSE = ("sparse-matmul", "sparse-conv", "sparse-conv-1x1")
INT8 = ("sparse-int8-matmul-1x4", "sparse-int8-matmul-4x4", "sparse-int8-conv-1x4", "sparse-int8-conv-4x4")
BITS = (1, 2, 3, 4, 8)
X_SCALE, X_ZERO, W_SCALE, Y_ZERO = 1 / 32, 120, 1 / 512, 90
STEEPEST = 1.13  # of Gelu


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cost table by which every kernel is faster whatever it is given."""

    def grid(levels: tuple[float, ...], speed: float) -> KernelGrid:
        return KernelGrid((1,), (1,), levels, {"avx512vnni": np.full((1, 1, len(levels)), speed)})

    kernels = {name: grid((0.0, 1.0), 2.0) for name in (*SPARSE, *INT8)}
    kernels |= {name: grid((8,), 1.0) for name in ("dense-int8-matmul", "dense-int8-conv")}
    kernels |= {name: grid(BITS, 2.0) for name in ("low-bit-matmul", "low-bit-matmul-float")}
    path: Path = tmp_path_factory.mktemp("table") / "table.json"
    path.write_text(CostTable(kernels, 0.1, "a test").to_json(), encoding="utf-8")
    return str(path)


@dataclass
class Layer:
    """A layer under construction.

    Attributes:
        op: MatMul, Gemm or Conv.
        number: What its weight is: float, int8 or bits.
        y_shape: Of its result.
        opset: Version of the ONNX domain.
        bound: What no value of its result exceeds.
        error: How far values may lie apart because roundings between are left out.
    """

    op: str
    number: str
    y_shape: tuple[int, ...]
    opset: int
    bound: float = 0.0
    error: float = 0.0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{op}_{name}", **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def input(self, name: str, number: int, shape: tuple[int, ...]) -> str:
        self.inputs[name] = (number, shape)
        return name

    def grid(self) -> tuple[str, str]:
        """A grid that cuts no value."""
        return self.constant(self.bound / 80), self.constant(Y_ZERO, np.uint8)

    def model(self, output: str, number: int) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "y"
        assert self.nodes[-1].name.endswith(output)
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(name, *typed) for name, typed in self.inputs.items()],
            [helper.make_tensor_value_info("y", number, self.y_shape)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)


def weights(draw: st.DrawFn, layer: Layer, shape: tuple[int, ...], *, turned: bool = False) -> str:
    """A weight of which two thirds of the fours are zero, as the layer's kind stores it."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    outputs = shape[0] if layer.op == "Conv" or turned else shape[1]
    terms = int(np.prod(shape)) // outputs
    mask = np.repeat(rng.random((outputs, -(-terms // 4))) < 1 / 3, 4, 1)[:, :terms]
    mask = mask.reshape(shape) if layer.op == "Conv" or turned else mask.T
    if layer.number == "float":
        w = np.where(mask, rng.standard_normal(shape), 0).astype(np.float32)
        layer.bound = float(np.abs(w).sum()) * 4
        return layer.constant(w)
    w = np.where(mask, rng.integers(-127, 128, shape), 0)
    by_output = np.abs(w if layer.op == "Conv" or turned else w.T).reshape(outputs, -1)
    layer.bound = float(by_output.sum(axis=1).max()) * W_SCALE * 4.3 + 1  # a bias is 1 at most
    return layer.node("DequantizeLinear", [layer.constant(w, np.int8), layer.constant(W_SCALE)])


def activations(layer: Layer, shape: tuple[int, ...]) -> str:
    if layer.number != "int8":
        return layer.input("x", TensorProto.FLOAT, shape)
    q = layer.input("x", TensorProto.UINT8, shape)
    return layer.node("DequantizeLinear", [q, layer.constant(X_SCALE), layer.constant(X_ZERO, np.uint8)])


def product(draw: st.DrawFn, number: str, opset: int) -> tuple[Layer, str]:
    m, k, n = draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(st.integers(1, 20))
    op = draw(st.sampled_from(["MatMul", "Gemm"]))
    leading = (draw(st.integers(1, 2)), m) if op == "MatMul" and draw(st.booleans()) else (m,)
    layer = Layer(op, number, (*leading, n), opset)
    turned = op == "Gemm" and draw(st.booleans())
    inputs = [activations(layer, (*leading, k)), weights(draw, layer, (n, k) if turned else (k, n), turned=turned)]
    if op == "Gemm" and draw(st.booleans()):
        inputs.append(layer.constant(np.linspace(-1, 1, n)))
    return layer, layer.node(op, inputs, **({"transB": 1} if turned else {}))


def convolution(draw: st.DrawFn, number: str, opset: int) -> tuple[Layer, str]:
    axes, group = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2]))
    channels, outputs = draw(st.integers(2, 6)), draw(st.integers(1, 6)) * group
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    strides = [draw(st.integers(1, 2)) for _ in range(axes)]
    sizes = [draw(st.integers(5, 9)) for _ in range(axes)]
    automatic = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    window: dict[str, Any] = {"strides": strides, "group": group, "auto_pad": automatic}
    if automatic == "NOTSET":
        pads = [draw(st.integers(0, 2)) for _ in range(2 * axes)]
        dilations = [draw(st.integers(1, 2)) for _ in range(axes)]
        window |= {"pads": pads, "dilations": dilations}
        extents = [
            (size + pads[i] + pads[i + axes] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
            for i, size in enumerate(sizes)
        ]
    elif automatic == "VALID":
        extents = [(size - kernel[i]) // strides[i] + 1 for i, size in enumerate(sizes)]
    else:
        extents = [-(-size // strides[i]) for i, size in enumerate(sizes)]
    batch = draw(st.integers(1, 2))
    layer = Layer("Conv", number, (batch, outputs, *extents), opset)
    inputs = [activations(layer, (batch, channels * group, *sizes))]
    inputs.append(weights(draw, layer, (outputs, channels, *kernel)))
    if draw(st.booleans()):
        inputs.append(layer.constant(np.linspace(-1, 1, outputs)))
    return layer, layer.node("Conv", inputs, **window)


def follow(draw: st.DrawFn, layer: Layer, y: str, step: str) -> str:
    """One more node, or several that belong together."""
    layer.bound += 1 if step == "bias" else 4 if step == "sum" else 0
    match step:
        case "bias":
            n = layer.y_shape[1 if layer.op == "Conv" else -1]
            shape = (n, *[1] * (len(layer.y_shape) - 2)) if layer.op == "Conv" else (n,)
            added = [y, layer.constant(np.linspace(-1, 1, n).reshape(shape))]
            return layer.node("Add", added if draw(st.booleans()) else added[::-1])
        case "sum":
            return layer.node("Add", [y, layer.input(f"r{len(layer.nodes)}", TensorProto.FLOAT, layer.y_shape)])
        case "clip":
            low, high = draw(st.sampled_from([(0.0, 6.0), (-1.0, 1.5), (0.5, 0.5)]))
            return layer.node("Clip", [y, layer.constant(low), layer.constant(high)])
        case "silu" if layer.opset >= 24 and draw(st.booleans()):
            return layer.node("Swish", [y])
        case "silu":
            return layer.node("Mul", [y, layer.node("Sigmoid", [y])])
        case "gelu" if layer.opset < 20:
            erf = layer.node("Erf", [layer.node("Div", [y, layer.constant(np.sqrt(2))])])
            half = layer.node("Mul", [y, layer.constant(0.5)])
            return layer.node("Mul", [half, layer.node("Add", [erf, layer.constant(1)])])
        case "gelu":
            return layer.node("Gelu", [y], approximate=draw(st.sampled_from(["none", "tanh"])))
        case "pair":
            scale, zero = layer.grid()
            layer.error += layer.bound / 80 * 1.02  # left out half a step, or one where what was before moved it
            return layer.node("DequantizeLinear", [layer.node("QuantizeLinear", [y, scale, zero]), scale, zero])
        case _:
            return layer.node("Relu", [y])


@st.composite
def layers(draw: st.DrawFn, op: str, number: str) -> tuple[Layer, onnx.ModelProto]:
    """A model of one layer and up to four steps behind it; the last may round to bytes."""
    opset = draw(st.sampled_from([13, 17, 20, 21, 24]))
    layer, y = (convolution if op == "Conv" else product)(draw, number, opset)
    steps = ["bias", "sum", "relu", "clip", "silu", "gelu"] + ["pair"] * 3 * (number == "int8")
    for step in draw(st.lists(st.sampled_from(steps), max_size=4)):
        y = follow(draw, layer, y, step)
    if number == "int8" and draw(st.booleans()):
        scale, zero = layer.grid()
        y = layer.node("QuantizeLinear", [y, scale, zero])
        return layer, layer.model(y, TensorProto.UINT8)
    return layer, layer.model(y, TensorProto.FLOAT)


def some_inputs(layer: Layer) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(layer.nodes))
    return {
        name: rng.integers(0, 256, shape).astype(np.uint8)
        if number == TensorProto.UINT8
        else np.clip(rng.standard_normal(shape), -4, 4).astype(np.float32)
        for name, (number, shape) in layer.inputs.items()
    }


def check(step: CostedLowering, op: str, layer: Layer, model: onnx.ModelProto) -> None:
    done = check_pass(step, model, interpreted=False)
    assume(not any("would grow" in reason for reason in done.skips.values()))
    assert op in done.ops, done.skips
    feed = some_inputs(layer)
    before = run(session(parse(model), optimize="off"), feed)["y"]
    after = run(session(done.model, kernels=True), feed)["y"]
    assert before.dtype == after.dtype
    assert before.shape == after.shape
    error = layer.error * STEEPEST**2 + 1e-4 * layer.bound
    if before.dtype == np.uint8:
        assert np.abs(before.astype(int) - after).max(initial=0) <= 1 + error / (layer.bound / 80)
    else:
        assert np.abs(before - after).max(initial=0) <= error


few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(made=layers("Conv", "float"))
def test_lower_generated_sparse_convolutions(table: str, made: tuple[Layer, onnx.ModelProto]) -> None:
    check(LowerSparseConv(cost_table=table), "SparseConv", *made)


@few
@given(made=layers("MatMul", "float"))
def test_lower_generated_sparse_products(table: str, made: tuple[Layer, onnx.ModelProto]) -> None:
    check(LowerSparseMatmul(cost_table=table), "SparseMatMul", *made)


@few
@given(made=layers("Conv", "int8"))
def test_lower_generated_integer_convolutions(table: str, made: tuple[Layer, onnx.ModelProto]) -> None:
    check(LowerSparseInt8Conv(cost_table=table), "SparseInt8Conv", *made)


@few
@given(made=layers("MatMul", "int8"))
def test_lower_generated_integer_products(table: str, made: tuple[Layer, onnx.ModelProto]) -> None:
    check(LowerSparseInt8Matmul(cost_table=table), "SparseInt8MatMul", *made)


@few
@given(made=layers("MatMul", "bits"))
def test_lower_generated_products_of_few_bits(table: str, made: tuple[Layer, onnx.ModelProto]) -> None:
    check(LowerLowBitMatmul(cost_table=table, activations="float"), "LowBitMatMul", *made)
