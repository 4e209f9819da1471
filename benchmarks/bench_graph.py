"""The graph layer against onnx-ir and onnx-graphsurgeon, in the same run: time, memory, fidelity.

    python benchmarks/bench_graph.py [--nodes N] [--no-large]

Prints a table and writes benchmarks/results/graph.json. Times are process CPU seconds, the best of several runs, taken
in turn. Memory is the peak resident size of a process of its own that does nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.graph import Model, Node, Variable, Weight, read_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds its own folder only

from benchmarks.measurement import cpu_seconds

RESULTS = Path(__file__).parent / "results" / "graph.json"
LARGE_WEIGHTS = 48
LARGE_SHAPE = (4096, 4096)  # 64 MiB of float32 each, 3.2 GB together


def chain(count: int) -> bytes:
    """Return a residual chain of ``count`` nodes with a weight for every fourth and value_info for every tensor."""
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []
    infos: list[onnx.ValueInfoProto] = []
    current = "x"
    rng = np.random.default_rng(0)
    while len(nodes) < count:
        i = len(nodes) // 4
        weights.append(numpy_helper.from_array(rng.standard_normal((4, 4)).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [current, f"w{i}"], [f"m{i}"], name=f"matmul{i}"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"r{i}"], name=f"relu{i}"))
        nodes.append(helper.make_node("Add", [f"r{i}", current], [f"a{i}"], name=f"add{i}"))
        nodes.append(helper.make_node("Softmax", [f"a{i}"], [f"s{i}"], name=f"softmax{i}", axis=-1))
        infos.extend(helper.make_tensor_value_info(f"{k}{i}", TensorProto.FLOAT, ["N", 4]) for k in "mras")
        current = f"s{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("x", current)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights, value_info=infos[:-1])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def bench_import_export(data: bytes) -> dict[str, float]:
    import onnx_graphsurgeon as gs
    import onnx_ir as ir

    ours = read_model(data)
    theirs = ir.from_proto(onnx.ModelProto.FromString(data))
    stock = gs.import_onnx(onnx.ModelProto.FromString(data))
    assert ours.to_bytes() == onnx.ModelProto.FromString(data).SerializeToString(deterministic=True)
    return {
        "import graphopt": cpu_seconds(lambda: read_model(data)),
        "import onnx-ir": cpu_seconds(lambda: ir.from_proto(onnx.ModelProto.FromString(data))),
        "import graphsurgeon": cpu_seconds(lambda: gs.import_onnx(onnx.ModelProto.FromString(data)), runs=1),
        "export graphopt": cpu_seconds(ours.to_bytes),
        "export onnx-ir": cpu_seconds(lambda: ir.to_proto(theirs).SerializeToString()),
        "export graphsurgeon": cpu_seconds(lambda: gs.export_onnx(stock).SerializeToString(), runs=1),
        "copy graphopt": cpu_seconds(ours.copy, runs=1),
    }


def bench_order(data: bytes) -> dict[str, float]:
    model = read_model(data)
    order = list(model.graph.nodes)
    results = {"sort, in order": cpu_seconds(model.sort)}
    for name, arranged in (("reversed", order[::-1]), ("shuffled", random.Random(0).sample(order, len(order)))):

        def measure(nodes: list[Node] = arranged) -> float:
            model.graph.nodes[:] = nodes
            gc.collect()
            start = time.process_time()
            model.sort()
            return time.process_time() - start

        results[f"sort, {name}"] = min(measure() for _ in range(3))
        assert {id(n) for n in model.graph.nodes} == {id(n) for n in order}
    return results


def hub_model(fan_out: int) -> tuple[list[Node], Variable, Variable]:
    hub, other = Variable("hub"), Variable("other")
    users = [Node("Relu", f"n{i}", {}, [hub], [Variable(f"o{i}")]) for i in range(fan_out)]
    return users, hub, other


def bench_hub(fan_out: int = 8000) -> dict[str, float]:
    results = {}
    for order in ("first in first out", "last in first out", "random"):
        seconds = float("inf")
        for _ in range(3):
            users, hub, other = hub_model(fan_out)
            positions = list(range(fan_out))
            if order == "last in first out":
                positions.reverse()
            if order == "random":
                random.Random(0).shuffle(positions)
            gc.collect()
            start = time.process_time()
            for position in positions:
                users[position].inputs[0] = other
            seconds = min(seconds, time.process_time() - start)
            assert len(other.outputs) == fan_out
            assert not hub.outputs
        results[f"{fan_out} uses moved one by one, {order}"] = seconds
    return results


# ------------------------------------------------------------------------------------------------ beyond 2 gigabytes


def large_model(folder: Path) -> Path:
    """Write a model of 3.2 GB: the data file is sparse on the disk, all zeros."""
    size = int(np.prod(LARGE_SHAPE)) * 4
    weights, nodes = [], []
    for i in range(LARGE_WEIGHTS):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=LARGE_SHAPE)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "large.data"), ("offset", str(i * size)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        weights.append(tensor)
        nodes.append(helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"matmul{i}"))
    ends = [
        helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, ["N", LARGE_SHAPE[0]]) for i in (0, LARGE_WEIGHTS)
    ]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    path = folder / "large.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    with (folder / "large.data").open("wb") as stream:
        stream.truncate(LARGE_WEIGHTS * size)
    return path


def plus_one(weight: Weight) -> np.ndarray:
    return np.asarray(weight.load() + 1)


def change_and_save(path: Path, how_many: int) -> None:
    """Change weights of a model, save it over itself, and print the peak resident size in megabytes."""
    from graphopt.graph import LazyWeight, Rewriter

    model: Model = read_model(path)
    for constant in list(model.graph.initializers)[:how_many]:
        before = constant.weight
        if how_many == 1:
            with Rewriter(model) as rw, constant.edit() as values:
                values[0, 0] = 42.0
                rw.set_type(model.graph.nodes[0].outputs[0], np.float32, None)
        else:
            constant.weight = LazyWeight(partial(plus_one, before), before.onnx_dtype, before.shape)
    model.save(path, external="large.data")
    again = read_model(path).graph.nodes[0].inputs[1].array()
    assert again[0, 0] == (42.0 if how_many == 1 else 1.0)
    # Not getrusage: after a fork it begins with the peak of the parent.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    sys.stdout.write(str(float(status["VmHWM"].split()[0]) / 1024))


def bench_large() -> dict[str, float]:
    results = {}
    for label, how_many in (("one weight", 1), ("every weight", LARGE_WEIGHTS)):
        with tempfile.TemporaryDirectory() as folder:
            path = large_model(Path(folder))
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, __file__, "--change", str(path), str(how_many)],
                capture_output=True,
                text=True,
                check=True,
            )
            results[f"3.2 GB, {label} changed and saved: wall seconds"] = time.perf_counter() - start
            results[f"3.2 GB, {label} changed and saved: peak MB resident"] = float(done.stdout)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=50_000)
    parser.add_argument("--no-large", action="store_true", help="leave out the model of 3.2 GB")
    parser.add_argument("--change", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.change:
        change_and_save(Path(options.change[0]), int(options.change[1]))
        return
    data = chain(options.nodes)
    results = {**bench_import_export(data), **bench_order(data), **bench_hub()}
    if not options.no_large:
        results |= bench_large()
    packages = ("graphopt", "onnx", "onnx-graphsurgeon", "onnx-ir", "numpy", "protobuf")
    record = {
        "nodes": options.nodes,
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "results": {key: round(value, 4) for key, value in results.items()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    width = max(map(len, results))
    for key, value in results.items():
        print(f"{key:<{width}}  {value:10.3f}")
    print(f"{options.nodes} nodes, CPU seconds unless said otherwise; written to {RESULTS}")


if __name__ == "__main__":
    main()
