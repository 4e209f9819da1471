"""fuse-batch-norm: every layer it folds into, every condition it refuses, the factor it records."""

# ruff: noqa: E501 - the tables hold one model per line

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.analysis.manager import Facts
from graphopt.analysis.row_scale import RowScale
from graphopt.graph import Constant, read_model
from graphopt.passes.simplify.fuse_batch_norm import FuseBatchNorm
from graphopt.rewrite.manager import PassManager
from pass_oracle import check_pass, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable

NORM = "BatchNormalization(h, gamma, beta, mean, var)"


def model(
    nodes: str,
    x: tuple[Any, ...],
    channels: int,
    *,
    opset: int = 17,
    y: tuple[Any, ...] | None = None,
    dtype: Any = np.float32,
    seed: int = 0,
    outputs: str = "",
    **weights: tuple[int, ...],
) -> onnx.ModelProto:
    """Return a model with random parameters of a normalization over ``channels`` and random weights of these shapes."""
    rng = np.random.default_rng(seed)
    kind = {np.float32: "float", np.float64: "double", np.float16: "float16"}[dtype]
    shape = ", ".join(map(str, x))
    result = ", ".join(["n", *[f"d{i}" for i in range(1, len(x if y is None else y))]])
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({kind}[{shape}] x) => ({kind}[{result}] y{outputs}) {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    values = {
        "gamma": rng.normal(1, 0.5, channels), "beta": rng.normal(0, 1, channels),
        "mean": rng.normal(0, 1, channels), "var": rng.uniform(0.1, 4, channels),
        **{name: rng.normal(0, 0.5, size) for name, size in weights.items()},
    }  # fmt: skip
    for name, value in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
    return proto


FOLDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Conv": ({"nodes": f"h = Conv(x, w) y = {NORM}", "x": ("n", 3, 5, 5), "channels": 4, "w": (4, 3, 2, 2)}, ["Conv"]),
    "Conv with bias": ({"nodes": f"h = Conv(x, w, b) y = {NORM}", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2), "b": (4,)}, ["Conv"]),
    "grouped Conv": ({"nodes": f"h = Conv<group = 2>(x, w) y = {NORM}", "x": ("n", 4, 5), "channels": 6, "w": (6, 2, 2)}, ["Conv"]),
    "depthwise Conv": ({"nodes": f"h = Conv<group = 4>(x, w, b) y = {NORM}", "x": ("n", 4, 5), "channels": 4, "w": (4, 1, 2), "b": (4,)}, ["Conv"]),
    "ConvTranspose": ({"nodes": f"h = ConvTranspose(x, w) y = {NORM}", "x": ("n", 3, 5), "channels": 4, "w": (3, 4, 2)}, ["ConvTranspose"]),
    "grouped ConvTranspose": ({"nodes": f"h = ConvTranspose<group = 2>(x, w, b) y = {NORM}", "x": ("n", 4, 5), "channels": 6, "w": (4, 3, 2), "b": (6,)}, ["ConvTranspose"]),
    "Gemm": ({"nodes": f"h = Gemm(x, w) y = {NORM}", "x": ("n", 3), "channels": 4, "w": (3, 4)}, ["Gemm"]),
    "Gemm transB alpha beta": ({"nodes": f"h = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b) y = {NORM}", "x": ("n", 3), "channels": 4, "w": (4, 3), "b": (4,)}, ["Gemm"]),
    "Gemm with a scalar bias": ({"nodes": f"h = Gemm(x, w, b) y = {NORM}", "x": ("n", 3), "channels": 4, "w": (3, 4), "b": ()}, ["Gemm"]),
    "MatMul": ({"nodes": f"h = MatMul(x, w) y = {NORM}", "x": ("n", 3), "channels": 4, "w": (3, 4)}, ["MatMul", "Add"]),
    "MatMul and Add": ({"nodes": f"m = MatMul(x, w) h = Add(b, m) y = {NORM}", "x": ("n", 3), "channels": 4, "w": (3, 4), "b": (4,)}, ["MatMul", "Add"]),
    "Conv and Add": ({"nodes": f"m = Conv(x, w) h = Add(m, b) y = {NORM}", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2), "b": (1, 4, 1)}, ["Conv"]),
    "two in a row": ({"nodes": f"a = Conv(x, w) h = BatchNormalization(a, beta, gamma, mean, var) y = {NORM}", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2)}, ["Conv"]),
    "double precision": ({"nodes": f"h = Gemm(x, w) y = {NORM}", "x": ("n", 3), "channels": 4, "w": (3, 4), "dtype": np.float64}, ["Gemm"]),
    "Conv behind": ({"nodes": "r = Relu(x) h = BatchNormalization(r, gamma, beta, mean, var) y = Conv(h, w)", "x": ("n", 4, 5), "channels": 4, "w": (3, 4, 2)}, ["Relu", "Conv"]),
    "grouped Conv with bias behind": ({"nodes": "r = Relu(x) h = BatchNormalization(r, gamma, beta, mean, var) y = Conv<group = 2>(h, w, b)", "x": ("n", 4, 5), "channels": 4, "w": (6, 2, 2), "b": (6,)}, ["Relu", "Conv"]),
    "Gemm behind": ({"nodes": "r = Relu(x) h = BatchNormalization(r, gamma, beta, mean, var) y = Gemm<transB = 1, alpha = 2.0>(h, w, b)", "x": ("n", 4), "channels": 4, "w": (3, 4), "b": (3,)}, ["Relu", "Gemm"]),
    "MatMul and Add behind": ({"nodes": "r = Relu(x) h = BatchNormalization(r, gamma, beta, mean, var) m = MatMul(h, w) y = Add(m, b)", "x": ("n", 4), "channels": 4, "w": (4, 3), "b": (3,)}, ["Relu", "MatMul", "Add"]),
    "two Conv behind": ({"nodes": "r = Relu(x) h = BatchNormalization(r, gamma, beta, mean, var) c = Conv(h, w) d = Conv(h, v) y = Add(c, d)", "x": ("n", 4, 5), "channels": 4, "w": (3, 4, 2), "v": (3, 4, 2)}, ["Relu", "Conv", "Conv", "Add"]),
    "opset 9": ({"nodes": f"h = Conv(x, w) y = {NORM}", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2), "opset": 9}, ["Conv"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDS)
