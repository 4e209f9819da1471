"""eliminate-failing-branches: a branch no run can survive goes; where any could, both stay."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.errors import RunError
from graphopt.graph import Model, read_model
from graphopt.passes.simplify.eliminate_failing_branches import EliminateFailingBranches
from graphopt.passes.simplify.inline_if import InlineIf
from graphopt.rewrite.manager import PassManager
from graphopt.runtime import Feeds, run, session
from pass_oracle import run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'
NARROW = (
    "h = If (p) <then_branch = t () => (a) { a = Squeeze(x, last) }, else_branch = e () => (b) { b = Identity(x) }>"
)
GATES = "<int64[1] last = {-1}, int64[1] front = {0}, float[1, 4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[1, 4, 1] r = {1, 2, 3, 4}>"

GONE: dict[str, tuple[str, list[str]]] = {
    "LSTM": (f"g (float[3, 2, 1] x, bool[] p) => (float[a, b, c] y, float[d] z) {GATES} {{ {NARROW} u = Unsqueeze(h, front) z, y = LSTM<hidden_size = 1>(u, w, r) }}".replace("float[d] z", "float[a, e, b, c] z"), ["Squeeze", "Unsqueeze", "LSTM"]),
    "LSTM behind element-wise nodes": (f"g (float[3, 2, 1] x, bool[] p) => (float[a, b, c] y) {GATES} {{ {NARROW} k = Relu(h) u = Unsqueeze(k, front) v = Tanh(u) z, y = LSTM<hidden_size = 1>(v, w, r) }}", ["Squeeze", "Relu", "Unsqueeze", "Tanh", "LSTM"]),
    "Conv": (f"g (float[3, 2, 1] x, bool[] p) => (float[a, b, c] y) <int64[1] last = {{-1}}, float[1, 2, 1] w = {{1, 2}}> {{ {NARROW} y = Conv(h, w) }}", ["Identity", "Conv"]),
    "Transpose": (f"g (float[3, 2, 1] x, bool[] p) => (float[a, b] y) <int64[1] last = {{-1}}> {{ {NARROW} y = Transpose<perm = [1, 0]>(h) }}", ["Squeeze", "Transpose"]),
    "If behind If": (f"g (float[3, 2, 1] x, bool[] p, bool[] q) => (float[a, b] y) <int64[1] last = {{-1}}, int64[1] front = {{0}}> {{ {NARROW} k = If (q) <then_branch = t2 () => (a2) {{ a2 = Unsqueeze(h, front) }}, else_branch = e2 () => (b2) {{ b2 = Identity(h) }}> y = Transpose<perm = [1, 0]>(k) }}", ["Squeeze", "Identity", "Transpose"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "both ranks do": f"g (float[3, 2, 1] x, bool[] p) => (y) <int64[1] last = {{-1}}> {{ {NARROW} y = Relu(h) }}",
    "neither rank does": f"g (float[3, 2, 1] x, bool[] p) => (y) <int64[1] last = {{-1}}, float[1, 2, 1, 1] w = {{1, 2}}> {{ {NARROW} y = Conv(h, w) }}",
    "the reader runs only sometimes": f"g (float[3, 2, 1] x, bool[] p, bool[] q) => (y) <int64[1] last = {{-1}}> {{ {NARROW} y = If (q) <then_branch = t2 () => (a2) {{ a2 = Transpose<perm = [1, 0]>(h) }}, else_branch = e2 () => (b2) {{ b2 = Identity(h) }}> }}",
    "axes that are fed": f"g (float[3, 2, 1] x, bool[] p, int64[1] front) => (y) <int64[1] last = {{-1}}> {{ {NARROW} u = Squeeze(h, front) y = Transpose<perm = [1, 0]>(u) }}",
    "another domain": f'<ir_version: 9, opset_import: ["" : 19, "custom" : 1]> g (float[3, 2, 1] x, bool[] p) => (y) <int64[1] last = {{-1}}> {{ {NARROW} y = custom.Transpose<perm = [1, 0]>(h) }}',
}  # fmt: skip


def text(body: str) -> str:
    return body if body.startswith("<") else HEAD + body


def result(model: Model, feed: dict[str, Any]) -> list[np.ndarray] | None:
    """Return the outputs, None where the model fails."""
    try:
        return list(run(session(model.to_bytes(), optimize=False), feed).values())
    except RunError:
        return None


@pytest.mark.parametrize("case", GONE)
def test_branch_that_fails_goes(case: str) -> None:
    source, ops = GONE[case]
    proto = onnx.parser.parse_model(text(source))
    for info in proto.graph.output:
        info.type.tensor_type.ClearField("shape")
    model = read_model(proto)
    after = model.copy()
    PassManager([EliminateFailingBranches()], verify="fast").run(after)
    assert sorted(node.op for _, node in after.walk()) == sorted(ops)
    ran = 0
    x = np.arange(1, 7, dtype=np.float32).reshape(3, 2, 1)
    for p in (True, False):
        for q in (True, False):
            feed = {"x": x, "p": np.array(p), "q": np.array(q)}
            feed = {tensor.name: feed[tensor.name] for tensor in model.graph.inputs}
            right = result(model, feed)
            if right is not None:
                ran += 1
                found = result(after, feed)
                assert found is not None
                assert all(np.array_equal(a, b) for a, b in zip(right, found, strict=True))
    assert ran
    assert PassManager([EliminateFailingBranches()]).run(after).patches == 0


@pytest.mark.parametrize("case", STAYS)
def test_branches_that_can_be_taken_stay(case: str) -> None:
    proto = onnx.parser.parse_model(text(STAYS[case]))
    for info in proto.graph.output:
        info.type.tensor_type.elem_type = 1
    assert run_pass(EliminateFailingBranches(), proto, verify="fast").record.patches == 0


def test_conditions_on_the_rank_follow() -> None:
    source = f"g (float[3, 2, 1] x, bool[] p) => (float[a, b] y, float[c, d] z) <int64[1] last = {{-1}}, int64 two = {{2}}> {{ {NARROW} s = Shape(h) n = Size(s) q = Equal(n, two) z = If (q) <then_branch = t2 () => (a2) {{ a2 = Neg(h) }}, else_branch = e2 () => (b2) {{ b2 = Squeeze(h, last) }}> y = Transpose<perm = [1, 0]>(h) }}"
    model = read_model(onnx.parser.parse_model(text(source)))
    done = PassManager([EliminateFailingBranches(), InlineIf()]).run(model)
    assert [record.patches for record in done.records] == [1, 1]
    assert [node.op for _, node in model.walk()] == ["Squeeze", "Shape", "Size", "Equal", "Neg", "Transpose"]


def test_golden(golden: Callable[[str], None]) -> None:
    proto = onnx.parser.parse_model(text(GONE["If behind If"][0]))
    golden(run_pass(EliminateFailingBranches(), proto, verify="fast").text)


@pytest.mark.slow
@pytest.mark.skipif("GRAPHOPT_ASSETS" not in os.environ, reason="needs the model files")
def test_branches_of_a_voice_detector_that_takes_any_rank() -> None:
    path = Path(os.environ["GRAPHOPT_ASSETS"]) / "models/silero_vad_op16_if.onnx"
    model = read_model(path)
    before = model.copy()
    steps = ["fold-constants", "eliminate-identity", "inline-if", "eliminate-failing-branches", "eliminate-dead"]
    PassManager(steps).run(model)
    assert sum(node.op == "If" for _, node in model.walk()) == 1
    assert sum(node.op != "Constant" for _, node in model.walk()) <= 76
    rng = np.random.default_rng(0)
    feeds = [
        {
            "input": rng.normal(size=(batch, length)).astype(np.float32),
            "state": rng.normal(size=(2, batch, 128)).astype(np.float32),
            "sr": np.array(rate),
        }
        for batch, length, rate in ((1, 576, 16000), (3, 576, 16000), (2, 288, 8000))
    ]
    for feed in Feeds.open(feeds, before):
        right, found = result(before, dict(feed)), result(model, dict(feed))
        assert right is not None
        assert found is not None
        for a, b in zip(right, found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # constant weights take another kernel of the LSTM
