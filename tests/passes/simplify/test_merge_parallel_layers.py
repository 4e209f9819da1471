"""merge-parallel-layers: what is merged, what it must save, what it leaves alone."""

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
from graphopt.passes.simplify.merge_parallel_layers import MergeParallelLayers
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable


def model(
    nodes: str, *, x: str = "n, 3, 4", out: str = "y", opset: int = 17, ranks: int = 3, **weights: Any
) -> onnx.ModelProto:
    """Return a model with random weights of these shapes; numbers are scalars."""
    outputs = ", ".join(f"float[{', '.join(f'{name}{i}' for i in range(ranks))}] {name}" for name in out.split())
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{x}] x) => ({outputs}) {{ {nodes} }}'
    )
    rng = np.random.default_rng(0)
    for name, size in weights.items():
        value = np.asarray(size) if isinstance(size, float) else np.asarray(rng.normal(size=size))
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return proto


QKV: dict[str, Any] = {"u": (4, 4), "v": (4, 2), "w": (4, 2)}
MERGED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "three": ({**QKV, "nodes": "a = MatMul(x, u) b = MatMul(x, v) c = MatMul(x, w) d = Add(b, c) e = Relu(a) y = Concat<axis = -1>(d, e)"}, ["MatMul", "Split", "Add", "Relu", "Concat"]),
    "two with biases": ({**QKV, "nodes": "a = MatMul(x, v) k = Add(a, p) b = MatMul(x, w) l = Add(q, b) y = Mul(k, l)", "p": (2,), "q": (1, 1, 2)}, ["MatMul", "Add", "Split", "Mul"]),
    "three, one bias": ({**QKV, "nodes": "a = MatMul(x, u) b = MatMul(x, v) c = MatMul(x, w) k = Add(a, p) d = Add(b, c) y = Concat<axis = -1>(d, k)", "p": 0.5}, ["MatMul", "Add", "Split", "Add", "Concat"]),
    "outputs of the graph": ({**QKV, "nodes": "y = MatMul(x, u) z = MatMul(x, v) r = MatMul(x, w)", "out": "y z r"}, ["MatMul", "Split"]),
    "Gemm": ({"x": "n, 4", "ranks": 2, "nodes": "a = Gemm<alpha = 0.5>(x, v, p) b = Gemm<alpha = 0.5>(x, w) c = Gemm<alpha = 0.5>(x, t, q) d = Mul(a, b) y = Mul(d, c)", "v": (4, 2), "w": (4, 2), "t": (4, 2), "p": (2,), "q": ()}, ["Gemm", "Split", "Mul", "Mul"]),
    "Gemm of rows": ({"x": "n, 4", "ranks": 2, "nodes": "a = Gemm<transB = 1>(x, v) b = Gemm<transB = 1>(x, w) c = Gemm<transB = 1>(x, t) d = Mul(a, b) y = Mul(d, c)", "v": (2, 4), "w": (2, 4), "t": (2, 4)}, ["Gemm", "Split", "Mul", "Mul"]),
    "vector": ({"x": "4", "ranks": 1, "nodes": "a = MatMul(x, v) k = Add(a, p) b = MatMul(x, w) l = Add(b, p) y = Mul(k, l)", "v": (4, 2), "w": (4, 2), "p": (2,)}, ["MatMul", "Add", "Split", "Mul"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_layers_are_merged(case: str) -> None:
    options, ops = MERGED[case]
    proto = model(**options)
    done = check_pass(MergeParallelLayers(), proto, samples=3)
    assert done.ops == ops
    assert [tensor.name for tensor in done.model.graph.outputs] == options.get("out", "y").split()
    assert len(done.model.to_bytes()) <= len(proto.SerializeToString()) + 256


def test_golden(golden: Callable[[str], None]) -> None:
    proto = model(
        "a = MatMul(x, v) k = Add(a, p) b = MatMul(x, w) l = Add(b, p) y = Mul(k, l)",
        x="n, 1",
        ranks=2,
        v=(1, 1),
        w=(1, 1),
        p=0.5,
    )
    for tensor, value in zip(proto.graph.initializer, (2, 3), strict=False):
        tensor.CopyFrom(numpy_helper.from_array(np.full((1, 1), value, np.float32), tensor.name))
    for index, name in enumerate(("q", "q_bias", "k", "k_bias", "product")):
        proto.graph.node[index].name = name
    golden(check_pass(MergeParallelLayers(), proto).text)


KEPT: dict[str, dict[str, Any]] = {
    "two without biases": {**QKV, "nodes": "a = MatMul(x, v) b = MatMul(x, w) y = Mul(a, b)"},
    "two, one bias": {**QKV, "nodes": "a = MatMul(x, v) k = Add(a, p) b = MatMul(x, w) y = Mul(k, b)", "p": (2,)},
    "two Gemm": {"x": "n, 4", "ranks": 2, "nodes": "a = Gemm(x, v, p) b = Gemm(x, w, p) y = Mul(a, b)", "v": (4, 2), "w": (4, 2), "p": (2,)},
    "other inputs": {**QKV, "nodes": "r = Relu(x) s = Tanh(x) a = MatMul(x, v) b = MatMul(r, w) c = MatMul(s, v) d = Mul(a, b) y = Mul(c, d)"},
    "one weight for all": {"nodes": "a = MatMul(x, w) k = Add(a, p) b = MatMul(x, w) l = Add(b, q) y = Mul(k, l)", "w": (4, 2), "p": (2,), "q": (2,)},
    "weights on the left": {"x": "4, 3", "ranks": 2, "nodes": "a = MatMul(u, x) b = MatMul(v, x) c = MatMul(w, x) d = Mul(a, b) y = Mul(c, d)", "u": (2, 4), "v": (2, 4), "w": (2, 4)},
    "batches of matrices": {"nodes": "a = MatMul(x, u) b = MatMul(x, v) c = MatMul(x, w) d = Mul(a, b) y = Mul(c, d)", "u": (1, 4, 2), "v": (1, 4, 2), "w": (1, 4, 2)},
    "other factors": {"x": "n, 4", "ranks": 2, "nodes": "a = Gemm<alpha = 0.5>(x, v) b = Gemm(x, w) c = Gemm<alpha = 2.0>(x, u) d = Mul(a, b) y = Mul(c, d)", "u": (4, 2), "v": (4, 2), "w": (4, 2)},
    "empty bias": {"x": "1, 4", "ranks": 2, "nodes": "a = MatMul(x, u) k = Add(a, p) b = MatMul(x, v) l = Add(b, p) c = MatMul(x, w) m = Add(c, p) d = Add(k, l) y = Add(d, m)", "u": (4, 2), "v": (4, 2), "w": (4, 2), "p": (0, 2)},
    "old opset": {**QKV, "opset": 12, "nodes": "a = MatMul(x, u) b = MatMul(x, v) c = MatMul(x, w) d = Add(b, c) e = Relu(a) y = Concat<axis = -1>(d, e)"},
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_layers_that_are_not_merged(case: str) -> None:
    proto = model(**KEPT[case])
    done = run_pass(MergeParallelLayers(), proto, verify="fast")
    assert done.ops == [node.op_type for node in proto.graph.node]


def test_overridable_weight_keeps_its_layer_apart() -> None:
    proto = model(**MERGED["three"][0])
    proto.graph.input.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [4, 2]))
    assert check_pass(MergeParallelLayers(), proto).record.patches == 0


def test_large_weights_are_put_together_when_they_are_written() -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(1300, 1300)).astype(np.float32) for _ in range(3)]
    proto = model(
        "a = MatMul(x, u) b = MatMul(x, v) c = MatMul(x, w) d = Mul(a, b) y = Mul(d, c)", x="n, 1300", ranks=2
    )
    proto.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in zip("uvw", weights, strict=True)
    )
    done = run_pass(MergeParallelLayers(), proto, verify="fast")
    assert type(done.model.graph.nodes[0].inputs[1].weight).__name__ == "LazyWeight"
    written = read_model(done.model.to_bytes()).graph.nodes[0].inputs[1].array()
    assert np.array_equal(written, np.concatenate([weights[2], weights[0], weights[1]], axis=1))  # what is read alike


