"""What was quantized but computes in float is taken back; what is slower, where the user lets time decide."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import demo, fusion
from graphopt.graph import Model, read_model
from graphopt.pipeline import conclusions
from graphopt.rewrite import PassManager, create
from graphopt.runtime import random_feeds
from graphopt.target import registry
from graphopt.target.audit import audit
from graphopt.target.rules import OpRule, Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.rewrite import Outcome, Pass

NET = (
    '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 16, 12, 12] x, float[16, 16, 3, 3] w0, '
    "float[16, 16, 3, 3] w1, float[16, 16, 3, 3] w2, float[16, 16, 3, 3] w3) => (float[n, 16, 12, 12] y) { "
    "a = Conv<pads = [1, 1, 1, 1]>(x, w0) t = Softplus(a) b = Conv<pads = [1, 1, 1, 1]>(t, w1) "
    "e = Erf(b) c = Conv<pads = [1, 1, 1, 1]>(e, w2) r = Relu(c) y = Conv<pads = [1, 1, 1, 1]>(r, w3) }"
)
SUBTRACTING = NET.replace("(e, w2)", "(s, w2)").replace("e = Erf(b)", "e = Erf(b) s = Sub(a, e)")


def net(text: str = NET) -> Model:
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for value in list(proto.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = (random.standard_normal(shape) / 12).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return read_model(proto)


def data(count: int = 40) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(1).standard_normal((count, 16, 12, 12)).astype(np.float32)}


RECIPE = {"name": "int8", "passes": ["insert-qdq"], "budget": {"max_drop": 100.0, "max_drop_db": 100.0}}


@pytest.fixture
def wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the target promise an integer kernel that the runtime does not have."""
    target = registry.TARGETS["ort-cpu"]
    promised = OpRule(op="Sub", role=Role.JOIN, kernel="QLinearSub", data=(0, 1))
    changed = replace(target, rules={**target.rules, "Sub": promised})
    monkeypatch.setitem(registry.TARGETS, "ort-cpu", changed)


@pytest.mark.usefixtures("wrong_rule")
def test_what_the_runtime_computes_in_float_is_made_float_again() -> None:
    result = graphopt.compile(net(SUBTRACTING), recipe=RECIPE, data=data(), verify="full")
    said = [note for note in result.report.notes if "in float between conversions" in note]
    assert len(said) == 1
    assert "Sub_s" in said[0]
    difference = next(node for node in result.model.graph.nodes if node.op == "Sub")
    assert difference.inputs[1].inputs[0].op == "Erf"  # no conversion before it any more
    assert not fusion.stayed_float(result.model, "ort-cpu")
    assert audit(result.model, compare=False).integer["QLinearConv"] == 4


@pytest.mark.usefixtures("wrong_rule")
def test_it_is_so_without_data_to_judge_on_too() -> None:
    model = net(SUBTRACTING)
    outcome = PassManager(["insert-qdq"]).run(changed := model.copy(), random_feeds(model, count=4, seed=0))
    assert fusion.stayed_float(changed, "ort-cpu").keys() == {"Sub_s"}
    placed = fusion.Placed(changed, outcome, (create("insert-qdq", {}),))

    def attempt(candidate: Model, steps: Sequence[Pass]) -> Outcome:
        return PassManager(list(steps)).run(candidate, random_feeds(model, count=4, seed=0))

    assert fusion.is_placing(placed.passes, model, changed)
    settled = fusion.settle(model, placed, attempt, "ort-cpu")
    assert settled.passes[0].options()["keep"] == ("Sub_s",)
    assert fusion.settle(model, settled, attempt, "ort-cpu") == settled


def test_a_model_that_fuses_is_left_alone() -> None:
    result = graphopt.compile(net(), recipe=RECIPE, data=data())
    assert not any("between conversions" in note for note in result.report.notes)
    assert audit(result.model, compare=False).integer["QLinearConv"] >= 2


def test_a_target_that_is_not_installed_is_not_asked() -> None:
    placed = fusion.Placed(net(), PassManager(["insert-qdq"]).run(net(), None), (create("insert-qdq", {}),))

    def never(_model: Model, _steps: Sequence[Pass]) -> Outcome:
        raise AssertionError

    assert fusion.settle(net(), placed, never, "tensorrt") is placed


# ------------------------------------------------------------------------------------------------------------- time


