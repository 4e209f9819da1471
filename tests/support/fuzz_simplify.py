"""Simplifies random models and checks everything that must hold; failures are saved, reduced and bisected.

    python tests/support/fuzz_simplify.py --count 20000 --seed 0          all seeds from 0 on
    python tests/support/fuzz_simplify.py --options --count 1000          with options of graphopt.simplify at random
    python tests/support/fuzz_simplify.py --only 1234 --show              one seed, with the model before and after

A failing model is written to the folder of ``--out`` as it is and reduced, with its feeds; the report says which patch
of which pass is the first wrong one.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.printer

import simplify_oracle
from graphopt.errors import GraphoptError
from graphopt.graph import read_model
from graphopt.rewrite.bisect import bisect
from graphopt.runtime import Feeds, run
from graphopt.verify.reference import open_unoptimized
from model_feeds import feeds_of
from random_models import Made, random_model
from random_models.values import FRAGILE, UNWRITTEN, is_unwritten
from reduce_model import reduce_model
from simplify_oracle import SimplifyFaultError, Verdict, judge, operators
from simplify_oracle_options import UNSETTLED, Options, random_options


@dataclass
class Tally:
    """What a run found."""

    models: int = 0
    nodes_before: int = 0
    nodes_after: int = 0
    interpreted: int = 0
    passes: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, SimplifyFaultError]] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.models} models, {self.nodes_before} nodes became {self.nodes_after}, {self.interpreted} compared "
            f"in onnx.reference too, {len(self.faults)} faults"
        )


def judge_made(made: Made, options: Options | None = None) -> Verdict:
    """Judge a generated model on its feeds, on an empty batch, and where it may be on odd numbers."""
    odd = feeds_of(made.proto, ({"batch": 2, "length": 1, "n": 3},), odd=True)
    if "Loop" in operators(made.proto):
        odd = []  # as many iterations as the largest integer, or none, of which only the rank is certain
    if any(node.op_type == "MaxPool" and len(node.output) > 1 for node in made.proto.graph.node):
        odd = []  # ONNX Runtime's MaxPool ranks NaN otherwise when it is asked for indices
    return judge(made.proto, with_empty_batch(made).feeds, odd=odd, options=options)


def options_of(seed: int, made: Made) -> Options:
    """Return the options with which the model of a seed is simplified; 16 bits only where they settle its shapes."""
    options = random_options(seed, made.proto, made.feeds)
    if options.precision and UNSETTLED & set(operators(made.proto)):
        del options.arguments["precision"]
    return options


def with_empty_batch(made: Made) -> Made:
    """Return a model with one more feed: a batch of nothing, where ONNX Runtime survives it and is a witness."""
    if FRAGILE & set(operators(made.proto)):
        return made
    [feed] = feeds_of(made.proto, ({"batch": 0, "length": 2, "n": 2},))
    return made if leaves_memory(made.proto, feed) else Made(made.proto, [*made.feeds, feed])


def leaves_memory(model: onnx.ModelProto, feed: dict[str, Any]) -> bool:
    """Tell whether ONNX Runtime returns uninitialised memory on a feed; see `is_unwritten`.

    Tensors inside bodies and functions cannot be looked at: with such an operator there, it may.
    """
    nodes = [node for node in model.graph.node if node.op_type in UNWRITTEN]
    if len(nodes) < sum(op in UNWRITTEN for op in operators(model)):
        return True
    if not nodes:
        return False
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    names = dict.fromkeys(node.input[0] for node in nodes)
    public = {value.name for value in (*model.graph.input, *model.graph.output)}
    given = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | feed
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in public | given.keys())
    try:
        given |= run(open_unoptimized(seen.SerializeToString()), feed)
    except GraphoptError:
        return True
    return any(is_unwritten(node.op_type, given[node.input[0]]) for node in nodes)


def fuzz(
    seeds: range,
    *,
    most: int = 14,
    seconds: float | None = None,
    report: Any = None,
    at: Path | None = None,
    with_options: bool = False,
) -> Tally:
    """Judge the models of some seeds.

    Args:
        seeds: The seeds.
        most: Most actions of a model.
        seconds: Stop after this time.
        report: Called with the seed, the model, its options and the fault after each failure.
        at: A file that holds the present seed, for the case that a kernel ends the process.
        with_options: Simplify each model with options of `graphopt.simplify`, chosen at random.
    """
    tally = Tally()
    start = time.monotonic()
    for seed in seeds:
        if seconds is not None and time.monotonic() - start > seconds:
            break
        if at is not None:
            at.write_text(f"{seed}\n")
        made = random_model(seed, most=most)
        options = options_of(seed, made) if with_options else None
        tally.models += 1
        try:
            verdict = judge_made(made, options)
        except SimplifyFaultError as fault:
            tally.faults.append((seed, fault))
            if report is not None:
                report(seed, made, options, fault)
            continue
        tally.nodes_before += _count(made.proto)
        tally.nodes_after += _count(verdict.result)
        tally.interpreted += verdict.interpreted > 0
        tally.passes.update(verdict.passes)
    return tally


def _count(model: onnx.ModelProto) -> int:
    return sum(op != "Constant" for op in operators(model))


def reduced(made: Made, fault: SimplifyFaultError, options: Options | None = None) -> Made:
    """Return a smaller model with the same kind of fault."""

    def fails(model: onnx.ModelProto, feeds: list[dict[str, Any]]) -> bool:
        try:
            onnx.checker.check_model(model, full_check=True)
            judge(model, runnable(model, feeds), options=options)
        except SimplifyFaultError as found:
            return found.kind == fault.kind
        except Exception:
            return False
        return False

    return Made(*reduce_model(made.proto, made.feeds, fails))


def runnable(model: onnx.ModelProto, feeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the feeds on which ONNX Runtime runs a model.

    Raises:
        GraphoptError: It runs on none.
    """
    running = open_unoptimized(model.SerializeToString())
    found: list[dict[str, Any]] = []
    failure: GraphoptError | None = None
    for feed in feeds:
        try:
            run(running, feed)
        except GraphoptError as error:
            failure = error
            continue
        found.append(feed)
    if not found and failure is not None:
        raise failure
    return found


