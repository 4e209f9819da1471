"""convert-precision: 16-bit floats inside, float32 where it must be, one Cast where they meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from graph_strategies import small_models
from graphopt.graph import read_model
from graphopt.passes.convert.convert_precision import ConvertPrecision
from graphopt.rewrite import PassManager
from graphopt.runtime import run, session
from pass_oracle import Done, parse, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.graph import Node, Tensor

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'


def converted(text: str, **options: object) -> Done:
    done = run_pass(ConvertPrecision(**options), HEAD + text)  # type: ignore[arg-type]
    onnx.checker.check_model(done.model.to_proto(), full_check=True)
    return done


def test_casts_stand_only_where_precisions_meet(golden: Callable[[str], None]) -> None:
    done = converted(
        """g (float[n, 4] x) => (float[n, 4] y) <float[4, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[4] b = {1,2,3,4}> {
            a = MatMul(x, w) c = Add(a, b) d = Relu(c) e = Exp(d) y = Mul(e, d) }"""  # noqa: E501
    )
    golden(done.text)
    assert done.ops == ["Cast", "MatMul", "Add", "Relu", "Cast", "Exp", "Cast", "Mul", "Cast"]
    stored = {constant.onnx_dtype for constant in done.model.graph.initializers}
    assert stored == {TensorProto.FLOAT16}
    assert [tensor.onnx_dtype for tensor in (*done.model.graph.inputs, *done.model.graph.outputs)] == [1, 1]


@pytest.mark.parametrize(("to", "step"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_values_move_by_the_rounding_of_the_type(to: str, step: float) -> None:
    model = parse(HEAD + "g (float[8] x) => (float[8] y) { a = Sigmoid(x) y = Mul(a, x) }")
    feed = {"x": np.linspace(-4, 4, 8, dtype=np.float32)}
    before = ReferenceEvaluator(model.to_proto()).run(None, feed)[0]
    PassManager([ConvertPrecision(to=to)]).run(model)  # type: ignore[arg-type]
    after = ReferenceEvaluator(model.to_proto()).run(None, feed)[0]  # ONNX Runtime computes these in float32 on a CPU
    assert 0 < np.abs(after - before).max() < 4 * 4 * step


KEPT = {
    "a name that keep lists": ("y = Relu(x)", {"keep": ("named",)}, "keep names it"),
    "an operator on the list": ("y = Exp(x)", {}, "on the list"),
    "a weight beyond the range": ("y = Mul(x, large)", {}, "holds 1e+05, and float16 ends at 6.55e+04"),
    "another domain": ("y = other.Thing(x)", {}, "nothing is known"),
}


@pytest.mark.parametrize(("body", "options", "said"), KEPT.values(), ids=KEPT.keys())
def test_what_stays_says_why(body: str, options: dict[str, object], said: str) -> None:
    head = '<ir_version: 9, opset_import: ["" : 19, "other" : 1]>\n'
    model = parse(head + f"g (float[2] x) => (float[2] y) <float large = {{100000.0}}> {{ {body} }}")
    model.graph.nodes[0].name = "named"
    done = PassManager([ConvertPrecision(**options)]).run(model)  # type: ignore[arg-type]
    assert done.patches == 0
    assert said in done.records[0].skips[0][1]


def test_a_weight_that_a_caller_may_override_stays() -> None:
    done = run_pass(
        ConvertPrecision(), HEAD + "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }"
    )
    assert done.record.patches == 0
    assert "may override" in done.record.skips[0][1]


def test_integers_and_scales_that_must_be_float32_stay() -> None:
    done = converted(
        """g (float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) <float[4] s = {1, 1, 2, 2}> {
            a = Relu(x) y = Resize<mode = "nearest">(a, , s) }""",
        keep_operators=(),
    )
    (scales,) = done.model.graph.initializers
    assert scales.onnx_dtype == TensorProto.FLOAT


def test_bodies_are_converted_and_meet_their_surroundings_in_float32() -> None:
    done = converted(
        """g (bool c, float[4] x) => (float[4] y) { a = Relu(x)
            y = If (c) <then_branch = t () => (float[4] p) { u = Neg(a) p = Abs(u) },
                        else_branch = e () => (float[4] q) { q = Neg(x) }> }"""
    )
    feed = {"c": np.array(True), "x": np.array([1, -2, 3, -4], np.float32)}
    assert run(session(done.model.to_bytes()), feed)["y"].tolist() == [1, 0, 3, 0]


def test_layers_with_weights_are_on_the_account() -> None:
    done = converted(
        "g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { a = MatMul(x, w) y = Relu(a) }"
    )
    assert [(layer.op, layer.what) for layer in done.record.layers] == [("MatMul", "float16")]


@pytest.mark.parametrize(
    ("text", "narrow"),
    [
        ("float[n] x) => (int64[1] y) { y = Shape(x) }", ""),
        ("float[n, 2] x) => (float[2, n] y) { y = Transpose(x) }", ""),
        ("float[n, 2] x) => (float[2, n] y, int64 z) { a = Identity(x) y = Transpose(a) z = Size(y) }", ""),
        ("float[n] x) => (float[n, 1] y, int64[1] z) { a = Relu(x) y = Flatten(a) z = Shape(x) }", "Relu Flatten"),
        (
            "float[n] x) => (int64[2] z, float[n, 1] y) { a = Relu(x) y = Flatten(a) z = Shape(y) }",
            "Relu Flatten Shape",
        ),
        ("int64[n] i) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = Gather(w, i) }", "Gather"),
        ("float[n] x) => (int64[n] y) { s = Shape(x) y = Expand(s, s) }", ""),
    ],
)
def test_what_only_moves_follows_those_that_compute(text: str, narrow: str) -> None:
    before = parse(HEAD + "g (" + text)
    PassManager([ConvertPrecision()], verify="full").run(before)
    made = {
        node.op for node in before.graph.nodes if node.op != "Cast" and any(_is_half(port) for port in _ports(node))
    }
    assert made == set(narrow.split())
    assert any(node.op == "Cast" for node in before.graph.nodes) == bool(narrow)


def test_sequences_hold_one_type() -> None:
    done = converted(
        """g (float[n] x, int64 i) => (float[n] y) { a = Relu(x) q = SequenceConstruct(a, x) r = SequenceInsert(q, a)
            b = SequenceAt(r, i) y = Neg(b) }"""
    )
    feed = {"x": np.array([1, -2], np.float32), "i": np.array(0, np.int64)}
    assert run(session(done.model.to_bytes()), feed)["y"].tolist() == [-1, 0]


def _ports(node: Node) -> list[Tensor]:
    return [*node.inputs, *node.outputs]


def _is_half(tensor: Tensor) -> bool:
    return bool(tensor.onnx_dtype == TensorProto.FLOAT16)


def test_a_function_of_onnx_with_float32_constants_stays() -> None:
    done = run_pass(
        ConvertPrecision(),
        HEAD + "g (float[2, 3] x) => (float[2, 3] y) { y = MeanVarianceNormalization<axes = [1]>(x) }",
    )
    assert done.ops == ["MeanVarianceNormalization"]
    onnx.checker.check_model(done.model.to_proto(), full_check=True)


@settings(max_examples=60, deadline=None)
@given(small_models())
def test_generated_models_stay_valid_and_run(model: onnx.ModelProto) -> None:
    work = read_model(model)
    PassManager([ConvertPrecision(keep_operators=())], verify="fast").run(work)
    onnx.checker.check_model(work.to_proto(), full_check=True)
    session(work.to_bytes(), optimize=False)
