"""The main job on real models: compile each with each recipe, then score the bundle beside the original.

    python benchmarks/bench_compile.py --assets DIR [--recipes int8 sparse] [--models NAME ...] [--out FILE]

DIR (default: the environment variable GRAPHOPT_ASSETS) has models/ and data/; its neighbour tools/evaluate.py makes the
calibration feeds and scores a bundle against the original in one process, both timed in turn on one thread. Calibration
and scored data never overlap. Scores are percent top-1, mean Spearman, perplexity or the worst SQNR in dB, by task.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # a script finds its own folder only

from benchmarks.measurement import environment  # noqa: E402


@dataclass(frozen=True, slots=True)
class Subject:
    """One model with the task that scores it."""

    model: str
    task: str


SUBJECTS = (
    Subject("cifar10_resnet20_legacy_op17", "cifar10"),
    Subject("cifar10_resnet20_legacy_bn_op17", "cifar10"),
    Subject("cifar10_resnet20_dynamo_op20", "cifar10"),
    Subject("cifar10_resnet20_dynamo_op20_ext", "cifar10"),
    Subject("imagenet_squeezenet1_1_legacy_op17", "imagenet_torch"),
    Subject("imagenet_mobilenet_v1_050_160_tf2onnx_op17", "imagenet_mobilenet160"),
    Subject("imagenet_mobilenet_v1_050_160_qdq_tf2onnx_op17", "imagenet_mobilenet160_bytes"),
    Subject("kws_dscnn_float_tf2onnx_op17", "kws"),
    Subject("kws_dscnn_qdq_tf2onnx_op17", "kws_bytes"),
    Subject("mnist_cntk_op8", "mnist"),
    Subject("minilm_legacy_op17", "sts"),
    Subject("stories260k_llama_legacy_op17", "stories"),
    Subject("silero_vad_op16_if", "io:silero_vad_op16_if"),
    Subject("silero_vad_loop_op16", "io:silero_vad_loop_op16"),
    Subject("gtcrn_stream_op11_raw", "io:gtcrn"),
    Subject("gtcrn_stream_op11_simplified", "io:gtcrn"),
    Subject("basic_pitch_nmp_op15", "io:basic_pitch_nmp_op15"),
    Subject("magika_standard_v3_3_op15", "io:magika_standard_v3_3_op15"),
    Subject("ultraface_rfb320_op9_raw", "io:ultraface_rfb320"),
    Subject("ultraface_rfb320_op9_simplified", "io:ultraface_rfb320"),
)


def main() -> None:
    """Compile, score, print one line per pair and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", default=os.environ.get("GRAPHOPT_ASSETS"), help="folder with models/ and data/")
    parser.add_argument("--recipes", nargs="+", default=["int8", "sparse"])
    parser.add_argument("--models", nargs="*", default=[], help="part of a model's name; all by default")
    parser.add_argument("--out", default=str(HERE / "results" / "compile.json"))
    arguments = parser.parse_args()
    if not arguments.assets:
        parser.error("--assets or GRAPHOPT_ASSETS must name the folder of models and data")
    assets = Path(arguments.assets)
    out = Path(arguments.out)
    rows = earlier(out)
    for recipe in arguments.recipes:
        for subject in SUBJECTS:
            if arguments.models and not any(part in subject.model for part in arguments.models):
                continue
            row = measure(assets, subject, recipe)
            rows[recipe, subject.model] = row
            print(line(row), flush=True)
            out.write_text(json.dumps({"environment": environment(), "rows": list(rows.values())}, indent=1) + "\n")


def earlier(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows that an earlier run in the same environment wrote, which rows of this run replace."""
    if not out.is_file():
        return {}
    found = json.loads(out.read_text())
    rows = found["rows"] if found["environment"] == environment() else []
    return {(row["recipe"], row["model"]): row for row in rows}


def measure(assets: Path, subject: Subject, recipe: str) -> dict[str, Any]:
    """Compile one model in a process of its own and score the bundle against the original."""
    model = assets / "models" / f"{subject.model}.onnx"
    with tempfile.TemporaryDirectory() as folder:
        feeds, bundle = Path(folder) / "feeds.npz", Path(folder) / "bundle"
        evaluate(assets, ["feeds", subject.task, str(feeds), "--model", str(model)])
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = ["compile", str(model), "-o", str(bundle), "--recipe", recipe, "--data", str(feeds), "--json"]
        done = subprocess.run([sys.executable, "-m", "graphopt", *command], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        row: dict[str, Any] = {"model": subject.model, "task": subject.task, "recipe": recipe, "exit": done.returncode}
        row["seconds"] = round(time.perf_counter() - start, 2)
        row["cpu_seconds"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)
        if done.returncode:
            return row | {"error": done.stderr.strip().splitlines()[-1:]}
        report = json.loads((bundle / "report.json").read_text())
        scored = evaluate(assets, ["score", subject.task, str(bundle), "--reference", str(model), "--threads", "1"])
        row |= {
            key: scored.get(key)
            for key in ("score", "reference", "agreement", "sqnr_db", "ms_batch1", "reference_ms", "speed_up", "bytes")
        }
        row["bytes_before"] = model.stat().st_size + sum(
            p.stat().st_size for p in [model.with_name(model.name + ".data")] if p.exists()
        )
        row |= {
            "nodes": [report["model"]["before"]["nodes"], report["model"]["after"]["nodes"]],
            "quality": report["quality"],
        }
        row["sparsity"] = sparsity(report)
        row["integer_kernels"] = audit(bundle)
        row["notes"] = report["notes"]
        row["left_alone"] = sum(len(entry["skips"]) for entry in report["passes"])
        row["reverted"] = sum(layer["reverted"] for layer in report["layers"])
    return row


def sparsity(report: dict[str, Any]) -> float | None:
    """Return the sparsity that pruning finally ran with."""
    found = [entry["options"].get("sparsity") for entry in report["passes"] if entry["name"].startswith("prune")]
    done = [entry["patches"] for entry in report["passes"] if entry["name"].startswith("prune")]
    return next((share for share, patches in zip(found, done, strict=True) if patches), None)


def audit(bundle: Path) -> dict[str, int] | None:
    """Return what ONNX Runtime fused: integer kernels, float operators that have integer ones, Q/DQ left."""
    done = subprocess.run(
        [sys.executable, "-m", "graphopt", "audit", str(bundle), "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return None
    found = json.loads(done.stdout)
    counts = {name: sum(found[name].values()) for name in ("integer", "floating")}
    return counts | {"conversions": found["conversions"], "stayed_float": len(found["stayed_float"])}


def evaluate(assets: Path, command: list[str]) -> dict[str, Any]:
    """Run the scoring tool beside the assets and return its JSON."""
    tool = assets.parent / "tools" / "evaluate.py"
    data = ["--data", str(assets / "data")]
    done = subprocess.run([sys.executable, str(tool), *command, *data], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def line(row: dict[str, Any]) -> str:
    """Return one row as text."""
    if row["exit"]:
        return f"{row['recipe']:7s} {row['model']:48s} exit {row['exit']} {row['error']}"
    scores = f"{row['reference']!s:>8} -> {row['score']!s:>8} x{row['speed_up']}"
    sizes = f"{row['bytes_before']} -> {row['bytes']} B"
    how = f"sparsity {row['sparsity']} reverted {row['reverted']} {row['cpu_seconds']} s {row['integer_kernels']}"
    return f"{row['recipe']:7s} {row['model']:48s} {scores} {sizes} {how}"


if __name__ == "__main__":
    main()