def guilty(made: Made) -> str:
    """Return which patch is the first wrong one, as far as bisection sees it."""
    model = read_model(made.proto.SerializeToString())
    if not made.feeds[0]:
        return "bisection: it has no inputs"
    try:
        usable = runnable(made.proto, made.feeds)
        feeds = Feeds.open(lambda: ({k: v[None] for k, v in feed.items()} for feed in usable), model)
        return str(bisect(model, simplify_oracle.passes(), data=feeds))
    except GraphoptError as error:
        return f"bisection: {error}"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="run this seed alone")
    parser.add_argument("--most", type=int, default=14, help="most actions of a model")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--at", type=Path, help="keep the present seed in this file: a kernel may end the process")
    parser.add_argument("--out", type=Path, help="folder for failing models")
    parser.add_argument("--show", action="store_true", help="print failing models before and after")
    parser.add_argument("--no-reduce", action="store_true", help="report failures as they are")
    parser.add_argument("--options", action="store_true", help="simplify with options chosen at random")
    parser.add_argument("--passes", help="passes in place of the preset default, with commas between")
    given = parser.parse_args()
    if given.passes:
        simplify_oracle.PASSES[:] = given.passes.split(",")
    warnings.simplefilter("ignore")

    def report(seed: int, made: Made, options: Options | None, fault: SimplifyFaultError) -> None:
        print(f"--- seed {seed}: {fault}", flush=True)
        small = made if given.no_reduce else reduced(with_empty_batch(made), fault, options)
        print(f"    {guilty(small) if options is None else options}", flush=True)
        if given.show or len(small.proto.graph.node) < 12:
            print(onnx.printer.to_text(small.proto))
        if given.out:
            _save(given.out, seed, made, small)

    seeds = range(given.seed, given.seed + given.count)
    if given.only is not None:
        seeds = range(given.only, given.only + 1)
    start = time.process_time()
    tally = fuzz(seeds, most=given.most, seconds=given.seconds, report=report, at=given.at, with_options=given.options)
    print(tally, f"in {time.process_time() - start:.0f} CPU seconds")
    print(Counter(fault.kind for _, fault in tally.faults), [seed for seed, _ in tally.faults][:100])
    print(tally.passes)
    return 1 if tally.faults else 0


def _save(folder: Path, seed: int, made: Made, small: Made) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in ((f"{seed}", made), (f"{seed}_small", small)):
        onnx.save(each.proto, folder / f"{name}.onnx")
        for index, feed in enumerate(each.feeds):
            arrays: dict[str, Any] = {key: np.asarray(value) for key, value in feed.items()}
            np.savez(folder / f"{name}_{index}.npz", **arrays)


if __name__ == "__main__":
    sys.exit(main())
