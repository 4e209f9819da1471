"""The demo's models and data: there, small, fit each other, and as good as promised."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt import demo

MODELS = {"cnn": demo.CNN, "transformer": demo.TRANSFORMER}


def test_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in (demo.CNN, demo.TRANSFORMER, demo.CALIBRATION, demo.TEST)) < 2_000_000


@pytest.mark.parametrize("name", MODELS)
def test_accuracy_on_unseen_digits_is_high(name: str) -> None:
    session = ort.InferenceSession(MODELS[name].read_bytes(), providers=["CPUExecutionProvider"])
    score = demo.accuracy(lambda feed: {"logits": session.run(["logits"], feed)[0]}, [])
    assert score >= 97.0


@pytest.mark.parametrize("name", MODELS)
def test_model_passes_the_checker_and_has_a_free_batch(name: str) -> None:
    model = onnx.load(MODELS[name])
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_cnn_keeps_batch_normalization_and_residual_adds() -> None:
    operators = [node.op_type for node in onnx.load(demo.CNN).graph.node]
    assert operators.count("BatchNormalization") == 6
    assert operators.count("Add") == 2


def test_data_is_plain_and_no_test_image_was_calibrated_on() -> None:
    with np.load(demo.CALIBRATION, allow_pickle=False) as calibration, np.load(demo.TEST, allow_pickle=False) as test:
        assert calibration.files == ["image"]
        assert calibration["image"].shape == (640, 1, 8, 8)
        assert calibration["image"].dtype == np.float32
        assert set(test.files) == {"image", "label"}
        assert len(test["image"]) == len(test["label"]) == 597
        seen = {image.tobytes() for image in calibration["image"]}
        assert not seen & {image.tobytes() for image in test["image"]}
