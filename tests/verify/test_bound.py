"""The rounding bound: what only rounds stays inside, what computes something else does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.graph import Model, constant_value, read_model
from graphopt.runtime import run, session
from graphopt.verify.bound import LAMBDA, accumulation, relative_error, rounding_tolerances
from graphopt.verify.contract import Contract
from graphopt.verify.equality import compare
from graphopt.verify.reference import evaluate, interpret
from pass_oracle import parse, some_feeds

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def network(*, depth: int = 4, width: int = 64, epsilon: float = 1e-5, seed: int = 0) -> Model:
    """Return MatMul, BatchNormalization and Relu, ``depth`` times, then Softmax."""
    generator = np.random.default_rng(seed)
    nodes, weights, current = [], [], "x"

    def weight(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    for i in range(depth):
        w = weight(f"w{i}", generator.standard_normal((width, width)) / np.sqrt(width))
        scale = weight(f"g{i}", generator.uniform(0.5, 2, width))
        bias, mean = (weight(f"{n}{i}", generator.standard_normal(width)) for n in "bm")
        var = weight(f"v{i}", generator.uniform(0.1, 2, width))
        nodes.append(helper.make_node("MatMul", [current, w], [f"a{i}"]))
        nodes.append(
            helper.make_node("BatchNormalization", [f"a{i}", scale, bias, mean, var], [f"n{i}"], epsilon=epsilon)
        )
        nodes.append(helper.make_node("Relu", [f"n{i}"], [f"r{i}"]))
        current = f"r{i}"
    nodes.append(helper.make_node("Softmax", [current], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, width]) for name in "xy"]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    return read_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def judged(reference: Model, outputs: list[dict[str, Any]], found: list[dict[str, Any]]) -> bool:
    feeds = some_feeds(reference)
    tolerances = rounding_tolerances(reference, feeds, outputs)
    return all(
        compare(right, got, Contract.ROUNDING, allowed).equal
        for right, got, allowed in zip(outputs, found, tolerances, strict=True)
    )


@pytest.mark.parametrize("depth", [1, 4, 16])
def test_other_evaluators_of_the_same_model_are_inside(depth: int) -> None:
    model = network(depth=depth)
    feeds = some_feeds(model)
    outputs = evaluate(model, feeds)
    optimized = session(model, optimize=True)
    assert judged(model, outputs, [run(optimized, feed) for feed in feeds])
    assert judged(model, outputs, interpret(model.to_bytes(), feeds))


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("epsilon", [1e-3, 2e-4])
def test_a_wrong_epsilon_is_outside(depth: int, epsilon: float) -> None:
    model = network(depth=depth)
    outputs = evaluate(model, some_feeds(model))
    assert not judged(model, outputs, evaluate(network(depth=depth, epsilon=epsilon), some_feeds(model)))


def test_one_weight_off_by_a_thousandth_is_outside() -> None:
    model = network(depth=2)
    wrong = model.copy()
    constant = next(c for c in wrong.graph.initializers if c.name == "g1")
    constant.set(constant.array() * np.float32(1.001))
    feeds = some_feeds(model)
    assert not judged(model, evaluate(model, feeds), evaluate(wrong, feeds))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "body", ["a = Add(x, p) y = Sub(a, q)", "a = Sub(x, p) y = Add(a, q)", "a = Mul(x, p) y = Div(a, q)"]
)
def test_numbers_that_cancel_move_apart(body: str, seed: int) -> None:
    """What the first of two numbers rounds away does not come back with the second, whatever the signs of a seed."""
    scale = 1.0 if "Mul" in body else 1e6
    text = f"{HEAD} g (float[n] x) => (float[n] y) <float p = {{1000000}}, float q = {{1000000}}> {{ {body} }}"
    model = parse(text)
    feeds = [{"x": np.array([0.3], np.float32)}]
    (found,) = rounding_tolerances(model, feeds, evaluate(model, feeds), seed=seed)
    assert found["y"].absolute > 2 * relative_error(model) * scale * 0.3


def test_the_model_is_not_changed() -> None:
    model = network(depth=1)
    before = model.to_bytes()
    feeds = some_feeds(model)
    rounding_tolerances(model, feeds, evaluate(model, feeds))
    assert model.to_bytes() == before


def test_bound_is_the_same_for_the_same_seed() -> None:
    model = network(depth=1)
    feeds = some_feeds(model)
    outputs = evaluate(model, feeds)
    first, again, other = (rounding_tolerances(model, feeds, outputs, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_sizes_exponents_limits_and_grids_are_not_shaken() -> None:
    # Shaken sizes of Resize would change the shape, a shaken exponent or limit the function.
    text = """g (float[1,1,2,2] x) => (float[1,1,4,4] y, uint8[1,1,2,2] q)
      <float[4] scales = {1, 1, 2, 2}, float two = {2}, float high = {1}, float step = {0.1}, uint8 zero = {3}> {
        a = Resize(x, , scales)
        b = Pow(a, two)
        y = Clip(b, , high)
        q = QuantizeLinear(x, step, zero)
    }"""
    model = parse(HEAD + text)
    feeds = some_feeds(model)
    outputs = evaluate(model, feeds)
    for tolerance, right in zip(rounding_tolerances(model, feeds, outputs), outputs, strict=True):
        assert 0 < tolerance["y"].absolute < 1e-4 * max(1, float(np.abs(right["y"]).max()))
        assert tolerance["q"].flips <= right["q"].size


def test_what_constant_nodes_hold_is_shaken_as_initializers_are() -> None:
    """A weight counts wherever it stands."""
    held = "g (float[2,8] x) => (float[2,1] y) <float[8,1] w = {9, 8, 7, 6, 5, 4, 3, 2}> { y = MatMul(x, w) }"
    made = """g (float[2,8] x) => (float[2,1] y) {
        w = Constant<value: tensor = float[8,1] {9, 8, 7, 6, 5, 4, 3, 2}>()
        y = MatMul(x, w)
    }"""
    bounds = []
    for text in (held, made):
        model = parse(HEAD + text)
        feeds = some_feeds(model)
        bounds.append([found["y"] for found in rounding_tolerances(model, feeds, evaluate(model, feeds))])
    assert bounds[0] == bounds[1]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("g (float[1,8,5,5] x, float[4,8,3,3] w) => (float[1,4,3,3] y) { y = Conv(x, w) }", 72),
        ("g (float[8,4,5,5] x, float[4,1,3,3] w) => (float[8,4,3,3] y) { y = Conv<group=4>(x, w) }", 9),
        ("g (float[2,16] x, float[16,3] w) => (float[2,3] y) { y = MatMul(x, w) }", 16),
        ("g (float[2,16] x) => (float[2,1] y) { y = ReduceSum(x) }", 32),
        ("g (float[N,16] x) => (float[N,16] y) { y = Softmax(x) }", 16),
        ("g (float[2,16] x) => (float[2,16] y) { y = Relu(x) }", 1),
    ],
)
def test_accumulation_counts_the_terms_of_a_sum(text: str, terms: int) -> None:
    model = parse(HEAD + text)
    assert accumulation(model.graph.nodes[0]) == terms


def test_relative_error_follows_the_coarsest_type_and_the_longest_sum() -> None:
    single = parse(HEAD + "g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    assert relative_error(single) == pytest.approx(LAMBDA * 2.0**-24 * (1 + np.sqrt(2)))
    half = parse(HEAD + "g (float16[2,3] x) => (float16[2,3] y) { y = Relu(x) }")
    assert relative_error(half) > LAMBDA * 2.0**-11
    double = parse(HEAD + "g (double[2,3] x) => (double[2,3] y) { y = Relu(x) }")
    assert relative_error(double) < LAMBDA * 2.0**-50


def test_the_second_voice_says_what_it_does_not_know() -> None:
    from graphopt.errors import UnsupportedError

    head = '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>'
    model = parse(head + " g (float[4] x) => (float[4] y) { y = my.Odd(x) }")
    with pytest.raises(UnsupportedError, match=r"onnx\.reference cannot run it"):
        interpret(model.to_bytes(), [{"x": np.ones(4, np.float32)}])


def test_both_voices_agree_on_constants() -> None:
    model = parse(HEAD + "g (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> { y = Add(x, w) }")
    feed = {"x": np.ones(4, np.float32)}
    weights = constant_value(next(iter(model.graph.initializers)))
    assert weights is not None
    for outputs in (evaluate(model, [feed]), interpret(model.to_bytes(), [feed])):
        np.testing.assert_array_equal(outputs[0]["y"], weights + 1)
    assert onnx.load_from_string(model.to_bytes()).graph.name == "g"
