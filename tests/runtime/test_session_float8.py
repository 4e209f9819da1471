"""Conversions to 8-bit floats are computed as they stand, whatever the runtime would make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.rewrite import PassManager
from graphopt.runtime import random_feeds, run, session
from placed_models import RESIDUAL, float_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("stored", [False, True])
def test_model_with_eight_bit_floats_runs_and_computes_what_it_says(stored: bool, tmp_path: Path) -> None:
    model = float_model(RESIDUAL, opset=19)
    data = random_feeds(model, count=4, seed=1)
    result = model.copy()
    PassManager([InsertQdq(activations="fp8")], target="tensorrt").run(result, data)
    path = tmp_path / "model.onnx"
    result.save(path)
    plain, fused = session(result, optimize="off"), session(path if stored else result)
    feed = data.first()
    expected = run(plain, feed)["y"]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(run(fused, feed)["y"], expected, rtol=0.05, atol=0.05)
