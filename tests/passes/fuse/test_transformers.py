"""The fusions together on exported transformers with the opset raised: nodes of a layer, and equal values."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from graphopt.graph import Model, read_model
from graphopt.passes.convert.raise_opset import RaiseOpset
from graphopt.passes.fuse.fuse_attention import FuseAttention
from graphopt.passes.fuse.fuse_rotary import FuseRotary
from graphopt.rewrite.manager import PassManager
from graphopt.rewrite.recipe import load_recipe
from graphopt.verify.reference import evaluate, sample_feeds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("GRAPHOPT_ASSETS" not in os.environ, reason="needs GRAPHOPT_ASSETS"),
]


def optimized(name: str, *, opset: int, attention: bool) -> tuple[Model, Model]:
    """Return an exported model before and after the default recipe in a newer opset."""
    before = read_model(Path(os.environ["GRAPHOPT_ASSETS"]) / f"{name}.onnx")
    model = before.copy()
    extra = [FuseRotary(), FuseAttention(ordinary_masks=True)] if attention else []
    default = load_recipe("default").create()
    PassManager([RaiseOpset(to=opset), *default, *extra, *default]).run(model)
    return before, model


def check_same(before: Model, after: Model) -> None:
    feeds = list(sample_feeds(before, 2, seed=3))
    for expected, found in zip(evaluate(before, feeds), evaluate(after, feeds), strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4 * float(np.abs(value).max()))


def operators(model: Model) -> Counter[str]:
    return Counter(str(node.op) for _, node in model.walk() if node.op != "Constant")


@pytest.mark.parametrize(("opset", "attention", "most"), [(20, False, 28), (23, True, 15)])
def test_bert_takes_few_nodes_a_layer(opset: int, attention: bool, most: int) -> None:
    before, after = optimized("graphs/bert_ts", opset=opset, attention=attention)
    count = operators(after)
    around = 20  # embeddings, the mask, the last normalization and the head
    assert count["Gelu"] == 12
    assert count["Attention"] == (12 if attention else 0)
    assert count.total() <= 12 * most + around
    check_same(before, after)


@pytest.mark.parametrize(
    ("name", "layers", "most"),
    [("graphs/llama_ts", 8, 18), ("graphs/gpt_ts", 12, 15), ("models/stories260k_llama_legacy_op17", 5, 17)],
)
def test_attention_of_decoders(name: str, layers: int, most: int) -> None:
    before, after = optimized(name, opset=23, attention=True)
    count = operators(after)
    assert count["Attention"] == layers
    assert count["Softmax"] == 0
    assert count.total() <= most * layers + 24
    check_same(before, after)
