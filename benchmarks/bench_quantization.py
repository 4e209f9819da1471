"""8-bit quantization with default settings: graphopt beside every installable peer, same data, same run.

    python benchmarks/bench_compression.py --peers DIR --set-up
    python benchmarks/bench_quantization.py --peers DIR --scratch DIR --assets DIR [--models GLOB ...] [--tools ...]

Every tool quantizes the float model as it was exported, with the same calibration samples, in a fresh process of its
environment (compression_worker.py); graphopt runs its preset int8 without the accuracy guard, since this compares
quantizers. Calibration and scored data never overlap. Scores are those of evaluate.py, the tool beside the assets:
percent correct, mean Spearman, perplexity (less is better), or the worst SQNR in dB. What the installed ONNX Runtime
made of each result is counted by graphopt's audit. Latency is that of interleaved single-thread runs on one sample.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # a script finds its own folder only

from benchmarks.compression_peers import ENVIRONMENTS, OURS, Runner, module  # noqa: E402
from benchmarks.compression_points import point  # noqa: E402
from benchmarks.measurement import environment  # noqa: E402
from benchmarks.simplify_peers import installed  # noqa: E402
from graphopt.graph import read_model  # noqa: E402
from graphopt.runtime import Feeds, session  # noqa: E402
from graphopt.target import audit  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnxruntime

Row = dict[str, Any]
POINT = "w8a8"
PRESET = "int8"
"""What graphopt runs: the passes of this preset."""
FLOAT = "float"


@dataclass(frozen=True, slots=True)
class Subject:
    """A float model with the task that scores it.

    Attributes:
        model: File in the folder models/, without ``.onnx``.
        task: Its task in evaluate.py.
        transformer: Whether peers are told that it is one, or run in the ways they have for one.
        samples: Calibration samples.
    """

    model: str
    task: str
    transformer: bool = False
    samples: int = 256


SUBJECTS = (
    Subject("cifar10_resnet20_legacy_op17", "cifar10"),
    Subject("cifar10_resnet20_legacy_bn_op17", "cifar10"),
    Subject("cifar10_resnet20_dynamo_op20", "cifar10"),
    Subject("imagenet_squeezenet1_1_legacy_op17", "imagenet_torch"),
    Subject("imagenet_mobilenet_v1_050_160_tf2onnx_op17", "imagenet_mobilenet160"),
    Subject("kws_dscnn_float_tf2onnx_op17", "kws"),
    Subject("mnist_cntk_op8", "mnist"),
    Subject("minilm_legacy_op17", "sts", transformer=True),
    Subject("stories260k_llama_legacy_op17", "stories", transformer=True),
    Subject("basic_pitch_nmp_op15", "io:basic_pitch_nmp_op15"),
    Subject("gtcrn_stream_op11_simplified", "io:gtcrn"),
    Subject("magika_standard_v3_3_op15", "io:magika_standard_v3_3_op15"),
)


@dataclass
class Contender:
    """One result on one model.

    Attributes:
        row: Its figures so far.
        path: The model.
        times: Milliseconds of each run.
    """

    row: Row
    path: Path
    times: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    """Quantize the chosen models with the chosen tools; print tables and write the rows."""
    options = arguments(argv)
    versions = {OURS: environment()["graphopt"]} | installed(options.peers, ENVIRONMENTS)
    tools = [name for name in versions if any(fnmatch.fnmatch(name, glob) for glob in options.tools)]
    runner = Runner(options.peers, options.scratch, threads=1, limit=options.limit, reuse=options.reuse)
    models = _kept(options.out)
    for subject in SUBJECTS:
        if any(fnmatch.fnmatch(subject.model, glob) for glob in options.models):
            models[subject.model] = compare(subject, tools, versions, runner, options)
            record = {"environment": environment(), "runs": options.runs, "models": models}
            options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {options.out}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=os.environ.get("GRAPHOPT_ASSETS"))
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments, NAME/bin/python in each")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for data and results")
    parser.add_argument("--models", nargs="+", default=["*"], metavar="GLOB")
    parser.add_argument("--tools", nargs="+", default=["*"], metavar="GLOB")
    parser.add_argument("--runs", type=int, default=200, help="timed runs of each result")
    parser.add_argument("--limit", type=float, default=300, help="CPU seconds that one tool may take")
    parser.add_argument("--reuse", action="store_true", help="take what a peer made before of the same model and data")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "quantization.json")
    options = parser.parse_args(argv)
    if options.assets is None:
        parser.error("--assets (or GRAPHOPT_ASSETS) must name the folder with models/ and data/")
    options.assets = Path(options.assets).resolve()
    options.scratch = options.scratch.resolve()
    options.scratch.mkdir(parents=True, exist_ok=True)
    options.peers = options.peers and options.peers.absolute()
    return options


def compare(
    subject: Subject, tools: Sequence[str], versions: dict[str, str], runner: Runner, options: argparse.Namespace
) -> list[Row]:
    """Quantize one model with every tool in every way, score, audit and time the results; return their rows."""
    tool = options.assets.parent / "tools" / "evaluate.py"
    original = options.assets / "models" / f"{subject.model}.onnx"
    feeds = _feeds(tool, subject, original, options.scratch)
    contenders = [Contender({"tool": FLOAT, "way": "", "bytes": original.stat().st_size}, original)]
    failed: list[Row] = []
    for name in tools:
        wanted = point(POINT).to_json() | ({"name": PRESET} if name == OURS else {})
        for way in module(name).ways(wanted, subject.transformer):
            request = {"way": way, "point": wanted, "model": str(original), "keep": [], "seed": 0}
            attempt = runner.run(name, versions[name], request | {"transformer": subject.transformer}, feeds)
            row: Row = {"tool": name, "way": way, "version": versions[name]}
            if attempt.error is not None:
                failed.append(row | {"error": attempt.error})
                continue
            report = {key: attempt.report[key] for key in ("seconds", "cpu_seconds", "peak_mb")}
            contenders.append(Contender(row | report | {"bytes": attempt.output.stat().st_size}, attempt.output))
    good = [each for each in contenders if _judge(each, subject, tool, original, failed)]
    _time(good, dict(np.load(feeds[0])), options.runs)
    print(f"{subject.model}")
    for row in (*(each.row for each in good), *failed):
        print("  " + _said(row), flush=True)
    return [each.row for each in good] + failed


def _feeds(tool: Path, subject: Subject, original: Path, scratch: Path) -> list[Path]:
    """Write the calibration samples, one feed in each file; return the files."""
    folder = scratch / f"calibration.{subject.model}"
    folder.mkdir(exist_ok=True)
    stored = folder.with_suffix(".npz")
    _evaluate(tool, "feeds", subject.task, str(stored), "--model", str(original), "--count", str(subject.samples))
    files = []
    for index, feed in enumerate(Feeds.open(str(stored), read_model(original))):
        files.append(folder / f"{index:05d}.npz")
        np.savez(files[-1], allow_pickle=False, **feed)
    return files


def _judge(contender: Contender, subject: Subject, tool: Path, original: Path, failed: list[Row]) -> bool:
    """Score a result and count what the runtime made of it; tell whether it runs."""
    try:
        score = _evaluate(tool, "score", subject.task, str(contender.path), "--reference", str(original))
    except RuntimeError as error:
        said = str(error).replace(f"{contender.path.parent}/", "")
        failed.append(contender.row | {"error": f"the result does not run: {said}"[:200]})
        return False
    worst = score.get("sqnr_db")
    found = audit(contender.path, compare=False)
    contender.row |= {
        "score": score["score"],
        "agreement_percent": score.get("agreement"),
        "sqnr_db": min(worst.values()) if isinstance(worst, dict) else worst,
        "integer_operators": found.integer_count,
        "float_operators": found.floating_count,
        "conversions": found.conversions,
    }
    return True


def _evaluate(tool: Path, *given: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(tool), *given], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _time(contenders: Sequence[Contender], feed: dict[str, Any], runs: int) -> None:
    """Run all results in turn, so that what else the machine does meets all alike."""
    import time

    sessions: list[onnxruntime.InferenceSession] = [session(each.path) for each in contenders]
    for turn in range(runs + 3):
        for each, running in zip(contenders, sessions, strict=True):
            start = time.perf_counter()
            running.run(None, feed)
            if turn >= 3:  # the first runs allocate
                each.times.append(1000 * (time.perf_counter() - start))
    dense = contenders[0].times
    for each in contenders:
        each.row |= {"latency_ms": round(float(np.median(each.times)), 4), "least_ms": round(min(each.times), 4)}
        each.row |= {"speed_up": round(float(np.median(dense) / np.median(each.times)), 3)}


def _said(row: Row) -> str:
    name = f"{row['tool']}:{row['way']}"
    if "error" in row:
        return f"{name:24s} {row['error'][:110]}"
    decibels = "" if row["sqnr_db"] is None else f"{row['sqnr_db']:6.1f} dB"
    operators = f"{row['integer_operators']}/{row['float_operators']}/{row['conversions']}"
    made = f"{row['cpu_seconds']:.1f} CPU s, {row['peak_mb']:.0f} MB" if "cpu_seconds" in row else ""
    return (
        f"{name:24s} {row['score']:8.3f} {decibels:10s} {operators:11s} {row['latency_ms']:8.4f} ms "
        f"({row['least_ms']:.4f}) {row['speed_up']:.2f}x {row['bytes'] / 1e6:6.2f} MB  {made}"
    )


def _kept(out: Path) -> dict[str, list[Row]]:
    """Return the rows of an earlier run in the same environment."""
    if not out.exists():
        return {}
    found = json.loads(out.read_text())
    models: dict[str, list[Row]] = found["models"] if found.get("environment") == environment() else {}
    return models


if __name__ == "__main__":
    main()
