"""Time SparseMatMul against ONNX Runtime's dense MatMul on the same matrices, in one process, run by run in turn.

Each case is a model of several layers with weights of their own (equal weights would be shared), all reading one input.
The results are checked against numpy before anything is timed. With one thread the CPU time of the calling thread
counts, so that other jobs on the machine disturb little; with more the wall time.

    python benchmarks/bench_kernels.py --isa avx512 --threads 1

With --cost-table FILE it measures the grid of sizes from which the lowering pass decides, and writes that table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from graphopt.analysis.cost_table import table_from_cases
from graphopt.runtime.library import isa_report, kernel_library
from graphopt.solve.pack_sparse import DEFAULT_K_BLOCK, DEFAULT_PANEL_ROWS, pack_sparse

SHAPES = ("16x768x3072", "64x768x3072", "256x768x3072", "197x3072x768", "128x384x1536", "1x4096x4096")
SPARSITIES = (50, 70, 80, 90, 95)
GRID_M = (1, 4, 16, 64, 256)
GRID_WEIGHTS = ("64x64", "128x384", "384x1536", "768x3072", "3072x768")
GRID_SPARSITIES = (50, 60, 70, 80, 90, 95)
MARGIN = 0.1
RESULTS = Path(__file__).parent / "results" / "kernels.json"


def sparse_weights(k: int, n: int, sparsity: float, layers: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Gaussian matrices [k, n] of which the smallest share is zero."""
    made = []
    for _ in range(layers):
        w = rng.standard_normal((k, n), dtype=np.float32) / np.float32(np.sqrt(k))
        w[np.abs(w) < np.quantile(np.abs(w), sparsity)] = 0
        made.append(w)
    return made


