"""fuse-softmax: exponentials over their sum become one Softmax."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import onnx.parser
import pytest

from graphopt.graph import Model, read_model
from graphopt.passes.fuse.fuse_softmax import FuseSoftmax
from pass_oracle import check_pass, run_pass

CONSTANTS = "ax = Constant<value_ints = [-1]>() first = Constant<value_ints = [1]>() kept = Constant<value_ints = [0, 0, 1]>() low = Cast<to = 1>(lowd)"


def model_of(body: str, opset: int = 13, shape: str = "N, 3, 8") -> Model:
    constants = CONSTANTS.replace(" low = Cast<to = 1>(lowd)", "")
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{shape}] x) => (float[{shape}] y) <float low = {{-inf}}> {{ {constants} {body} }}'
    return read_model(onnx.parser.parse_model(text))


FUSED: dict[str, tuple[str, int]] = {
    "kept": ("m = ReduceMax<axes = [-1]>(x) c = Sub(x, m) e = Exp(c) s = ReduceSum(e, ax) y = Div(e, s)", -1),
    "other axis": ("m = ReduceMax<axes = [1]>(x) c = Sub(x, m) e = Exp(c) s = ReduceSum(e, first) y = Div(e, s)", -2),
    "reciprocal": ("m = ReduceMax<axes = [2]>(x) c = Sub(x, m) e = Exp(c) s = ReduceSum(e, ax) r = Reciprocal(s) y = Mul(r, e)", -1),
    "dropped and put back": ("m = ReduceMax<axes = [-1], keepdims = 0>(x) m1 = Unsqueeze(m, ax) c = Sub(x, m1) e = Exp(c) s = ReduceSum<keepdims = 0>(e, ax) s1 = Reshape(s, kept0) y = Div(e, s1)", -1),
    "jax": ("m = ReduceMax<axes = [-1], keepdims = 0>(x) m0 = Max(low, m) m1 = Unsqueeze(m0, ax) c = Sub(x, m1) e = Exp(c) s = ReduceSum<keepdims = 0>(e, ax) s1 = Unsqueeze(s, ax) y = Div(e, s1)", -1),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_steps_become_one_node(name: str) -> None:
    body, axis = FUSED[name]
    done = check_pass(FuseSoftmax(), model_of(body.replace("kept0", "kept")))
    nodes = [node for _, node in done.model.walk() if node.op != "Constant"]
    assert [node.op for node in nodes] == ["Softmax"]
    assert nodes[0].attrs["axis"] == axis


APART = {
    "without the maximum": "e = Exp(x) s = ReduceSum(e, ax) y = Div(e, s)",
    "other axes": "m = ReduceMax<axes = [1]>(x) c = Sub(x, m) e = Exp(c) s = ReduceSum(e, ax) y = Div(e, s)",
    "two axes": "both = Constant<value_ints = [1, 2]>() m = ReduceMax<axes = [1, 2]>(x) c = Sub(x, m) e = Exp(c) s = ReduceSum(e, both) y = Div(e, s)",
    "minimum": "m = ReduceMin<axes = [-1]>(x) c = Sub(x, m) e = Exp(c) s = ReduceSum(e, ax) y = Div(e, s)",
    "maximum of another": "n = Neg(x) m = ReduceMax<axes = [-1]>(n) c = Sub(x, m) e = Exp(c) s = ReduceSum(e, ax) y = Div(e, s)",
    "exponentials are read": "m = ReduceMax<axes = [-1]>(x) c = Sub(x, m) e = Exp(c) s = ReduceSum(e, ax) d = Div(e, s) y = Add(d, e)",
    "sum over the exponentials": "m = ReduceMax<axes = [-1]>(x) c = Sub(x, m) e = Exp(c) s = ReduceSum(e, ax) y = Div(s, e)",
    "bounded maximum": "zero = Constant<value_float = 0.0>() m = ReduceMax<axes = [-1]>(x) n = Max(m, zero) c = Sub(x, n) e = Exp(c) s = ReduceSum(e, ax) y = Div(e, s)",
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_is_no_softmax_stays(name: str) -> None:
    assert run_pass(FuseSoftmax(), model_of(APART[name])).record.patches == 0


def test_old_opset_stays() -> None:
    text = '<ir_version: 7, opset_import: ["" : 12]> g (float[2, 8] x) => (float[2, 8] y) { m = ReduceMax<axes = [-1]>(x) c = Sub(x, m) e = Exp(c) s = ReduceSum<axes = [-1]>(e) y = Div(e, s) }'
    assert run_pass(FuseSoftmax(), text).record.patches == 0
