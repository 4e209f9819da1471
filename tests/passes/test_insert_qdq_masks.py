"""insert-qdq for targets that want a pair on every tensor: attention masks of minus infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
from onnx import numpy_helper

from graphopt.graph import Model, read_model
from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, run, session
from graphopt.target import find_target, validate

RNG = np.random.default_rng(0)


def masked_attention() -> Model:
    """Return one head whose scores are masked by a Where that picks from 0 and minus infinity."""
    weights: dict[str, np.ndarray[Any, Any]] = {
        each: (RNG.standard_normal((16, 16)) / 4).astype(np.float32) for each in ("q", "k", "v")
    }
    weights |= {"none": np.zeros(1, np.float32), "all": np.full(1, -np.inf, np.float32)}
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 21]> g (float[1, 8, 16] x, bool[1, 8, 8] seen) => (float[1, 8, 16] y) {'
        " a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) t = Transpose<perm = [0, 2, 1]>(b) s = MatMul(a, t)"
        " m = Where(seen, none, all) n = Add(s, m) p = Softmax(n) y = MatMul(p, c) }"
    )
    for name, values in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return read_model(proto)


def test_infinite_masks_get_a_grid_and_mask_as_before() -> None:
    model = masked_attention()
    seen = np.tril(np.ones((1, 8, 8), bool))
    feeds = [{"x": RNG.standard_normal((1, 8, 16)).astype(np.float32), "seen": seen} for _ in range(8)]
    result = model.copy()
    PassManager([InsertQdq()], target="qnn").run(result, Feeds.open(feeds, session(model)))
    result.sort()
    assert validate(result, find_target("qnn")) == ()
    plain, quantized = (run(session(each, optimize="off"), feeds[0])["y"] for each in (model, result))
    assert np.isfinite(quantized).all()
    assert ((plain - quantized) ** 2).sum() < 10**-2.5 * (plain**2).sum()
