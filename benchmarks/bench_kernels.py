"""Time the kernels against ONNX Runtime's own operators, in one process and in turn, and hold them to their floors.

Each case is a model of four layers with weights of their own; results are checked before anything is timed. With one
thread the CPU time of the calling thread counts, so that other jobs on the machine disturb little; with more the wall
time. The ceilings of the processor are measured by a small C++ program, which needs a compiler.

    python benchmarks/bench_kernels.py --threads 1,2
    python benchmarks/bench_kernels.py --only low-bit,sparse-conv
    python benchmarks/bench_kernels.py --only low-bit --untimed 1

With --cost-table FILE it measures the grid of the table of the package for each instruction set named with --isa.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script finds its own folder only

from benchmarks.kernel_rows import ALSO, DENSE, ROWS, WORST_SHARE, Row
from benchmarks.measurement import environment
from graphopt.analysis.cost_table import KERNELS, SPARSITY, CostTable
from graphopt.runtime.library import isa_report
from graphopt.tuning import FULL, tune
from graphopt.tuning.alternatives import ALTERNATIVES
from graphopt.tuning.grid import machine, pinned
from graphopt.tuning.race import Draws, Timed, race

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.tuning.stacks import Size

RESULTS = Path(__file__).parent / "results" / "kernels.json"
LAYERS = 4
L2_BYTES, L3_BYTES = 1 << 20, 32 << 20

Key = tuple[str, float, "Size"]


@dataclass(frozen=True)
class Verdict:
    """A row with what was measured."""

    row: Row
    speedups: dict[str, float]

    @property
    def mean(self) -> float:
        """Geometric mean of the speedups."""
        return geometric(self.speedups.values())

    @property
    def floor(self) -> float:
        """Geometric mean of the floors."""
        return geometric(self.row.floors)

    @property
    def low(self) -> list[str]:
        """Sizes too far below their floor."""
        pairs = zip(self.row.sizes, self.row.floors, strict=True)
        return [str(size) for size, floor in pairs if self.speedups[str(size)] < WORST_SHARE * floor]

    @property
    def word(self) -> str:
        """How it stands."""
        if self.mean < self.floor or self.low:
            return "below the floor"
        return "after" if self.mean >= self.row.after else "floor"

    def to_dict(self) -> dict[str, Any]:
        """Return it for the file."""
        row = self.row
        return {
            "row": row.title,
            "kernel": row.kernel,
            "level": row.level,
            "over": row.over or "dense float32",
            "speedups": {name: round(value, 3) for name, value in self.speedups.items()},
            "mean": round(self.mean, 3),
            "floor": round(self.floor, 3),
            "after": row.after,
            "low": self.low,
            "verdict": self.word,
        }


def geometric(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def ceilings() -> dict[str, float]:
    """What this processor does at most, one thread; nothing without a compiler."""
    source = Path(__file__).with_name("kernel_ceilings.cpp")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "ceilings"
        try:
            command = [
                os.environ.get("CXX", "c++"),
                "-O2",
                "-march=native",
                "-std=c++17",
                str(source),
                "-o",
                str(program),
            ]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no ceilings: {error}", file=sys.stderr)
            return {}
        found: dict[str, float] = json.loads(subprocess.run([program], check=True, capture_output=True).stdout)
        return found


def roofline(timed: Timed, peak: dict[str, float]) -> tuple[float, str]:
    """Share of what the processor allows that was reached, and what the limit is.

    Each product with a weight that is kept is one multiply-add; without blocks each reads its activations from L1 once
    more. Weights stream from the cache that holds those of all layers, or from memory.
    """
    size, kept = timed.size, timed.kept if KERNELS[timed.kernel] == SPARSITY else 1.0
    operations = 2.0 * size.multiplications * kept
    integer = "int8" in timed.kernel or KERNELS[timed.kernel] != SPARSITY
    name = "dot_gops" if integer and "float" not in timed.kernel else "fma_gflops"
    limits = {name.split("_", maxsplit=1)[0]: operations / peak[name] / 1e9}
    blocks = [part for part in timed.kernel.split("-") if part in {"4x1", "8x1", "16x1", "4x4"}]
    if not integer and not blocks and size.m > 1:
        limits["l1"] = operations / 2 * 4 / peak["l1_gbytes"] / 1e9
    streamed = timed.stored_bytes
    resident = streamed * LAYERS
    level = "dram" if resident > L3_BYTES else "l3" if resident > L2_BYTES else "l2"
    limits[level] = streamed / peak[f"{level}_gbytes"] / 1e9
    limit = max(limits, key=lambda each: limits[each])
    return limits[limit] / timed.seconds, limit


def wanted(only: list[str]) -> dict[Size, list[tuple[str, float]]]:
    """Kernels and levels by size: of the rows, of what they are compared with, and of what is measured beside."""
    keys: list[Key] = []
    for row in ROWS:
        keys += [(row.kernel, row.level, size) for size in row.sizes]
        keys += [(row.over, row.over_level, size) for size in row.sizes if row.over != DENSE]
    keys += ALSO
    found: dict[Size, list[tuple[str, float]]] = {}
    for kernel, level, size in keys:
        chosen = not only or any(part in kernel for part in only)
        if kernel in ALTERNATIVES and chosen and (kernel, level) not in found.setdefault(size, []):
            found[size].append((kernel, level))
    for row in ROWS:  # what a chosen row is compared with belongs to it
        for size in row.sizes:
            here = found.get(size, [])
            if row.over != DENSE and (row.kernel, row.level) in here and (row.over, row.over_level) not in here:
                here.append((row.over, row.over_level))
    return {size: entries for size, entries in found.items() if entries}


def measure(only: list[str], threads: int, seconds: float, untimed: int) -> dict[Key, Timed]:
    """Time everything with so many threads."""
    found: dict[Key, Timed] = {}
    work = wanted(only)
    with pinned(threads):
        for number, (size, entries) in enumerate(work.items()):
            print(f"[{number + 1}/{len(work)}] {size}: {len(entries)} cases", file=sys.stderr, flush=True)
            pairs = [(ALTERNATIVES[kernel], level) for kernel, level in entries]
            for timed in race(size, pairs, Draws(LAYERS), seconds=seconds, threads=threads, untimed=untimed):
                found[timed.kernel, timed.level, size] = timed
    return found


def judge(found: dict[Key, Timed]) -> list[Verdict]:
    """The rows all of whose sizes were measured."""
    verdicts = []
    for row in ROWS:
        speedups = {}
        for size in row.sizes:
            ours = found.get((row.kernel, row.level, size))
            over = found.get((row.over, row.over_level, size))
            if ours is not None and (over is not None or row.over == DENSE):
                slow = ours.dense_seconds if over is None else over.seconds
                speedups[str(size)] = slow / ours.seconds
        if len(speedups) == len(row.sizes):
            verdicts.append(Verdict(row, speedups))
    return verdicts


def as_case(timed: Timed, peak: dict[str, float]) -> dict[str, Any]:
    case: dict[str, Any] = {
        "kernel": timed.kernel,
        "level": timed.level,
        "size": str(timed.size),
        "dense_ms": round(timed.dense_seconds * 1e3, 5),
        "ms": round(timed.seconds * 1e3, 5),
        "mad_ms": round(timed.spread * 1e3, 5),
        "runs": timed.runs,
        "speedup": round(timed.speedup, 3),
        "stored_bytes": timed.stored_bytes,
        "sqnr_db": round(timed.sqnr_db, 1),
    }
    if peak:
        share, limit = roofline(timed, peak)
        case |= {"roofline_share": round(share, 3), "limit": limit}
    return case


def show(verdicts: list[Verdict], found: dict[Key, Timed], peak: dict[str, float], threads: int) -> None:
    print(f"\n{machine()}; {isa_report().chosen}, {threads} thread(s); ceilings {peak}")
    print(f"{'row':<34}{'level':>6} {'over':<18}{'floor':>6}{'after':>6}{'mean':>7}  sizes")
    for verdict in verdicts:
        row = verdict.row
        sizes = "  ".join(f"{name} {value:.2f}" for name, value in verdict.speedups.items())
        marks = f"  LOW: {', '.join(verdict.low)}" if verdict.low else ""
        print(
            f"{row.title:<34}{row.level:>6g} {row.over or 'dense':<18}{verdict.floor:>6.2f}{row.after:>6g}"
            f"{verdict.mean:>7.2f}  {verdict.word}: {sizes}{marks}"
        )
    if peak:
        print("share of the ceiling (its limit), by kernel and level:")
        kinds = dict.fromkeys((kernel, level) for kernel, level, _ in found)
        for kernel, level in kinds:
            mine = [timed for (name, at, _), timed in found.items() if (name, at) == (kernel, level)]
            shares = [(timed, *roofline(timed, peak)) for timed in mine]
            cells = "  ".join(f"{timed.size} {share:.0%} ({limit})" for timed, share, limit in shares)
            print(f"  {kernel} {level:g}: {cells}")


def write(
    verdicts: list[Verdict], found: dict[Key, Timed], peak: dict[str, float], setting: dict[str, int], path: Path
) -> None:
    """Replace the cases and rows of this instruction set and setting that were measured; keep the others."""
    mine = {"isa": isa_report().chosen, **setting}
    cases = [{**mine, **as_case(timed, peak)} for timed in found.values()]
    rows = [{**mine, **verdict.to_dict()} for verdict in verdicts]
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ceilings = peak or old.get("ceilings", {})
    document: dict[str, Any] = {"environment": environment() | {"machine": machine()}, "ceilings": ceilings}
    for name, new, keys in (
        ("rows", rows, ("isa", "threads", "untimed", "row", "kernel", "level", "over")),
        ("cases", cases, ("isa", "threads", "untimed", "kernel", "level", "size")),
    ):
        again = {tuple(each[key] for key in keys) for each in new}
        kept = [each for each in old.get(name, []) if tuple(each.get(key, 0) for key in keys) not in again]
        document[name] = [each for each in kept if "isa" in each and (name == "rows" or "size" in each)] + new
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def grid(path: Path, isas: list[str], only: list[str]) -> None:
    """Measure the grid for each instruction set in a process of its own and join the tables; kernels not named stay."""
    made = []
    for isa in isas:
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "table.json"
            command = [sys.executable, __file__, "--cost-table", part, "--isa", isa, "--only", ",".join(only)]
            environ = {**os.environ, "GRAPHOPT_ISA": isa, "GRAPHOPT_BENCH_PART": "1"}
            subprocess.run(list(map(str, command)), env=environ, check=True)
            made.append(CostTable.load(part))
    table = joined(made)
    if only and path.exists():
        old = CostTable.load(path)
        table = CostTable({**old.kernels, **table.kernels}, table.margin, table.measured_on)
    path.write_text(table.to_json(), encoding="utf-8")


def joined(tables: list[CostTable]) -> CostTable:
    """One table of those of several instruction sets."""
    first = tables[0]
    kernels = {}
    for name, each in first.kernels.items():
        speedup = {isa: values for table in tables for isa, values in table.kernels[name].speedup.items()}
        kernels[name] = type(each)(each.m, each.weights, each.levels, speedup)
    return CostTable(kernels, first.margin, first.measured_on)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1", help="comma-separated numbers of threads")
    parser.add_argument(
        "--isa", default="", help="comma-separated, for --cost-table; GRAPHOPT_ISA sets that of the rows"
    )
    parser.add_argument("--only", default="", help="comma-separated parts of kernel names")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for all cases of one size")
    parser.add_argument(
        "--untimed",
        type=int,
        default=0,
        help="runs at the beginning of each turn that do not count: with 1 the caches hold what a model alone "
        "keeps there, with 0 what the others left",
    )
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--cost-table", type=Path, help="measure the grid of the package's table and write it here")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    only = [part for part in args.only.split(",") if part]
    if args.cost_table:
        if "GRAPHOPT_BENCH_PART" in os.environ:
            names = [name for name in ALTERNATIVES if not only or any(part in name for part in only)]
            tell = lambda what, done, total: print(f"[{done + 1}/{total}] {what}", file=sys.stderr, flush=True)  # noqa: E731
            args.cost_table.write_text(tune(FULL, only=names, progress=tell).to_json(), encoding="utf-8")
        else:
            grid(args.cost_table, args.isa.split(",") if args.isa else [isa_report().chosen], only)
        return
    with pinned():
        peak = ceilings()
    for threads in map(int, args.threads.split(",")):
        found = measure(only, threads, args.seconds, args.untimed)
        verdicts = judge(found)
        show(verdicts, found, peak if threads == 1 else {}, threads)
        setting = {"threads": threads, "untimed": args.untimed}
        write(verdicts, found, peak if threads == 1 else {}, setting, args.json)


if __name__ == "__main__":
    main()
