"""Pruning and low-bit rounding without labels: graphopt beside every installable peer, on the same data in one run.

    python benchmarks/bench_compression.py --peers DIR --set-up
    python benchmarks/bench_compression.py --peers DIR --scratch DIR --assets DIR
        [--subjects NAME ...] [--points NAME ...] [--tools NAME ...] [--draws N] [--samples N] [--reuse]

Every tool compresses the same model with the same calibration draws in a fresh process of its environment, with
pinned threads (compression_worker.py). No label is read by any of them; a peer with several ways to a point is run in
each, and the one that scores best stands for it. The assets folder (default: the environment variable GRAPHOPT_ASSETS)
has models/ and data/; its neighbour tools/evaluate.py scores.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # a script finds its own folder only

from benchmarks import compression_format  # noqa: E402
from benchmarks.compression_peers import ENVIRONMENTS, OURS, Runner, module  # noqa: E402
from benchmarks.compression_points import GOALS, POINTS_OF, Point, point  # noqa: E402
from benchmarks.compression_subjects import SUBJECTS, Assets, Measure, Subject  # noqa: E402
from benchmarks.compression_table import best_peer, compare, lines  # noqa: E402
from benchmarks.measurement import environment  # noqa: E402
from benchmarks.simplify_peers import installed, set_up  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Row = dict[str, Any]
KEY = ("model", "point", "tool", "way")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the chosen tools on the chosen points; print tables and write the rows."""
    options = arguments(argv)
    if options.set_up:
        for name, packages in set_up(options.peers, ENVIRONMENTS).items():
            print(f"{name}: {packages}")
        return
    versions = installed(options.peers, ENVIRONMENTS)
    absent = sorted(set(ENVIRONMENTS) - set(versions))
    if options.peers and absent:
        print(f"not installed, left out: {', '.join(absent)}")
    surroundings = environment()
    record = Record(options.out, surroundings)
    for other in options.take:
        record.take(other)
    versions = {**versions, OURS: str(surroundings["graphopt"])}
    tools = [name for name in versions if any(fnmatch.fnmatch(name, glob) for glob in options.tools)]
    runner = Runner(options.peers, options.scratch, threads=options.threads, limit=options.limit, reuse=options.reuse)
    assets = Assets(options.assets)
    for subject in SUBJECTS:
        if any(fnmatch.fnmatch(subject.name, glob) for glob in options.subjects):
            Comparison(options, subject, assets, runner, record).run(tools, versions)
    print(f"written to {options.out}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=os.environ.get("GRAPHOPT_ASSETS"))
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments, NAME/bin/python in each")
    parser.add_argument("--set-up", action="store_true", help="make the peers' environments and do nothing else")
    parser.add_argument("--scratch", type=Path, help="folder for draws, results and what --reuse takes up")
    parser.add_argument("--subjects", nargs="+", default=["*"], metavar="GLOB")
    parser.add_argument("--points", nargs="+", default=["*"], metavar="GLOB")
    parser.add_argument("--tools", nargs="+", default=["*"], metavar="GLOB")
    parser.add_argument("--ways", nargs="+", default=["*"], metavar="GLOB", help="ways of the peers")
    parser.add_argument("--draws", type=int, default=3, help="calibration draws")
    parser.add_argument("--samples", type=int, default=512, help="samples in a draw, at most 1024")
    parser.add_argument("--threads", type=int, default=1, help="threads of the numeric libraries of every tool")
    parser.add_argument("--limit", type=float, default=300, help="CPU seconds that one run may take")
    parser.add_argument("--reuse", action="store_true", help="take what a peer made before of the same model and data")
    parser.add_argument(
        "--take", nargs="*", type=Path, default=[], help="results of other runs, to take their rows over"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "compression.json")
    options = parser.parse_args(argv)
    if options.set_up and options.peers is None:
        parser.error("--set-up needs --peers DIR")
    if not options.set_up and (options.assets is None or options.scratch is None):
        parser.error("--assets (or GRAPHOPT_ASSETS) and --scratch must name folders")
    if not 0 < options.samples <= 1024:
        parser.error("--samples is at least 1 and at most 1024")
    options.assets = Path(options.assets or ".").resolve()
    if options.peers:
        options.peers = options.peers.absolute()
    if options.scratch:
        options.scratch = options.scratch.resolve()
        options.scratch.mkdir(parents=True, exist_ok=True)
    return options


class Comparison:
    """All points of one model."""

    def __init__(
        self, options: argparse.Namespace, subject: Subject, assets: Assets, runner: Runner, record: Record
    ) -> None:
        self._options = options
        self._subject = subject
        self._assets = assets
        self._runner = runner
        self._record = record
        self._transformer = subject.measure in {"spearman", "perplexity"}
        self._model = assets.model(subject)
        self._dense = assets.evidence(subject, self._model)
        self._measure = Measure(subject, assets.tool, self._dense)
        self._draws = [self._stored(number) for number in range(options.draws)]

    def run(self, tools: Sequence[str], versions: dict[str, str]) -> None:
        """Run every way of every tool on every point, and print the table."""
        name = self._subject.name
        before = self._measure.score(self._dense)
        print(f"{name}: {self._subject.measure} {before:.3f}, {len(self._draws)} draws", flush=True)
        chosen = [p for p in POINTS_OF[name] if any(fnmatch.fnmatch(p, glob) for glob in self._options.points)]
        for each in map(point, chosen):
            for tool in tools:
                ways = list(module(tool).ways(each.to_json(), self._transformer))
                if not ways:
                    self._record.put(self._row(each, tool, "", versions) | {"error": "not offered"})
                for way in ways:
                    if tool == OURS or any(fnmatch.fnmatch(way, glob) for glob in self._options.ways):
                        row = self._attempt(each, tool, way, versions)
                        self._record.put(row)
                        print(f"  {each.name:12s} {tool}:{way}: {_said(row)}", flush=True)
            self._judge(each.name)
        print("\n".join(lines(self._record.rows(name), chosen)) + "\n", flush=True)

    def _row(self, each: Point, tool: str, way: str, versions: dict[str, str]) -> Row:
        row: Row = {"model": self._subject.name, "point": each.name, "tool": tool, "way": way}
        row |= {"version": versions[tool], "measure": self._subject.measure}
        row |= {"dense": round(self._measure.score(self._dense), 3), "bytes_before": self._model.stat().st_size}
        return row | {"goal": GOALS.get(self._subject.name, {}).get(each.name) if tool == OURS else None}

    def _attempt(self, each: Point, tool: str, way: str, versions: dict[str, str]) -> Row:
        """Compress with every draw, slow ways with the first, and score."""
        row = self._row(each, tool, way, versions)
        draws: list[Row] = []
        evidence = []
        slow = way in module(tool).SLOW
        for number, files in enumerate(self._draws[:1] if slow else self._draws):
            request: dict[str, Any] = {"way": way, "point": each.to_json(), "model": str(self._model)}
            request |= {"keep": list(self._subject.keep), "seed": number, "transformer": self._transformer}
            attempt = self._runner.run(tool, versions[tool], request, files)
            if attempt.error is not None:
                return row | {"error": attempt.error, "draw": number}
            try:
                found = self._assets.evidence(self._subject, attempt.output, self._dense)
                held = compression_format.found(attempt.output, each.to_json(), self._model, self._subject.keep)
            except Exception as error:
                said = f"{type(error).__name__}: {error}".replace(str(attempt.output.parent), "")
                return row | {"error": f"the result does not run: {said}"[:300]}
            evidence.append(found)
            size = attempt.output.stat().st_size
            close = self._measure.fidelity(found)
            draws.append(
                {"score": round(self._measure.score(found), 3), "drop": round(self._measure.drop(found), 3)}
                | ({} if close is None else {"fidelity": round(close, 3)})
                | {"bytes": size, "format": held, "reused": attempt.reused}
                | {key: attempt.report[key] for key in ("seconds", "cpu_seconds", "peak_mb")}
            )
            row["notes"] = attempt.report["notes"]
        resampled = self._measure.drops(evidence)
        np.save(self._evidence_file(each.name, tool, way), resampled)
        losses = np.array([draw["drop"] for draw in draws])
        mean = {
            key: float(np.mean([draw[key] for draw in draws])) for key in ("score", "drop", "seconds", "cpu_seconds")
        }
        row |= {key: round(value, 3) for key, value in mean.items()}
        if "fidelity" in draws[0]:
            row["fidelity"] = round(float(np.mean([draw["fidelity"] for draw in draws])), 3)
        row |= {"spread": round(float(losses.std(ddof=1)) if len(losses) > 1 else 0.0, 3)}
        row |= {"standard_error": round(float(resampled.std()), 3)}
        row |= {"peak_mb": max(draw["peak_mb"] for draw in draws), "bytes": max(draw["bytes"] for draw in draws)}
        row |= {"samples": self._samples, "format": draws[0]["format"]}
        return row | {"draws": [{k: v for k, v in draw.items() if k != "format"} for draw in draws]}

    def _judge(self, name: str) -> None:
        """Set our row against the best peer's."""
        rows = [row for row in self._record.rows(self._subject.name) if row["point"] == name]
        own = next((row for row in rows if row["tool"] == OURS and row.get("drop") is not None), None)
        peer = best_peer(rows)
        if own is None or peer is None:
            return
        files = {
            side: self._evidence_file(name, row["tool"], row["way"]) for side, row in (("ours", own), ("peer", peer))
        }
        if all(file.exists() for file in files.values()):
            resampled: dict[str, NDArray[Any]] = {side: np.load(file) for side, file in files.items()}
            self._record.put(own | {"against": compare(own, peer, resampled)})

    def _evidence_file(self, name: str, tool: str, way: str) -> Path:
        label = f"{self._subject.name}.{name}.{tool}.{way}".replace(":", "-").replace(">", "-")
        return Path(self._options.scratch) / f"{label}.npy"

    def _stored(self, number: int) -> list[Path]:
        """Write the feeds of one draw; return the files."""
        draws = self._options.draws
        feeds = self._assets.draw(self._subject, self._options.samples, number, draws)
        self._samples = sum(len(next(iter(feed.values()))) for feed in feeds)
        folder = self._options.scratch / f"feeds.{self._subject.name}.{self._samples}.{number}"
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.npz"):
            old.unlink()
        files = []
        for index, feed in enumerate(feeds):
            files.append(folder / f"{index:05d}.npz")
            np.savez(files[-1], allow_pickle=False, **feed)
        return files


class Record:
    """The rows of the results file: those of an earlier run in the same environment stay until they are replaced.

    The file is read anew for every row, under a lock, so that several runs may fill it together.
    """

    def __init__(self, out: Path, surroundings: dict[str, Any]) -> None:
        self._out = out
        self._environment = surroundings
        out.parent.mkdir(parents=True, exist_ok=True)

    def put(self, row: Row) -> None:
        """Add or replace a row, and write the file."""
        with self._out.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = self._read()
            if row["way"]:
                rows.pop((row["model"], row["point"], row["tool"], ""), None)
            rows[tuple(row[key] for key in KEY)] = row
            kept = {"environment": self._environment, "rows": [rows[key] for key in sorted(rows)]}
            self._out.write_text(json.dumps(kept, indent=1) + "\n")

    def take(self, other: Path) -> None:
        """Add the rows of another results file of the same environment, where there are none yet."""
        found = json.loads(other.read_text())
        if found["environment"] != self._environment:
            raise SystemExit(f"{other} was written in another environment")
        here = {tuple(row[key] for key in KEY) for row in self.rows("*")}
        for row in found["rows"]:
            if tuple(row[key] for key in KEY) not in here:
                self.put(row)

    def rows(self, model: str) -> list[Row]:
        """Return the rows of a model; ``*`` is all."""
        with self._out.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return [row for row in self._read().values() if model in {"*", row["model"]}]

    def _read(self) -> dict[tuple[Any, ...], Row]:
        text = self._out.read_text()
        found = json.loads(text) if text else {}
        rows = found["rows"] if found.get("environment") == self._environment else []
        return {tuple(row[key] for key in KEY): row for row in rows}


def _said(row: Row) -> str:
    if "error" in row:
        return str(row["error"])
    drops = ", ".join(f"{draw['drop']:.2f}" for draw in row["draws"])
    held = {key: value for key, value in row["format"].items() if not key.startswith("weights")}
    drops += f", fidelity {row['fidelity']:.3f}" if "fidelity" in row else ""
    resources = f"{row['seconds']:.1f} s ({row['cpu_seconds']:.1f} CPU), {row['peak_mb']:.0f} MB, {row['bytes']} B"
    return f"{row['score']:.3f}, drops {drops}; {resources}; {held}"


if __name__ == "__main__":
    main()
