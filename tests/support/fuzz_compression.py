"""Compresses random networks with random options and checks everything that must hold.

    python tests/support/fuzz_compression.py --count 2000 --seed 0
    python tests/support/fuzz_compression.py --only 1234 --show        one seed, with what was done
    python tests/support/fuzz_compression.py --count 500 --pass prune-channels

What is checked: no error but those that graphopt raises on purpose; legality; the result runs with and without the
optimizations of ONNX Runtime; interface and finiteness stay; zeros follow the pattern and outlive later passes; every
skip has a reason; the same seed gives the same bytes; a second run changes nothing where the pass says so; the file
does not grow.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from compression_checks import CompressionFaultError, Tally, judge, small_weights_count
from compression_plans import Plan, random_plan
from random_networks import Network, random_network

if TYPE_CHECKING:
    from collections.abc import Callable


def fuzz(
    seeds: range,
    *,
    only: str | None = None,
    most: int = 7,
    seconds: float | None = None,
    at: Path | None = None,
    report: Callable[[int, Network, Plan, CompressionFaultError], None] | None = None,
) -> Tally:
    """Judge the networks of some seeds.

    Args:
        seeds: The seeds.
        only: Test this pass alone.
        most: Most steps of a network.
        seconds: Stop after this time.
        at: A file that holds the present seed, for the case that a kernel ends the process.
        report: Called with the seed, the network, the plan and the fault after each failure.
    """
    with small_weights_count():
        return _fuzz(seeds, only, most, seconds, at, report)


def _fuzz(
    seeds: range,
    only: str | None,
    most: int,
    seconds: float | None,
    at: Path | None,
    report: Callable[[int, Network, Plan, CompressionFaultError], None] | None,
) -> Tally:
    tally = Tally()
    begin = time.monotonic()
    for seed in seeds:
        if seconds is not None and time.monotonic() - begin > seconds:
            break
        if at is not None:
            at.write_text(f"{seed}\n")
        made, plan = random_network(seed, most=most), random_plan(seed, only)
        tally.models += 1
        try:
            with np.errstate(all="ignore"):
                judge(made, plan, tally)
        except CompressionFaultError as fault:
            tally.faults.append((seed, fault))
            if report is not None:
                report(seed, made, plan, fault)
    return tally


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="run this seed alone")
    parser.add_argument("--pass", dest="step", help="test this pass alone")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--at", type=Path, help="keep the present seed in this file: a kernel may end the process")
    parser.add_argument("--show", action="store_true", help="print failing models")
    given = parser.parse_args()
    warnings.simplefilter("ignore")

    def report(seed: int, made: Network, plan: Plan, fault: CompressionFaultError) -> None:
        print(f"--- seed {seed}: {fault}\n    {plan}\n    {', '.join(made.odd)}", flush=True)
        if given.show:
            print(onnx.printer.to_text(made.proto))

    seeds = range(given.seed, given.seed + given.count)
    if given.only is not None:
        seeds = range(given.only, given.only + 1)
    start = time.process_time()
    tally = fuzz(seeds, only=given.step, seconds=given.seconds, at=given.at, report=report)
    print(tally, f"in {time.process_time() - start:.0f} CPU seconds")
    print(Counter(fault.kind for _, fault in tally.faults), [seed for seed, _ in tally.faults][:100])
    print(tally.patched)
    for name, ratios in tally.damage.items():
        print(f"{name}: {len(ratios)} pairs, mean of the logarithm of solved by plain {np.mean(ratios):.2f}")
    for reason, count in tally.skips.most_common(60):
        print(f"{count:6} {reason}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
