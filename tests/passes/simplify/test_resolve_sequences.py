"""resolve-sequences: elements that are known take the place of sequences and optionals."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.graph import read_model
from graphopt.passes.simplify.resolve_sequences import ResolveSequences
from graphopt.runtime import Feeds
from pass_oracle import check_pass

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
AT = "int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 last = {-1}"

GONE: dict[str, tuple[str, list[str]]] = {
    "element": (f"g (float[n] x, float[m] z) => (float[n] y) <{AT}> {{ s = SequenceConstruct(x, z) e = SequenceAt(s, zero) y = Neg(e) }}", ["Neg"]),
    "element from the end": (f"g (float[n] x, float[n] z) => (float[n] y) <{AT}> {{ s = SequenceConstruct(x, z) e = SequenceAt(s, last) y = Neg(e) }}", ["Neg"]),
    "number of elements": (f"g (float[n] x, float[m] z) => (int64 y) <{AT}> {{ s = SequenceConstruct(x, z, x) e = SequenceLength(s) y = Neg(e) }}", ["Neg"]),
    "public number": (f"g (float[n] x, float[m] z) => (int64 y) <{AT}> {{ s = SequenceConstruct(x, z, x) y = SequenceLength(s) }}", ["Identity"]),
    "inserted and erased": (f"g (float[n] x, float[m] z) => (float[m] y) <{AT}> {{ a = SequenceEmpty() b = SequenceInsert(a, x) c = SequenceInsert(b, z, zero) d = SequenceErase(c, one) e = SequenceAt(d, zero) y = Neg(e) }}", ["Neg"]),
    "erased at the end": (f"g (float[n] x, float[n] z) => (float[n] y) <{AT}> {{ a = SequenceConstruct(x, z, z) b = SequenceErase(a) c = SequenceErase(b) e = SequenceAt(c, last) y = Neg(e) }}", ["Neg"]),
    "joined": (f"g (float[n] x, float[m] z) => (float[k] y) <{AT}> {{ s = SequenceConstruct(x, z, x) e = ConcatFromSequence<axis = 0>(s) y = Neg(e) }}", ["Concat", "Neg"]),
    "one joined": ("g (float[n] x) => (float[n] y) { s = SequenceConstruct(x) e = ConcatFromSequence<axis = 0>(s) y = Neg(e) }", ["Neg"]),
    "one stacked": ("g (float[n] x) => (float[n, 1] y) { s = SequenceConstruct(x) y = ConcatFromSequence<axis = -1, new_axis = 1>(s) }", ["Unsqueeze"]),
    "inserted and stacked": ("g (float[n] x, float[n] z) => (float[2, n] y) { a = SequenceEmpty() b = SequenceInsert(a, x) c = SequenceInsert(b, z) y = ConcatFromSequence<axis = 0, new_axis = 1>(c) }", ["Unsqueeze", "Unsqueeze", "Concat"]),
    "split with axis": (f"g (float[2, n] x) => (float[1, n] y) <{AT}> {{ s = SplitToSequence<axis = 0>(x) a = SequenceAt(s, zero) b = SequenceAt(s, one) y = Sub(a, b) }}", ["Split", "Sub"]),
    "split with axis, its length": (f"g (float[2, n] x) => (float[1, n] y, int64 l) <{AT}> {{ s = SplitToSequence<axis = 0>(x) y = SequenceAt(s, zero) k = SequenceLength(s) l = Neg(k) }}", ["Split", "Neg"]),
    "split without axis": (f"g (float[3, n] x) => (float[n] y) <{AT}> {{ s = SplitToSequence<axis = 0, keepdims = 0>(x) a = SequenceAt(s, zero) b = SequenceAt(s, last) y = Sub(a, b) }}", ["Gather", "Gather", "Sub"]),
    "split by a size, the last smaller": (f"g (float[n, 5] x) => (float[n, 1] y, float[n, 2] z) <{AT}> {{ s = SplitToSequence<axis = 1>(x, two) y = SequenceAt(s, last) z = SequenceAt(s, one) }}", ["Split"]),
    "split by sizes": (f"g (float[n, m] x) => (float[n, 2] y) <{AT}, int64[2] p = {{1, 2}}, float[n, 3] x = {{1, 2, 3}}> {{ s = SplitToSequence<axis = -1>(x, p) e = SequenceAt(s, one) y = Neg(e) }}".replace("float[n, m] x)", "float q)").replace("float[n, 3] x =", "float[1, 3] x =").replace("float[n, 2] y", "float[1, 2] y"), ["Split", "Neg"]),
    "split into one": (f"g (float[1, n] x) => (float[1, n] y) <{AT}> {{ s = SplitToSequence<axis = 0>(x) e = SequenceAt(s, zero) y = Neg(e) }}", ["Neg"]),
    "split, changed and taken": (f"g (float[3, n] x, float[1, n] z) => (float[1, n] y) <{AT}> {{ s = SplitToSequence<axis = 0>(x) c = SequenceInsert(s, z, one) e = SequenceAt(c, two) y = Neg(e) }}", ["Slice", "Neg"]),
    "split and joined": ("g (float[3, n] x) => (float[3, n] y) { s = SplitToSequence<axis = 0>(x) e = ConcatFromSequence<axis = -2>(s) y = Neg(e) }", ["Neg"]),
    "split and stacked": ("g (float[3, n] x) => (float[3, n] y) { s = SplitToSequence<axis = 0, keepdims = 0>(x) e = ConcatFromSequence<axis = 0, new_axis = 1>(s) y = Neg(e) }", ["Neg"]),
    "optional": ("g (float[n] x) => (float[n] y) { o = Optional(x) e = OptionalGetElement(o) y = Neg(e) }", ["Neg"]),
    "optional that holds something": ("g (float[n] x) => (bool y) { o = Optional(x) e = OptionalHasElement(o) y = Not(e) }", ["Not"]),
}  # fmt: skip

STAYS: dict[str, str] = {
    "fed position": f"g (float[n] x, float[n] z, int64 i) => (float[n] y) <{AT}> {{ s = SequenceConstruct(x, z) y = SequenceAt(s, i) }}",
    "inserted at a fed position": f"g (float[n] x, float[n] z, int64 i) => (float[n] y) <{AT}> {{ s = SequenceConstruct(x, x) t = SequenceInsert(s, z, i) y = SequenceAt(t, zero) }}",
    "a free number of parts": f"g (float[n, 2] x) => (float[1, 2] y) <{AT}> {{ s = SplitToSequence<axis = 0>(x) y = SequenceAt(s, zero) }}",
    "many stacked": "g (float[n] x, float[n] z) => (float[3, n] y) { s = SequenceConstruct(x, z, x) y = ConcatFromSequence<axis = 0, new_axis = 1>(s) }",
    "sizes given though the axis shall go": f"g (float[2, 2] x) => (float[2] y) <{AT}> {{ s = SplitToSequence<axis = 0, keepdims = 0>(x, one) y = SequenceAt(s, zero) }}",
    "joined along another axis": "g (float[2, 2] x) => (float[1, 4] y) { s = SplitToSequence<axis = 0>(x) y = ConcatFromSequence<axis = 1>(s) }",
    "joined with an axis though split without": "g (float[2, 2] x) => (float[4] y) { s = SplitToSequence<axis = 0, keepdims = 0>(x) y = ConcatFromSequence<axis = 0>(s) }",
}  # fmt: skip


@pytest.mark.parametrize("case", GONE)
def test_known_elements(case: str) -> None:
    source, ops = GONE[case]
    done = check_pass(
        ResolveSequences(),
        HEAD + source,
        interpreted=case not in {"split without axis", "split and stacked", "optional"},
    )
    assert done.ops == ops


@pytest.mark.parametrize("case", STAYS)
def test_unknown_elements_stay(case: str) -> None:
    proto = onnx.parser.parse_model(HEAD + STAYS[case])
    arrays = {
        i.name: np.arange(4, dtype=np.float32).reshape(2, 2)
        if len(i.type.tensor_type.shape.dim) == 2
        else np.ones(2, np.float32)
        for i in proto.graph.input
    }
    arrays |= {"i": np.array(0)} if "i" in arrays else {}
    done = check_pass(ResolveSequences(), proto, Feeds.open([arrays], read_model(proto)), interpreted=False)
    assert done.record.patches == 0


def test_sequences_that_are_outputs_stay() -> None:
    proto = onnx.parser.parse_model(
        HEAD
        + f"g (float[2, n] x) => (float[1, n] y, seq(float[1, n]) s) <{AT}> {{ s = SplitToSequence<axis = 0>(x) y = SequenceAt(s, zero) }}"
    )
    assert check_pass(ResolveSequences(), proto, interpreted=False).record.patches == 0


def test_old_split_has_an_attribute() -> None:
    source = GONE["split with axis"][0]
    done = check_pass(ResolveSequences(), '<ir_version: 6, opset_import: ["" : 11]> ' + source)
    assert done.model.graph.nodes[0].attrs["split"] == [1, 1]


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(ResolveSequences(), HEAD + GONE["split by a size, the last smaller"][0]).text)


@st.composite
def sequences(draw: st.DrawFn) -> onnx.ModelProto:
    """Sequences built and changed at random constant positions, then taken apart or joined."""
    make, node = helper.make_tensor_value_info, helper.make_node
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def position(value: int) -> str:
        name = f"p{len(constants)}"
        constants.append(numpy_helper.from_array(np.array(value, draw(st.sampled_from([np.int32, np.int64]))), name))
        return name

    split = draw(st.booleans())
    if split:
        size = draw(st.sampled_from(["", "k"]))
        nodes.append(node("SplitToSequence", ["x", size] if size else ["x"], ["q0"], axis=0))
        count = 4 if not size else 2
        constants.append(numpy_helper.from_array(np.array(2), "k"))
    else:
        count = draw(st.integers(1, 4))
        nodes.append(node("SequenceConstruct", [draw(st.sampled_from(["a", "b", "c"])) for _ in range(count)], ["q0"]))
    current = "q0"
    for step in range(1, draw(st.integers(1, 4))):
        if draw(st.booleans()):
            where = [position(draw(st.integers(-count, count)))] if draw(st.booleans()) else []
            nodes.append(
                node("SequenceInsert", [current, draw(st.sampled_from(["a", "b", "c"])), *where], [f"q{step}"])
            )
            count += 1
        elif count > 1:
            where = [position(draw(st.integers(-count, count - 1)))] if draw(st.booleans()) else []
            nodes.append(node("SequenceErase", [current, *where], [f"q{step}"]))
            count -= 1
        else:
            continue
        current = f"q{step}"
    for index in range(draw(st.integers(1, 3))):
        nodes.append(node("SequenceAt", [current, position(draw(st.integers(-count, count - 1)))], [f"t{index}"]))
        nodes.append(node("Neg", [f"t{index}"], [f"y{index}"]))
    nodes.append(node("SequenceLength", [current], ["length"]))
    nodes.append(node("ConcatFromSequence", [current], ["all"], axis=0))
    outputs = [make(f"y{index}", 1, ["r", 2]) for index in range(sum(n.op_type == "SequenceAt" for n in nodes))]
    for info in outputs:
        info.type.tensor_type.shape.dim[0].Clear()
    graph = helper.make_graph(
        nodes,
        "g",
        [make("x", 1, [4, 2]), make("a", 1, [1, 2]), make("b", 1, [2, 2]), make("c", 1, [1, 2])],
        [*outputs, make("length", 7, []), make("all", 1, ["total", 2])],
        constants,
    )
    return helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", draw(st.sampled_from([11, 17])))]
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(sequences())
def test_generated_sequences_give_the_same(proto: onnx.ModelProto) -> None:
    done = check_pass(ResolveSequences(), proto, samples=1, interpreted=False)
    assert "SequenceLength" not in done.ops
