"""prune-channels on real models: what is cut down computes what is masked, is smaller, and stays good."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from channel_models import difference, free_units, groups_of, masked, sliced
from graphopt.analysis import Cost, Facts
from graphopt.graph import Model, read_model
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, run, session
from graphopt.simplification import simplify

ASSETS = Path(os.environ.get("GRAPHOPT_ASSETS", ""))
MODELS: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "cifar10_resnet20_legacy_op17": {"x": ("float32", (2, 3, 32, 32))},
    "cifar10_resnet20_legacy_bn_op17": {"x": ("float32", (2, 3, 32, 32))},
    "minilm_legacy_op17": {"ids": ("int64", (2, 9)), "mask": ("ones", (2, 9))},
    "stories260k_llama_legacy_op17": {"ids": ("int64", (2, 9))},
    "kws_dscnn_float_tf2onnx_op17": {"x": ("float32", (2, 49, 10, 1))},
    "imagenet_mobilenet_v1_050_160_tf2onnx_op17": {"x": ("float32", (1, 160, 160, 3))},
    "imagenet_squeezenet1_1_legacy_op17": {"x": ("float32", (1, 3, 224, 224))},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ASSETS / "models").is_dir(), reason="GRAPHOPT_ASSETS names no folder of models"),
]


def feed_of(model: Model, kinds: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for tensor, (kind, shape) in zip(model.graph.inputs, kinds.values(), strict=True):
        if kind == "float32":
            made[tensor.name] = draw.standard_normal(shape).astype(np.float32)
        else:
            made[tensor.name] = np.ones(shape, np.int64) if kind == "ones" else draw.integers(1, 400, shape)
    return made


@pytest.mark.parametrize("simplified", [False, True], ids=["as exported", "simplified"])
@pytest.mark.parametrize("name", MODELS)
def test_sliced_equals_masked(name: str, *, simplified: bool) -> None:
    model = read_model(ASSETS / "models" / f"{name}.onnx")
    if simplified:
        model = simplify(model).model
    removed = free_units(groups_of(model), np.random.default_rng(3))
    assert len(removed)
    small = sliced(model, removed)
    assert difference(masked(model, removed), small, feed_of(model, MODELS[name])) < 1e-5
    assert len(small.to_bytes()) < len(model.to_bytes())


def images(name: str, rows: slice) -> np.ndarray[Any, Any]:
    with np.load(ASSETS / "data" / f"{name}.npz") as data:
        pixels = data["x"][rows].astype(np.float32) / 255
    mean, deviation = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    return np.ascontiguousarray(((pixels - mean) / deviation).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("ratio", "agreement", "share"), [(0.25, 0.93, 0.80), (0.5, 0.80, 0.55)])
def test_resnet_keeps_its_classes(ratio: float, agreement: float, share: float) -> None:
    """The inner channels of all blocks, repaired on 256 images without labels, judged on others."""
    dense = simplify(read_model(ASSETS / "models" / "cifar10_resnet20_legacy_op17.onnx")).model
    model = dense.copy()
    name = model.graph.inputs[0].name
    feeds = Feeds.open({name: images("cifar10_train_5085", slice(256))}, model)
    PassManager([PruneChannels(ratio=ratio)]).run(model, feeds)
    judged = {name: images("cifar10_train_5085", slice(4000, 4500))}
    classes = [next(iter(run(session(each), judged).values())).argmax(axis=1) for each in (dense, model)]
    assert float((classes[0] == classes[1]).mean()) >= agreement
    operations = [Facts(each).get(Cost).total(default=1).flops for each in (dense, model)]
    assert operations[1] <= share * operations[0]
