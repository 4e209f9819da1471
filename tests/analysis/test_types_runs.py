"""Inferred types against what ONNX Runtime computes: random graphs, exported idioms, real models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.analysis import Facts, Types
from graphopt.graph import read_model
from shape_agreement import Agreement, agreement, check_run, observe, read_text

if TYPE_CHECKING:
    from collections.abc import Callable

OPSET = 17


class Graph:
    """A graph that grows node by node; constants become initializers."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def op(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> str:
        names = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attrs))
        return names[0]

    def model(self, output: str) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", 4])
        y = helper.make_empty_tensor_value_info(output)
        graph = helper.make_graph(self.nodes, "g", [x], [y], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


Step = tuple[str, int]


def _size(graph: Graph, t: str, axis: int) -> str:
    return graph.op("Gather", graph.op("Shape", t), graph.constant([axis]), axis=0)


def _reshape_last(graph: Graph, t: str, k: int) -> str:
    target = graph.op("Concat", _size(graph, t, 0), graph.constant([-1, k]), axis=0)
    return graph.op("Reshape", t, target)


def _tail(graph: Graph, t: str, k: int) -> str:
    return graph.op("Slice", t, graph.constant([k]), graph.constant([2**63 - 1]), graph.constant([1]))


def _until_size(graph: Graph, t: str, k: int) -> str:
    size = graph.op("Sub", _size(graph, t, 1), graph.constant([k]))
    return graph.op("Slice", t, graph.constant([0]), size, graph.constant([1]))


def _halves(graph: Graph, t: str, k: int) -> str:
    half = graph.op("Div", _size(graph, t, 1), graph.constant([k + 2]))
    return graph.op("Slice", t, half, graph.constant([2**31 - 1]), graph.constant([1]))


def _expand(graph: Graph, t: str, k: int) -> str:
    one = graph.op("Unsqueeze", t, graph.constant([0]))
    target = graph.op("Concat", graph.constant([k + 1]), graph.op("Shape", t), axis=0)
    wide = graph.op("Expand", one, target)
    return graph.op("Reshape", wide, graph.op("Concat", graph.constant([-1]), graph.constant([0, 0]), axis=0))


def _where_expand(graph: Graph, t: str, k: int) -> str:
    """What exporters write for ``expand(-1, ...)``: a size is kept where the target says -1."""
    shape = graph.op("Shape", t)
    asked = graph.op("Concat", graph.constant([k + 1, -1]), _size(graph, t, 1), _size(graph, t, 2), axis=0)
    ones = graph.op("ConstantOfShape", graph.op("Shape", asked), value=numpy_helper.from_array(np.ones(1, np.int64)))
    minus = graph.op("Mul", ones, graph.constant([-1]))
    target = graph.op("Where", graph.op("Equal", asked, minus), ones, asked)
    wide = graph.op("Expand", t, target)
    return graph.op(
        "Reshape",
        wide,
        graph.op(
            "Concat", graph.constant([-1]), graph.op("Slice", shape, graph.constant([1]), graph.constant([3])), axis=0
        ),
    )


def _split(graph: Graph, t: str, k: int) -> str:
    graph.op("Split", t, graph.constant([1, 3]), outputs=2, axis=2)
    return f"t{len(graph.nodes) - 1}_{k % 2}"


STEPS: dict[str, Callable[[Graph, str, int], str]] = {
    "transpose": lambda g, t, k: g.op("Transpose", t, perm=[(0, 2, 1), (1, 0, 2), (2, 1, 0)][k % 3]),
    "relu": lambda g, t, _: g.op("Relu", t),
    "double": lambda g, t, k: g.op("Concat", t, t, axis=k % 3),
    "add": lambda g, t, k: g.op("Add", t, g.op("ReduceMean", t, axes=[k % 3])),
    "add input": lambda g, t, _: g.op("Add", t, "x"),
    "reshape": lambda g, t, k: _reshape_last(g, t, [1, 2, 4][k % 3]),
    "tail": _tail,
    "until": _until_size,
    "halves": _halves,
    "expand": _expand,
    "where": _where_expand,
    "split": _split,
    "pad": lambda g, t, k: g.op("Pad", t, g.constant([0, k, 0, 1, 0, 0])),
    "tile": lambda g, t, k: g.op("Tile", t, g.constant([1, k + 1, 1])),
    "pool": lambda g, t, k: g.op(
        "MaxPool", t, kernel_shape=[k + 1], strides=[2], pads=[(k + 1) // 2, k // 2], ceil_mode=k % 2
    ),
    "flatten": lambda g, t, k: g.op("Unsqueeze", g.op("Flatten", t, axis=k % 3 + 1), g.constant([k % 2])),
    "gather": lambda g, t, k: g.op("Gather", t, g.constant([[0, -1]]), axis=2) and _reshape_last(g, t, 1),
    "stride": lambda g, t, k: g.op(
        "Slice", t, g.constant([0]), g.constant([-1 - k]), g.constant([1]), g.constant([k + 1])
    ),
    "nonzero": lambda g, t, _: g.op("Unsqueeze", g.op("Cast", g.op("NonZero", t), to=1), g.constant([0])),
    "range": lambda g, t, k: g.op(
        "Reshape",
        g.op(
            "Cast",
            g.op(
                "Range",
                g.op("Squeeze", g.constant([k])),
                g.op("Squeeze", g.op("Mul", _size(g, t, 1), g.constant([3]))),
                g.op("Squeeze", g.constant([k + 1])),
            ),
            to=1,
        ),
        g.constant([1, -1, 1]),
    ),
}

_steps = st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 3)), min_size=1, max_size=7)


