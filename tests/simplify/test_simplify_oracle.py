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
from model_feeds import feeds_of
from random_models import Made, random_model
from reduce_model import reduce_model
from simplify_oracle import SimplifyFaultError, check_growth, check_interface, check_valid, judge, operators

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
