"""prune-second-order and prune-wanda: what stays follows the pattern, and the outputs stay near the dense ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest

from graphopt import demo
from graphopt.analysis.layer_statistics import Layer, find_layers
from graphopt.errors import RecipeError
from graphopt.graph import Model, read_model
from graphopt.passes.prune.prune_magnitude import PruneMagnitude
from graphopt.passes.prune.prune_second_order import PruneSecondOrder
from graphopt.passes.prune.prune_wanda import PruneWanda
from graphopt.rewrite import Outcome, PassManager, create
from graphopt.runtime import Feeds
from graphopt.solve.patterns import Pattern, channels_last
from graphopt.verify.legality import check_legal

BOTH = [PruneSecondOrder, PruneWanda]
ROWS = 1024


def calibration(model: Model, samples: int = 32) -> Feeds:
    return Feeds.open(demo.CALIBRATION, model).take(samples)


def compress(model: Model, *passes: Any, samples: int = 32) -> Outcome:
    data = calibration(model, samples)
    return PassManager([create("fold-constants"), create("fuse-batch-norm"), *passes], verify="fast").run(model, data)


def logits(model: Model) -> np.ndarray:
    session = ort.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    with np.load(demo.TEST) as test:
        return np.asarray(session.run(["logits"], {"image": test["image"]})[0])


def weights(model: Model) -> list[np.ndarray]:
    return [found.array() for found in find_layers(model) if isinstance(found, Layer)]


def zeros(model: Model) -> float:
    found = weights(model)
    return 1 - sum(int(np.count_nonzero(each)) for each in found) / sum(each.size for each in found)


def agreement(model: Model, path: Any) -> float:
    return float((logits(model).argmax(axis=1) == logits(read_model(path)).argmax(axis=1)).mean())


@pytest.mark.parametrize(
    ("path", "sparsity"),
    [(demo.CNN, 0.85), pytest.param(demo.TRANSFORMER, 0.97, marks=pytest.mark.slow)],
    ids=["cnn", "transformer"],
)
def test_second_order_keeps_more_than_magnitude(path: Any, sparsity: float) -> None:
    plain, solved = read_model(path), read_model(path)
    compress(plain, PruneMagnitude(sparsity=sparsity))
    compress(solved, PruneSecondOrder(sparsity=sparsity, rows=ROWS))
    check_legal(solved)
    assert zeros(solved) == pytest.approx(sparsity, abs=0.002)
    assert agreement(solved, path) > agreement(plain, path) + 0.02
    assert agreement(solved, path) > 0.9


@pytest.mark.parametrize(
    ("cls", "allocation"),
    [
        (PruneSecondOrder, "erk"),
        (PruneSecondOrder, "size"),
        (PruneSecondOrder, "loss"),
        (PruneWanda, "uniform"),
        (PruneWanda, "loss"),
    ],
)
def test_the_share_of_zeros_is_that_asked_for(cls: Any, allocation: str) -> None:
    model = read_model(demo.CNN)
    compress(model, cls(sparsity=0.6, allocation=allocation, rows=ROWS))
    assert zeros(model) == pytest.approx(0.6, abs=0.02)
    assert agreement(model, demo.CNN) > 0.9


@pytest.mark.parametrize(
    ("cls", "name"),
    [(PruneSecondOrder, "4x1"), (PruneSecondOrder, "4x4"), (PruneSecondOrder, "2:4"), (PruneWanda, "1x4")],
)
def test_what_stays_follows_the_pattern(cls: Any, name: str) -> None:
    model = read_model(demo.CNN)
    outcome = compress(model, cls(pattern=name, protect_ends=False, rows=ROWS))
    check_legal(model)
    skipped = {node for node, _ in outcome.records[-1].skips}
    pattern = Pattern.parse(name)
    seen = 0
    for found in find_layers(model):
        if not isinstance(found, Layer) or found.node.name in skipped:
            continue
        array = found.array()
        matrix = array.reshape(len(array), -1)
        if found.node.op == "Conv":
            matrix = matrix[:, channels_last(array.shape)]
        elif not found.node.attrs.get("transB", 0):
            matrix = array.T
        assert pattern.holds(matrix != 0)
        assert (matrix == 0).mean() == pytest.approx(0.5, abs=0.1)
        seen += 1
    assert seen >= 2


def test_layers_whose_inputs_are_no_multiple_are_left_and_say_so() -> None:
    model = read_model(demo.CNN)
    before = weights(model)
    outcome = compress(model, PruneSecondOrder(pattern="2:4", protect_ends=False, rows=ROWS))
    assert [reason for _, reason in outcome.records[-1].skips] == ["its 1 inputs are no multiple of 4"]
    assert np.count_nonzero(weights(model)[0]) == np.count_nonzero(before[0])


def test_less_than_the_share_of_n_of_m_takes_some_layers_only() -> None:
    model = read_model(demo.CNN)
    compress(model, PruneSecondOrder(pattern="2:4", sparsity=0.3, protect_ends=False, rows=ROWS))
    shares = [float((each == 0).mean()) for each in weights(model)]
    assert {round(share, 1) for share in shares} == {0.0, 0.5}
    assert 0 < zeros(model) <= 0.3


@pytest.mark.parametrize("method", ["obs", "sparsegpt"])
def test_a_second_run_changes_no_zero(method: Any) -> None:
    model = read_model(demo.CNN)
    one = PruneSecondOrder(sparsity=0.7, method=method, rows=ROWS)
    compress(model, one)
    before = [each != 0 for each in weights(model)]
    PassManager([one]).run(model, calibration(model))
    for first, second in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(first, second != 0)


@pytest.mark.parametrize("cls", BOTH)
def test_zeros_of_earlier_passes_stay(cls: Any) -> None:
    model = read_model(demo.CNN)
    compress(model, PruneMagnitude(sparsity=0.5, scope="local"))
    before = [each == 0 for each in weights(model)]
    PassManager([cls(sparsity=0.75, rows=ROWS)]).run(model, calibration(model))
    for gone, now in zip(before, weights(model), strict=True):
        assert (now[gone] == 0).all()
    assert zeros(model) == pytest.approx(0.75, abs=0.02)


def test_same_data_and_seed_give_the_same_bytes() -> None:
    def once() -> bytes:
        model = read_model(demo.CNN)
        compress(model, PruneSecondOrder(sparsity=0.6, rows=ROWS), samples=16)
        return model.to_bytes()

    assert once() == once()


def test_steps_end_at_the_share_and_nest() -> None:
    model = read_model(demo.CNN)
    outcome = compress(model, PruneSecondOrder(sparsity=0.8, steps=2, rows=ROWS))
    assert zeros(model) == pytest.approx(0.8, abs=0.002)
    layers = {row.name for row in outcome.records[-1].layers}
    assert len(outcome.records[-1].layers) == len(layers)


def test_first_and_last_layers_are_left_where_they_are_small() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 2] y)
    <float[4, 40] a, float[40, 40] b, float[40, 40] c, float[40, 2] d>
    { p = MatMul(x, a) q = Relu(p) r = MatMul(q, b) s = Relu(r) t = MatMul(s, c) u = Relu(t) y = MatMul(u, d) }"""
    proto = onnx.parser.parse_model(text)
    draw = np.random.default_rng(0)
    for name, shape in {"a": (4, 40), "b": (40, 40), "c": (40, 40), "d": (40, 2)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(draw.standard_normal(shape).astype("f4"), name))
    for wide, protected in ((False, False), (True, True)):
        model = read_model(proto)
        data = Feeds.open({"x": draw.standard_normal((64, 4)).astype("f4")}, model)
        one = PruneSecondOrder(sparsity=0.5, protect_ends=wide)
        outcome = PassManager([one]).run(model, data)
        ends = [each for each in weights(model) if 4 in each.shape or 2 in each.shape]
        share = 240 / 3440
        assert share > 0.02
        assert not outcome.records[0].skips
        assert all((each == 0).any() for each in ends), protected