def _check_steps(steps: list[Step]) -> list[Agreement]:
    graph, tensor = Graph(), "x"
    for name, k in steps:
        tensor = STEPS[name](graph, tensor, k)
    proto = graph.model(tensor)
    model = read_model(proto)
    found = []
    for batch, length in ((2, 5), (3, 8), (1, 1)):
        feed = {"x": np.arange(batch * length * 4, dtype=np.float32).reshape(batch, length, 4) - 3}
        try:
            actual = observe(proto, feed)
        except Exception as error:
            if type(error).__module__.startswith("onnxruntime"):
                continue  # this size does not fit the random graph
            raise
        # A size of 0 in the target of a Reshape means another size: the one case that inference leaves out.
        if all(array.size for array in actual.values()):
            found.append(agreement(model, actual))
    return found


@settings(max_examples=250, deadline=None)
@given(_steps)
def test_random_graphs_agree_with_runs_of_three_sizes(steps: list[Step]) -> None:
    for found in _check_steps(steps):
        assert found.wrong == []


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_step_alone_runs_and_leaves_nothing_unknown(name: str) -> None:
    for k in range(3):
        found = _check_steps([(name, k)])
        assert found
        assert all(run.wrong == [] and run.unresolved == 0 for run in found)
        assert all(run.unknown_rank == 0 for run in found)


ATTENTION = """<ir_version: 9, opset_import: ["" : 17]>
g (float[batch, seq, 16] x, float[batch, 2, past, 8] cache, float[16, 16] wq, float[16, 16] wk) => (float y)
<int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64[1] axis = {0},
 int64[1] heads = {2}, int64[1] size = {8}, int64[1] rest = {-1}, int64[1] last = {2}, int64 step = {1}> {
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    shape = Shape (x)
    b0 = Gather (shape, i0)
    s0 = Gather (shape, i1)
    b = Unsqueeze (b0, axis)
    s = Unsqueeze (s0, axis)
    split = Concat <axis = 0> (b, s, heads, rest)
    q4 = Reshape (q, split)
    k4 = Reshape (k, split)
    qh = Transpose <perm = [0, 2, 1, 3]> (q4)
    kh = Transpose <perm = [0, 2, 1, 3]> (k4)
    all = Concat <axis = 2> (cache, kh)
    kt = Transpose <perm = [0, 1, 3, 2]> (all)
    scores = MatMul (qh, kt)
    kshape = Shape (all)
    total = Gather (kshape, i2)
    mask1 = Range (i0, total, step)
    mask2 = Cast <to = 1> (mask1)
    biased = Add (scores, mask2)
    p = Softmax <axis = -1> (biased)
    ctx = MatMul (p, all)
    back = Transpose <perm = [0, 2, 1, 3]> (ctx)
    merged = Concat <axis = 0> (b, s, rest)
    y = Reshape (back, merged)
}"""


def test_attention_with_a_cache_is_known_in_terms_of_batch_length_and_past() -> None:
    model = read_text(ATTENTION)
    types = Facts(model).get(Types)
    found = {t.name: types.shape(t) for node in model.graph.nodes for t in node.outputs}
    assert str(found["biased"]) == "(Expr(batch), 2, Expr(seq), Expr(past + seq))"
    assert str(found["y"]) == "(Expr(batch), Expr(seq), 16)"
    for batch, length, past in ((1, 3, 0), (2, 5, 4)):
        weights = {"wq": np.ones((16, 16), np.float32), "wk": np.ones((16, 16), np.float32)}
        feed = {
            **weights,
            "x": np.ones((batch, length, 16), np.float32),
            "cache": np.ones((batch, 2, past, 8), np.float32),
        }
        run = check_run(model, feed)
        assert run.unresolved == run.unknown_rank == 0


# --------------------------------------------------------------------------------------------------------- real models


ASSETS = os.environ.get("GRAPHOPT_ASSETS")
REAL = sorted([*Path(ASSETS).glob("models/*.onnx"), *Path(ASSETS).glob("graphs/*.onnx")]) if ASSETS else []
FEEDS_OF = {
    "gtcrn_stream_op11_raw": "gtcrn",
    "gtcrn_stream_op11_simplified": "gtcrn",
    "ultraface_rfb320_op9_raw": "ultraface_rfb320",
    "ultraface_rfb320_op9_simplified": "ultraface_rfb320",
}
_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def _feeds(path: Path) -> list[dict[str, Any]]:
    stored = path.parent.parent / "data" / f"feeds_{FEEDS_OF.get(path.stem, path.stem)}.npz"
    if stored.exists():
        with np.load(stored) as data:
            return [{name: np.asarray(data[name][index]) for name in data.files} for index in (0, 1)]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    inputs = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).get_inputs()
    rng = np.random.default_rng(0)
    feeds = []
    for sizes in ((2, 5), (3, 9)):
        feed: dict[str, Any] = {}
        for info in inputs:
            free = iter((*sizes, *[1] * len(info.shape)))
            shape = [size if isinstance(size, int) else next(free) for size in info.shape]
            feed[info.name] = rng.integers(0, 2, shape).astype(_NUMPY[info.type])
        feeds.append(feed)
    return feeds


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="GRAPHOPT_ASSETS names no folder with models/*.onnx")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_models_have_the_inferred_types_when_they_run(path: Path) -> None:
    proto = onnx.load(path)
    model = read_model(path)
    types = Facts(model).get(Types)
    assert types.failures == ()
    assert types.conflicts == ()
    for feed in _feeds(path):
        found = agreement(model, observe(proto, feed))
        assert found.wrong == []
        assert found.sizes > 0
        assert found.unresolved == 0
