"""Folding into weights and merging of layers, together, on real models: nodes, numbers, file size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graphopt.graph import read_model
from graphopt.rewrite.manager import PassManager

PASSES = (
    *("fold-constants", "eliminate-identity", "merge-equal-nodes", "simplify-shape-computations", "merge-reshapes"),
    *("fix-reshape-targets", "sink-splits", "fuse-batch-norm", "fold-affine", "fuse-gemm", "hoist-scale", "fuse-pad"),
    *("merge-chained-layers", "merge-parallel-layers", "merge-twin-branches", "eliminate-dead"),
)
MOST_NODES = {
    "graphs/bert_ts": 345,
    "graphs/llama_ts": 420,
    "models/minilm_legacy_op17": 220,
    "models/stories260k_llama_legacy_op17": 320,
    "models/cifar10_resnet20_legacy_bn_op17": 58,
    "models/basic_pitch_nmp_op15": 240,
    "models/mnist_cntk_op8": 8,
}


@pytest.mark.slow
@pytest.mark.skipif("GRAPHOPT_ASSETS" not in os.environ, reason="needs the model files")
@pytest.mark.parametrize("name", MOST_NODES)
def test_model_has_fewer_nodes_and_the_same_numbers(name: str) -> None:
    path = Path(os.environ["GRAPHOPT_ASSETS"]) / f"{name}.onnx"
    model = read_model(path)
    outcome = PassManager(list(PASSES), verify="full").run(model)  # full: numbers before and after each group of passes
    assert not outcome.notes
    assert sum(node.op != "Constant" for _, node in model.walk()) <= MOST_NODES[name]
    assert len(model.to_bytes()) <= path.stat().st_size * 1.01
    assert PassManager(list(PASSES)).run(model).patches == 0
