"""graphopt beside every other graph optimizer on the same files in the same run: nodes, time, memory and latency.

    python benchmarks/bench_simplify.py --peers DIR --set-up
    python benchmarks/bench_simplify.py [nodes] [time] [memory] [latency] --peers DIR --assets DIR
        [--models GLOB ...] [--tools NAME ...] [--out FILE]

``--set-up`` makes a virtual environment for each peer in DIR, its packages pinned in simplify_peers.py. Without
``--peers`` only graphopt runs. Every tool runs in a fresh process of its environment, see simplify_worker.py; its
result is judged here, see simplify_judge.py. The assets folder (default: the environment variable GRAPHOPT_ASSETS) has
graphs/, models/ and data/; its neighbour tools/generate_graph.py makes the synthetic graphs, or ``--generator``.

The parts: ``nodes`` node counts and verdicts of all tools and chains of tools on all models; ``time`` CPU seconds by
size; ``memory`` the peak on weights of more than 3 GB; ``latency`` run time of results in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # a script finds its own folder only

from benchmarks.measurement import environment  # noqa: E402
from benchmarks.simplify_growth import SIZES, exponents, generate, memory_rows, time_rows  # noqa: E402
from benchmarks.simplify_judge import Original  # noqa: E402
from benchmarks.simplify_latency import latency_row  # noqa: E402
from benchmarks.simplify_peers import CHAINS, OURS, TOOL_ENVIRONMENT, Limits, Runner, installed, set_up  # noqa: E402
from benchmarks.simplify_table import best, node_table  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

PARTS = ("nodes", "time", "memory", "latency")
_KEYS = {"nodes": ("model", "tool"), "time": ("tool", "size"), "memory": ("tool",), "latency": ("model",)}
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the chosen parts; print tables and write the rows."""
    options = arguments(argv)
    if options.set_up:
        for name, packages in set_up(options.peers).items():
            print(f"{name}: {packages}")
        return
    peers = installed(options.peers)
    absent = sorted(set(TOOL_ENVIRONMENT.values()) - set(peers))
    if options.peers and absent:
        print(f"not installed, left out: {', '.join(absent)}")
    tools = chosen_tools(options.tools, peers)
    record = Record(options.out, environment(), peers)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        runner = Runner(options.peers, scratch, Limits(options.cpu_limit))
        results: dict[str, dict[str, Path]] = {}
        if {"nodes", "latency"} & set(options.parts):
            results = run_nodes(options, runner, tools, record, report="nodes" in options.parts)
        if "latency" in options.parts:
            run_latency(options, results, record)
        if "time" in options.parts:
            run_time(options, runner, [tool for tool in tools if ">" not in tool], record, scratch)
        if "memory" in options.parts:
            run_memory(options, [tool for tool in tools if ">" not in tool], record, scratch)
    print(f"written to {options.out}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="nodes, time, memory, latency; all by default")
    parser.add_argument("--assets", type=Path, default=os.environ.get("GRAPHOPT_ASSETS"))
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments, NAME/bin/python in each")
    parser.add_argument("--set-up", action="store_true", help="make the peers' environments and do nothing else")
    parser.add_argument("--models", nargs="+", default=["*"], metavar="GLOB", help="names of models without .onnx")
    parser.add_argument("--tools", nargs="+", default=["*"], metavar="GLOB", help="names of tools and chains")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "simplify.json")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep every result as MODEL.TOOL.onnx")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files; the large model needs 10 GB")
    parser.add_argument("--generator", type=Path, help="generate_graph.py; default: beside the assets, in tools/")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="nodes of the synthetic graphs")
    parser.add_argument("--runs", type=int, default=3, help="runs of each tool and size, of which the best counts")
    parser.add_argument("--cpu-limit", type=int, default=120, help="CPU seconds of one run of a tool")
    parser.add_argument("--gigabytes", type=float, default=3.1, help="weights of the large model")
    parser.add_argument("--memory-limit", type=float, default=16_000, metavar="MB", help="end a tool above this")
    parser.add_argument("--repeats", type=int, default=5, help="sets of sessions for a latency")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of timed runs for each set of sessions")
    options = parser.parse_args(argv)
    options.parts = options.parts or list(PARTS)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]}: the parts are {', '.join(PARTS)}")
    if options.set_up and options.peers is None:
        parser.error("--set-up needs --peers DIR")
    if options.assets is None and not options.set_up and set(options.parts) - {"memory"}:
        parser.error("--assets or GRAPHOPT_ASSETS must name the folder of models and data")
    options.assets = Path(options.assets or ".")
    options.generator = options.generator or options.assets.parent / "tools" / "generate_graph.py"
    return options


