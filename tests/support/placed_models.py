"""Small float models for the tests of placement, and what comes of them on a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from graphopt.graph import Model, read_model
from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, random_feeds, run, session

if TYPE_CHECKING:
    from graphopt.rewrite.manager import PassRecord

HEAD = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> '

RESIDUAL = (
    "g (float[n, 16, 16, 16] x, float[16, 16, 3, 3] w0, float[16] b0, float[16, 16, 3, 3] w1, float[16, 16, 3, 3] w2, "
    "float[16, 16] w3, float[16] b3) => (float[n, 16] y) "
    "{ c0 = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) r0 = Relu(c0) c1 = Conv<pads = [1, 1, 1, 1]>(r0, w1) "
    "s = Add(c1, r0) r1 = Relu(s) m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r1) "
    "c2 = Conv<pads = [1, 1, 1, 1]>(m, w2) r2 = Relu(c2) p = GlobalAveragePool(r2) f = Flatten(p) "
    "y = Gemm<transB = 1>(f, w3, b3) }"
)
"""A residual block, data movement, a pool and a linear layer."""

CONCAT = (
    "g (float[n, 16, 8, 8] x, float[16, 16, 1, 1] w0, float[16, 16, 3, 3] w1, float[16, 32, 1, 1] w2) "
    "=> (float[n, 16, h, w] y) "
    "{ a = Conv(x, w0) b = Conv<pads = [1, 1, 1, 1]>(x, w1) ra = Relu(a) rb = Relu(b) c = Concat<axis = 1>(ra, rb) "
    "y = Conv(c, w2) }"
)
ATTENTION = (
    "g (float[n, 8, 32] x, float[32, 32] w0, float[32, 32] w1, float[32] b1, float[32, 32] w2, float[32] b2, "
    "float[32] b3, float[32] b4) => (float[n, 8, 32] y) "
    "{ q = MatMul(x, w0) k0 = MatMul(x, w1) k = Add(k0, b1) kt = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, kt) "
    "a = Softmax<axis = -1>(s) v = MatMul(a, k) o0 = MatMul(v, w2) o = Add(o0, b2) r = Add(o, x) "
    "y = LayerNormalization(r, b3, b4) }"
)
NETWORKS = {"residual": RESIDUAL, "concat": CONCAT, "attention": ATTENTION}


def float_model(graph: str, opset: int = 17, seed: int = 0) -> Model:
    """Parse a graph whose inputs named w... and b... become random initializers."""
    proto = onnx.parser.parse_model(HEAD.format(opset=opset) + graph)
    random = np.random.default_rng(seed)
    for value in [each for each in proto.graph.input if each.name[0] in "wb" and each.name[1:].isdigit()]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = random.standard_normal(shape) / np.sqrt(max(int(np.prod(shape[1:])), 1))
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), value.name))
        proto.graph.input.remove(value)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{number}"
    return read_model(proto)


def placed(
    graph: str | Model, target: str, *, opset: int = 17, samples: int = 8, **options: Any
) -> tuple[Model, Model, Feeds, PassRecord]:
    """Return a float model, its quantized form for a target, the data both were run on and the record of the pass."""
    model = float_model(graph, opset) if isinstance(graph, str) else graph
    data = random_feeds(model, count=samples, seed=1)
    result = model.copy()
    outcome = PassManager([InsertQdq(**options), "eliminate-dead"], verify="full", target=target).run(result, data)
    return model, result, data, outcome.records[0]


def sqnr_db(model: Model, other: Model, data: Feeds) -> float:
    """Return the ratio of signal to difference over all outputs, in dB, without optimizations of the runtime."""
    one, two = session(model, optimize="off"), session(other, optimize="off")
    signal = noise = 0.0
    for feed in data:
        for left, right in zip(run(one, feed).values(), run(two, feed).values(), strict=True):
            signal += float(np.square(left, dtype=np.float64).sum())
            noise += float(np.square(left.astype(np.float64) - right).sum())
    return float(10 * np.log10(signal / noise)) if noise else 200.0
