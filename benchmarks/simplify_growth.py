"""Time and memory of the optimizers on generated models: growth with the number of nodes, and weights beyond 2 GB."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.simplify_judge import Original, count_nodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from benchmarks.simplify_peers import Runner

Row = dict[str, Any]
SIZES = (1000, 10_000, 50_000)
_LONG = 20.0
"""CPU seconds above which a run is not repeated: its noise is small by then."""
_LARGEST_JUDGED = 10_000
"""Nodes above which values are not compared: ONNX Runtime takes minutes to load such a graph."""
WIDTH = 4096


def generate(generator: Path, nodes: int, path: Path) -> None:
    """Write the synthetic graph of about so many nodes."""
    command = [sys.executable, str(generator), "synth", str(nodes), str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def time_rows(runner: Runner, files: Sequence[tuple[int, Path]], tools: Iterable[str], *, runs: int) -> Iterable[Row]:
    """Yield, for each tool, CPU seconds and peak memory by size; the best of several runs, up to the first failure."""
    counts = {size: count_nodes(onnx.load(str(path))) for size, path in files}
    originals = {size: Original(path, None) for size, path in files if size <= _LARGEST_JUDGED}
    for tool in tools:
        for size, path in files:
            tried = []
            for _ in range(runs):
                tried.append(runner.run_again(tool, path))
                if tried[-1].error or tried[-1].cpu > _LONG:
                    break
            fastest = min(tried, key=lambda run: (run.error is not None, run.cpu))
            row: Row = {"tool": tool, "size": size, "original_nodes": counts[size]}
            if fastest.error:
                yield row | {"error": fastest.error}
                break
            row |= {"cpu": fastest.cpu, "wall": fastest.wall, "peak_mb": fastest.peak_mb}
            row["imported_mb"] = fastest.imported_mb
            row["nodes"] = count_nodes(onnx.load(str(fastest.output)))
            if size in originals:
                verdict = originals[size].judge(fastest.output)
                row |= {"equality": verdict.equality, "valid": verdict.valid}
            yield row


def exponents(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return, for each tool, its seconds by size and the growth exponent between one size and the next."""
    found: dict[str, list[str]] = {}
    for tool in dict.fromkeys(row["tool"] for row in rows):
        timed = sorted((row for row in rows if row["tool"] == tool), key=lambda row: row["size"])
        cells: list[str] = []
        for i, row in enumerate(timed):
            if row.get("error"):
                cells.append(f"{row['size']}: {row['error'][:60]}")
                continue
            text = f"{row['size']}: {row['cpu']:.2f} s, {row['peak_mb']:.0f} MB, {row['nodes']} nodes"
            if i and not timed[i - 1].get("error"):
                before = timed[i - 1]
                growth = math.log(row["cpu"] / before["cpu"])
                text += f", exponent {growth / math.log(row['original_nodes'] / before['original_nodes']):.2f}"
            cells.append(text)
        found[tool] = cells
    return found


# ------------------------------------------------------------------------------------------------ beyond 2 gigabytes


def write_large(folder: Path, gigabytes: float, seed: int = 0) -> tuple[Path, int]:
    """Write residual blocks with weights of so many gigabytes in a data file, and what exporters leave in between.

    No two weights are equal. Every block has an Identity and a Dropout to remove, shape computations to fold, and a
    scale that may go into its weight, so that a tool that folds it has to write new weights.

    Returns:
        The model's path and the bytes of its weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = math.ceil(gigabytes * 1e9 / weight_bytes())
    path, generator = folder / "large.onnx", np.random.default_rng(seed)
    pattern = generator.standard_normal((WIDTH, WIDTH), dtype=np.float32) / math.sqrt(WIDTH)
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = [
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in (("first", 0), ("axis", [0]), ("rest", [WIDTH]))
    ]
    with (folder / "large.onnx.data").open("wb") as stream:
        for i in range(count):
            stream.write((pattern * np.float32(1 + i / count)).tobytes())
            weights.append(_external(f"w{i}", i * weight_bytes()))
            weights.append(numpy_helper.from_array(np.array(1 + 1 / (i + 2), np.float32), f"s{i}"))
            weights.append(numpy_helper.from_array(generator.standard_normal(WIDTH, dtype=np.float32), f"b{i}"))
            nodes += _block(i)
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["N", WIDTH]) for i in (0, count)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path, count * weight_bytes()


def weight_bytes() -> int:
    """Return the bytes of one weight of the large model."""
    return WIDTH * WIDTH * 4


def _external(name: str, offset: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=(WIDTH, WIDTH))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "large.onnx.data"), ("offset", str(offset)), ("length", str(weight_bytes()))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _block(i: int) -> list[onnx.NodeProto]:
    """Return the nodes of one block: x + Relu(scale * (x @ w) + b), through a reshape to the size it has already."""
    return [
        helper.make_node("Identity", [f"x{i}"], [f"identity{i}"]),
        helper.make_node("MatMul", [f"identity{i}", f"w{i}"], [f"product{i}"]),
        helper.make_node("Mul", [f"product{i}", f"s{i}"], [f"scaled{i}"]),
        helper.make_node("Add", [f"scaled{i}", f"b{i}"], [f"biased{i}"]),
        helper.make_node("Relu", [f"biased{i}"], [f"relu{i}"]),
        helper.make_node("Dropout", [f"relu{i}"], [f"dropped{i}"]),
        helper.make_node("Shape", [f"dropped{i}"], [f"shape{i}"]),
        helper.make_node("Gather", [f"shape{i}", "first"], [f"rows{i}"], axis=0),
        helper.make_node("Unsqueeze", [f"rows{i}", "axis"], [f"list{i}"]),
        helper.make_node("Concat", [f"list{i}", "rest"], [f"target{i}"], axis=0),
        helper.make_node("Reshape", [f"dropped{i}", f"target{i}"], [f"viewed{i}"]),
        helper.make_node("Add", [f"viewed{i}", f"x{i}"], [f"x{i + 1}"]),
    ]


def memory_rows(runner: Runner, tools: Iterable[str], scratch: Path, gigabytes: float) -> Iterable[Row]:
    """Yield the peak memory of each tool on the large model; the files are removed afterwards."""
    path, weights = write_large(scratch / "large", gigabytes)
    try:
        original = Original(path, None)
        for tool in tools:
            row: Row = {"tool": tool, "weight_bytes": weights, "original_nodes": original.nodes}
            run = runner.run_again(tool, path)
            row |= {"anonymous_mb": round(run.anonymous_mb, 1), "seen_mb": round(run.resident_mb, 1)}
            if run.error:
                yield row | {"error": run.error}
            else:
                row |= original.judge(run.output).row()
                row |= {"cpu": run.cpu, "wall": run.wall, "peak_mb": run.peak_mb, "imported_mb": run.imported_mb}
                yield row | {"peak_by_weights": round(run.peak_mb * 2**20 / weights, 3)}
            shutil.rmtree(run.output.parent, ignore_errors=True)
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)