def chosen_tools(globs: Sequence[str], peers: dict[str, str]) -> list[str]:
    """Return tools and chains whose environments exist and whose names match; graphopt always."""
    found = []
    for name in (*TOOL_ENVIRONMENT, *CHAINS):
        there = all(TOOL_ENVIRONMENT[step] in peers for step in name.split(">"))
        if there and any(fnmatch.fnmatch(name, glob) for glob in globs):
            found.append(name)
    return [*found, OURS]


def models(options: argparse.Namespace) -> list[Path]:
    """Return the chosen model files of the assets."""
    files = [*sorted((options.assets / "graphs").glob("*.onnx")), *sorted((options.assets / "models").glob("*.onnx"))]
    return [file for file in files if any(fnmatch.fnmatch(file.stem, glob) for glob in options.models)]


def run_nodes(
    options: argparse.Namespace, runner: Runner, tools: Sequence[str], record: Record, *, report: bool
) -> dict[str, dict[str, Path]]:
    """Run all tools on all models; return the files of graphopt and of the best peer by model."""
    kept: dict[str, dict[str, Path]] = {}
    for model in models(options):
        original = Original(model, options.assets / "data")
        rows, outputs = [], {}
        for tool in tools:
            run = runner.run(tool, model)
            row: Row = {"model": model.stem, "tool": tool, "original_nodes": original.nodes}
            row |= {"original_bytes": original.bytes, "original_checker": original.checker or "pass"}
            if run.error:
                row["error"] = run.error
            else:
                outputs[tool] = run.output
                row |= original.judge(run.output).row()
                row |= {"cpu": round(run.cpu, 4), "steps": run.steps, "peak_mb": run.peak_mb}
                keep(options.keep, model, tool, run.output)
            rows.append(row)
            record.put("nodes", row)
        peer = best(rows, chains=False)
        kept[model.stem] = {name: outputs[name] for name in (OURS, peer["tool"] if peer else "") if name in outputs}
        if report:
            print(f"{model.stem}: {original.nodes} -> {summary(rows)}", flush=True)
    if report:
        report_nodes([row for row in record.rows("nodes") if row["model"] in kept])
    return kept


def report_nodes(rows: Sequence[Row]) -> None:
    """Print the table of models with the rows that are recorded of them, and what is not valid."""
    order = [*TOOL_ENVIRONMENT, *CHAINS, OURS]
    there = {row["tool"] for row in rows}
    print("\n" + node_table(rows, [tool for tool in order if tool in there]) + "\n")
    for row in rows:
        if row.get("error"):
            print(f"failed: {row['model']} {row['tool']}: {row['error']}")
        elif not row["valid"]:
            causes = (row["equality"], row["difference"], row["checker"], row["interface"], row["domains"])
            print(f"not valid: {row['model']} {row['tool']}: {causes}")


def summary(rows: Sequence[Row]) -> str:
    """Return one line about one model."""
    own, peer, chain = rows[-1], best(rows, chains=False), best(rows, chains=True)
    ours = own.get("error") or f"{own['nodes']} {own['equality']} {'valid' if own['valid'] else 'NOT VALID'}"
    others = ", ".join(f"{row['nodes']} {row['tool']}" for row in (peer, chain) if row)
    return f"graphopt {ours}; best peer and chain: {others or 'none'}"


