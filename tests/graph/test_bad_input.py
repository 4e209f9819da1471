"""Files that are broken on purpose or by accident give an error with a code, never a traceback or a hang."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from conftest import from_text
from crafted import crafted_models
from crafted_values import base
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.errors import GraphError, GraphoptError, ReadError
from graphopt.graph import dump_text, eliminate_unreachable, read_model

SEEDS = [proto.SerializeToString() for name, proto in crafted_models() if not name.startswith("dtype")]


def exercise(data: bytes) -> None:
    """Do to a model what every program does; deliberate errors are fine, others are not."""
    with contextlib.suppress(GraphoptError):
        model = read_model(data)
        for graph in model.graphs():
            for constant in graph.initializers:
                if constant.nbytes < 1 << 20:
                    constant.array()
        for _, node in model.walk():
            assert node.attrs is not None
        dump_text(model)
        first = model.to_bytes(inline=False)
        assert read_model(first).to_bytes(inline=False) == first
        model.copy().sort()
        eliminate_unreachable(model.graph)
        model.to_bytes(inline=False)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_truncated_models(share: float) -> None:
    for seed in SEEDS[::5]:
        exercise(seed[: int(len(seed) * share)])


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff" * 100, b"not a model", b"\n" * 50, bytes(range(256)), b"PK\x03\x04zip"]
)
def test_bytes_that_are_no_model(data: bytes) -> None:
    with pytest.raises(ReadError):
        read_model(data)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8))
def test_mutated_models(seed: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(seed)
    for position, value in changes:
        data[position % len(data)] = value
    exercise(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    exercise(data)


def test_names_that_are_not_utf8() -> None:
    proto = base()
    proto.graph.node[0].op_type = "Relu"
    data = proto.SerializeToString()
    for old in (b"Relu", b"relu"):
        exercise(data.replace(old, b"\xff" * len(old)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[4] x) => (float[4] y) { y = Relu(nothing) }", "'nothing'"),
        ("g (float[4] x) => (float[4] y) { z = Relu(x) }", "'y'"),
        ("g (float[4] x) => (float[4] y) { y = Add(x, b) b = Relu(y) }", "cycle"),
        ("g (float[4] x) => (float[4] y) { y = Relu(y) }", "cycle"),
        ("g (float[4] x) => (float[4] y) { y, y = Split(x) }", "'y'"),
    ],
)
def test_graphs_that_break_a_rule(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        from_text(f'<ir_version: 8, opset_import: ["": 17]> {text}')


def test_body_does_not_see_names_of_its_sibling() -> None:
    with pytest.raises(GraphError, match="'a'"):
        from_text(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[4] x, bool c) => (float[4] z) {
                z = If (c) <
                    then_branch = t () => (float[4] a) { a = Relu(x) },
                    else_branch = e () => (float[4] b) { b = Relu(a) }
                >
            }"""
        )


def test_initializer_twice_attribute_twice_and_version_twice() -> None:
    proto = base()
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "w"))
    with pytest.raises(GraphError, match="'w'"):
        read_model(proto)
    proto = base()
    proto.graph.node[0].attribute.extend([helper.make_attribute("a", 1)] * 2)
    with pytest.raises(GraphError, match="relu"):
        read_model(proto)
    proto = base()
    proto.opset_import.append(helper.make_opsetid("", 18))
    with pytest.raises(ReadError, match="imported"):
        read_model(proto)


@pytest.mark.parametrize("version", [1 << 31, 1 << 40, -(1 << 40)])
def test_versions_that_nothing_else_could_read(version: int) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Neg(x) }'
    )
    proto.opset_import[0].version = version
    with pytest.raises(ReadError, match=f"version {version}"):
        read_model(proto)


def test_a_model_without_a_graph() -> None:
    with pytest.raises(ReadError, match="no graph"):
        read_model(onnx.ModelProto(ir_version=8))


def test_errors_name_what_must_be_and_what_to_do() -> None:
    with pytest.raises(ReadError) as info:
        read_model(b"\xff\xff\xff")
    assert str(info.value).startswith("GO-R001")
    assert info.value.must
    assert info.value.do
    assert info.value.exit_code == 3