def model_bytes(weights: list[np.ndarray], m: int, packing: dict[str, int] | None) -> bytes:
    """One MatMul, or with `packing` one SparseMatMul, per weight."""
    k, n = weights[0].shape
    nodes, initializers, outputs = [], [], []
    for i, w in enumerate(weights):
        stored = w if packing is None else pack_sparse(w, **packing)
        initializers.append(numpy_helper.from_array(stored, f"w{i}"))
        if packing is None:
            nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]))
        else:
            nodes.append(helper.make_node("SparseMatMul", ["x", f"w{i}"], [f"y{i}"], domain="ai.graphopt", K=k, N=n))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [m, n]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])
    graph = helper.make_graph(nodes, "case", [x], outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.graphopt", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


class Candidate:
    """A session with its input and outputs bound, so that a run allocates and copies nothing."""

    def __init__(self, model: bytes, x: np.ndarray, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.register_custom_ops_library(str(kernel_library()))
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
        self.outputs = []
        for spec in self.session.get_outputs():
            self.outputs.append(ort.OrtValue.ortvalue_from_numpy(np.zeros(spec.shape, np.float32)))
            self.binding.bind_ortvalue_output(spec.name, self.outputs[-1])

    def run(self) -> None:
        """Run once."""
        self.session.run_with_iobinding(self.binding)

    def check(self, x: np.ndarray, weights: list[np.ndarray]) -> None:
        """Stop the benchmark unless every output is within the rounding bound of the exact product."""
        self.run()
        for w, y in zip(weights, self.outputs, strict=True):
            exact = x.astype(np.float64) @ w.astype(np.float64)
            bound = (np.abs(x).astype(np.float64) @ np.abs(w)) * (w.shape[0] + 1) * np.finfo(np.float32).eps
            if not np.all(np.abs(y.numpy() - exact) <= bound + 1e-30):
                raise SystemExit("a result is outside the rounding bound: nothing was timed")


def measure(candidates: list[Candidate], layers: int, threads: int, seconds: float) -> list[dict[str, float]]:
    """Median and median absolute deviation in ms per layer; the candidates take turns."""
    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    times: list[list[float]] = [[] for _ in candidates]
    for candidate in candidates:
        candidate.run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 7:
        for candidate, mine in zip(candidates, times, strict=True):
            start = clock()
            candidate.run()
            mine.append((clock() - start) / 1e6 / layers)
    medians = [statistics.median(t) for t in times]
    return [
        {"ms": m, "mad_ms": statistics.median(abs(v - m) for v in t), "runs": len(t)}
        for m, t in zip(medians, times, strict=True)
    ]


def run_case(shape: str, sparsity: float, args: argparse.Namespace) -> dict[str, Any]:
    m, k, n = (int(v) for v in shape.split("x"))
    rng = np.random.default_rng([m, k, n, round(sparsity * 1000)])
    weights = sparse_weights(k, n, sparsity, args.layers, rng)
    x = rng.standard_normal((m, k), dtype=np.float32)
    packing = {"k_block": args.k_block, "panel_rows": args.panel_rows}
    dense = Candidate(model_bytes(weights, m, None), x, args.threads)
    ours = Candidate(model_bytes(weights, m, packing), x, args.threads)
    dense.check(x, weights)
    ours.check(x, weights)
    before, after = measure([dense, ours], args.layers, args.threads, args.seconds)
    entries = float(np.mean([np.count_nonzero(w) for w in weights]))
    return {
        "shape": shape,
        "sparsity": sparsity,
        "isa": isa_report().chosen,
        "threads": args.threads,
        "dense": before,
        "sparse": after,
        "speedup": before["ms"] / after["ms"],
        "sparse_gflops": 2 * m * entries / after["ms"] / 1e6,
        "bytes_per_dense_byte": pack_sparse(weights[0], **packing).nbytes / weights[0].nbytes,
    }


def cpu_model() -> str:
    for line in (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    ):
        if line.startswith(("model name", "cpu family", "model\t")):
            if line.startswith("model name"):
                name = line.split(":")[1].strip()
            elif line.startswith("cpu family"):
                family = line.split(":")[1].strip()
            else:
                number = line.split(":")[1].strip()
        if line == "":
            return f"{name} family {family} model {number}"
    return platform.processor() or platform.machine()


def table(cases: list[dict[str, Any]]) -> str:
    """Speedup over dense by shape (rows) and sparsity (columns)."""
    columns = sorted({c["sparsity"] for c in cases})
    lines = []
    for isa, threads in sorted({(c["isa"], c["threads"]) for c in cases}):
        mine = [c for c in cases if (c["isa"], c["threads"]) == (isa, threads)]
        lines.append(f"{isa}, {threads} thread(s): speedup over onnxruntime MatMul (ms dense -> sparse per layer)")
        lines.append(f"{'M x K x N':<16}" + "".join(f"{s:>24.0%}" for s in columns))
        for shape in dict.fromkeys(c["shape"] for c in mine):
            cells = {c["sparsity"]: c for c in mine if c["shape"] == shape}
            lines.append(
                f"{shape:<16}"
                + "".join(
                    f"{cells[s]['speedup']:>8.2f}x {cells[s]['dense']['ms']:>6.3f}>{cells[s]['sparse']['ms']:<7.3f}"
                    if s in cells
                    else " " * 24
                    for s in columns
                )
            )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="", help="comma-separated; all that the CPU runs by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated MxKxN")
    parser.add_argument("--sparsity", default=",".join(map(str, SPARSITIES)), help="comma-separated percentages")
    parser.add_argument("--layers", type=int, default=4, help="layers with weights of their own per case")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per case")
    parser.add_argument("--k-block", type=int, default=DEFAULT_K_BLOCK)
    parser.add_argument("--panel-rows", type=int, default=DEFAULT_PANEL_ROWS)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--cost-table", type=Path, help="measure the grid of the cost table and write it here")
    args = parser.parse_args()
    if args.cost_table:
        args.shapes = ",".join(f"{m}x{weight}" for weight in GRID_WEIGHTS for m in GRID_M)
        args.sparsity = ",".join(map(str, GRID_SPARSITIES))
        args.json = args.cost_table.with_suffix(".cases.json")
        if not args.isa:
            args.isa = ",".join(name for name in isa_report().supported if name != "scalar")
    return args


def main() -> None:
    args = parse_arguments()
    wanted = args.isa.split(",") if args.isa else list(isa_report().supported)
    if len(wanted) > 1 or (args.cost_table and "GRAPHOPT_ISA" not in os.environ) or isa_report().chosen != wanted[0]:
        # The instruction set is chosen once per process.
        for isa in wanted:
            command = [sys.executable, __file__, *sys.argv[1:], "--isa", isa]
            subprocess.run(command, env={**os.environ, "GRAPHOPT_ISA": isa}, check=True)
        if args.cost_table:
            write_cost_table(args)
        return

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.threads :])
    cases = []
    for shape in args.shapes.split(","):
        for percent in args.sparsity.split(","):
            cases.append(run_case(shape, float(percent) / 100, args))
            last = cases[-1]
            print(f"{shape} {percent} %: {last['speedup']:.2f}x", file=sys.stderr, flush=True)
    print(table(cases))
    write(cases, args)


def _case_of_grid(case: dict[str, Any]) -> dict[str, Any]:
    m, k, n = (int(v) for v in case["shape"].split("x"))
    return {**case, "kernel": "sparse-matmul", "m": m, "weights": k * n, "level": case["sparsity"]}


def write_cost_table(args: argparse.Namespace) -> None:
    measured = json.loads(args.json.read_text(encoding="utf-8"))
    source = f"{measured['cpu']}, onnxruntime {measured['onnxruntime']}, one thread"
    cases = [_case_of_grid(case) for case in measured["cases"]]
    table = table_from_cases(cases, margin=MARGIN, measured_on=source)
    args.cost_table.write_text(table.to_json(), encoding="utf-8")


def write(cases: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Replace the cases of this instruction set and thread count in the file; keep the others."""
    kept: list[dict[str, Any]] = []
    if args.json.exists():
        same = (isa_report().chosen, args.threads)
        kept = [c for c in json.loads(args.json.read_text())["cases"] if (c["isa"], c["threads"]) != same]
    document = {
        "cpu": cpu_model(),
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "weights": "Gaussian, the smallest magnitudes zero; activations Gaussian",
        "clock": "CPU time of the thread for 1 thread, wall time for more; medians, candidates in turn",
        "cases": kept + cases,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
