"""merge-chained-layers: two layers become one where that is not the larger product."""

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

from graphopt.passes.simplify.merge_chained_layers import MergeChainedLayers
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = {np.float32: "float", np.float16: "float16"}


def model(
    nodes: str, *, x: str = "n, 2, 4", rank: int = 3, dtype: Any = np.float32, out: str = "", **weights: Any
) -> onnx.ModelProto:
    """Return a model with random weights of these shapes; numbers are scalars, arrays are themselves."""
    kind = KINDS[dtype]
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({kind}[{x}] x) => ({kind}[{", ".join(f"d{i}" for i in range(rank))}] y{out}) {{ {nodes} }}'
    )
    rng = np.random.default_rng(0)
    for name, size in weights.items():
        value = np.asarray(rng.normal(size=size)) if isinstance(size, tuple) else np.asarray(size)
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(dtype), name))
    return proto


MERGED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "MatMul": ({"nodes": "h = MatMul(x, v) y = MatMul(h, w)", "v": (4, 4), "w": (4, 3)}, ["MatMul"]),
    "first bias": ({"nodes": "h = MatMul(x, v) k = Add(h, b) y = MatMul(k, w)", "v": (4, 4), "b": (4,), "w": (4, 3)}, ["MatMul", "Add"]),
    "both biases": ({"nodes": "h = MatMul(x, v) k = Add(b, h) m = MatMul(k, w) y = Add(m, c)", "v": (4, 4), "b": 0.5, "w": (4, 3), "c": (1, 1, 3)}, ["MatMul", "Add"]),
    "three": ({"nodes": "h = MatMul(x, v) k = MatMul(h, w) y = MatMul(k, u)", "v": (4, 4), "w": (4, 4), "u": (4, 4)}, ["MatMul"]),
    "Gemm": ({"x": "n, 4", "rank": 2, "nodes": "h = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, v, b) y = Gemm<alpha = 2.0>(h, w, c)", "v": (4, 4), "b": (4,), "w": (4, 3), "c": (3,)}, ["Gemm"]),
    "MatMul and Gemm": ({"x": "n, 4", "rank": 2, "nodes": "h = MatMul(x, v) k = Add(h, b) y = Gemm<transB = 1>(k, w)", "v": (4, 4), "b": (4,), "w": (3, 4)}, ["Gemm"]),
    "half precision": ({"nodes": "h = MatMul(x, v) y = MatMul(h, w)", "v": (4, 4), "w": (4, 3), "dtype": np.float16}, ["MatMul"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_layers_become_one(case: str) -> None:
    options, ops = MERGED[case]
    proto = model(**options)
    done = check_pass(MergeChainedLayers(), proto, samples=3)
    assert done.ops == ops
    assert len(done.model.to_bytes()) <= len(proto.SerializeToString()) + 32


def test_golden(golden: Callable[[str], None]) -> None:
    proto = model(
        "h = MatMul(x, v) k = Add(h, b) y = MatMul(k, w)",
        x="n, 1",
        rank=2,
        v=np.array([[2.0]]),
        b=0.5,
        w=np.array([[3.0]]),
    )
    golden(check_pass(MergeChainedLayers(), proto).text)


KEPT: dict[str, dict[str, Any]] = {
    "low rank": {"nodes": "h = MatMul(x, v) y = MatMul(h, w)", "v": (4, 1), "w": (1, 4)},
    "activation between": {"nodes": "h = MatMul(x, v) k = Relu(h) y = MatMul(k, w)", "v": (4, 4), "w": (4, 3)},
    "read twice": {"nodes": "h = MatMul(x, v) k = MatMul(h, w) y = Add(h, k)", "v": (4, 4), "w": (4, 4)},
    "given out": {"nodes": "h = MatMul(x, v) y = MatMul(h, w)", "v": (4, 4), "w": (4, 3), "out": ", float[a, b, c] h"},
    "one weight twice": {"nodes": "h = MatMul(x, w) y = MatMul(h, w)", "w": (4, 4)},
    "batches of matrices": {"nodes": "h = MatMul(x, v) y = MatMul(h, w)", "v": (1, 4, 4), "w": (1, 4, 3)},
    "weight on the left": {"x": "4, 4", "rank": 2, "nodes": "h = MatMul(x, v) y = MatMul(w, h)", "v": (4, 4), "w": (4, 4)},
    "bias of another shape": {"nodes": "h = MatMul(x, v) k = Add(h, b) y = MatMul(k, w)", "v": (4, 4), "b": (2, 1), "w": (4, 3)},
    "transposed input": {"x": "4, 4", "rank": 2, "nodes": "h = Gemm<transA = 1>(x, v) y = Gemm(h, w)", "v": (4, 4), "w": (4, 3)},
    "overflow": {"nodes": "h = MatMul(x, v) y = MatMul(h, w)", "v": np.full((4, 4), 1e30), "w": np.full((4, 3), 1e30)},
    "underflow": {"nodes": "h = MatMul(x, v) y = MatMul(h, w)", "v": np.full((4, 4), 1e-30), "w": np.full((4, 3), 1e-30)},
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_layers_that_stay(case: str) -> None:
    proto = model(**KEPT[case])
    done = run_pass(MergeChainedLayers(), proto, verify="fast")
    assert done.ops == [node.op_type for node in proto.graph.node]


def test_overridable_weight_stays() -> None:
    proto = model(**MERGED["MatMul"][0])
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    assert check_pass(MergeChainedLayers(), proto).record.patches == 0


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_generated_chains_hold_the_rounding_bound(data: st.DataObject) -> None:
    lines: list[str] = []
    weights: dict[str, Any] = {}
    current, size = "x", 4
    for index in range(data.draw(st.integers(2, 4))):
        wide = data.draw(st.integers(1, 5))
        weights[f"w{index}"] = (size, wide)
        lines.append(f"m{index} = MatMul({current}, w{index})")
        current, size = f"m{index}", wide
        shape = data.draw(st.sampled_from([None, (), (wide,), (1, wide)]))
        if shape is not None:
            weights[f"b{index}"] = shape
            lines.append(f"a{index} = Add({current}, b{index})")
            current = f"a{index}"
    check_pass(MergeChainedLayers(), model(" ".join([*lines, f"y = Identity({current})"]), **weights), samples=1)
