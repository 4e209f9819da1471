"""fuse-gemm: what becomes one Gemm, and what stays."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt.passes.simplify.fuse_gemm import FuseGemm
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = {np.float32: "float", np.float64: "double", np.float16: "float16"}


def model(
    nodes: str,
    *,
    inputs: str = "X[n, 4] x, X[4, 3] w",
    rank: int = 2,
    opset: int = 17,
    dtype: Any = np.float32,
    out: str = "",
    **constants: Any,
) -> onnx.ModelProto:
    """Return a model; tuples become random constants of that shape, numbers scalars; X stands for the element type."""
    kind = KINDS.get(dtype, "int32")
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs.replace("X", kind)}) => ({kind}[{", ".join(f"d{i}" for i in range(rank))}] y{out}) {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, value in constants.items():
        array = np.asarray(rng.normal(size=value) if isinstance(value, tuple) else value).astype(dtype)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


FUSED: dict[str, dict[str, Any]] = {
    "bias": {"nodes": "h = MatMul(x, w) y = Add(h, b)", "b": (3,)},
    "bias first": {"nodes": "h = MatMul(x, w) y = Add(b, h)", "b": (1, 3)},
    "number": {"nodes": "h = MatMul(x, w) y = Add(h, b)", "b": 0.5},
    "column": {"inputs": "X[2, 4] x, X[4, 3] w", "nodes": "h = MatMul(x, w) y = Add(h, b)", "b": (2, 1)},
    "residual": {"inputs": "X[n, 4] x, X[4, 4] w", "nodes": "h = MatMul(x, w) y = Add(h, x)"},
    "bias of opset 9": {"nodes": "h = MatMul(x, w) y = Add(h, b)", "b": (3,), "opset": 9},
    "Gemm without bias": {"nodes": "h = Gemm<alpha = 0.5>(x, w) y = Add(h, b)", "b": (3,)},
    "transposed first": {"inputs": "X[4, n] x, X[4, 3] w", "nodes": "t = Transpose(x) y = MatMul(t, w)"},
    "transposed second": {"inputs": "X[n, 4] x, X[3, 4] w", "nodes": "t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)"},
    "transposed both": {"inputs": "X[4, n] x, X[3, 4] w", "nodes": "s = Transpose(x) t = Transpose(w) y = MatMul(s, t)"},
    "transposed operand of a Gemm": {"nodes": "t = Transpose(x) y = Gemm<transA = 1, beta = 2.0>(t, w, b)", "b": (3,)},
    "transposed result": {"nodes": "h = MatMul(x, w) y = Transpose(h)"},
    "transposed result of a Gemm": {"inputs": "X[4, n] x, X[4, 3] w", "nodes": "h = Gemm<transA = 1, alpha = 2.0, beta = 0.5>(x, w, b) y = Transpose(h)", "b": (1, 1)},
    "factor": {"nodes": "h = MatMul(x, w) y = Mul(h, c)", "c": 0.3},
    "divisor of a Gemm": {"nodes": "h = Gemm<alpha = 2.0, beta = 0.5>(x, w, b) y = Div(h, c)", "b": (3,), "c": 3.0},
    "all": {"inputs": "X[4, n] x, X[3, 4] w", "nodes": "s = Transpose(x) t = Transpose(w) h = MatMul(s, t) k = Mul(h, c) l = Add(k, b) y = Mul(l, c)", "c": 0.5, "b": (3,)},
    "double precision": {"nodes": "h = MatMul(x, w) y = Add(h, b)", "b": (3,), "dtype": np.float64},
    "double precision, power of two": {"nodes": "h = MatMul(x, w) y = Mul(h, c)", "c": 0.25, "dtype": np.float64},
}  # fmt: skip


@pytest.mark.parametrize("case", FUSED)
def test_product_becomes_a_gemm(case: str) -> None:
    done = check_pass(FuseGemm(), model(**FUSED[case]), samples=3)
    assert done.record.patches
    assert done.ops == ["Gemm"]


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(FuseGemm(), model(**FUSED["all"])).text)


KEPT: dict[str, dict[str, Any]] = {
    "batch": {"inputs": "X[2, n, 4] x, X[4, 3] w", "rank": 3, "nodes": "h = MatMul(x, w) y = Add(h, b)", "b": (3,)},
    "vector": {"inputs": "X[4] x, X[4, 3] w", "rank": 1, "nodes": "h = MatMul(x, w) y = Add(h, b)", "b": (3,)},
    "larger addend": {"inputs": "X[1, 4] x, X[4, 3] w", "nodes": "h = MatMul(x, w) y = Add(h, b)", "b": (2, 3)},
    "addend that may be larger": {"nodes": "h = MatMul(x, w) y = Add(h, b)", "b": (2, 3)},
    "addend of more axes": {"rank": 3, "nodes": "h = MatMul(x, w) y = Add(h, b)", "b": (1, 1, 3)},
    "product read twice": {"nodes": "h = MatMul(x, w) k = Add(h, b) y = Mul(k, h)", "b": (3,)},
    "product given out": {"nodes": "h = MatMul(x, w) y = Add(h, b)", "b": (3,), "out": ", float[e, f] h"},
    "twice the product": {"nodes": "h = MatMul(x, w) y = Add(h, h)"},
    "Gemm with bias": {"nodes": "h = Gemm(x, w, b) y = Add(h, b)", "b": (3,)},
    "whole numbers": {"nodes": "h = MatMul(x, w) y = Add(h, b)", "b": 3, "dtype": np.int32},
    "transposed, opset 9": {"inputs": "X[4, n] x, X[4, 3] w", "nodes": "t = Transpose(x) y = MatMul(t, w)", "opset": 9},
    "transposed for two": {"inputs": "X[4, n] x, X[4, 3] w", "nodes": "t = Transpose(x) h = MatMul(t, w) k = Relu(t) y = Concat<axis = 1>(h, k)"},
    "batches transposed": {"inputs": "X[2, 4, n] x, X[4, 3] w", "rank": 3, "nodes": "t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(t, w)"},
    "bias along the columns": {"nodes": "h = Gemm(x, w, b) y = Transpose(h)", "b": (3,)},
    "factor per column": {"nodes": "h = MatMul(x, w) y = Mul(h, c)", "c": (3,)},
    "tiny factor": {"nodes": "h = MatMul(x, w) y = Mul(h, c)", "c": 1e-20},
    "double precision, factor of more digits": {"nodes": "h = MatMul(x, w) y = Mul(h, c)", "c": 0.3, "dtype": np.float64},
    "half precision, factor above 1": {"nodes": "h = MatMul(x, w) y = Mul(h, c)", "c": 2.0, "dtype": np.float16},
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_product_that_stays(case: str) -> None:
    proto = model(**KEPT[case])
    done = run_pass(FuseGemm(), proto, verify="fast")
    assert done.ops == [node.op_type for node in proto.graph.node]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_generated_products_hold_the_rounding_bound(data: st.DataObject) -> None:
    flips = [data.draw(st.booleans()) for _ in range(2)]
    inputs = f"X[{'4, 2' if flips[0] else '2, 4'}] x, X[{'3, 4' if flips[1] else '4, 3'}] w"
    lines = [
        "a = Transpose(x)" if flips[0] else "a = Identity(x)",
        "c = Transpose(w)" if flips[1] else "c = Identity(w)",
    ]
    lines.append(
        data.draw(st.sampled_from(["h = MatMul(a, c)", "h = Gemm<alpha = 0.5>(a, c)", "h = Gemm<beta = 2.0>(a, c, b)"]))
    )
    current = "h"
    for index in range(data.draw(st.integers(0, 3))):
        lines.append(
            data.draw(
                st.sampled_from(
                    [
                        f"t{index} = Add({current}, b)",
                        f"t{index} = Mul(k, {current})",
                        f"t{index} = Transpose({current})",
                        f"t{index} = Div({current}, k)",
                    ]
                )
            )
        )
        current = f"t{index}"
    proto = model(
        " ".join([*lines, f"y = Identity({current})"]), inputs=inputs, b=data.draw(st.sampled_from([(), (1, 1)])), k=0.3
    )
    check_pass(FuseGemm(), proto, samples=1)
