"""replace-cast-like: the type that is taken from a tensor is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx.parser
import pytest

from graphopt.graph import read_model
from graphopt.passes.simplify.replace_cast_like import ReplaceCastLike
from graphopt.rewrite.manager import PassManager
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 9, opset_import: ["" : 19, "f" : 1]>\n'


@pytest.mark.parametrize(("element", "number"), [("int64", 7), ("float16", 10), ("bool", 9), ("double", 11)])
def test_the_type_is_named(element: str, number: int) -> None:
    source = f"{HEAD} g (float[n] x, {element}[k] t) => ({element}[n] y) {{ u = Identity(t) y = CastLike(x, u) }}"
    done = check_pass(ReplaceCastLike(), source)
    assert done.ops == ["Cast"]
    assert done.model.graph.nodes[0].attrs == {"to": number}


def test_attributes_stay(golden: Callable[[str], None]) -> None:
    source = f"{HEAD} g (float[n] x, float8e4m3fn[k] t) => (float8e4m3fn[n] y) {{ y = CastLike<saturate = 0>(x, t) }}"
    golden(check_pass(ReplaceCastLike(), source).text)


def test_functions_that_are_called_with_several_types_stay() -> None:
    source = f"""{HEAD}
        g (float[n] x, double[n] z, int32[n] i) => (double[n] y, int32[n] w) {{ y = f.like(x, z) w = f.like(x, i) }}
        <domain: "f", opset_import: ["" : 19]> like (a, b) => (c) {{ c = CastLike(a, b) }}
    """
    model = read_model(onnx.parser.parse_model(source))
    assert PassManager([ReplaceCastLike()]).run(model).patches == 0