def keep(folder: Path | None, model: Path, tool: str, output: Path) -> None:
    """Copy a result to where the caller wants to look at it."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(output, folder / f"{model.stem}.{tool.replace('>', '_')}.onnx")


def run_latency(options: argparse.Namespace, results: dict[str, dict[str, Path]], record: Record) -> None:
    """Time every model's result of graphopt and of the best peer beside the original."""
    slower = []
    for model in models(options):
        files = results[model.stem]
        if OURS not in files:
            continue
        row, lines = latency_row(
            model, files, options.assets / "data", repeats=options.repeats, seconds=options.seconds
        )
        record.put("latency", {"model": model.stem, **row})
        print(f"{model.stem}: {'; '.join(lines)}", flush=True)
        if row["results"][OURS]["slower"]:
            slower.append(model.stem)
    print(f"slower than the original beyond noise: {', '.join(slower) or 'none'}\n")


def run_time(options: argparse.Namespace, runner: Runner, tools: Sequence[str], record: Record, scratch: Path) -> None:
    """Time all tools on synthetic graphs of growing size."""
    files = []
    for size in sorted(options.sizes):
        path = scratch / f"synth_{size}.onnx"
        generate(options.generator, size, path)
        files.append((size, path))
    rows = []
    for row in time_rows(runner, files, tools, runs=options.runs):
        record.put("time", row)
        rows.append(row)
    for tool, cells in exponents(rows).items():
        print(f"{tool:18s} {'; '.join(cells)}")
    print()


def run_memory(options: argparse.Namespace, tools: Sequence[str], record: Record, scratch: Path) -> None:
    """Measure peak memory on a model beyond 2 GB."""
    runner = Runner(options.peers, scratch, Limits(options.cpu_limit * 5, options.memory_limit))
    for row in memory_rows(runner, tools, scratch, options.gigabytes):
        record.put("memory", row)
        text = row.get("error") or f"peak {row['peak_mb']:.0f} MB = {row['peak_by_weights']} of the weights"
        nodes = ""
        if "nodes" in row:
            nodes = f", {row['original_nodes']} -> {row['nodes']} nodes {row['equality']}, {row['cpu']:.1f} CPU s"
        print(f"{row['tool']:18s} {text}, {row['anonymous_mb']:.0f} MB of it anonymous{nodes}", flush=True)
    print()


class Record:
    """The rows of the results file: those of an earlier run in the same environment stay until they are replaced."""

    def __init__(self, out: Path, surroundings: dict[str, Any], peers: dict[str, str]) -> None:
        self._out = out
        self._environment = surroundings
        self._peers = peers
        self._rows: dict[str, dict[tuple[Any, ...], Row]] = {part: {} for part in PARTS}
        if out.is_file():
            found = json.loads(out.read_text())
            if found["environment"] == surroundings:
                for part in PARTS:
                    self._rows[part] = {self._key(part, row): row for row in found[part]}

    def put(self, part: str, row: Row) -> None:
        """Add or replace a row, and write the file."""
        steps = row.get("tool", OURS).split(">")
        versions = {name: self._peers[name] for name in map(TOOL_ENVIRONMENT.get, steps) if name is not None}
        self._rows[part][self._key(part, row)] = row | {"versions": versions}
        self._out.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: list(rows.values()) for name, rows in self._rows.items()}
        self._out.write_text(json.dumps({"environment": self._environment, **parts}, indent=1) + "\n")

    def rows(self, part: str) -> list[Row]:
        """Return all rows of a part."""
        return list(self._rows[part].values())

    @staticmethod
    def _key(part: str, row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in _KEYS[part])


if __name__ == "__main__":
    main()
