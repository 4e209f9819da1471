"""The analyses on a large dynamic graph: time of each, and how much of the shapes is known, beside onnx's inference.

    python benchmarks/bench_analyses.py [--nodes N] [--write]

Times are process CPU seconds, the best of three runs; what an analysis asks for is computed before. ``--write`` stores
the figures in benchmarks/results/analyses.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.analysis import Captures, Cost, Facts, Liveness, NetworkView, ShapeValues, Types, Uses
from graphopt.graph import Model, read_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds its own folder only

from benchmarks.measurement import cpu_seconds

RESULTS = Path(__file__).parent / "results" / "analyses.json"
ALL = (Types, ShapeValues, Uses, Captures, Liveness, Cost, NetworkView)
WIDTH = 8


def attention_chain(count: int) -> bytes:
    """Return ``count`` nodes or a few more: attention blocks whose reshapes compute their targets, as exporters do."""
    nodes: list[onnx.NodeProto] = []
    constants = {
        "i0": np.int64(0),
        "i1": np.int64(1),
        "axis": np.array([0], np.int64),
        "heads": np.array([2], np.int64),
        "size": np.array([WIDTH // 2], np.int64),
        "hidden": np.array([WIDTH], np.int64),
        "root": np.float32(2),
        "w": np.eye(WIDTH, dtype=np.float32),
    }

    def op(kind: str, *inputs: str, **attrs: Any) -> str:
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], name=f"n{len(nodes)}", **attrs))
        return name

    current = "x"
    while len(nodes) < count:
        shape = op("Shape", current)
        batch = op("Unsqueeze", op("Gather", shape, "i0"), "axis")
        length = op("Unsqueeze", op("Gather", op("Shape", current), "i1"), "axis")
        target = op("Concat", batch, length, "heads", "size", axis=0)
        q = op("Transpose", op("Reshape", op("MatMul", current, "w"), target), perm=[0, 2, 1, 3])
        k = op("Transpose", op("Reshape", op("MatMul", current, "w"), target), perm=[0, 2, 3, 1])
        scores = op("Softmax", op("Div", op("MatMul", q, k), "root"))
        merged = op("Transpose", op("MatMul", scores, q), perm=[0, 2, 1, 3])
        back = op("Reshape", merged, op("Concat", batch, length, "hidden", axis=0))
        current = op("Relu", op("Add", back, current))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", WIDTH]) for name in ("x", current)
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(proto.SerializeToString())


def times(model: Model) -> dict[str, float]:
    """Return the CPU seconds of each analysis, those it asks for not counted."""
    facts = Facts(model)
    found = {}
    for kind in ALL:
        facts.get(kind)
        found[kind.__name__] = cpu_seconds(partial(kind.compute, model, facts))
    cost = facts.get(Cost)
    found["Cost.total"] = cpu_seconds(lambda: cost.total(default=4))
    view = facts.get(NetworkView)
    found["articulation points"] = cpu_seconds(lambda: view.of().articulation_points())
    found["longest path"] = cpu_seconds(lambda: view.of().longest_path(lambda _: 1.0))
    return found


def named_shapes(model: Model, data: bytes) -> dict[str, int]:
    """Return how many tensors have a shape in terms of the model's own sizes, here and by onnx's inference."""
    types = Facts(model).get(Types)
    tensors = [tensor for node in model.graph.nodes for tensor in node.outputs]
    shapes = [types.shape(tensor) for tensor in tensors]
    ours = sum(shape is not None and not any("?" in str(size) for size in shape) for shape in shapes)
    inferred = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(data), data_prop=True)
    theirs = 0
    for info in [*inferred.graph.value_info, *inferred.graph.output]:
        dims = info.type.tensor_type.shape.dim
        known = all(dim.HasField("dim_value") or dim.dim_param in {"batch", "length"} for dim in dims)
        theirs += info.type.tensor_type.HasField("shape") and known
    return {"tensors": len(tensors), "graphopt": ours, "onnx": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=50_000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    data = attention_chain(options.nodes)
    model = read_model(data)
    seconds = times(model)
    seconds["onnx.shape_inference"] = cpu_seconds(
        lambda: onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(data), data_prop=True), runs=1
    )
    shapes = named_shapes(model, data)
    print(f"{len(list(model.graph.nodes))} nodes; CPU seconds")
    for name, value in seconds.items():
        print(f"  {name:24} {value:8.3f}")
    print(f"shapes in terms of batch and length: {shapes}")
    if options.write:
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        RESULTS.parent.mkdir(exist_ok=True)
        result = {"nodes": options.nodes, **machine, "cpu_seconds": seconds, "shapes": shapes}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