def test_normalization_is_folded(case: str) -> None:
    options, ops = FOLDS[case]
    # onnx.reference computes grouped ConvTranspose with bias, and BatchNormalization before opset 14, in its own way
    interpreted = case not in {"grouped ConvTranspose", "opset 9"}
    done = check_pass(FuseBatchNorm(), model(**options), samples=3, interpreted=interpreted)
    assert done.ops == ops
    assert [tensor.name for tensor in done.model.graph.outputs] == ["y"]
    assert not done.skips


def test_two_normalizations_become_one() -> None:
    nodes = f"r = Relu(x) h = BatchNormalization<epsilon = 0.5>(r, beta, gamma, mean, var) a = {NORM} y = Relu(a)"
    done = check_pass(FuseBatchNorm(), model(nodes, ("n", 4, 5), 4))
    assert done.ops == ["Relu", "BatchNormalization", "Relu"]


def test_golden(golden: Callable[[str], None]) -> None:
    proto = model(
        f"c = Constant<value = float[1, 1, 1] {{2.0}}>() h = Conv(x, c) a = {NORM} y = Relu(a)", ("n", 1, 5), 1
    )
    for tensor, value in zip(proto.graph.initializer, (3.0, 0.5, 1.0, 8.99999), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(np.float32(np.array([value])), tensor.name))
    golden(check_pass(FuseBatchNorm(), proto).text)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no layer": ({"nodes": f"h = Relu(x) y = {NORM}", "x": ("n", 4, 5), "channels": 4}, "comes from Relu"),
    "padded Conv behind": ({"nodes": "h = BatchNormalization(x, gamma, beta, mean, var) y = Conv<pads = [0, 1]>(h, w)", "x": ("n", 4, 5), "channels": 4, "w": (3, 4, 2)}, "computed by no layer"),
    "MatMul without bias behind": ({"nodes": "h = BatchNormalization(x, gamma, beta, mean, var) y = MatMul(h, w)", "x": ("n", 4), "channels": 4, "w": (4, 3)}, "computed by no layer"),
    "channels that are not the last axis": ({"nodes": "h = BatchNormalization(x, gamma, beta, mean, var) m = MatMul(h, w) y = Add(m, b)", "x": ("n", 4, 4), "channels": 4, "w": (4, 3), "b": (3,)}, "computed by no layer"),
    "input of the graph": ({"nodes": "y = BatchNormalization(x, gamma, beta, mean, var)", "x": ("n", 4, 5), "channels": 4}, "computed by no layer"),
    "read twice": ({"nodes": f"h = Conv(x, w) a = {NORM} y = Add(a, h)", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2)}, "read 2 times"),
    "output of the graph": ({"nodes": f"h = Conv(x, w) y = {NORM}", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2), "outputs": ", float[n, p, q] h"}, "an output of the graph"),
    "computed weight": ({"nodes": f"v = Exp(w) h = Conv(x, v) y = {NORM}", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2)}, "weight 'v' of Conv"),
    "computed bias": ({"nodes": f"c = Exp(b) h = Conv(x, w, c) y = {NORM}", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2), "b": (4,)}, "bias 'c'"),
    "computed statistics": ({"nodes": "m = Exp(mean) h = Conv(x, w) y = BatchNormalization(h, gamma, beta, m, var)", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2)}, "parameters m are not constant"),
    "channels of a MatMul are not its columns": ({"nodes": f"h = MatMul(x, w) y = {NORM}", "x": ("n", 4, 3), "channels": 4, "w": (3, 6)}, "not known to be a matrix"),
    "Add within a channel": ({"nodes": f"m = Conv(x, w) h = Add(m, b) y = {NORM}", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2), "b": (4,)}, "differs within a channel"),
    "Add that is no bias": ({"nodes": f"m = Conv(x, w) h = Add(m, m) y = {NORM}", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2)}, "comes from Add"),
    "training mode": ({"nodes": "h = Conv(x, w) y, r, s = BatchNormalization<training_mode = 1>(h, gamma, beta, mean, var)", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2)}, "training mode"),
    "outputs of training mode": ({"nodes": "h = Conv(x, w) y, r, s, t, u = BatchNormalization(h, gamma, beta, mean, var)", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2), "opset": 9}, "training mode"),
    "per element": ({"nodes": "h = Conv(x, w) y = BatchNormalization<spatial = 0>(h, gamma, beta, mean, var)", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2), "opset": 7}, "spatial is 0"),
    "old opset": ({"nodes": "h = Conv(x, w) y = BatchNormalization(h, gamma, beta, mean, var)", "x": ("n", 3, 5), "channels": 4, "w": (4, 3, 2), "opset": 6}, "training mode"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_normalization_that_cannot_be_folded_is_skipped_with_the_reason(case: str) -> None:
    options, words = REFUSED[case]
    proto = model(**options)
    done = run_pass(FuseBatchNorm(), proto, verify="fast")
    assert done.record.patches == 0
    assert done.ops == [node.op_type for node in proto.graph.node]
    assert any(words in reason for reason in done.skips.values()), done.skips


def test_overridable_parameters_are_not_folded() -> None:
    for name in ("gamma", "w"):
        proto = model(f"h = Conv(x, w) y = {NORM}", ("n", 3, 5), 4, w=(4, 3, 2))
        size = next(list(t.dims) for t in proto.graph.initializer if t.name == name)
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, size))
        done = check_pass(FuseBatchNorm(), proto)
        assert done.ops == ["Conv", "BatchNormalization"]


