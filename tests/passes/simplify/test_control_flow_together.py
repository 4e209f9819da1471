"""All passes about bodies, sequences and functions at once, on nested control flow: right, legal, done in one run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt.graph import read_model
from graphopt.rewrite.manager import PassManager
from graphopt.verify.contract import Contract
from graphopt.verify.legality import check_legal
from graphopt.verify.reference import evaluate
from pass_oracle import assert_equal

PASSES = (
    "eliminate-dead",
    "fold-constants",
    "eliminate-identity",
    "remove-unused-outputs",
    "merge-equal-nodes",
    "inline-if",
    "eliminate-failing-branches",
    "merge-conditionals",
    "unroll-loops",
    "hoist-invariants",
    "resolve-sequences",
    "merge-scatters",
)

MAKE, NODE = helper.make_tensor_value_info, helper.make_node


class Program:
    """Draws nested graphs whose tensors all have the shape [2]."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.count = 0
        self.functions: list[onnx.FunctionProto] = []

    def name(self) -> str:
        """Return a new name; now and then one that siblings have too."""
        self.count += 1
        return f"t{self.count}"

    def block(self, visible: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        """Return nodes and the names they define, the last of which depends on what was drawn."""
        nodes: list[onnx.NodeProto] = []
        names: list[str] = []
        kinds = ["unary", "binary", "same", "sequence", "call"] + ["if", "if", "loop", "scan"] * (depth < 3)
        for _ in range(self.draw(st.integers(1, 4))):
            kind = self.draw(st.sampled_from(kinds))
            made, defined = getattr(self, f"_{kind}")([*visible, *names], depth)
            nodes += made
            names += defined
        return nodes, names

    def pick(self, names: list[str]) -> str:
        return self.draw(st.sampled_from(names))

    def _unary(self, visible: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        result = self.name()
        return [NODE(self.draw(st.sampled_from(["Neg", "Abs", "Relu"])), [self.pick(visible)], [result])], [result]

    def _same(self, visible: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        result = self.name()
        return [NODE("Identity", [self.pick(visible)], [result])], [result]

    def _binary(self, visible: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        result = self.name()
        inputs = [self.pick(visible), self.pick([*visible, "w"])]
        return [NODE(self.draw(st.sampled_from(["Add", "Sub", "Max"])), inputs, [result])], [result]

    def _sequence(self, visible: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        held, result = self.name(), self.name()
        made = NODE("SequenceConstruct", [self.pick(visible), self.pick(visible)], [held])
        return [made, NODE("SequenceAt", [held, self.pick(["zero", "one"])], [result])], [result]

    def _call(self, visible: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        result = self.name()
        return [NODE("leak", [self.pick(visible)], [result], domain="f", slope=0.5)], [result]

    def _condition(self) -> str:
        return self.pick(["yes", "no", "fed", "fed", "flat", "denied"])

    def _if(self, visible: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        count = self.draw(st.integers(1, 2))
        bodies = {}
        for key in ("then_branch", "else_branch"):
            nodes, names = self.block(visible, depth + 1)
            results = [self.name() for _ in range(count)]
            nodes += [NODE("Identity", [self.pick([*visible, *names])], [result]) for result in results]
            bodies[key] = helper.make_graph(nodes, key, [], [MAKE(result, 1, [2]) for result in results])
        outputs = [self.name() for _ in range(count)]
        return [NODE("If", [self._condition()], outputs, **bodies)], outputs

    def _loop(self, visible: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        count = self.draw(st.integers(1, 2))
        states, outputs = [self.name() for _ in range(count)], [self.name() for _ in range(count)]
        nodes, names = self.block([*visible, *states], depth + 1)
        results = [self.name() for _ in range(count)]
        nodes += [NODE("Identity", [self.pick([*states, *names, *visible])], [result]) for result in results]
        number, going, goes_on = self.name(), self.name(), self.name()
        nodes.append(NODE("Identity", [self.pick([going, "yes", "no"])], [goes_on]))
        stack = self.draw(st.booleans())
        given_out = [*results, self.name()] if stack else results
        if stack:
            nodes.append(NODE("Identity", [self.pick([*states, *names])], [given_out[-1]]))
        body = helper.make_graph(
            nodes,
            "body",
            [MAKE(number, 7, []), MAKE(going, 9, []), *[MAKE(state, 1, [2]) for state in states]],
            [MAKE(goes_on, 9, []), *[MAKE(result, 1, [2]) for result in given_out]],
        )
        starts = [self.pick(visible) for _ in range(count)]
        limit, first = self.pick(["zero", "one", "two", "trips"]), self.pick(["yes", "yes", "no", "fed"])
        if not stack:
            return [NODE("Loop", [limit, first, *starts], outputs, body=body)], outputs
        stacked, total = self.name(), self.name()
        holder = NODE("Loop", [limit, first, *starts], [*outputs, stacked], body=body)
        return [holder, NODE("ReduceSum", [stacked, "front"], [total], keepdims=0)], [*outputs, total]

    def _scan(self, visible: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        state, part, output, stacked, total = (self.name() for _ in range(5))
        nodes, names = self.block([*visible, state, part], depth + 1)
        result, piece = self.name(), self.name()
        nodes += [NODE("Identity", [self.pick([state, *names])], [result]), NODE("Neg", [self.pick(names)], [piece])]
        body = helper.make_graph(
            nodes, "body", [MAKE(n, 1, [2]) for n in (state, part)], [MAKE(n, 1, [2]) for n in (result, piece)]
        )
        holder = NODE(
            "Scan", [self.pick(visible), self.pick(["z", "single"])], [output, stacked], body=body, num_scan_inputs=1
        )
        return [holder, NODE("ReduceSum", [stacked, "front"], [total], keepdims=0)], [output, total]


@st.composite
def programs(draw: st.DrawFn) -> onnx.ModelProto:
    program = Program(draw)
    nodes, names = program.block(["x", "v"], 0)
    first = [
        NODE("Shape", ["x"], ["shape"]),
        NODE("Size", ["shape"], ["rank"]),
        NODE("Equal", ["rank", "one"], ["flat"]),
        NODE("Not", ["fed"], ["denied"]),
    ]
    public = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    values: dict[str, Any] = {
        "yes": np.array(True), "no": np.array(False), "zero": np.int64(0), "one": np.int64(1), "two": np.int64(2),
        "front": np.array([0]), "w": np.array([0.5, -2], np.float32),
    }  # fmt: skip
    leak = NODE("LeakyRelu", ["a"], ["b"])
    leak.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    graph = helper.make_graph(
        [*first, *nodes],
        "program",
        [
            MAKE("x", 1, [2]),
            MAKE("v", 1, [2]),
            MAKE("z", 1, [3, 2]),
            MAKE("single", 1, [1, 2]),
            MAKE("fed", 9, []),
            MAKE("trips", 7, []),
        ],
        [MAKE(name, 1, [2]) for name in public],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    function = helper.make_function("f", "leak", ["a"], ["b"], [leak], opsets, ["slope"])
    return helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=[function])


def judge(proto: onnx.ModelProto, passes: tuple[str, ...], *, fed: bool, trips: int) -> None:
    before = read_model(proto)
    rng = np.random.default_rng(trips)
    shapes: dict[str, tuple[int, ...]] = {"x": (2,), "v": (2,), "z": (3, 2), "single": (1, 2)}
    feed: dict[str, Any] = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    feed |= {"fed": np.array(fed), "trips": np.array(trips)}
    right = evaluate(before, [feed])
    model = before.copy()
    PassManager(list(passes)).run(model)
    check_legal(model)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    assert_equal(before, Contract.EXACT, [feed], right, evaluate(model, [feed]))
    again = PassManager(list(passes)).run(model)
    assert again.patches == 0, [patch.reason for record in again.records for patch in record.log]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), st.booleans(), st.integers(0, 3), st.booleans())
def test_nested_control_flow(proto: onnx.ModelProto, fed: bool, trips: int, inlined: bool) -> None:
    judge(proto, ("inline-functions", *PASSES) if inlined else PASSES, fed=fed, trips=trips)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), st.booleans(), st.integers(0, 3), st.booleans())
def test_much_nested_control_flow(proto: onnx.ModelProto, fed: bool, trips: int, inlined: bool) -> None:
    judge(proto, ("inline-functions", *PASSES) if inlined else PASSES, fed=fed, trips=trips)
