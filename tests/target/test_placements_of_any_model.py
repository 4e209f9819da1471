"""Whatever the network: on every target the placement is legal and breaks no rule, and a second run is idle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graph_strategies import small_models
from graphopt.graph import Model, read_model
from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.rewrite import PassManager
from graphopt.runtime import random_feeds, run, session
from graphopt.target import find_target, placement, validate
from placed_models import float_model, sqnr_db

if TYPE_CHECKING:
    import onnx

TARGETS = ("ort-cpu-avx2", "ort-cpu-arm64", "tensorrt", "openvino", "qnn")
BLOCKS = {
    "plain": "{a} = {conv}({x}, {w}) {y} = Relu({a})",
    "residual": "{a} = {conv}({x}, {w}) {b} = Relu({a}) {c} = {conv}({b}, {v}) {d} = Add({c}, {x}) {y} = Relu({d})",
    "both": "{a} = {conv}({x}, {w}) {b} = {conv}({x}, {v}) {y} = Add({a}, {b})",
    "concat": (
        "{a} = {conv}({x}, {w}) {b} = Relu({a}) {c} = {conv}({x}, {v}) {d} = Relu({c}) "
        "{e} = Concat<axis = 0>({b}, {d}) "
        "{f} = {conv}({e}, {u}) {y} = AveragePool<kernel_shape = [1, 1]>({f})"
    ),
    "pool": "{a} = {conv}({x}, {w}) {y} = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>({a})",
    "gate": "{a} = {conv}({x}, {w}) {b} = Sigmoid({a}) {y} = Mul({a}, {b})",
    "depthwise": "{a} = {conv}({x}, {w}) {b} = {deep}({a}, {k}) {c} = Relu({b}) {y} = {conv}({c}, {v})",
    "leak": "{a} = {conv}({x}, {w}) {y} = LeakyRelu<alpha = 0.1>({a})",
    "clip": (
        "{a} = {conv}({x}, {w}) {b} = Constant<value = float {{0.0}}>() {c} = Constant<value = float {{2.0}}>() "
        "{y} = Clip({a}, {b}, {c})"
    ),
    "move": "{a} = {conv}({x}, {w}) {y} = Transpose<perm = [0, 1, 3, 2]>({a})",
}
"""Blocks of 16 channels from x to y."""


@pytest.fixture(autouse=True)
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let regions be quantized that are too small to gain from it."""
    monkeypatch.setattr(placement, "PRODUCTS_PER_CONVERSION", 0)


def network(blocks: list[str]) -> Model:
    """Return a network of blocks, one behind the other, with a convolution at the end."""
    weights, body, last = ["float[16, 16, 3, 3] w99"], [], "x"
    for place, kind in enumerate(blocks):
        names = {name: f"{name}{place}_" for name in "abcdefy"}
        used = {name: f"w{10 * place + number}" for number, name in enumerate("wvuk")}
        weights += [f"float[16, {1 if name == 'k' else 16}, 3, 3] {weight}" for name, weight in used.items()]
        operators = {"conv": "Conv<pads = [1, 1, 1, 1]>", "deep": "Conv<pads = [1, 1, 1, 1], group = 16>"}
        body.append(BLOCKS[kind].format(x=last, **names, **used, **operators))
        last = names["y"]
    body.append(f"y = Conv<pads = [1, 1, 1, 1]>({last}, w99)")
    text = f"g (float[n, 16, 8, 8] x, {', '.join(weights)}) => (float[m, 16, 8, 8] y) {{ {' '.join(body)} }}"
    model = float_model(text)
    PassManager(["eliminate-dead"]).run(model)
    return model


@given(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=3), st.sampled_from(TARGETS))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_network_of_blocks(blocks: list[str], target: str) -> None:
    model = network(blocks)
    data = random_feeds(model, count=4, seed=1)
    result = model.copy()
    outcome = PassManager([InsertQdq(), "eliminate-dead"], verify="fast", target=target).run(result, data)
    assert len(outcome.records[0].layers) == sum(node.op == "Conv" for node in model.graph.nodes)
    assert validate(result, find_target(target)) == ()
    assert sqnr_db(model, result, data) > 15


@given(small_models(), st.sampled_from(TARGETS))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_small_model_stays_legal_on_every_target(proto: onnx.ModelProto, target: str) -> None:
    model = read_model(proto)
    data = random_feeds(model, count=2, seed=1)
    result = model.copy()
    manager = PassManager([InsertQdq()], verify="full", target=target)
    manager.run(result, data)
    assert not [each for each in validate(result, find_target(target)) if each.serious]
    assert [tensor.name for tensor in result.graph.outputs] == [tensor.name for tensor in model.graph.outputs]
    for feed in data:
        found = run(session(result, optimize="off"), feed)
        expected = run(session(model, optimize="off"), feed)
        assert {name: np.shape(value) for name, value in found.items()} == {
            name: np.shape(value) for name, value in expected.items()
        }
    before = result.to_bytes()
    manager.run(result, data)
    assert result.to_bytes() == before
