"""Two models compared under each contract."""

from __future__ import annotations

import json

import numpy as np
import onnx.parser
import pytest

from graphopt import check
from graphopt.errors import CheckFailedError
from graphopt.graph import Model, read_model


def model(body: str, value: str = "float[N,4] x", output: str = "float[N,4] y") -> Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({value}) => ({output}) {{ {body} }}'
    return read_model(onnx.parser.parse_model(text))


TWICE = "y = Add(x, x)"
DOUBLED = "c = Constant<value = float {2.0}>() y = Mul(x, c)"
NEARLY = "c = Constant<value = float {2.0000005}>() y = Mul(x, c)"
WRONG = "c = Constant<value = float {2.1}>() y = Mul(x, c)"


@pytest.mark.parametrize(
    ("body", "contract", "passed"),
    [
        (DOUBLED, "exact", True),
        (DOUBLED, "rounding", True),
        (NEARLY, "exact", False),
        (NEARLY, "rounding", True),
        (WRONG, "rounding", False),
        (WRONG, "lossy", True),
    ],
)
def test_contract_decides(body: str, contract: str, passed: bool) -> None:
    result = check(model(TWICE), model(body), contract=contract)
    assert result.passed is passed
    assert bool(result.reason) is not passed
    assert result.random
    assert result.samples == 16


def test_figures_are_printed_for_every_output_and_are_json() -> None:
    result = check(model(TWICE), model(WRONG), {"x": np.ones((20, 4), np.float32)}, contract="lossy")
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["outputs"][0]["name"] == "y"
    assert plain["outputs"][0]["max_abs"] == pytest.approx(0.1, rel=1e-3)
    assert plain["samples"] == 20
    assert not plain["random"]


def test_a_budget_fails_a_lossy_comparison_beyond_it() -> None:
    data = {"x": np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)}
    other = model("c = Constant<value = float[4] {9.0, 0.0, 0.0, 0.0}>() s = Add(x, c) y = Add(s, s)")
    assert not check(model(TWICE), other, data, contract="lossy", max_drop=5.0).passed
    assert check(model(TWICE), other, data, contract="lossy", max_drop=100.0).passed


@pytest.mark.parametrize(
    "other",
    [
        model("z = Identity(x) y = Add(z, z)", value="float[N,4] x", output="float[N,4] z"),
        model("y = Cast<to = 1>(x)", value="double[N,4] x"),
        model("y = Identity(w)", value="float[N,4] w"),
    ],
)
def test_models_with_other_inputs_or_outputs_are_not_compared(other: Model) -> None:
    with pytest.raises(CheckFailedError, match=r"same (inputs|outputs)") as caught:
        check(model(TWICE), other)
    assert caught.value.exit_code == 4
