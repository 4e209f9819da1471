"""``graphopt demo``: two small models that come with graphopt, one made int8 and one sparse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli.terminal import log, progress_bar, write, write_json

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser
    from graphopt.result import Result

MAX_DROP = 1.0
"""Largest loss of accuracy on labelled test images, in points."""


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("-o", "--output", default="graphopt-demo", metavar="DIR", help="default: graphopt-demo")
    parser.epilog = "Nothing is downloaded; it takes about a minute."


def run(arguments: argparse.Namespace) -> int:
    """Compile both models, print before and after, and say where the reports are."""
    from graphopt import demo
    from graphopt.emit import refuse_unsafe_target

    folder = Path(arguments.output)
    jobs = {"cnn": (demo.CNN, "int8"), "transformer": (demo.TRANSFORMER, "sparse")}
    for name in jobs:
        refuse_unsafe_target(folder / name, force=arguments.force)
    results = {}
    for name, (model, recipe) in jobs.items():
        results[name] = _compile(model, recipe, arguments)
        results[name].save(folder / name, force=arguments.force, keep=True)
        if not arguments.json:
            _show(name, recipe, results[name])
    if arguments.json:
        write_json({name: json.loads(result.report.to_json()) for name, result in results.items()})
    for name in jobs:
        log(f"the report of the {name} is {folder / name / 'report.html'}", quiet=arguments.quiet)
    return 0 if all(result.met for result in results.values()) else 4


def _compile(model: Path, recipe: str, arguments: argparse.Namespace) -> Result:
    from graphopt import demo, pipeline

    with progress_bar(quiet=arguments.quiet) as progress:
        return pipeline.compile(
            model,
            recipe=recipe,
            data=demo.CALIBRATION,
            metric=demo.accuracy,
            max_drop=MAX_DROP,
            verify=arguments.verify,
            seed=arguments.seed,
            progress=progress,
        )


def _show(name: str, recipe: str, result: Result) -> None:
    from graphopt.report.console import render_short

    write(f"{name}, recipe {recipe}\n{render_short(result.report)}\n")