class Trial:
    """A placed model with everything that `keep_faster` needs, and a clock by hand."""

    def __init__(self) -> None:
        self.before = net()
        self.feeds = random_feeds(self.before, count=4, seed=0)
        after = self.before.copy()
        outcome = self.attempt(after, [create("insert-qdq", {})])
        after.sort()
        self.placed = fusion.Placed(after, outcome, (create("insert-qdq", {}),))
        self.asked: list[int] = []

    def attempt(self, model: Model, steps: Sequence[Pass]) -> Outcome:
        return PassManager(list(steps)).run(model, self.feeds)

    @staticmethod
    def integers(model: Model) -> set[str]:
        return {
            node.name
            for node in model.graph.nodes
            if node.op == "Conv" and node.inputs[0].inputs and node.inputs[0].inputs[0].op == "DequantizeLinear"
        }


def test_layers_that_hand_integers_on_are_one_region() -> None:
    trial = Trial()
    layers = {layer.name for record in trial.placed.outcome.records for layer in record.layers}
    assert layers == {"Conv_a", "Conv_b", "Conv_c", "Conv_y"}
    found = {frozenset(area) for area in fusion.regions(trial.placed.model, layers, "ort-cpu")}
    assert found == {frozenset({"Conv_a"}), frozenset({"Conv_b"}), frozenset({"Conv_c", "Conv_y"})}


def test_a_region_that_is_faster_in_float_stays_float() -> None:
    trial = Trial()

    def clock(models: Sequence[Model]) -> list[float]:
        # Conv_b costs time in integers, the others save it
        found = [trial.integers(each) for each in models]
        return [10.0 - 2 * len(each & {"Conv_a", "Conv_c", "Conv_y"}) + 3 * ("Conv_b" in each) for each in found]

    kept = fusion.keep_faster(trial.before, trial.placed, trial.attempt, clock, "ort-cpu")
    assert trial.integers(kept.model) == {"Conv_a", "Conv_c", "Conv_y"}
    assert any("faster in float here: 'Conv_b'" in note for note in kept.notes)
    rows = {layer.name: layer for layer in kept.outcome.records[0].layers}
    assert rows["Conv_b"].reverted
    assert rows["Conv_a"].kept


def test_a_model_that_is_slower_in_integers_stays_float() -> None:
    trial = Trial()

    def clock(models: Sequence[Model]) -> list[float]:
        return [5.0 + (1.0 if trial.integers(each) else 0.0) for each in models]

    kept = fusion.keep_faster(trial.before, trial.placed, trial.attempt, clock, "ort-cpu")
    assert kept.model is trial.before
    assert kept.passes == ()
    assert "slower here: 6 ms against 5 ms" in kept.notes[-1]
    assert all(layer.reverted for layer in kept.outcome.records[0].layers)


def test_a_model_that_is_faster_in_integers_is_kept_as_it_is() -> None:
    trial = Trial()

    def clock(models: Sequence[Model]) -> list[float]:
        return [9.0 - len(trial.integers(each)) for each in models]

    kept = fusion.keep_faster(trial.before, trial.placed, trial.attempt, clock, "ort-cpu")
    assert kept.model is trial.placed.model
    assert kept.notes == ()


def test_time_decides_in_a_whole_compilation_only_where_the_user_lets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def slow(_before: Model, placed: fusion.Placed, _attempt: Any, *_more: Any) -> fusion.Placed:
        calls.append(1)
        return replace(placed, notes=(*placed.notes, "looked at the time"))

    monkeypatch.setattr(fusion, "keep_faster", slow)
    graphopt.compile(demo.CNN, recipe="int8", data=str(demo.CALIBRATION), measure=True)
    assert not calls
    result = graphopt.compile(demo.CNN, recipe="int8", data=str(demo.CALIBRATION), keep_float_if_slower=True)
    assert calls == [1]
    assert "looked at the time" in result.report.notes


def test_optimizations_that_change_the_answers_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt import pipeline

    found = audit(net(), compare=False)
    monkeypatch.setattr(pipeline, "audit", lambda *_a, **_k: replace(found, optimization_error=0.5))
    model = read_model(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) <float s = {0.1}, uint8 z = {9}> '
            "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
        )
    )
    said = conclusions(model, "ort-cpu", None, random_feeds(model, count=2, seed=0))
    assert any("change outputs by 50 %" in note for note in said)
