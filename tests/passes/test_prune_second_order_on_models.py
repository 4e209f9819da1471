"""prune-second-order on a real network: close to it without labels, each pattern exactly, wide layers by SparseGPT."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from graphopt.analysis.layer_statistics import Layer, find_layers
from graphopt.graph import Model, read_model
from graphopt.rewrite import PassManager, create
from graphopt.runtime import Feeds
from graphopt.solve.patterns import Pattern, channels_last

ASSETS = Path(os.environ.get("GRAPHOPT_ASSETS", "missing"))
NETWORK = ASSETS / "models" / "cifar10_resnet20_legacy_op17.onnx"
IMAGES = ASSETS / "data" / "cifar10_train_5085.npz"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NETWORK.exists() or not IMAGES.exists(), reason="GRAPHOPT_ASSETS names no such folder"),
]


def images(chosen: slice) -> np.ndarray:
    mean, deviation = np.array([0.485, 0.456, 0.406], "f4"), np.array([0.229, 0.224, 0.225], "f4")
    with np.load(IMAGES) as data:
        return np.asarray(((data["x"][chosen].astype("f4") / 255 - mean) / deviation).transpose(0, 3, 1, 2))


def classes(model: Model, inputs: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    parts = [session.run(None, {name: part})[0] for part in np.array_split(inputs, 8)]
    return np.asarray(np.concatenate(parts).argmax(axis=1))


@pytest.mark.parametrize(
    ("options", "agreeing"),
    [
        ({"sparsity": 0.5}, 0.985),
        ({"sparsity": 0.7}, 0.96),
        ({"sparsity": 0.7, "method": "sparsegpt"}, 0.9),
        ({"pattern": "2:4"}, 0.97),
        ({"pattern": "4x1", "sparsity": 0.5}, 0.95),
    ],
    ids=str,
)
def test_predictions_on_unseen_images_stay(options: dict[str, Any], agreeing: float) -> None:
    model, unseen = read_model(NETWORK), images(slice(4000, 5085))
    dense = classes(model, unseen)
    data = Feeds.open({model.graph.inputs[0].name: images(slice(0, 512))}, model)
    outcome = PassManager([create("fold-constants"), create("prune-second-order", options)]).run(model, data)
    assert float((classes(model, unseen) == dense).mean()) > agreeing
    pattern = Pattern.parse(options.get("pattern", "unstructured"))
    zeros = total = 0
    for found in find_layers(model):
        assert isinstance(found, Layer)
        array = found.array()
        zeros, total = zeros + int((array == 0).sum()), total + array.size
        if found.node.op == "Conv" and array.shape[1] % 4 == 0:
            matrix = array.reshape(len(array), -1)
            if max(pattern.of, pattern.columns) > 1:
                matrix = matrix[:, channels_last(array.shape)]
            assert pattern.holds(matrix != 0)
    assert zeros / total == pytest.approx(options.get("sparsity", 0.5), abs=0.01)
    assert len(outcome.records[-1].layers) >= 19
