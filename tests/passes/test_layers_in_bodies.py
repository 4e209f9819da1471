"""Weights inside the bodies of If, Loop and Scan: changed where that needs no data, else left alone with a reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx.parser
import pytest

from graphopt.analysis.layer_statistics import LayerStatistics
from graphopt.graph import read_model
from graphopt.graph.labels import node_label
from graphopt.rewrite import PassManager, create, load_recipe
from graphopt.runtime import Feeds, input_specs
from graphopt.sensitivity import measure_sensitivity

if TYPE_CHECKING:
    from graphopt.graph import Model

ASSETS = os.environ.get("GRAPHOPT_ASSETS", "")
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
BLIND = ["prune-second-order", "prune-wanda", "prune-channels"]
"""Passes that need to see what a layer reads, or to follow its channels."""


def body_model() -> Model:
    text = """<ir_version: 9, opset_import: ["" : 17]>
    g (float[n, 16] x, bool c) => (float[n, 16] y)
    <float[16, 16] v, float[16, 16] w> {
        a = MatMul(x, v)
        y = If(c) <then_branch = t () => (float[n, 16] p) { p = MatMul(a, w) },
                   else_branch = e () => (float[n, 16] q) { q = Relu(a) }>
    }"""
    model = onnx.parser.parse_model(text)
    del model.graph.initializer[:]
    for seed, name in enumerate("vw"):
        array = np.random.default_rng(seed).standard_normal((16, 16)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return read_model(model)


def feeds_of(model: Model) -> Feeds:
    x = np.random.default_rng(2).standard_normal((32, 1, 16)).astype(np.float32)
    return Feeds.open({"x": x, "c": np.ones(32, bool)}, input_specs(model))


def in_bodies(model: Model) -> set[str]:
    return {node_label(node) for graph, node in model.walk() if graph is not model.graph and node.op in LAYERS}


def reasons(name: str, model: Model, feeds: Feeds) -> tuple[dict[str, str], set[str]]:
    """Return why nodes in bodies were left alone, and which were changed."""
    found = model.copy()
    inner = in_bodies(found)
    (record,) = PassManager([create(name, {})]).run(found, feeds).records
    changed = {node for patch in record.log for node in patch.nodes} & inner
    return {node: why for node, why in record.skips if node in inner and why}, changed


@pytest.mark.parametrize("name", BLIND)
def test_what_cannot_be_observed_is_left_alone_with_the_reason(name: str) -> None:
    model = body_model()
    found, changed = reasons(name, model, feeds_of(model))
    assert not changed
    assert list(found) == ["MatMul -> p"]
    assert found["MatMul -> p"].startswith("it lies in a body")


@pytest.mark.parametrize("name", ["prune-magnitude", "round-weights"])
def test_what_needs_no_data_is_done(name: str) -> None:
    model = body_model()
    assert reasons(name, model, feeds_of(model)) == ({}, {"MatMul -> p"})


def test_other_accounts_name_it_too() -> None:
    model = body_model()
    assert "body" in reasons("insert-qdq", model, feeds_of(model))[0]["MatMul -> p"]
    assert "body" in LayerStatistics.collect(model, feeds_of(model)).refused["MatMul -> p"]
    skips = {each.node: each.reason for each in measure_sensitivity(model, feeds_of(model), levels=["bits=4"]).skips}
    assert "body" in skips["MatMul -> p"]


@pytest.mark.slow
@pytest.mark.skipif(not ASSETS, reason="needs the model files")
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("stem", ["silero_vad_op16_if", "silero_vad_loop_op16"])
def test_every_layer_of_a_real_model_is_accounted_for(stem: str, prepared: bool) -> None:
    model = read_model(Path(ASSETS) / f"models/{stem}.onnx")
    feeds = Feeds.open(Path(ASSETS) / f"data/feeds_{stem}.npz", input_specs(model)).take(8)
    if prepared:
        PassManager(load_recipe("default").create()).run(model)
    inner = in_bodies(model)
    assert len(inner) >= 7
    for name in [*BLIND, "prune-magnitude", "round-weights", "insert-qdq"]:
        found, changed = reasons(name, model, feeds)
        assert set(found) | changed == inner, name
        assert not changed or name in {"prune-magnitude", "round-weights"}
    assert inner <= set(LayerStatistics.collect(model, feeds).refused)
    measured = measure_sensitivity(model, feeds, levels=["bits=4"])
    assert inner <= {each.node for each in measured.skips} | {each.name for each in measured.layers}
    assert not inner.intersection(each.name for each in measured.layers)
