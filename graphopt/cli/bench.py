"""``graphopt bench``: latency of models, timed in turn in one process."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from graphopt.cli.parser import whole
from graphopt.cli.terminal import write, write_json

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="ONNX files or bundles; the first is the reference")
    parser.add_argument("--data", metavar="FEEDS", help="its first sample is run; a seeded random one by default")
    parser.add_argument("--threads", type=whole(0), default=1, metavar="N", help="threads of every session; default 1")
    parser.add_argument("--runs", type=whole(1), metavar="N", help="timed runs of each; by default what fits 4 seconds")
    parser.epilog = "example:\n  graphopt bench model.onnx out"


def run(arguments: argparse.Namespace) -> int:
    """Time the models and print a table."""
    from graphopt.runtime import Feeds, random_feeds, session, timings

    sessions = [session(model, threads=arguments.threads) for model in arguments.models]
    reference = sessions[0]
    if arguments.data is not None:
        feed = Feeds.open(arguments.data, reference).first()
    else:
        feed = random_feeds(reference, count=1, seed=arguments.seed).first()
    times = timings(sessions, feed, runs=arguments.runs)
    rows = []
    for model, measured in zip(arguments.models, times, strict=True):
        middle = statistics.median(measured)
        spread = statistics.median(abs(value - middle) for value in measured)
        figures = {"median_ms": middle, "mad_ms": spread, "fastest_ms": min(measured), "runs": len(measured)}
        rows.append({"model": model, **figures})
    if arguments.json:
        write_json({"threads": arguments.threads, "models": rows})
        return 0
    from graphopt.report import text
    from graphopt.report.console import table, to_text

    first = float(rows[0]["median_ms"])
    cells = [
        (
            text.printable(str(row["model"]), limit=60),
            text.milliseconds(float(row["median_ms"])),
            f"± {text.milliseconds(float(row['mad_ms']), beside=float(row['median_ms']))}",
            text.milliseconds(float(row["fastest_ms"])),
            str(row["runs"]),
            "" if index == 0 else text.ratio(first, float(row["median_ms"]), smaller="faster", larger="slower"),
        )
        for index, row in enumerate(rows)
    ]
    write(to_text(table(("model", "median", "spread", "fastest", "runs", "against the first"), cells)))
    return 0