def test_variance_that_is_not_positive_and_overflow_are_refused() -> None:
    proto = model(f"h = Conv(x, w) y = {NORM}", ("n", 3, 5), 4, w=(4, 3, 2))
    for name, value, words in (("var", -1.0, "not positive"), ("gamma", 3e38, "not finite")):
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        for tensor in changed.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(np.full(4, value, np.float32), name))
        done = run_pass(FuseBatchNorm(), changed, verify="fast")
        assert done.ops == ["Conv", "BatchNormalization"]
        assert words in done.skips.popitem()[1]


def test_shared_weight_is_copied_and_the_other_layer_keeps_its_own() -> None:
    proto = model(f"h = Conv(x, w) a = {NORM} c = Conv(x, w) y = Add(a, c)", ("n", 3, 5), 4, w=(4, 3, 2))
    done = check_pass(FuseBatchNorm(), proto)
    assert done.ops == ["Conv", "Conv", "Add"]
    first, second = (node.inputs[1] for node in list(done.model.graph.nodes)[:2])
    original = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "w"))
    assert first is not second
    assert np.array_equal(second.array(), original)
    assert not np.array_equal(first.array(), original)


def test_factor_is_recorded_per_weight() -> None:
    for nodes, size, axis, group in (
        ("Conv", (4, 3, 2), 0, 1),
        ("ConvTranspose", (3, 4, 2), 1, 1),
        ("Conv", (4, 1, 2), 0, 3),
    ):
        channels = 6 if group == 3 else 4
        size = (6, 1, 2) if group == 3 else size
        proto = model(f"h = {nodes}<group = {group}>(x, w) y = {NORM}", ("n", 3, 5), channels, w=size)
        loaded = read_model(proto)
        facts = Facts(loaded)
        PassManager([FuseBatchNorm()]).run(loaded, facts=facts)
        values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
        expected = values["gamma"] / np.sqrt(values["var"] + 1e-5)
        scale = facts.get(RowScale)
        assert scale.axis("w") == axis
        assert np.allclose(np.asarray(scale.of("w")), expected)
        weight = loaded.graph.nodes[0].inputs[1]
        assert isinstance(weight, Constant)
        shape = [-1 if place == axis else 1 for place in range(weight.array().ndim)]
        assert np.allclose(weight.array() / expected.reshape(shape), values["w"], rtol=1e-5)


