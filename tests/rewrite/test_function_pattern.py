"""Rules as two functions: the worked examples of the documentation, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.errors import PassError, VerificationError
from graphopt.rewrite import Rewrite, replace
from pass_oracle import parse

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
PAGE = Path(__file__).parents[2] / "docs" / "patterns.md"


def test_the_worked_examples_of_the_documentation_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # the documentation of this repository


def test_several_outputs_and_further_inputs() -> None:
    def halves(op: Any, x: Any) -> Any:
        return op.Concat(op.Split(x, axis=0, _output=1, _shared=True), op.rest("others"), axis=0)

    def doubled(op: Any, x: Any, others: Any) -> Any:
        return op.Concat(x, *others, axis=0)

    text = "g (float[4] x) => (float[4] y) { a, b = Split<axis = 0>(x) y = Concat<axis = 0>(b, a) }"
    model = parse(HEAD + text)
    rule = Rewrite(halves, doubled)
    assert rule.explain(model.graph.nodes[1], model) == ""
    assert rule.explain(model.graph.nodes[0], model) != ""


def test_operators_divided_by_or() -> None:
    def rounded(op: Any, x: Any) -> Any:
        return op.Floor(op.Floor_or_Ceil_or_Round(x, _name="inner"))

    def once(op: Any, x: Any, match: Any) -> Any:
        return getattr(op, match.node("inner").op)(x)

    model = parse(HEAD + "g (float[4] x) => (float[4] y) { a = Ceil(x) b = Floor(a) c = Round(b) y = Floor(c) }")
    assert replace(model, Rewrite(rounded, once), verify="full") == 2
    assert [node.op for node in model.graph.nodes] == ["Ceil", "Round"]


def test_numbers_and_arrays_become_initializers() -> None:
    def negated(op: Any, x: Any) -> Any:
        return op.Neg(x)

    def product(op: Any, x: Any) -> Any:
        return op.Mul(x, np.float32(-1))

    model = parse(HEAD + "g (float[4] x) => (float[4] y) { y = Neg(x) }")
    assert replace(model, Rewrite(negated, product), verify="full") == 1
    (constant,) = model.graph.initializers
    assert constant.array() == np.float32(-1)


def test_a_wrong_rule_is_caught_by_full_verification() -> None:
    model = parse(HEAD + "g (float[4] x) => (float[4] y) { y = Ceil(x) }")
    rule = Rewrite(lambda op, x: op.Ceil(x), lambda op, x: op.Floor(x))
    with pytest.raises(VerificationError, match="rewrites"):
        replace(model, rule, verify="full")


def test_mistakes_in_the_functions_are_named() -> None:
    model = parse(HEAD + "g (float[4] x) => (float[4] y) { y = Ceil(x) }")
    with pytest.raises(PassError, match=r"returns op\.Something"):
        Rewrite(lambda op, x: x, lambda op, x: x)
    with pytest.raises(PassError, match="'_label' is no option"):
        Rewrite(lambda op, x: op.Ceil(x, _label="c"), lambda op, x: x)
    with pytest.raises(PassError, match="parameter 'z' is bound by nothing"):
        replace(model, Rewrite(lambda op, x: op.Ceil(x), lambda op, z: op.Floor(z)))
