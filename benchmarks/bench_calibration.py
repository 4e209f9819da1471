"""What each calibrator costs: CPU seconds and peak memory, beside ONNX Runtime's own for the same calibrator.

    GRAPHOPT_ASSETS=folder python benchmarks/bench_calibration.py [--only NAME ...] [--runs N]

The folder has models/ and data/; its neighbour tools/evaluate.py makes the calibration feeds. Both tools take the same
graph, simplified by graphopt and raised to an opset with a scale per channel, and the same samples, and write
uint8 activations and int8 weights per channel as QDQ: calibration and quantization together, each run in a process of
its own. Seconds are CPU time on one thread without imports, the least of the runs; memory is the largest resident set
of the process and, so that imports do not blur it, by how much it grew from before the work. ONNX Runtime has no
calibrator by squared error. Its entropy runs as its defaults have it: with one candidate. Writes
benchmarks/results/calibration.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measurement import environment

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).resolve().parent / "results" / "calibration.json"
SIMPLIFY = (
    *("fold-constants", "eliminate-identity", "fuse-batch-norm", "fold-constants", "eliminate-dead"),
    *("raise-opset", "fuse-bias", "eliminate-dead"),
)
SUBJECTS = {
    "cifar10_resnet20_legacy_op17": ("cifar10", 256),
    "imagenet_squeezenet1_1_legacy_op17": ("imagenet_torch", 48),
}
OURS = ("minmax", "moving-average", "percentile", "entropy", "mse")
THEIRS = {
    "minmax": "MinMax",
    "moving-average": "MinMax",
    "percentile": "Percentile",
    "entropy": "Entropy",
}
"""Calibrators of ONNX Runtime; the moving average is an option of MinMax."""

SHARE = 99.999


def ours(model: Path, data: Path, calibrator: str, out: Path) -> Callable[[], None]:
    from graphopt.graph import read_model
    from graphopt.passes.quantize.insert_qdq import InsertQdq
    from graphopt.rewrite import PassManager
    from graphopt.runtime import Feeds

    options: Any = {"calibrator": calibrator, "percentile": SHARE}

    def work() -> None:
        graph = read_model(model)
        PassManager([InsertQdq(**options), "eliminate-dead"]).run(graph, Feeds.open(str(data), graph))
        graph.save(out)

    return work


def theirs(model: Path, data: Path, calibrator: str, out: Path) -> Callable[[], None]:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from graphopt.graph import read_model
    from graphopt.runtime import Feeds

    class Reader:
        """Hands samples to the calibrator."""

        def __init__(self) -> None:
            self._feeds = iter(Feeds.open(str(data), read_model(model)))

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    extra: dict[str, Any] = {"CalibPercentile": SHARE} if calibrator == "percentile" else {}
    if calibrator == "moving-average":
        extra = {"CalibMovingAverage": True}

    def work() -> None:
        quantize_static(
            str(model),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=getattr(CalibrationMethod, THEIRS[calibrator]),
            extra_options=extra,
        )

    return work


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def worker(tool: str, calibrator: str, model: Path, data: Path, out: Path) -> None:
    """Quantize once in this process and print what it cost."""
    work = (ours if tool == "graphopt" else theirs)(model, data, calibrator, out)
    before, start = megabytes(), time.process_time()
    work()
    cost = {"cpu_seconds": time.process_time() - start, "peak_mb": megabytes(), "grown_mb": megabytes() - before}
    print(json.dumps({name: round(value, 3) for name, value in cost.items()}))


def measure(tool: str, calibrator: str, model: Path, data: Path, folder: Path, runs: int) -> dict[str, Any]:
    """Return the cost of the cheapest of several processes, or why it failed."""
    found: list[dict[str, float]] = []
    for _ in range(runs):
        paths = [str(path) for path in (model, data, folder / "q.onnx")]
        command = [sys.executable, __file__, "--worker", tool, calibrator, *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1]}
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return {name: min(each[name] for each in found) for name in found[0]}


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def compare(name: str, assets: Path, folder: Path, runs: int) -> dict[str, Any]:
    """Measure one model with every calibrator of both tools."""
    from graphopt.graph import read_model
    from graphopt.rewrite import PassManager

    task, samples = SUBJECTS[name]
    original, data, plain = assets / "models" / f"{name}.onnx", folder / "feeds.npz", folder / "simple.onnx"
    tool = assets.parent / "tools" / "evaluate.py"
    count = ["--count", str(samples)]
    command = [sys.executable, str(tool), "feeds", task, str(data), "--model", str(original), *count]
    subprocess.run(command, check=True, capture_output=True)
    simple = read_model(original)
    PassManager(SIMPLIFY).run(simple)
    simple.save(plain)
    rows: dict[str, Any] = {}
    for calibrator in OURS:
        rows[calibrator] = {"graphopt": measure("graphopt", calibrator, plain, data, folder, runs)}
        if calibrator in THEIRS:
            rows[calibrator]["onnxruntime"] = measure("onnxruntime", calibrator, plain, data, folder, runs)
        print(name, calibrator, rows[calibrator], flush=True)
    least = rows["minmax"]["graphopt"]["peak_mb"]
    for row in rows.values():
        row["graphopt"]["peak_to_minmax"] = round(row["graphopt"]["peak_mb"] / least, 3)
    return {"samples": samples, "calibrators": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        tool, calibrator, *paths = arguments.worker
        worker(tool, calibrator, *map(Path, paths))
        return
    if not os.environ.get("GRAPHOPT_ASSETS"):
        parser.error("GRAPHOPT_ASSETS does not name the folder with models/ and data/")
    assets = Path(os.environ["GRAPHOPT_ASSETS"]).resolve()
    models = {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory(prefix="graphopt-calibration-") as folder:
            models[name] = compare(name, assets, Path(folder), arguments.runs)
    result = {"environment": environment(), "runs": arguments.runs, "models": models}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