def test_factor_is_kept_where_the_manager_stops_in_between() -> None:
    nodes = f"h = Conv(x, w) a = {NORM} k = Conv(a, v) y = BatchNormalization(k, gamma, beta, mean, var)"
    loaded = read_model(model(nodes, ("n", 4, 9), 4, w=(4, 4, 2), v=(4, 4, 2)))
    facts = Facts(loaded)
    PassManager([FuseBatchNorm()], stop_after=1).run(loaded, facts=facts)
    assert [node.op for node in loaded.graph.nodes] == ["Conv", "Conv", "BatchNormalization"]
    assert list(facts.get(RowScale)) == ["w"]


def test_metadata_of_layer_and_bodies() -> None:
    proto = model(f"h = Conv(x, w) y = {NORM}", ("n", 3, 5), 4, w=(4, 3, 2))
    proto.graph.node[0].metadata_props.add(key="scope", value="block.0")
    node = check_pass(FuseBatchNorm(), proto).model.to_proto().graph.node[0]
    assert node.metadata_props[0].value == "block.0"
    body = """<ir_version: 8, opset_import: ["" : 17]> g (bool c, float[n, 3] x) => (float[n, 2] y)
    <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] o = {1, 2}> { y = If (c) <
      then_branch = t () => (float[n, 2] a) { h = MatMul(x, w) a = BatchNormalization(h, o, o, o, o) },
      else_branch = e () => (float[n, 2] b) { b = MatMul(x, w) }> }"""
    done = check_pass(FuseBatchNorm(), body)
    assert sorted(done.ops) == ["Add", "If", "MatMul", "MatMul"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_generated_layers_hold_the_rounding_bound(data: st.DataObject) -> None:
    group = data.draw(st.sampled_from([1, 2, 3]))
    inputs, outputs, rank = (
        data.draw(st.integers(1, 3)) * group,
        data.draw(st.integers(1, 3)) * group,
        data.draw(st.integers(1, 2)),
    )
    transposed, bias = data.draw(st.booleans()), data.draw(st.booleans())
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    size = (inputs, outputs // group, *kernel) if transposed else (outputs, inputs // group, *kernel)
    op = "ConvTranspose" if transposed else "Conv"
    weights: dict[str, Any] = {"w": size, **({"b": (outputs,)} if bias else {})}
    nodes = f"h = {op}<group = {group}>(x, w{', b' if bias else ''}) y = {NORM}"
    proto = model(nodes, ("n", inputs, *[6] * rank), outputs, seed=data.draw(st.integers(0, 99)), **weights)
    assert check_pass(FuseBatchNorm(), proto, samples=1, interpreted=not transposed).ops == [op]
