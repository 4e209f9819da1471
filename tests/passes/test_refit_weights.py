"""refit-weights: repairs what pruning lost, on samples it was not fitted on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest

from graphopt import demo
from graphopt.analysis.layer_statistics import Layer, find_bias, find_layers
from graphopt.graph import Model, constant_value, read_model
from graphopt.passes.prune.prune_magnitude import PruneMagnitude
from graphopt.passes.prune.refit_weights import RefitWeights
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
