"""The passes on no-ops, chains and views together: they reach one fixed point, and real models keep every bit."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from chain_models import chain_model
from graph_strategies import small_models
from graphopt.errors import GraphoptError
from graphopt.graph import read_model
from graphopt.rewrite.manager import PassManager
from graphopt.verify.contract import Contract
from graphopt.verify.reference import evaluate, sample_feeds
from pass_oracle import assert_equal, some_feeds

EXACT = [
    "eliminate-identity",
    "eliminate-redundant-bounds",
    "cancel-inverses",
    "merge-reshapes",
    "merge-transposes",
    "merge-casts",
    "merge-clips",
    "merge-slices",
    "merge-splits",
    "merge-concats",
    "merge-pads",
    "merge-gathers",
    "merge-reductions",
    "join-views",
    "sink-views",
]
ROUNDING = ["absorb-unary", "merge-constant-operands"]
HEAD = '<ir_version: 9, opset_import: ["" : 19]>\n'

TOGETHER: dict[str, tuple[str, list[str]]] = {
    "views and clamps": ("g (float[n, 4] x) => (float[n, 4] y) <int64[1] w = {1}, int64[2] s = {-1, 4}, float l = {0}, float h = {6}> { a = Unsqueeze(x, w) b = Relu(a) c = Clip(b, l, h) d = Reshape(c, s) e = Identity(d) y = Relu(e) }", ["Clip"]),
    "stack and take apart": ("g (float[n, 4] p, float[n, 4] q) => (float[n, 4] y, float[n, 4] z) <int64[1] w = {0}, int64[2] s = {1, 1}> { a = Unsqueeze(p, w) b = Unsqueeze(q, w) c = Concat<axis = 0>(a, b) d, e = Split<axis = 0>(c, s) f = Squeeze(d, w) g = Squeeze(e, w) y = Neg(f) z = Abs(g) }", ["Neg", "Abs"]),
    "slices of a join": ("g (float[n, 4] p, float[n, 4] q) => (float[n, 4] y, float[n, 4] z) <int64[1] f = {0}, int64[1] m = {4}, int64[1] e = {99}, int64[1] w = {1}> { a = Concat<axis = 1>(p, q) b = Slice(a, f, m, w) c = Slice(a, m, e, w) y = Neg(b) z = Abs(c) }", ["Neg", "Abs"]),
    "casts of indices": ("g (float[9, 4] x, int32[k] i) => (float[k, 4] y) <int32 m = {9}> { j = Mod(i, m) a = Cast<to = 7>(j) b = Cast<to = 6>(a) c = Cast<to = 7>(b) y = Gather(x, c) }", ["Mod", "Gather"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
def test_passes_reach_one_fixed_point(case: str) -> None:
    text, ops = TOGETHER[case]
    source = onnx.parser.parse_model(HEAD + text)
    model = read_model(source)
    PassManager(EXACT, verify="full").run(model)
    assert [node.op for _, node in model.walk()] == ops
    assert PassManager(EXACT).run(model.copy()).patches == 0


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(small_models())
def test_generated_models_keep_every_bit(source: onnx.ModelProto) -> None:
    before = read_model(source)
    model = before.copy()
    PassManager(EXACT).run(model)
    feeds = some_feeds(before)
    assert_equal(before, Contract.EXACT, feeds, evaluate(before, feeds), evaluate(model, feeds))
    assert PassManager(EXACT).run(model.copy()).patches == 0


@pytest.mark.slow
@pytest.mark.skipif("GRAPHOPT_ASSETS" not in os.environ, reason="GRAPHOPT_ASSETS names no folder of real models")
def test_real_models_keep_every_bit() -> None:
    root = Path(os.environ["GRAPHOPT_ASSETS"])
    for path in sorted([*root.glob("models/*.onnx"), *root.glob("graphs/*.onnx")]):
        model = read_model(path)
        PassManager(["fold-constants", "eliminate-dead"], verify="off").run(model)
        before = model.copy()
        PassManager(EXACT).run(model)
        feeds = [dict(feed) for feed in sample_feeds(before, 1, seed=3)]
        assert_equal(before, Contract.EXACT, feeds, evaluate(before, feeds), evaluate(model, feeds))
        assert PassManager(EXACT).run(model.copy()).patches == 0, path


def check_chain(seed: int) -> None:
    source, feed = chain_model(seed)
    before = read_model(source)
    try:
        expected = evaluate(before, [feed])
    except GraphoptError:
        return  # a chain that no runtime runs says nothing
    for names, contract in ((EXACT, Contract.EXACT), ([*EXACT, *ROUNDING], Contract.ROUNDING)):
        model = before.copy()
        PassManager(names).run(model)
        assert_equal(before, contract, [feed], expected, evaluate(model, [feed]))
        again = PassManager(names).run(model.copy())
        assert again.patches == 0, [patch.reason for record in again.records for patch in record.log]


@pytest.mark.parametrize("seed", range(40))
def test_chains_keep_their_outputs(seed: int) -> None:
    check_chain(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_many_chains_keep_their_outputs(block: int) -> None:
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        check_chain(seed)