def test_at_most_eight_layers_are_merged_at_once() -> None:
    lines = [f"m{i} = MatMul(x, w{i})" for i in range(12)]
    names = ", ".join(f"m{i}" for i in range(12))
    weights: dict[str, Any] = {f"w{i}": (4, 2) for i in range(12)}
    proto = model(f"{' '.join(lines)} y = Concat<axis = -1>({names})", **weights)
    assert check_pass(MergeParallelLayers(), proto).ops == ["MatMul", "Split", "MatMul", "Split", "Concat"]


def test_bodies_merge_their_own_layers() -> None:
    body = """<ir_version: 8, opset_import: ["" : 17]> g (bool c, float[n, 2] x) => (float[n, 2] y)
    <float[2, 2] u = {1, 2, 3, 4}, float[2, 2] v = {2, 2, 3, 4}, float[2, 2] w = {3, 2, 3, 4}> { y = If (c) <
      then_branch = t () => (float[n, 2] p) { a = MatMul(x, u) b = MatMul(x, v) d = MatMul(x, w) e = Mul(a, b) p = Mul(d, e) },
      else_branch = e () => (float[n, 2] q) { q = Neg(x) }> }"""
    assert sorted(check_pass(MergeParallelLayers(), body).ops) == ["If", "MatMul", "Mul", "Mul", "Neg", "Split"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_generated_layers_hold_the_rounding_bound(data: st.DataObject) -> None:
    lines: list[str] = []
    names: list[str] = []
    weights: dict[str, Any] = {}
    for index in range(data.draw(st.integers(2, 5))):
        width = data.draw(st.integers(1, 3))
        weights[f"w{index}"] = (4, width)
        name = f"m{index}"
        lines.append(f"{name} = MatMul(x, w{index})")
        shape = data.draw(st.sampled_from([None, (width,), (), (1, width)]))
        if shape is not None:
            weights[f"b{index}"] = shape
            lines.append(f"a{index} = Add({name}, b{index})")
            name = f"a{index}"
        names.append(name)
    lines.append(f"y = Concat<axis = -1>({', '.join(names)})")
    check_pass(MergeParallelLayers(), model(" ".join(lines), **weights), samples=1)
