"""Whole models on the kernels, beside ONNX Runtime in float32 and in integers and beside DeepSparse where it runs.

Models are lowered by graphopt's own passes and its cost table; nothing is chosen by hand. All contestants of a model
run in one process and take turns, pinned, medians; DeepSparse runs in a process of its own, which is asked for
one run at a time. With one thread the CPU time of the calling thread counts (of the process for DeepSparse, with the
wall time beside); with more the wall time. Results are compared with those of the float model first.

    graphopt tune -o table.json
    python benchmarks/bench_models.py --table table.json --assets DIR --deepsparse DIR

DIR of --deepsparse is a virtual environment of Python 3.11 with deepsparse==1.8.0; --assets has models/ and data/ of
the real models, and beside it tools/evaluate.py, which scores them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script finds its own folder only

from benchmarks.measurement import environment
from benchmarks.model_contest import Contest, DeepSparse, Session, compete, sqnr_db
from benchmarks.model_layers import labels_of, layer_ratios
from benchmarks.model_subjects import DECODER_WIDTH, decoder, resnet50
from graphopt.analysis.cost_table import TABLE_VARIABLE, CostTable
from graphopt.graph import Model, read_model
from graphopt.rewrite import PassManager
from graphopt.rewrite.registry import create, pass_names
from graphopt.runtime import Feeds
from graphopt.runtime.library import isa_report
from graphopt.tuning.grid import machine, pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Feed = Mapping[str, NDArray[Any]]

RESULTS = Path(__file__).parent / "results" / "models.json"
LOWERING = tuple(
    name
    for name in (
        "lower-sparse-int8-conv",
        "lower-sparse-int8-matmul",
        "lower-low-bit-matmul",
        "lower-sparse-conv",
        "lower-sparse-matmul",
        "cancel-reorders",
        "eliminate-dead",
    )
    if name in pass_names()
)
"""Every pass that writes kernels, in the order of the presets."""
OURS = "kernels"
FLOAT = "float32"
PROFILED_RUNS = 25
LEAST = 0.97
"""No lowered layer may take longer than its dense operator divided by this."""


@dataclass(frozen=True)
class Subject:
    """One model on one feed, with what it is compared with.

    Attributes:
        title: What it is.
        models: What runs, by contestant; ``float32`` is what the others are compared with.
        feed: The input.
        dense: What the lowered layers stand for, where layers are compared one by one.
        floors: Least speedup over a contestant.
        score: Accuracy of the float model and of ours, in the units of the task, where there is one.
        peer: The model that DeepSparse gets, or none.
    """

    title: str
    models: dict[str, Model | bytes | Path]
    feed: Feed
    dense: Model | bytes | None = None
    floors: dict[str, float] = field(default_factory=dict)
    score: dict[str, Any] = field(default_factory=dict)
    peer: bytes | None = None
    notes: tuple[str, ...] = ()


def lowered(model: Model | bytes, *before: Any, feeds: Feeds | None = None, after: tuple[str, ...] = LOWERING) -> Model:
    """The model after some passes and those that write kernels."""
    copy = _model(model)
    PassManager([*before, *map(create, after)]).run(copy, feeds)
    return copy


def _model(source: Model | bytes) -> Model:
    if isinstance(source, Model):
        return source.copy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(source)
        model = read_model(path)
        for tensor in model.graph.initializers:
            tensor.array()
        return model.copy()


def resnet(args: argparse.Namespace) -> list[Subject]:
    """The shape of a ResNet-50 with 90 % zeros: anywhere, in blocks of 4x1, and in blocks of 1x4 with integers.

    DeepSparse gets what the kernels were made from: the last one with QuantizeLinear and DequantizeLinear.
    """
    rng = np.random.default_rng(0)
    images = [{"x": rng.standard_normal((1, 3, 224, 224), dtype=np.float32)} for _ in range(4)]
    floors = {FLOAT: 1.8, "DeepSparse": 2.0}
    subjects = []
    for title, zeros, rounded in (
        ("ResNet-50 shape, 90 % zeros, batch 1", (1, 1), False),
        ("ResNet-50 shape, 90 % zeros in 4x1, batch 1", (4, 1), False),
        ("ResNet-50 shape, 90 % zeros in 1x4, int8, batch 1", (1, 4), True),
    ):
        dense = resnet50(0.9, zeros=zeros, ir_version=8)
        feeds = Feeds.open(images, _model(dense))
        before = (create("raise-opset"), create("fuse-bias"), create("insert-qdq"))
        integers = lowered(dense, *before, feeds=feeds, after=())
        ours = lowered(integers if rounded else dense)
        models: dict[str, Model | bytes | Path] = {FLOAT: dense, "int8": integers, OURS: ours}
        peer = _bytes(integers) if rounded else dense
        subjects.append(Subject(title, models, images[0], None if rounded else dense, floors, peer=peer))
    return subjects


def _bytes(model: Model) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.save(path)
        return path.read_bytes()


def stack(args: argparse.Namespace) -> list[Subject]:
    """Decoder layers of 4 bits, one token."""
    stored = decoder(layers=args.layers)
    integers = lowered(stored, create("write-matmul-nbits"), after=())
    ours = lowered(stored)
    rng = np.random.default_rng(0)
    shapes = {each.name: [int(size) for size in each.shape] for each in ours.graph.inputs}
    feed = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    title = f"4-bit decoder, {args.layers} layers, width {DECODER_WIDTH}, one token"
    return [Subject(title, {"MatMulNBits": integers, OURS: ours}, feed, floors={"MatMulNBits": 1.0})]


def minilm(args: argparse.Namespace) -> list[Subject]:
    """MiniLM, 80 % zeros in 4x1 blocks."""
    path = args.assets / "models" / "minilm_legacy_op17.onnx"
    recipe = {"prune-second-order": {"sparsity": 0.8, "pattern": "4x1"}}
    bundle, score = compiled(args, path, "sts", recipe)
    integers = lowered(
        read_model(path), create("raise-opset"), create("insert-qdq", {"activations": "dynamic"}), after=()
    )
    subjects = []
    for batch, tokens in ((1, 32), (8, 128)):
        rng = np.random.default_rng(batch)
        ids = rng.integers(1, 9000, (batch, tokens))
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        models: dict[str, Model | bytes | Path] = {FLOAT: path, "int8": integers, OURS: bundle / "model.onnx"}
        title = f"MiniLM, 80 % zeros in 4x1, batch {batch} x {tokens} tokens"
        dense = read_model(bundle / "fallback.onnx") if (bundle / "fallback.onnx").exists() else None
        subjects.append(Subject(title, models, feed, dense, {FLOAT: 2.0}, score))
    return subjects


def images(args: argparse.Namespace) -> list[Subject]:
    """ResNet-20 and SqueezeNet, pruned by second order on their calibration data."""
    subjects = []
    for name, model, task, shape, shares in (
        ("ResNet-20", "cifar10_resnet20_legacy_op17", "cifar10", (1, 3, 32, 32), (0.8, 0.9)),
        ("SqueezeNet 1.1", "imagenet_squeezenet1_1_legacy_op17", "imagenet_torch", (1, 3, 224, 224), (0.5, 0.7)),
    ):
        path = args.assets / "models" / f"{model}.onnx"
        inputs = [each.name for each in read_model(path).graph.inputs]
        feed = {inputs[0]: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
        for share in shares:
            bundle, score = compiled(args, path, task, {"prune-second-order": {"sparsity": share}})
            fallback = bundle / "fallback.onnx"
            models: dict[str, Model | bytes | Path] = {FLOAT: path, OURS: bundle / "model.onnx"}
            dense = read_model(fallback) if fallback.exists() else None
            subjects.append(Subject(f"{name}, {share:.0%} zeros, batch 1", models, feed, dense, {}, score))
    return subjects


def compiled(args: argparse.Namespace, model: Path, task: str, pruning: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Compile a real model with a recipe of its own and score it beside the original."""
    share = next(iter(pruning.values()))["sparsity"]
    bundle = args.scratch / f"{model.stem}-{share:g}"
    recipe = args.scratch / f"{bundle.name}.yaml"
    passes = [pruning, *LOWERING]
    recipe.write_text(json.dumps({"name": bundle.name, "imports": ["default"], "passes": passes}), encoding="utf-8")
    feeds = args.scratch / f"{model.stem}.npz"
    tool = [sys.executable, str(args.assets.parent / "tools" / "evaluate.py")]
    data = ["--data", str(args.assets / "data")]
    if not feeds.exists():
        _run([*tool, "feeds", task, str(feeds), "--model", str(model), *data])
    if not (bundle.exists() and args.reuse):
        command = ["compile", str(model), "-o", str(bundle), "--recipe", str(recipe), "--data", str(feeds)]
        _run([sys.executable, "-m", "graphopt", *command, "--max-drop", "1000", "--force", "--quiet"])
    scored = json.loads(_run([*tool, "score", task, str(bundle), "--reference", str(model), "--threads", "1", *data]))
    return bundle, {key: scored.get(key) for key in ("score", "reference", "agreement") if scored.get(key) is not None}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def measure(subject: Subject, args: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Check and time the contestants of one subject."""
    contestants: dict[str, Contest] = {
        name: Session(model, subject.feed, threads) for name, model in subject.models.items()
    }
    if subject.peer is not None and args.deepsparse is not None:
        contestants["DeepSparse"] = DeepSparse(args.deepsparse, subject.peer, subject.feed, threads)
    reference = contestants[next(iter(contestants))].outputs()
    quality = {name: sqnr_db(each.outputs(), reference) for name, each in contestants.items()}
    times = compete(contestants, seconds=args.seconds, threads=threads)
    for each in contestants.values():
        each.close()
    ours = times[OURS]
    row: dict[str, Any] = {
        "subject": subject.title,
        "threads": threads,
        "isa": isa_report().chosen,
        "times": {name: {key: round(value, 4) for key, value in found.items()} for name, found in times.items()},
        "speedup": {name: round(found["ms"] / ours["ms"], 3) for name, found in times.items() if name != OURS},
        "wall_speedup": {
            name: round(found["wall_ms"] / ours["wall_ms"], 3) for name, found in times.items() if name != OURS
        },
        "sqnr_db": {name: round(value, 1) for name, value in quality.items()},
        "floors": subject.floors,
        **subject.score,
    }
    row["met"] = all(row["speedup"][name] >= floor for name, floor in subject.floors.items() if name in row["speedup"])
    if subject.dense is not None:
        after = subject.models[OURS]
        model = read_model(after) if isinstance(after, Path) else _model(after)
        dense = _model(subject.dense)
        ratios = layer_ratios(dense, model, labels_of(dense, model), subject.feed, threads=threads, runs=PROFILED_RUNS)
        row["layers"] = {name: round(value, 3) for name, value in ratios.items()}
        row["slower_layers"] = [name for name, value in ratios.items() if value < LEAST]
    return row


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    over = ", ".join(
        f"{value:.2f}x {name}" + (f" (floor {row['floors'][name]:g})" if name in row["floors"] else "")
        for name, value in row["speedup"].items()
    )
    score = f"; score {row['score']} (float {row['reference']})" if "score" in row else ""
    layers = row.get("layers", {})
    slow = f"; {len(layers)} layers lowered, least {min(layers.values()):.2f}x" if layers else ""
    return f"{row['subject']}, {row['threads']} thread(s): {row['times'][OURS]['ms']:.2f} ms, {over}{score}{slow}"


SUBJECTS: dict[str, Callable[[argparse.Namespace], list[Subject]]] = {
    "resnet50": resnet,
    "decoder": stack,
    "minilm": minilm,
    "images": images,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--table", default="", help="cost table; that of the user or of the package by default")
    parser.add_argument("--assets", type=Path, default=os.environ.get("GRAPHOPT_ASSETS"))
    parser.add_argument("--deepsparse", type=Path, help="virtual environment with deepsparse")
    parser.add_argument("--threads", default="1", help="comma-separated numbers of threads")
    parser.add_argument("--layers", type=int, default=8, help="of the decoder")
    parser.add_argument("--seconds", type=float, default=12.0, help="time for all contestants of a subject")
    parser.add_argument("--scratch", type=Path, help="folder for compiled models, kept")
    parser.add_argument("--reuse", action="store_true", help="take models that are in the scratch folder already")
    parser.add_argument("--json", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.table:
        os.environ[TABLE_VARIABLE] = str(Path(args.table).resolve())
    for name in args.subjects:
        if name not in SUBJECTS:
            raise SystemExit(f"there is no subject {name}; there are {', '.join(SUBJECTS)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        args.scratch = args.scratch or Path(folder)
        args.scratch.mkdir(parents=True, exist_ok=True)
        for name in args.subjects or SUBJECTS:
            if name in {"minilm", "images"} and args.assets is None:
                print(f"{name} is left out: no --assets", file=sys.stderr)
                continue
            for subject in SUBJECTS[name](args):
                for threads in map(int, args.threads.split(",")):
                    with pinned(threads):
                        rows.append(measure(subject, args, threads))
                    print(line(rows[-1]), flush=True)
    write(rows, args.json)


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Replace the rows of the subjects and threads that were measured; keep the others."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    again = {(row["subject"], row["threads"], row["isa"]) for row in rows}
    kept = [row for row in old.get("rows", []) if (row["subject"], row["threads"], row["isa"]) not in again]
    document = {
        "environment": environment() | {"machine": machine(), "cost_table": CostTable.find().measured_on},
        "rows": kept + rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
