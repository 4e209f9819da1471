"""fold-affine: every layer it folds into, on both sides, and every condition it refuses."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.graph import read_model
from graphopt.passes.simplify.fold_affine import FoldAffine
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = {np.float32: "float", np.float64: "double", np.float16: "float16"}


def model(
    nodes: str,
    x: tuple[Any, ...],
    *,
    rank: int | None = None,
    opset: int = 17,
    dtype: Any = np.float32,
    seed: int = 0,
    outputs: str = "",
    **weights: Any,
) -> onnx.ModelProto:
    """Return a model with random constants of these shapes; a number stands for a scalar of that value."""
    rng = np.random.default_rng(seed)
    kind = KINDS[dtype]
    result = ", ".join(f"d{i}" for i in range(len(x) if rank is None else rank))
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({kind}[{", ".join(map(str, x))}] x) => ({kind}[{result}] y{outputs}) {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    for name, size in weights.items():
        value = np.asarray(size) if isinstance(size, float) else np.asarray(rng.normal(0.5, 1, size))
        if name == "var":
            value = np.abs(value) + 0.1
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(dtype), name))
    return proto


CONV: dict[str, Any] = {"x": ("n", 3, 5, 5), "w": (4, 3, 2, 2)}
NORM = {"gamma": (3,), "beta": (3,), "mean": (3,), "var": (3,)}
FOLDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Conv and Mul": ({**CONV, "nodes": "h = Conv(x, w) y = Mul(h, c)", "c": (1, 4, 1, 1)}, ["Conv"]),
    "Conv, Mul from the left": ({**CONV, "nodes": "h = Conv(x, w, b) y = Mul(c, h)", "b": (4,), "c": (4, 1, 1)}, ["Conv"]),
    "Conv, Mul, Add": ({**CONV, "nodes": "h = Conv(x, w) k = Mul(h, c) y = Add(k, d)", "c": (1, 4, 1, 1), "d": (4, 1, 1)}, ["Conv"]),
    "Conv, Add, Mul": ({**CONV, "nodes": "h = Conv(x, w, b) k = Add(h, d) y = Mul(k, c)", "b": (4,), "c": 2.5, "d": (1, 4, 1, 1)}, ["Conv"]),
    "Conv, Sub": ({**CONV, "nodes": "h = Conv(x, w) y = Sub(h, c)", "c": (1, 4, 1, 1)}, ["Conv"]),
    "Conv, Sub from a constant": ({**CONV, "nodes": "h = Conv(x, w, b) y = Sub(c, h)", "b": (4,), "c": (4, 1, 1)}, ["Conv"]),
    "Conv, Div, Neg": ({**CONV, "nodes": "h = Conv(x, w) k = Div(h, c) y = Neg(k)", "c": 3.0}, ["Conv"]),
    "Conv by zero": ({**CONV, "nodes": "h = Conv(x, w) y = Mul(h, c)", "c": 0.0}, ["Conv"]),
    "grouped Conv": ({"x": ("n", 4, 5), "nodes": "h = Conv<group = 2>(x, w) y = Mul(h, c)", "w": (6, 2, 2), "c": (6, 1)}, ["Conv"]),
    "padded Conv behind": ({"x": ("n", 3, 5), "nodes": "h = Mul(x, c) y = Conv<pads = [1, 1]>(h, w)", "w": (4, 3, 2), "c": (3, 1)}, ["Conv"]),
    "grouped Conv behind": ({"x": ("n", 4, 5), "nodes": "h = Mul(x, c) k = Add(h, d) y = Conv<group = 2>(k, w)", "w": (6, 2, 2), "c": (4, 1), "d": (4, 1)}, ["Conv"]),
    "normalized input": ({"x": ("n", 3, 5), "nodes": "h = Sub(x, c) k = Div(h, d) y = Conv(k, w)", "w": (4, 3, 2), "c": (3, 1), "d": (3, 1)}, ["Conv"]),
    "ConvTranspose": ({"x": ("n", 3, 5), "nodes": "h = ConvTranspose<strides = [2]>(x, w) k = Mul(h, c) y = Add(k, d)", "w": (3, 4, 2), "c": (4, 1), "d": (4, 1)}, ["ConvTranspose"]),
    "ConvTranspose behind": ({"x": ("n", 3, 5), "nodes": "h = Mul(x, c) y = ConvTranspose(h, w)", "w": (3, 4, 2), "c": (3, 1)}, ["ConvTranspose"]),
    "Gemm": ({"x": ("n", 3), "nodes": "h = Gemm<alpha = 0.5, beta = 2.0>(x, w, b) y = Mul(h, c)", "w": (3, 4), "b": (4,), "c": (4,)}, ["Gemm"]),
    "Gemm transB": ({"x": ("n", 3), "nodes": "h = Gemm<transB = 1>(x, w) k = Mul(h, c) y = Add(k, d)", "w": (4, 3), "c": (1, 4), "d": (4,)}, ["Gemm"]),
    "Gemm behind": ({"x": ("n", 3), "nodes": "h = Add(x, d) k = Mul(h, c) y = Gemm<transB = 1, alpha = 0.5>(k, w)", "w": (4, 3), "c": (3,), "d": (3,)}, ["Gemm"]),
    "Gemm transA behind": ({"x": (3, "n"), "nodes": "h = Add(x, d) k = Mul(h, c) y = Gemm<transA = 1>(k, w)", "w": (3, 4), "c": (3, 1), "d": 0.5}, ["Gemm"]),
    "MatMul": ({"x": ("n", 2, 3), "nodes": "h = MatMul(x, w) y = Mul(h, c)", "w": (3, 4), "c": (4,)}, ["MatMul"]),
    "MatMul, Add, Mul": ({"x": ("n", 2, 3), "nodes": "h = MatMul(x, w) k = Add(b, h) y = Mul(k, c)", "w": (3, 4), "b": (4,), "c": (1, 1, 4)}, ["MatMul", "Add"]),
    "MatMul, Add, Add": ({"x": ("n", 2, 3), "nodes": "h = MatMul(x, w) k = Add(b, h) y = Add(k, c)", "w": (3, 4), "b": (4,), "c": 0.25}, ["MatMul", "Add"]),
    "batch of matrices": ({"x": (2, "n", 3), "nodes": "h = MatMul(x, w) y = Div(h, c)", "w": (2, 3, 4), "c": 0.25}, ["MatMul"]),
    "MatMul behind": ({"x": ("n", 2, 3), "nodes": "h = Mul(x, c) y = MatMul(h, w)", "w": (3, 4), "c": (3,)}, ["MatMul"]),
    "MatMul and bias behind": ({"x": ("n", 2, 3), "nodes": "h = Add(x, c) k = MatMul(h, w) y = Add(k, b)", "w": (3, 4), "c": (3,), "b": (4,)}, ["MatMul", "Add"]),
    "two MatMul behind": ({"x": ("n", 2, 3), "nodes": "h = Mul(x, c) k = MatMul(h, w) m = MatMul(h, v) y = Sub(k, m)", "w": (3, 4), "v": (3, 4), "c": (3,)}, ["MatMul", "MatMul", "Sub"]),
    "BatchNormalization": ({"x": ("n", 3, 5), "nodes": "h = BatchNormalization(x, gamma, beta, mean, var) k = Mul(h, c) y = Add(k, d)", "c": (3, 1), "d": 0.5, **NORM}, ["BatchNormalization"]),
    "BatchNormalization behind": ({"x": ("n", 3, 5), "nodes": "h = Add(x, d) k = Mul(h, c) y = BatchNormalization(k, gamma, beta, mean, var)", "c": (3, 1), "d": (1, 3, 1), **NORM}, ["BatchNormalization"]),
    "InstanceNormalization": ({"x": ("n", 3, 5), "nodes": "h = InstanceNormalization(x, gamma, beta) y = Mul(h, c)", "c": (3, 1), "gamma": (3,), "beta": (3,)}, ["InstanceNormalization"]),
    "LayerNormalization": ({"x": ("n", 5, 3), "nodes": "h = LayerNormalization(x, gamma, beta) k = Mul(h, c) y = Add(k, d)", "c": (3,), "d": (3,), "gamma": (3,), "beta": (3,)}, ["LayerNormalization"]),
    "LayerNormalization without bias": ({"x": ("n", 5, 3), "nodes": "h = LayerNormalization(x, gamma) y = Add(h, d)", "d": (3,), "gamma": (3,)}, ["LayerNormalization"]),
    "double precision": ({"x": ("n", 3), "nodes": "h = Gemm(x, w) y = Mul(h, c)", "w": (3, 4), "c": (4,), "dtype": np.float64}, ["Gemm"]),
    "half precision": ({**CONV, "nodes": "h = Conv(x, w) y = Mul(h, c)", "c": (1, 4, 1, 1), "dtype": np.float16}, ["Conv"]),
    "opset 9": ({**CONV, "nodes": "h = Conv(x, w) y = Mul(h, c)", "c": (1, 4, 1, 1), "opset": 9}, ["Conv"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDS)
def test_constant_is_folded(case: str) -> None:
    options, ops = FOLDS[case]
    done = check_pass(FoldAffine(), model(**options), samples=3)
    assert done.ops == ops
    assert [tensor.name for tensor in done.model.graph.outputs] == ["y"]
    assert not done.skips


def test_golden(golden: Callable[[str], None]) -> None:
    proto = model("h = Conv(x, w) k = Mul(h, c) m = Add(k, d) y = Relu(m)", ("n", 1, 5), w=(1, 1, 1), c=2.0, d=0.5)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((1, 1, 1), 3, np.float32), "w"))
    golden(check_pass(FoldAffine(), proto).text)


KEPT: dict[str, dict[str, Any]] = {
    "bias of a MatMul": {"x": ("n", 2, 3), "nodes": "h = MatMul(x, w) y = Add(h, c)", "w": (3, 4), "c": (4,)},
    "MatMul without bias behind": {"x": ("n", 2, 3), "nodes": "h = Add(x, c) y = MatMul(h, w)", "w": (3, 4), "c": (3,)},
    "padded Conv behind an Add": {"x": ("n", 3, 5), "nodes": "h = Add(x, c) y = Conv<pads = [1, 1]>(h, w)", "w": (4, 3, 2), "c": (3, 1)},
    "Conv padded at one end": {"x": ("n", 3, 5), "nodes": "h = Add(x, c) y = Conv<pads = [0, 1]>(h, w)", "w": (4, 3, 2), "c": (3, 1)},
    "Conv of the same size behind an Add": {"x": ("n", 3, 5), "nodes": 'h = Add(x, c) y = Conv<auto_pad = "SAME_UPPER">(h, w)', "w": (4, 3, 2), "c": (3, 1)},
    "ConvTranspose behind an Add": {"x": ("n", 3, 5), "nodes": "h = Add(x, c) y = ConvTranspose(h, w)", "w": (3, 4, 2), "c": (3, 1)},
    "along the width": {**CONV, "nodes": "h = Conv(x, w) y = Mul(h, c)", "c": (4,)},
    "every element": {**CONV, "nodes": "h = Conv(x, w) y = Mul(h, c)", "c": (1, 4, 4, 4)},
    "larger than the tensor": {"x": ("n", 3, 5), "nodes": "h = Conv(x, w) y = Mul(h, c)", "w": (4, 3, 2), "c": (1, 1, 4, 1), "rank": 4},
    "more axes": {"x": ("n", 3, 5), "nodes": "h = Conv(x, w) y = Mul(h, c)", "w": (4, 3, 2), "c": (1, 1, 1, 1), "rank": 4},
    "enlarges the channels": {"x": ("n", 3, 5), "nodes": "h = Conv(x, w) y = Mul(h, c)", "w": (1, 3, 2), "c": (4, 1)},
    "enlarges the rows": {"x": (1, 3), "nodes": "h = MatMul(x, w) y = Mul(h, c)", "w": (3, 4), "c": (4, 1)},
    "enlarges what a Conv reads": {"x": ("n", 1, 5), "nodes": "h = Mul(x, c) y = Conv(h, w)", "w": (4, 3, 2), "c": (3, 1)},
    "adds an axis before a Conv": {"x": (3, 5), "rank": 3, "nodes": "h = Mul(x, c) y = Conv(h, w)", "w": (4, 3, 2), "c": (1, 1, 1)},
    "enlarges what a MatMul reads": {"x": ("n", 1), "nodes": "h = Mul(x, c) y = MatMul(h, w)", "w": (3, 4), "c": (3,)},
    "enlarges what a BatchNormalization reads": {"x": ("n", 1, 5), "nodes": "h = Mul(x, c) y = BatchNormalization(h, gamma, beta, mean, var)", "c": (3, 1), **NORM},
    "channels that are not known": {"x": ("n", "c", 5), "nodes": "h = Mul(x, c) y = Conv(h, w)", "w": (4, 3, 2), "c": (3, 1)},
    "vector times MatMul": {"x": (3,), "nodes": "h = MatMul(x, w) y = Mul(h, c)", "w": (3, 4), "c": (1, 4), "rank": 2},
    "read twice": {**CONV, "nodes": "h = Conv(x, w) k = Mul(h, c) y = Add(h, k)", "c": 2.0},
    "also an output": {**CONV, "nodes": "h = Conv(x, w) y = Mul(h, c)", "c": 2.0, "outputs": ", float[a, b, e, f] h"},
    "product of data": {"x": (3, 3), "nodes": "h = MatMul(x, x) y = Mul(h, c)", "c": 0.5},
    "weight of data": {"x": ("n", 3, 5), "nodes": "h = Conv(x, w) y = Mul(h, h)", "w": (4, 3, 2)},
    "division of a constant": {**CONV, "nodes": "h = Conv(x, w) y = Div(c, h)", "c": 2.0},
    "division by zero": {**CONV, "nodes": "h = Conv(x, w) y = Div(h, c)", "c": 0.0},
    "infinite": {**CONV, "nodes": "h = Conv(x, w) y = Mul(h, c)", "c": float("inf")},
    "old broadcasting": {**CONV, "nodes": "h = Conv(x, w) y = Mul<broadcast = 1>(h, c)", "c": 2.0, "opset": 6},
    "one of two readers": {"x": ("n", 3, 5), "nodes": "h = Mul(x, c) k = Conv(h, w) m = Relu(h) y = Concat<axis = 1>(k, m)", "w": (3, 3, 1), "c": (3, 1)},
    "as the weight": {"x": (3, 3), "nodes": "h = Mul(x, c) y = MatMul(w, h)", "w": (3, 3), "c": 2.0},
    "GELU": {"x": ("n", 3), "nodes": "a = Div(x, r) b = Erf(a) e = Add(b, one) f = Mul(x, e) g = Mul(f, c) y = MatMul(g, w)", "w": (3, 4), "r": 1.4142135, "one": 1.0, "c": 0.5},
    "RMS normalization": {"x": ("n", 3), "nodes": "a = Mul(x, x) b = ReduceMean<axes = [-1]>(a) e = Add(b, eps) f = Sqrt(e) i = Div(one, f) g = Mul(x, i) h = Mul(g, c) y = MatMul(h, w)", "w": (3, 4), "eps": 1e-5, "one": 1.0, "c": (3,)},
    "layer normalization": {"x": ("n", 3), "nodes": "m = ReduceMean<axes = [-1]>(x) z = Sub(x, m) a = Mul(z, z) b = ReduceMean<axes = [-1]>(a) e = Add(b, eps) f = Sqrt(e) g = Div(z, f) h = Mul(g, c) k = Add(h, d) y = Gemm(k, w)", "w": (3, 4), "eps": 1e-5, "c": (3,), "d": (3,)},
    "LayerNormalization over two axes": {"x": ("n", 5, 3), "nodes": "h = LayerNormalization<axis = 1>(x, gamma) y = Mul(h, c)", "c": (3,), "gamma": (5, 3)},
    "training mode": {"x": ("n", 3, 5), "nodes": "h, r, s = BatchNormalization<training_mode = 1>(x, gamma, beta, mean, var) y = Mul(h, c)", "c": 2.0, **NORM},
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_constant_that_cannot_be_folded_stays(case: str) -> None:
    proto = model(**KEPT[case])
    done = run_pass(FoldAffine(), proto, verify="fast")
    assert done.record.patches == 0
    assert done.ops == [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize(
    ("scale", "dtype", "words"),
    [(3e38, np.float32, "not finite"), (1e-40, np.float32, "too small"), (6e4, np.float16, "not finite")],
)
def test_values_that_leave_their_type_are_refused_with_the_reason(scale: float, dtype: Any, words: str) -> None:
    done = run_pass(FoldAffine(), model("h = Conv(x, w) y = Mul(h, c)", **CONV, c=scale, dtype=dtype), verify="fast")
    assert done.ops == ["Conv", "Mul"]
    assert words in done.skips.popitem()[1]


def test_overridable_constants_are_not_folded() -> None:
    for name in ("w", "c"):
        proto = model("h = Conv(x, w) y = Mul(h, c)", **CONV, c=(1, 4, 1, 1))
        size = next(list(t.dims) for t in proto.graph.initializer if t.name == name)
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, size))
        assert check_pass(FoldAffine(), proto).ops == ["Conv", "Mul"]


@pytest.mark.parametrize(("size", "ops"), [(8, ["Conv", "Conv", "Add"]), (40, ["Conv", "Mul", "Conv", "Add"])])
def test_weight_of_two_layers_is_copied_only_where_it_is_small(size: int, ops: list[str]) -> None:
    proto = model("h = Conv(x, w) a = Mul(h, c) e = Conv(x, w) y = Add(a, e)", ("n", size, 3), w=(size, size, 1), c=2.0)
    done = check_pass(FoldAffine(), proto)
    assert done.ops == ops
    assert len(done.model.to_bytes()) <= len(proto.SerializeToString()) + 1024
    assert any("is read 2 times" in reason for reason in done.skips.values()) == (size == 40)


def test_weight_of_layers_that_all_have_the_same_factor_is_multiplied_once() -> None:
    nodes = "h = Conv(x, w, b) a = Neg(h) k = Conv<pads = [1, 1]>(x, w, b) e = Neg(k) m = Conv(r, w) f = Neg(m) y = Concat<axis = 2>(a, e, f)"
    proto = model(f"r = Relu(x) {nodes}", ("n", 40, 3), w=(40, 40, 1), b=(40,))
    done = check_pass(FoldAffine(), proto)
    assert sorted(done.ops) == ["Concat", "Conv", "Conv", "Conv", "Relu"]
    assert len({id(node.inputs[1]) for _, node in done.model.walk() if node.op == "Conv"}) == 1
    assert len(done.model.to_bytes()) <= len(proto.SerializeToString()) + 64
    other = model(f"r = Relu(x) {nodes}".replace("f = Neg(m)", "f = Relu(m)"), ("n", 40, 3), w=(40, 40, 1), b=(40,))
    assert check_pass(FoldAffine(), other).record.patches == 0


def test_weight_in_the_body_of_a_branch_and_of_the_graph_around() -> None:
    body = """<ir_version: 8, opset_import: ["" : 17]> g (bool c, float[n, 3] x) => (float[n, 2] y)
    <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] o = {1, 2}> { y = If (c) <
      then_branch = t () => (float[n, 2] a) { h = MatMul(x, w) a = Mul(h, o) },
      else_branch = e () => (float[n, 2] b) <float[3, 2] v = {1, 2, 3, 4, 5, 6}> { k = MatMul(x, v) b = Neg(k) }> }"""
    assert sorted(check_pass(FoldAffine(), body).ops) == ["If", "MatMul", "MatMul"]


def test_layer_around_the_branch_stays() -> None:
    body = """<ir_version: 8, opset_import: ["" : 17]> g (bool c, float[n, 3] x) => (float[n, 2] y)
    <float[3, 2] w = {1, 2, 3, 4, 5, 6}> { h = MatMul(x, w) y = If (c) <
      then_branch = t () => (float[n, 2] a) { a = Neg(h) },
      else_branch = e () => (float[n, 2] b) { z = MatMul(x, w) b = Relu(z) }> }"""
    assert sorted(check_pass(FoldAffine(), body).ops) == ["If", "MatMul", "MatMul", "Neg", "Relu"]


def test_names_of_layer_weight_and_result_stay() -> None:
    proto = model("h = Conv(x, w) k = Mul(h, c) y = Relu(k)", **CONV, c=2.0)
    proto.graph.node[0].name = "conv1"
    graph = check_pass(FoldAffine(), proto).model.to_proto().graph
    assert (graph.node[0].name, list(graph.node[0].input), list(graph.node[0].output)) == ("conv1", ["x", "w"], ["k"])
    assert [tensor.name for tensor in graph.initializer] == ["w"]


def test_large_weight_is_multiplied_when_it_is_written() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2100, 2100)).astype(np.float32)
    proto = model("h = MatMul(x, w) y = Mul(h, c)", ("n", 2100), c=3.0)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    done = run_pass(FoldAffine(), proto, verify="fast")
    assert done.ops == ["MatMul"]
    assert type(done.model.graph.nodes[0].inputs[1].weight).__name__ == "LazyWeight"
    written = read_model(done.model.to_bytes()).graph.nodes[0].inputs[1].array()
    assert np.array_equal(written, weight * np.float32(3))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_generated_chains_hold_the_rounding_bound(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]))
    group = data.draw(st.sampled_from([1, 2])) if "Conv" in kind else 1
    inputs, outputs = (data.draw(st.integers(1, 3)) * group for _ in range(2))
    tail = [1] * data.draw(st.integers(1, 2)) if "Conv" in kind else []
    leading: list[Any] = ["n", *([2] if kind == "MatMul" and data.draw(st.booleans()) else [])]
    size = {"Conv": (outputs, inputs // group), "ConvTranspose": (inputs, outputs // group)}.get(
        kind, (inputs, outputs)
    )
    weights: dict[str, Any] = {"w": (*size, *[2 for _ in tail])}
    bias = "" if kind == "MatMul" or data.draw(st.booleans()) else ", b"
    if bias:
        weights["b"] = (outputs,)
    attributes = f"<group = {group}>" if "Conv" in kind else ""
    lines, current = [], "x"
    for place, channels in (("p", inputs), ("q", outputs)):
        if place == "q":
            lines.append(f"m = {kind}{attributes}({current}, w{bias})")
            current = "m"
        for index in range(data.draw(st.integers(0, 2))):
            op, swap = data.draw(st.sampled_from(["Mul", "Add", "Sub", "Div"])), data.draw(st.booleans())
            name = f"{place}{index}"
            weights[f"c{name}"] = data.draw(st.sampled_from([(), (channels, *tail), (1, channels, *tail)]))
            operands = f"c{name}, {current}" if swap and op != "Div" else f"{current}, c{name}"
            lines.append(f"{name} = {op}({operands})")
            current = name
    lines.append(f"y = Identity({current})")
    x = (*leading, inputs, *[5 for _ in tail])
    proto = model(" ".join(lines), x, seed=data.draw(st.integers(0, 99)), **weights)
    done = check_pass(FoldAffine(), proto, samples=1, interpreted=kind != "ConvTranspose")
    if kind == "Conv":
        assert done.ops == ["Conv", "Identity"]
