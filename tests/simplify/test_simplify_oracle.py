"""The oracle finds what it looks for, and simplification depends on nothing but the model, not even on the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import simplify_oracle
from fuzz_simplify import leaves_memory
from graphopt.verify.contract import Contract
from graphopt.verify.equality import compare
from graphopt.verify.reference import evaluate
from model_feeds import feeds_of
from random_models import Made, random_model
from random_models.builder import Builder, Refused
from random_models.choices import Decider, Seeded
from random_models.values import Value
from reduce_model import reduce_model
from simplify_oracle import SimplifyFaultError, check_growth, check_interface, check_valid, judge, operators
from simplify_oracle_reference import interpret

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
PLAIN = "g (float[n] x) => (float[n] y) { a = Identity(x) y = Neg(a) }"


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


@pytest.mark.parametrize(
    "changed",
    [
        "g (float[m] x) => (float[n] y) { y = Neg(x) }",
        "g (float[n] x, float[n] z) => (float[n] y) { y = Neg(x) }",
        "g (float[n] w) => (float[n] y) { y = Neg(w) }",
        "g (float[n] x) => (float[2] y) { y = Neg(x) }",
        "g (float[n] x) => (float[n] z) { z = Neg(x) }",
        "g (double[n] x) => (double[n] y) { y = Neg(x) }",
    ],
)
def test_another_interface_is_found(changed: str) -> None:
    check_interface(parse(PLAIN), parse(PLAIN))
    with pytest.raises(SimplifyFaultError, match="interface"):
        check_interface(parse(PLAIN), parse(changed))


def test_an_invalid_result_is_found() -> None:
    check_valid(parse(PLAIN), parse(PLAIN))
    with pytest.raises(SimplifyFaultError, match="invalid"):
        check_valid(parse(PLAIN), parse("g (float[n] x) => (float[n] y) { y = Neg(b) }"))


def test_growth_is_found() -> None:
    check_growth(b"a" * 10, b"a" * 60_000)
    with pytest.raises(SimplifyFaultError, match="growth"):
        check_growth(b"a" * 10, b"a" * 80_000)


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        ("g (float[n] x) => (float[n] y) { y = Abs(x) }", "wrong"),
        ("g (float[n] x) => (float[n] y) <float z = {0}> { a = Neg(x) y = Add(a, z) }", "wrong"),
        ("g (float[n] x) => (float[n] y) <int64[1] s = {2}> { a = Neg(x) y = Reshape(a, s) }", "refused"),
    ],
)
def test_another_function_is_found(result: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = parse(result).SerializeToString()
    real = simplify_oracle.simplified
    monkeypatch.setattr(simplify_oracle, "simplified", lambda data: (wrong, real(data)[1]))
    feeds = [{"x": np.array([0.0, 1.0, -2.0], np.float32)}]
    with pytest.raises(SimplifyFaultError, match=f"^{kind}:"):
        judge(parse(PLAIN), feeds)


LOOP = """g (float[1, 1] x) => (float y, float z) <int64 n = {3}> {
    y, z = Loop(n, , x) <body = b (int64 i, bool go, float[1, 1] s) => (bool on, float[1, 1] t, float v)
        <int64[0] r = {}> { on = Identity(go) t = Neg(s) v = VIEW } >
}"""


@pytest.mark.parametrize(("view", "shape"), [("Abs(t)", (3, 1, 1)), ("Reshape(t, r)", (3,)), ("Squeeze(t)", (3,))])
def test_a_loop_stacks_what_its_iterations_give(view: str, shape: tuple[int, ...]) -> None:
    model = parse(LOOP.replace("VIEW", view)).SerializeToString()
    feed = {"x": np.full((1, 1), 2, np.float32)}
    stacked = np.array([-2, 2, -2], np.float32).reshape(shape)
    right = {"y": -feed["x"], "z": np.abs(stacked) if view == "Abs(t)" else stacked}
    assert compare(right, interpret(model, [feed])[0], Contract.EXACT).equal
    assert compare(right, evaluate(model, [feed])[0], Contract.EXACT).equal


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("g (float[batch, 2] x) => (float[n, 2] y) { t = Transpose(x) v = Transpose(t) y = MatMul(t, v) }", True),
        ("g (float[batch, 2] x) => (float[batch, m] y) { t = Transpose(x) y = MatMul(x, t) }", False),
        ("g (float[1, batch, 2] x) => (float[1, 3, 2] y) <float[3, 1, 1] w = {1, 2, 3}> { y = Conv(x, w) }", True),
        ("g (float[batch] x) => (float y) { y = MatMul(x, x) }", True),
        ("g (float[batch] x) => (float[batch] y) { y = Neg(x) }", False),
    ],
)
def test_sums_of_nothing_that_are_not_written_are_left_out(text: str, left: bool) -> None:
    model = parse(text)
    [feed] = feeds_of(model, ({"batch": 0},))
    assert leaves_memory(model, feed) is left


def test_groups_of_equal_elements_are_normalized_with_a_large_epsilon_only() -> None:
    b = Builder(Decider(Seeded(0)), 17, 1)
    one, two = np.ones((2, 2, 1), np.float32), np.array([[[1, 3], [2, 0]]], np.float32)
    flat, spread = b.add([Value("flat", (one,)), Value("spread", (two,))])
    ones, zeros = b.constant(np.ones(2), np.float32), b.constant(np.zeros(2), np.float32)
    b.node("InstanceNormalization", [spread, ones, zeros])
    b.node("InstanceNormalization", [flat, ones, zeros], epsilon=0.5)
    with pytest.raises(Refused):
        b.node("InstanceNormalization", [flat, ones, zeros])


def test_a_crash_and_an_unstable_result_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = simplify_oracle.simplified, []

    def drifting(data: bytes) -> object:
        calls.append(data)
        result, outcome = real(data)
        model = onnx.load_from_string(result)
        model.graph.node[0].name = f"n{len(calls) // 3}"
        return model.SerializeToString(deterministic=True), outcome

    feeds = feeds_of(parse(PLAIN))
    monkeypatch.setattr(simplify_oracle, "simplified", drifting)
    with pytest.raises(SimplifyFaultError, match=r"^unstable:"):
        judge(parse(PLAIN), feeds)
    monkeypatch.setattr(simplify_oracle, "simplified", lambda data: 1 / 0)
    with pytest.raises(SimplifyFaultError, match=r"^crash: ZeroDivisionError"):
        judge(parse(PLAIN), feeds)


def test_a_failing_model_becomes_small() -> None:
    made = random_model(5)
    op = operators(made.proto)[len(made.proto.graph.node) // 2]
    small = Made(*reduce_model(made.proto, made.feeds, lambda model, _: op in operators(model)))
    assert op in operators(small.proto)
    assert len(small.proto.graph.node) == 1
    assert len(small.proto.graph.output) == 1


SCRIPT = """
import hashlib
from random_models import random_model
from simplify_oracle import simplified
for seed in range(15):
    result, _ = simplified(random_model(seed).proto.SerializeToString(deterministic=True))
    print(hashlib.sha256(result).hexdigest())
"""


def test_another_process_gives_the_same_bytes() -> None:
    support = str(Path(simplify_oracle.__file__).parent)
    outputs = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": support, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        outputs.append(done.stdout)
    assert len(outputs[0].split()) == 15
    assert outputs[0] == outputs[1]
