"""raise-opset: bit for bit the same outputs under opset 13, or the model as it was with the reason."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt.graph import read_model
from graphopt.passes.quantize.raise_opset import ADAPTERS, LATEST, UNCHANGED, RaiseOpset
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

RAISED: dict[str, tuple[int, str]] = {
    "Unsqueeze": (9, "g (float[2, 3] x) => (float[2, 1, 3] y) { y = Unsqueeze<axes = [1]>(x) }"),
    "Squeeze": (11, "g (float[2, 1, 3] x) => (float[2, 3] y) { y = Squeeze<axes = [1]>(x) }"),
    "Squeeze of all": (11, "g (float[2, 1, 3] x) => (float[2, 3] y) { y = Squeeze(x) }"),
    "ReduceSum": (11, "g (float[2, 3] x) => (float[2] y) { y = ReduceSum<axes = [1], keepdims = 0>(x) }"),
    "ReduceSum of all": (11, "g (float[2, 3] x) => (float[1, 1] y) { y = ReduceSum(x) }"),
    "ReduceMean keeps its attribute": (11, "g (float[2, 3] x) => (float[2, 1] y) { y = ReduceMean<axes = [1]>(x) }"),
    "Split": (11, "g (float[2, 6] x) => (float[2, 2] y, float[2, 4] z) { y, z = Split<axis = 1, split = [2, 4]>(x) }"),
    "Split evenly": (11, "g (float[2, 6] x) => (float[2, 3] y, float[2, 3] z) { y, z = Split<axis = 1>(x) }"),
    "Clip": (9, "g (float[2, 3] x) => (float[2, 3] y) { y = Clip<min = -0.5, max = 0.5>(x) }"),
    "Clip above": (9, "g (float[2, 3] x) => (float[2, 3] y) { y = Clip<max = 0.5>(x) }"),
    "Pad": (9, "g (float[2, 3] x) => (float[4, 3] y) { y = Pad<pads = [1, 0, 1, 0], value = 0.25>(x) }"),
    "Pad by reflection": (9, 'g (float[3, 3] x) => (float[5, 3] y) { y = Pad<mode = "reflect", pads = [1, 0, 1, 0]>(x) }'),
    "Slice": (9, "g (float[4, 5] x) => (float[2, 3] y) { y = Slice<axes = [1, 0], starts = [1, 2], ends = [4, 4]>(x) }"),
    "Slice of the first axes": (9, "g (float[4, 5] x) => (float[2, 5] y) { y = Slice<starts = [2], ends = [9]>(x) }"),
    "Softmax over the last axis": (11, "g (float[2, 3] x) => (float[2, 3] y) { y = Softmax(x) }"),
    "Softmax by number": (11, "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax<axis = 2>(x) }"),
    "LogSoftmax": (9, "g (float[2, 3] x) => (float[2, 3] y) { y = LogSoftmax<axis = 1>(x) }"),
    "chain": (9, "g (float[2, 3] x) => (float[1, 2, 3] y) { a = Relu(x) b = Clip<max = 1.0>(a) c = Add(b, x) y = Unsqueeze<axes = [0]>(c) }"),
    "MaxPool": (8, "g (float[1, 2, 6, 6] x) => (float[1, 2, 3, 3] y) { y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) }"),
}  # fmt: skip

REFUSED: dict[str, tuple[int, str, str]] = {
    "Softmax over another axis": (11, "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax<axis = 1>(x) }", "flattens"),
    "Dropout": (11, "g (float[2, 3] x) => (float[2, 3] y) { y = Dropout(x) }", "not in the table"),
    "Resize": (10, "g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] s = {1, 1, 2, 2}> { y = Resize(x, s) }", "not in the table"),
    "Clip of halves": (9, "g (float16[2, 3] x) => (float16[2, 3] y) { y = Clip<min = -0.5, max = 0.5>(x) }", "other elements than float32"),
    "Pad of doubles": (9, "g (double[2, 3] x) => (double[4, 3] y) { y = Pad<pads = [1, 0, 1, 0], value = 0.25>(x) }", "other elements than float32"),
    "below opset 7": (6, "g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }", "below opset 7"),
}  # fmt: skip


def text(opset: int, graph: str) -> str:
    return f'<ir_version: 6, opset_import: ["" : {opset}]> {graph}'


@pytest.mark.parametrize("name", RAISED)
def test_operator_computes_the_same(name: str) -> None:
    opset, graph = RAISED[name]
    done = check_pass(RaiseOpset(), text(opset, graph))
    assert done.model.opset == LATEST
    assert done.record.patches == 1
    onnx.checker.check_model(done.model.to_proto(), full_check=True)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_model_stays_as_it_was(name: str) -> None:
    opset, graph, reason = REFUSED[name]
    done = run_pass(RaiseOpset(), text(opset, graph))
    assert done.model.to_bytes() == done.before.to_bytes()
    assert reason in done.record.skips[0][1]


def test_golden(golden: Callable[[str], None]) -> None:
    golden(check_pass(RaiseOpset(), text(*RAISED["chain"])).text)


def test_model_of_a_later_opset_is_not_touched() -> None:
    done = run_pass(RaiseOpset(), text(17, "g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }"))
    assert (done.record.patches, done.record.skips, done.model.opset) == (0, [], 17)


def test_bodies_are_raised_too() -> None:
    graph = (
        "g (float[2, 3] x, bool c) => (float[2, 1, 3] y) { y = If(c) <"
        "then_branch = a () => (float[2, 1, 3] p) { p = Unsqueeze<axes = [1]>(x) }, "
        "else_branch = e () => (float[2, 1, 3] q) { n = Neg(x) q = Unsqueeze<axes = [1]>(n) }> }"
    )
    done = check_pass(RaiseOpset(), text(11, graph))
    assert all(len(node.inputs) == 2 for _, node in done.model.walk() if node.op == "Unsqueeze")


def test_initializers_of_an_old_file_stay_fixed() -> None:
    """Below IR version 4 initializers are listed as inputs without being open to callers, and must stay so."""
    proto = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 8]> g (float[3] x, float[3] w) => (float[3] y) { y = Add(x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    done = check_pass(RaiseOpset(), read_model(proto))
    assert done.model.ir_version == 3


# Operators whose definition changed between opset 7 and 13 other than by more types, in ways that no valid model of the
# older opset can see: new optional inputs, defaults written out, negative axes, several axes.
CHANGED = frozenset(
    (
        *("Cast", "Concat", "Constant", "Conv", "ConvTranspose", "DepthToSpace", "Equal", "Flatten", "Gather", "Gemm"),
        *("ArgMax", "ArgMin", "AveragePool", "MaxPool", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax"),
        *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare", "If", "Loop", "PRelu", "OneHot", "Pow", "Mod"),
    )
)


def test_table_holds_operators_only() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert (UNCHANGED | set(ADAPTERS)) <= known
    assert not UNCHANGED & set(ADAPTERS)


@pytest.mark.parametrize("op", sorted(UNCHANGED - CHANGED))
def test_inputs_and_attributes_of_an_unchanged_operator_are_those_of_opset_13(op: str) -> None:
    latest = onnx.defs.get_schema(op, LATEST, "")
    for opset in range(7, LATEST):
        try:
            older = onnx.defs.get_schema(op, opset, "")
        except onnx.defs.SchemaError:
            continue
        assert [each.name for each in older.inputs] == [each.name for each in latest.inputs][: len(older.inputs)]
        assert set(older.attributes) <= set(latest.attributes)
