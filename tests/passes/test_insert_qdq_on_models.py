"""insert-qdq on real models: everything fuses, and answers stay those of the float model on data it never saw."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.graph import Model, read_model
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, session
from graphopt.target import audit

if TYPE_CHECKING:
    from numpy.typing import NDArray

ASSETS = Path(os.environ.get("GRAPHOPT_ASSETS", "/nonexistent"))
PASSES = (
    *("fold-constants", "eliminate-identity", "fuse-batch-norm", "fold-constants", "eliminate-dead"),
    *("raise-opset", "fuse-bias", "insert-qdq", "eliminate-dead"),
)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ASSETS / "models").is_dir(), reason="GRAPHOPT_ASSETS names no folder with models/ and data/"
    ),
]


def cifar(name: str, count: int) -> NDArray[np.float32]:
    images = np.load(ASSETS / "data" / f"{name}.npz")["x"][:count].astype(np.float32) / 255
    return np.ascontiguousarray(((images - MEAN) / STD).transpose(0, 3, 1, 2), np.float32)


def imagenet(pattern: str, count: int, *, mobilenet: bool) -> NDArray[np.float32]:
    data = np.load(next((ASSETS / "data").glob(pattern)))
    images = np.cumsum(data["delta"][:count], axis=2, dtype=np.uint8).astype(np.float32)
    if mobilenet:
        return np.asarray((images[:, 32:192, 32:192] - 128) / 128, np.float32)
    return np.ascontiguousarray(((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2), np.float32)


def quantized(name: str, images: NDArray[np.float32]) -> tuple[Model, Model]:
    original = read_model(ASSETS / "models" / f"{name}.onnx")
    model = original.copy()
    data = Feeds.open({model.graph.inputs[0].name: images}, model)
    PassManager(PASSES, verify="full").run(model, data)
    return original, model


def agreement(one: Model, other: Model, images: NDArray[np.float32]) -> float:
    """Return the share of images whose largest output is the same."""
    answers = []
    for model in (one, other):
        runner = session(model)
        name = runner.get_inputs()[0].name
        parts = [runner.run(None, {name: images[at : at + 16]})[0] for at in range(0, len(images), 16)]
        answers.append(np.concatenate(parts).argmax(1))
    return float((answers[0] == answers[1]).mean())


@pytest.mark.parametrize("export", ["legacy_op17", "legacy_bn_op17", "dynamo_op20", "dynamo_op20_ext"])
def test_every_operator_of_resnet20_is_fused(export: str) -> None:
    original, model = quantized(f"cifar10_resnet20_{export}", cifar("cifar10_train_5085", 256))
    found = audit(model)
    assert found.integer_count == 30
    assert found.floating_count == 0
    assert found.conversions <= 2
    assert found.optimization_error is not None
    assert found.optimization_error < 0.05
    assert agreement(original, model, cifar("cifar10_test_1017", 512)) > 0.98
    assert len(model.to_bytes()) < 400_000


def test_every_convolution_of_squeezenet_is_fused() -> None:
    images = imagenet("imagenet_calibration_*_delta.npz", 32, mobilenet=False)
    original, model = quantized("imagenet_squeezenet1_1_legacy_op17", images)
    found = audit(model, compare=False)
    assert dict(found.integer) == {"QLinearConv": 26}
    assert (found.floating_count, found.conversions) == (0, 2)
    scored = imagenet("imagenet_sample_160_delta.npz", 96, mobilenet=False)
    assert agreement(original, model, scored) > 0.88


def test_every_convolution_of_mobilenet_is_fused() -> None:
    images = imagenet("imagenet_calibration_*_delta.npz", 32, mobilenet=True)
    original, model = quantized("imagenet_mobilenet_v1_050_160_tf2onnx_op17", images)
    found = audit(model, compare=False)
    assert dict(found.integer) == {"QLinearAveragePool": 1, "QLinearConv": 28}
    assert (found.floating_count, found.conversions) == (0, 2)
    scored = imagenet("imagenet_sample_160_delta.npz", 96, mobilenet=True)
    assert agreement(original, model, scored) > 0.85


def test_embeddings_of_minilm_keep_their_neighbours() -> None:
    data = np.load(ASSETS / "data" / "sts_minilm_tokens.npz")
    original = read_model(ASSETS / "models" / "minilm_legacy_op17.onnx")
    model = original.copy()
    record = PassManager(PASSES).run(model).records[PASSES.index("insert-qdq")]
    assert [layer.op for layer in record.layers].count("MatMul") == 36
    assert [layer.op for layer in record.layers].count("Gather") == 2
    similarities = []
    for each in (original, model):
        runner, rows = session(each), []
        for side in ("a", "b"):
            tokens = data[f"sts2015_images_{side}"][:200].astype(np.int64)
            feed = {"input_ids": tokens, "attention_mask": (tokens != 0).astype(np.int64)}
            rows.append(runner.run(None, feed)[0])
        similarities.append((rows[0] * rows[1]).sum(1))
    assert np.corrcoef(similarities[0], similarities[1])[0, 1] > 0.995
    assert len(model.to_bytes()) < 16_000_000


@pytest.mark.parametrize("name", ["imagenet_mobilenet_v1_050_160_qdq_tf2onnx_op17", "kws_dscnn_qdq_tf2onnx_op17"])
def test_quantized_models_are_left_alone(name: str) -> None:
    model = read_model(ASSETS / "models" / f"{name}.onnx")
    before = model.to_bytes()
    record = PassManager(["insert-qdq"]).run(model).records[0]
    assert "quantized already" in record.skips[0][1]
    assert model.to_bytes() == before