@pytest.mark.parametrize("cls", BOTH)
def test_without_data_it_says_so(cls: Any) -> None:
    model = read_model(demo.CNN)
    outcome = PassManager([cls()]).run(model)
    assert "needs calibration data" in outcome.records[0].skips[0][1]


def test_wanda_without_refit_keeps_the_weights_that_stay() -> None:
    model, dense = read_model(demo.CNN), read_model(demo.CNN)
    PassManager([create("fold-constants"), create("fuse-batch-norm")]).run(dense)
    compress(model, PruneWanda(sparsity=0.5, refit=False, variance=False, rows=ROWS))
    for before, now in zip(weights(dense), weights(model), strict=True):
        np.testing.assert_array_equal(now[now != 0], before[now != 0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": 80}, "share between 0 and 1"),
        ({"pattern": "3x3"}, "is one of unstructured"),
        ({"steps": 0}, "must be 1 or more"),
        ({"damping": 0}, "must be above 0"),
    ],
)
@pytest.mark.parametrize("name", ["prune-second-order", "prune-wanda"])
def test_options_are_checked(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        create(name, options)


@pytest.mark.parametrize("cls", BOTH)
def test_strength_is_a_share_of_the_sparsity(cls: Any) -> None:
    assert cls(sparsity=0.8).with_strength(0.5).sparsity == pytest.approx(0.4)
