"""Run one graph optimizer on one file, in a process of its own that imports nothing of graphopt but where asked.

    python simplify_worker.py TOOL SOURCE OUTPUT REPORT [CPU_LIMIT]

Every tool runs through its Python API with its default settings and without its own numeric comparison. The tool first
simplifies a model of one node, so that what it imports and loads once is not measured. REPORT then receives the CPU
seconds of the process from reading SOURCE to having written OUTPUT, and its peak resident size.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PROTOBUF_LIMIT = 2**31 - 1


def main() -> None:
    """Warm the tool up, then run it on the file and write the report."""
    tool, source, output, report = sys.argv[1:5]
    if len(sys.argv) > 5:
        seconds = int(sys.argv[5])
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    run = TOOLS[tool]
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.onnx"
        tiny.write_bytes(tiny_model())
        run(str(tiny), str(Path(folder) / "out.onnx"))
    imported = peak_megabytes()
    wall, start = time.perf_counter(), time.process_time()
    run(source, output)
    cpu, wall = time.process_time() - start, time.perf_counter() - wall
    found = {"cpu": round(cpu, 4), "wall": round(wall, 4), "peak_mb": peak_megabytes(), "imported_mb": imported}
    Path(report).write_text(json.dumps(found))


def tiny_model() -> bytes:
    """Return a model of one node."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def peak_megabytes() -> float:
    """Return the peak resident size; not from getrusage, which begins with the peak of the parent."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(float(status["VmHWM"].split()[0]) / 1024, 1)


def save(model: Any, output: str) -> None:
    """Write a model, its weights in a file beside it where protobuf cannot hold them."""
    import onnx

    large = model.ByteSize() > PROTOBUF_LIMIT
    onnx.save(model, output, save_as_external_data=large, location=Path(output).name + ".data" if large else None)


def graphopt(source: str, output: str) -> None:
    """Run this project's graph optimization."""
    import graphopt as package

    package.simplify(source, output)


def onnxsim(source: str, output: str) -> None:
    """Run onnxsim."""
    import onnxsim as package

    simplified, _ = package.simplify(source)
    save(simplified, output)


def onnxslim(source: str, output: str) -> None:
    """Run OnnxSlim."""
    import onnxslim as package

    save(package.slim(source), output)


def onnxoptimizer(source: str, output: str) -> None:
    """Run onnxoptimizer's default passes to their fixed point."""
    import onnx
    import onnxoptimizer as package

    save(package.optimize(onnx.load(source), fixed_point=True), output)


def onnxscript(source: str, output: str) -> None:
    """Run onnxscript's optimizer, as PyTorch's exporter does."""
    import onnx_ir
    from onnxscript import optimizer

    model = onnx_ir.load(source)
    optimizer.optimize_ir(model)
    save_ir(model, output)


def onnxscript_rules(source: str, output: str) -> None:
    """Run onnxscript's optimizer and then the default rules of its rewriter."""
    import onnx_ir
    from onnxscript import optimizer, rewriter

    model = onnx_ir.load(source)
    optimizer.optimize_ir(model)
    save_ir(rewriter.rewrite(model), output)


def save_ir(model: Any, output: str) -> None:
    """Write a model of onnx_ir, its weights in a file beside it where protobuf cannot hold them."""
    import onnx_ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > PROTOBUF_LIMIT:
        onnx_ir.save(model, output, external_data=Path(output).name + ".data")
        return
    onnx_ir.external_data.load_to_model(model)  # else the result would look for the data file beside itself
    onnx_ir.save(model, output)


def ort_offline(level: str) -> Callable[[str, str], None]:
    """Return ONNX Runtime's offline optimizer at one level."""

    def run(source: str, output: str) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = output
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        weights = Path(source).with_name(Path(source).name + ".data")
        if weights.exists():  # else the result would look for the data file beside itself
            name = Path(output).name + ".data"
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", name)
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return run


def polygraphy(source: str, output: str) -> None:
    """Run what ``polygraphy surgeon sanitize --fold-constants --cleanup`` does."""
    import onnx
    import onnx_graphsurgeon as gs
    from polygraphy.backend.onnx import fold_constants
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    folded = fold_constants(onnx.load(source))
    save(gs.export_onnx(gs.import_onnx(folded).cleanup().toposort()), output)


def graphsurgeon(source: str, output: str) -> None:
    """Run onnx-graphsurgeon's folding and clean-up."""
    import onnx
    import onnx_graphsurgeon as gs

    save(gs.export_onnx(gs.import_onnx(onnx.load(source)).fold_constants().cleanup().toposort()), output)


TOOLS: dict[str, Callable[[str, str], None]] = {
    "graphopt": graphopt,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxoptimizer": onnxoptimizer,
    "onnxscript": onnxscript,
    "onnxscript+rules": onnxscript_rules,
    "ort-basic": ort_offline("BASIC"),
    "ort-extended": ort_offline("EXTENDED"),
    "polygraphy": polygraphy,
    "graphsurgeon": graphsurgeon,
}


if __name__ == "__main__":
    main()
