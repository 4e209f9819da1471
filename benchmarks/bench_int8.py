"""int8 on real models: graphopt against ONNX Runtime's own static quantizer, in the same run.

    GRAPHOPT_ASSETS=folder python benchmarks/bench_int8.py [--only NAME ...] [--runs N]

The folder has models/ and data/; its neighbour tools/evaluate.py makes the calibration feeds and scores. Calibration
and scored data never overlap. Both tools quantize the same graph, simplified by graphopt's default recipe and raised to
an opset with a scale per channel; ONNX Runtime is set to its best documented choice for x86: uint8 activations, int8
weights, one scale per channel, ranges by minimum and maximum. No accuracy guard runs: this compares quantizers.

Scores are the task's own: percent correct, mean Spearman, perplexity (less is better), or the worst SQNR in dB. Latency
is the median of interleaved single-thread runs on one sample. Writes benchmarks/results/int8.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from graphopt.graph import read_model
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds, latency, session
from graphopt.target import audit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESULTS = Path(__file__).resolve().parent / "results" / "int8.json"
SIMPLIFY = (
    *("fold-constants", "eliminate-identity", "fuse-batch-norm", "fold-constants", "eliminate-dead"),
    *("raise-opset", "fuse-bias", "eliminate-dead"),
)
QUANTIZE = ("insert-qdq", "eliminate-dead")
CALIBRATION_SAMPLES = 256

SUBJECTS = {
    "cifar10_resnet20_legacy_op17": "cifar10",
    "cifar10_resnet20_legacy_bn_op17": "cifar10",
    "cifar10_resnet20_dynamo_op20": "cifar10",
    "imagenet_squeezenet1_1_legacy_op17": "imagenet_torch",
    "imagenet_mobilenet_v1_050_160_tf2onnx_op17": "imagenet_mobilenet160",
    "kws_dscnn_float_tf2onnx_op17": "kws",
    "mnist_cntk_op8": "mnist",
    "minilm_legacy_op17": "sts",
    "stories260k_llama_legacy_op17": "stories",
    "basic_pitch_nmp_op15": "io:basic_pitch_nmp_op15",
    "gtcrn_stream_op11_simplified": "io:gtcrn",
    "magika_standard_v3_3_op15": "io:magika_standard_v3_3_op15",
}
"""Float models whose weights are fixed, with the task that scores each."""


@dataclass
class Row:
    """One model as one tool left it."""

    tool: str
    path: Path
    seconds: float = 0.0
    failed: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands samples to ONNX Runtime's calibrator."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next sample, None behind the last."""
        return next(self._feeds, None)


def evaluate(tool: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(tool), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def attempt(tool: str, path: Path, quantize: Callable[[], None]) -> Row:
    """Time a quantizer; a tool that fails is a row that says so."""
    start = time.perf_counter()
    row = Row(tool, path)
    try:
        quantize()
    except Exception as error:
        row.failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def compare(name: str, task: str, assets: Path, folder: Path, runs: int) -> dict[str, Any]:
    """Quantize one model with both tools and measure it three times over: float, ours, theirs."""
    tool = assets.parent / "tools" / "evaluate.py"
    original, data = assets / "models" / f"{name}.onnx", folder / "feeds.npz"
    evaluate(tool, "feeds", task, str(data), "--model", str(original), "--count", str(CALIBRATION_SAMPLES))
    simple = read_model(original)
    PassManager(SIMPLIFY).run(simple)
    feeds = Feeds.open(str(data), simple)
    plain = folder / "simple.onnx"
    simple.save(plain)

    def ours() -> None:
        model = simple.copy()
        PassManager(QUANTIZE).run(model, feeds)
        model.save(folder / "graphopt.onnx")

    def theirs() -> None:
        quantize_static(
            str(plain),
            str(folder / "onnxruntime.onnx"),
            Reader(feeds),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )

    rows = [
        Row("float", original),
        attempt("graphopt", folder / "graphopt.onnx", ours),
        attempt("onnxruntime", folder / "onnxruntime.onnx", theirs),
    ]
    good = [row for row in rows if not row.failed]
    for row in good:
        try:
            score = evaluate(tool, "score", task, str(row.path), "--reference", str(original))
        except RuntimeError as error:
            row.failed = f"the result does not run: {error}"
            continue
        worst = score.get("sqnr_db")
        found = audit(row.path, compare=False)
        row.figures = {
            "score": score["score"],
            "agreement_percent": score.get("agreement"),
            "sqnr_db": min(worst.values()) if isinstance(worst, dict) else worst,
            "bytes": row.path.stat().st_size,
            "integer_operators": found.integer_count,
            "float_operators": found.floating_count,
            "conversions": found.conversions,
        }
    good = [row for row in good if not row.failed]
    feed = feeds.first()
    times = latency([session(row.path) for row in good], feed, runs=runs)
    for row, milliseconds in zip(good, times, strict=True):
        row.figures["latency_ms"] = round(milliseconds, 4)
        row.figures["speed_up"] = round(times[0] / milliseconds, 3)
    return {
        "task": task,
        "rows": {row.tool: row.figures | {"seconds": row.seconds, "failed": row.failed} for row in rows},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not os.environ.get("GRAPHOPT_ASSETS"):
        parser.error("GRAPHOPT_ASSETS does not name the folder with models/ and data/")
    assets = Path(os.environ["GRAPHOPT_ASSETS"]).resolve()
    models = {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory(prefix="graphopt-int8-") as folder:
            models[name] = compare(name, SUBJECTS[name], assets, Path(folder), arguments.runs)
        print(name)
        for tool, figures in models[name]["rows"].items():
            print(f"  {tool:12}", {key: value for key, value in figures.items() if value not in {"", None}})
    result = {
        "versions": {each: version(each) for each in ("onnx", "onnxruntime", "numpy")},
        "machine": {"processor": platform.processor() or platform.machine(), "threads": 1, "runs": arguments.runs},
        "calibration_samples": CALIBRATION_SAMPLES,
        "models": models,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
