"""Random models through `graphopt.simplify` with random options, and what the oracle makes of the options."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from fuzz_simplify import fuzz, options_of
from random_models import random_model
from simplify_oracle import SimplifyFaultError, judge
from simplify_oracle_options import Options

MANY = int(os.environ.get("GRAPHOPT_FUZZ_COUNT", "2000")) // 2
HEAD = '<ir_version: 10, opset_import: ["" : 17]>\n'
MODEL = HEAD + "g (float[n] x, float[n] w) => (float[n] y) { a = Identity(x) b = Add(a, w) y = Neg(b) }"
FEEDS = [{"x": np.array([1, 2], np.float32), "w": np.array([3, 5], np.float32)}]


def test_a_few_random_models_are_simplified_with_options_without_a_fault() -> None:
    tally = fuzz(range(25), with_options=True)
    assert not tally.faults, "\n".join(f"seed {seed}: {fault}" for seed, fault in tally.faults)
    assert {"raise-opset", "inline-functions", "convert-precision"} <= set(tally.passes)


@pytest.mark.slow
def test_many_random_models_are_simplified_with_options_without_a_fault() -> None:
    tally = fuzz(range(200_000, 200_000 + MANY), with_options=True)
    assert not tally.faults, "\n".join(f"seed {seed}: {fault}" for seed, fault in tally.faults)
    assert "fuse-attention" in tally.passes


def test_all_options_are_chosen_and_follow_from_the_seed() -> None:
    found: set[str] = set()
    for seed in range(40):
        made = random_model(seed)
        options = options_of(seed, made)
        assert options == options_of(seed, made)
        found.update(options.arguments)
    wanted = {"opset", "attention", "inline", "skip", "input_shapes", "keep", "freeze_weights", "precision"}
    assert found == wanted


@pytest.mark.parametrize(
    "options",
    [
        Options({"input_shapes": {"x": [2]}}, pinned={("x", 0): 2}),
        Options({"keep": ["b"]}, kept={"b": onnx.TensorProto.FLOAT}),
        Options({"opset": 21, "attention": True, "inline": True, "skip": ["eliminate-identity"]}),
        Options({"precision": "float16"}),
        Options(),
    ],
)
def test_a_right_result_passes(options: Options) -> None:
    verdict = judge(onnx.parser.parse_model(MODEL), FEEDS, options=options)
    assert verdict.compared == 1
    if options.pinned:
        sizes = [
            value.type.tensor_type.shape.dim[0] for value in (*verdict.result.graph.input, *verdict.result.graph.output)
        ]
        assert [size.dim_value for size in sizes] == [2, 2, 2]


@pytest.mark.parametrize(
    ("options", "result", "kind"),
    [
        (
            Options(pinned={("x", 0): 2}),
            "g (float[2] x, float[n] w) => (float[n] y) { b = Add(x, w) y = Neg(b) }",
            "interface",
        ),
        (Options(kept={"b": 1}), "g (float[n] x, float[n] w) => (float[n] y) { c = Neg(x) y = Sub(c, w) }", "refused"),
        (Options(kept={"b": 1}), "g (float[n] x, float[n] w) => (float[n] y) { b = Neg(x) y = Sub(b, w) }", "wrong"),
        (
            Options({"precision": "float16"}),
            "g (float[n] x, float[n] w) => (float[n] y) { b = Sub(x, w) y = Neg(b) }",
            "wrong",
        ),
    ],
)
def test_a_result_that_is_not_as_asked_for_is_found(
    options: Options, result: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = onnx.parser.parse_model(HEAD + result).SerializeToString(deterministic=True)
    real: Any = Options.simplified
    plain = Options({"precision": options.precision} if options.precision else {})
    monkeypatch.setattr(Options, "simplified", lambda _, data: (wrong, real(plain, data)[1]))
    with pytest.raises(SimplifyFaultError, match=f"^{kind}:"):
        judge(onnx.parser.parse_model(MODEL), FEEDS, options=options)


def test_weights_that_a_caller_may_replace_are_inputs_until_they_are_frozen() -> None:
    text = "g (float[n] x, float w) => (float[n] y) <float w = {2}> { y = Mul(x, w) }"
    model = onnx.parser.parse_model(HEAD + text)
    feeds = [{"x": np.ones(2, np.float32)}, {"x": np.ones(2, np.float32), "w": np.array(3, np.float32)}]
    frozen = Options({"freeze_weights": True})
    assert [value.name for value in frozen.asked_for(model).graph.input] == ["x"]
    assert judge(model, feeds, options=Options()).compared == 2
    assert judge(model, feeds, options=frozen).compared == 1
