"""refit-weights: repairs what pruning lost, on samples it was not fitted on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from graphopt import demo
from graphopt.graph import Model, constant_value, read_model
from graphopt.analysis.layer_statistics import find_bias
from graphopt.analysis.layer_statistics import Layer, find_layers
from graphopt.passes.prune.prune_magnitude import PruneMagnitude
from graphopt.passes.prune.refit_weights import RefitWeights
from graphopt.analysis.layer_statistics import Form, form_of
from graphopt.rewrite import Outcome, PassManager, create
from graphopt.runtime import Feeds
from graphopt.verify.legality import check_legal


def pruned(model: Model, sparsity: float, *, refit: bool, data: Feeds | None, **options: Any) -> Outcome:
    steps = [
        create("fold-constants"),
        create("fuse-batch-norm"),
        PruneMagnitude(sparsity=sparsity),
        *([RefitWeights(rows=2048, **options)] if refit else []),
    ]
    return PassManager(steps, verify="fast").run(model, data)


def logits(model: Model) -> np.ndarray:
    session = ort.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    with np.load(demo.TEST) as test:
        return np.asarray(session.run(["logits"], {"image": test["image"]})[0])


def calibration(model: Model) -> Feeds:
    return Feeds.open(demo.CALIBRATION, model).take(64)


@pytest.mark.parametrize(("path", "sparsity"), [(demo.CNN, 0.7), (demo.TRANSFORMER, 0.95)], ids=["cnn", "transformer"])
def test_unseen_images_are_classified_better_than_without(path: Any, sparsity: float) -> None:
    original = logits(read_model(path)).argmax(axis=1)
    agreement = {}
    for refit in (False, True):
        model = read_model(path)
        pruned(model, sparsity, refit=refit, data=calibration(model))
        check_legal(model)
        agreement[refit] = float((logits(model).argmax(axis=1) == original).mean())
    assert agreement[True] > agreement[False] + 0.02
    assert agreement[True] > 0.9


def test_zeros_stay_zeros_and_nothing_else_becomes_zero() -> None:
    plain, refitted = read_model(demo.CNN), read_model(demo.CNN)
    pruned(plain, 0.6, refit=False, data=None)
    outcome = pruned(refitted, 0.6, refit=True, data=calibration(refitted))
    assert outcome.records[-1].patches > 0
    for a, b in zip(_weights(plain), _weights(refitted), strict=True):
        np.testing.assert_array_equal(a == 0, b == 0)
    assert any((a != b).any() for a, b in zip(_weights(plain), _weights(refitted), strict=True))


def _weights(model: Model) -> list[np.ndarray]:
    return [found.array() for found in find_layers(model) if isinstance(found, Layer)]


def test_same_data_and_seed_give_the_same_bytes() -> None:
    def once() -> bytes:
        model = read_model(demo.CNN)
        pruned(model, 0.6, refit=True, data=calibration(model).take(32))
        return model.to_bytes()

    assert once() == once()


def test_without_pruning_or_data_it_says_so() -> None:
    model = read_model(demo.CNN)
    outcome = PassManager([RefitWeights()]).run(model, calibration(model))
    assert "no weights were pruned" in outcome.records[0].skips[0][1]
    outcome = pruned(model, 0.5, refit=True, data=None)
    assert "needs calibration data" in outcome.records[-1].skips[0][1]
    assert outcome.records[-1].patches == 0


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 0, 2, 1]},
        {"strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 0, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
        {"auto_pad": "VALID"},
        {"group": 2, "pads": [1, 1, 1, 1]},
    ],
    ids=str,
)
def test_convolution_rows_times_weights_are_its_outputs(attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    groups = attributes.get("group", 1)
    weight = rng.standard_normal((6, 4 // groups, 3, 2)).astype(np.float32)
    x = rng.standard_normal((2, 4, 7, 6)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    form, y = _form_and_output(node, weight, x)
    sampled = form.sample([x, x], 10**6, np.random.default_rng(1))
    products = [rows @ matrix.T for rows, matrix in zip(sampled[0], form.matrices(weight), strict=True)]
    found = np.concatenate(products, axis=1)
    wanted = np.moveaxis(y, 1, -1).reshape(-1, 6)
    assert len(found) == len(wanted)
    order = np.random.default_rng(1).permutation(len(wanted))
    np.testing.assert_allclose(found, wanted[order], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(form.weight(form.matrices(weight), weight), weight)


@pytest.mark.parametrize(
    ("node", "shape", "x_shape"),
    [
        (helper.make_node("Gemm", ["x", "w"], ["y"]), (3, 5), (4, 3)),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (5, 3), (4, 3)),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), (3, 5), (3, 4)),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (3, 5), (2, 4, 3)),
        (helper.make_node("MatMul", ["w", "x"], ["y"]), (5, 3), (2, 3, 4)),
    ],
    ids=["gemm", "gemm-b", "gemm-a", "matmul", "matmul-left"],
)
def test_matrix_rows_times_weights_are_its_outputs(node: Any, shape: tuple[int, ...], x_shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(x_shape).astype(np.float32)
    form, y = _form_and_output(node, weight, x)
    ((rows,),) = form.sample([x], 10**6, np.random.default_rng(1))
    if node.input[0] == "w":
        y = np.moveaxis(y, -2, -1)
    wanted = y.reshape(-1, 5)
    order = np.random.default_rng(1).permutation(len(wanted))
    np.testing.assert_allclose(rows @ form.matrices(weight)[0].T, wanted[order], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(form.weight(form.matrices(weight), weight), weight)


def _form_and_output(node: Any, weight: np.ndarray, x: np.ndarray) -> tuple[Form, np.ndarray]:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", 1, list(x.shape))], [value("y", 1, None)], [numpy_helper.from_array(weight, "w")]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (only,) = read_model(proto).graph.nodes
    form = form_of(only, list(node.input).index("w"), weight)
    assert isinstance(form, Form)
    return form, np.asarray(session.run(None, {"x": x})[0])


def test_bias_of_a_matmul_is_the_constant_added_behind_it() -> None:
    model = read_model(demo.TRANSFORMER)
    biased = [node for node in model.graph.nodes if node.op == "MatMul" and find_bias(node, 512) is not None]
    assert len(biased) == 2
    bias = find_bias(biased[0], 512)
    assert bias is not None
    assert bias.node.op == "Add"
    assert bias.tensor is not None
    assert constant_value(bias.tensor) is not None


def test_constant_added_to_a_product_with_the_weight_in_front_is_no_bias() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[2, 2] x) => (float[2, 2] y)
    <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {5, 6}> { m = MatMul(w, x) y = Add(m, b) }"""
    model = read_model(onnx.parser.parse_model(text))
    assert find_bias(model.graph.nodes[0], 2) is None
