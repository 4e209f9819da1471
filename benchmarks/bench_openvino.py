"""OpenVINO on models placed for it: which operators become integer kernels, and do outputs match ONNX Runtime's?

    GRAPHOPT_ASSETS=folder python benchmarks/bench_openvino.py --openvino PYTHON [--only NAME ...] [--runs N]

PYTHON is the interpreter of an environment with openvino and numpy. The folder has models/
and data/; its neighbour tools/evaluate.py makes the calibration feeds. Each model is simplified, quantized for the
targets ``openvino`` and ``ort-cpu``, and compiled by OpenVINO for one thread of the CPU in float32. Of the execution
graph are counted the layers with arithmetic by their run-time precision. Outputs are compared with ONNX Runtime without
optimizations on the same quantized model, and with the float model; times are minima of runs in turn. Writes
benchmarks/results/openvino.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESULTS = Path(__file__).resolve().parent / "results" / "openvino.json"
CALIBRATION_SAMPLES = 256
COMPARED_SAMPLES = 16
ARITHMETIC = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "Eltwise", "Pooling", "Subgraph")
INTEGER = ("i8", "u8")
SIMPLIFY = (
    *("fold-constants", "eliminate-identity", "fuse-batch-norm", "fold-constants", "eliminate-dead"),
    *("raise-opset", "fuse-bias", "eliminate-dead"),
)
SUBJECTS = {
    "cifar10_resnet20_legacy_op17": "cifar10",
    "imagenet_squeezenet1_1_legacy_op17": "imagenet_torch",
    "imagenet_mobilenet_v1_050_160_tf2onnx_op17": "imagenet_mobilenet160",
    "kws_dscnn_float_tf2onnx_op17": "kws",
    "minilm_legacy_op17": "sts",
    "stories260k_llama_legacy_op17": "stories",
}


def compile_and_run(feeds: str, runs: int, models: list[str]) -> None:
    """Compile models with OpenVINO, write the outputs of each beside it, and print layers and times; needs no more."""
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    data = np.load(feeds)
    names = sorted({name.partition("/")[2] for name in data.files})
    samples = [{name: data[f"{index}/{name}"] for name in names} for index in range(len(data.files) // len(names))]
    requests: list[Any] = []
    rows: list[dict[str, Any]] = []
    for model in models:
        compiled = core.compile_model(core.read_model(model), "CPU")
        layers: Counter[str] = Counter()
        for each in compiled.get_runtime_model().get_ops():
            info = each.get_rt_info()
            kind = str(info["layerType"].astype(str)) if "layerType" in info else ""
            precision = str(info["runtimePrecision"].astype(str)) if "runtimePrecision" in info else ""
            layers[f"{kind} {precision.lower()}"] += 1
        request = compiled.create_infer_request()
        found: dict[str, Any] = {}
        for index, feed in enumerate(samples):
            result = request.infer(feed)
            for port in compiled.outputs:
                found[f"{index}/{port.get_any_name()}"] = np.array(result[port])
        np.savez(Path(model).with_suffix(".npz"), **found)
        requests.append(request)
        rows.append({"layers": dict(sorted(layers.items())), "ms": float("inf")})
    for _ in range(runs):
        for request, row in zip(requests, rows, strict=True):
            start = time.perf_counter()
            request.infer(samples[-1])
            row["ms"] = min(row["ms"], round((time.perf_counter() - start) * 1e3, 4))
    print(json.dumps(rows))


def sqnr_db(reference: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> float:
    """Return the ratio of signal to difference over all float outputs, in dB."""
    signal = noise = 0.0
    for name, value in reference.items():
        if value.dtype.kind == "f":
            signal += float(np.square(value, dtype=np.float64).sum())
            noise += float(np.square(value.astype(np.float64) - other[name]).sum())
    return round(float(10 * np.log10(signal / max(noise, 1e-30))), 2)


def arithmetic(layers: dict[str, int]) -> dict[str, dict[str, int]]:
    """Return the layers with arithmetic by their precision."""
    found: dict[str, dict[str, int]] = {}
    for name, count in layers.items():
        kind, _, precision = name.partition(" ")
        if kind in ARITHMETIC:
            found.setdefault(kind, {})[precision] = count
    return found


def measure(name: str, task: str, assets: Path, folder: Path, python: str, runs: int) -> dict[str, Any]:
    """Quantize one model for both targets and let OpenVINO compile each."""
    from graphopt.graph import read_model
    from graphopt.rewrite import PassManager
    from graphopt.runtime import Feeds, run, session
    from graphopt.target import audit

    tool = assets.parent / "tools" / "evaluate.py"
    original, data = assets / "models" / f"{name}.onnx", folder / "feeds.npz"
    request = ("feeds", task, str(data), "--model", str(original), "--count", str(CALIBRATION_SAMPLES))
    subprocess.run([sys.executable, str(tool), *request], check=True, capture_output=True)
    simple = read_model(original)
    PassManager(SIMPLIFY).run(simple)
    feeds = Feeds.open(str(data), simple)
    compared = [dict(feed) for feed, _ in zip(feeds, range(COMPARED_SAMPLES), strict=False)]
    flat: dict[str, Any] = {f"{i}/{key}": value for i, feed in enumerate(compared) for key, value in feed.items()}
    np.savez(folder / "compared.npz", **flat)
    paths = {target: folder / f"{target}.onnx" for target in ("float", "openvino", "ort-cpu")}
    for target, path in paths.items():
        model = simple.copy()
        if target != "float":
            PassManager(("insert-qdq", "eliminate-dead"), target=target).run(model, feeds)
        model.save(path)
    command = [python, __file__, "--worker", str(folder / "compared.npz"), str(runs), *map(str, paths.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    rows: dict[str, Any] = {}
    exact: dict[str, NDArray[Any]] = {}
    for (target, path), found in zip(paths.items(), json.loads(done.stdout.splitlines()[-1]), strict=True):
        runner = session(path, optimize="off")
        expected = {}
        for index, feed in enumerate(compared):
            expected.update({f"{index}/{key}": np.asarray(value) for key, value in run(runner, feed).items()})
        exact = exact or expected
        with np.load(path.with_suffix(".npz")) as answers:
            got = {key: answers[key] for key in answers.files}
        layers = arithmetic(found["layers"])
        rows[target] = {
            "bytes": path.stat().st_size,
            "layers": layers,
            "integer": sum(n for kinds in layers.values() for kind, n in kinds.items() if kind in INTEGER),
            "float": sum(n for kinds in layers.values() for kind, n in kinds.items() if kind not in INTEGER),
            "sqnr_to_onnxruntime_db": sqnr_db(expected, got),
            "sqnr_to_float_db": sqnr_db(exact, got),
            "onnxruntime_sqnr_to_float_db": sqnr_db(exact, expected),
            "ms": found["ms"],
            "broken_rules": len(audit(path, "openvino").broken),
        }
        print(name, target, rows[target], flush=True)
    return rows


def main() -> None:
    if "--worker" in sys.argv:
        feeds, runs, *models = sys.argv[2:]
        compile_and_run(feeds, int(runs), models)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--openvino", required=True, metavar="PYTHON", help="interpreter of an environment with openvino"
    )
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not os.environ.get("GRAPHOPT_ASSETS"):
        parser.error("GRAPHOPT_ASSETS does not name the folder with models/ and data/")
    assets = Path(os.environ["GRAPHOPT_ASSETS"]).resolve()
    command = [arguments.openvino, "-c", "import openvino; print(openvino.__version__)"]
    release = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    found = {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory(prefix="graphopt-openvino-") as folder:
            found[name] = measure(name, SUBJECTS[name], assets, Path(folder), arguments.openvino, arguments.runs)
    versions = {each: version(each) for each in ("onnx", "onnxruntime", "numpy")} | {"openvino": release}
    result = {
        "versions": versions,
        "calibration_samples": CALIBRATION_SAMPLES,
        "compared_samples": COMPARED_SAMPLES,
        "models": found,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
