"""``graphopt bisect``: behind which patch of which pass is a model wrong first?"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from graphopt.cli.job import add_target
from graphopt.cli.parser import add_set
from graphopt.cli.terminal import log, progress_bar, write, write_json
from graphopt.errors import CheckFailedError

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser
    from graphopt.rewrite.bisect import Finding


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", help="the ONNX file that a recipe makes wrong")
    parser.add_argument("--recipe", default="default", metavar="NAME|FILE", help="what to search; default: default")
    parser.add_argument("--data", metavar="FEEDS", help="inputs to compare on; seeded random ones by default")
    add_set(parser)
    parser.add_argument(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="what outputs must reach behind lossy passes, in dB; without it the model must run and stay finite",
    )
    add_target(parser)
    parser.epilog = "status: 0 when every patch is right, 4 when a wrong one was found"


def run(arguments: argparse.Namespace) -> int:
    """Search, and print the first wrong patch."""
    from graphopt.graph import read_model
    from graphopt.rewrite.bisect import bisect
    from graphopt.rewrite.recipe import load_recipe
    from graphopt.runtime import Feeds, input_specs
    from graphopt.samples import HELD_BACK_SAMPLES

    recipe = load_recipe(arguments.recipe)
    for path, value in arguments.options:
        recipe = recipe.set(path, value)
    model = read_model(arguments.model)
    model.sort()
    if arguments.data is None:
        recipe, _ = recipe.unobserved()[0].data_free()
        data = None
    else:
        data = Feeds.open(arguments.data, input_specs(model))
        data = data.split(at_least=HELD_BACK_SAMPLES)[0] if len(data) > 1 else data  # as compile calibrates
    with progress_bar(quiet=arguments.quiet) as bar:
        found = bisect(
            model,
            recipe.passes,
            data=data,
            min_sqnr_db=arguments.min_sqnr,
            seed=arguments.seed,
            target=arguments.target,
            progress=None if bar is None else lambda right, wrong: bar("patches right so far", right, wrong),
        )
    _show(found, arguments)
    return 0 if found.number is None else CheckFailedError.exit_code


def _show(found: Finding, arguments: argparse.Namespace) -> None:
    from graphopt.report.text import printable

    if arguments.json:
        write_json(asdict(found))
    else:
        write(printable(str(found)) + "\n")
    if found.number is not None:
        log(f"the last right model: {_last_right(found.number, arguments)}", quiet=arguments.quiet)


def _last_right(number: int, arguments: argparse.Namespace) -> str:
    """Return the command that makes the model before a patch: the same feeds and options, no guard to lower them."""
    words = ["graphopt", "compile", arguments.model, "-o", "DIR", "--recipe", arguments.recipe]
    if arguments.data is not None:
        words += ["--data", arguments.data]
    for path, value in arguments.options:
        words += ["--set", f"{path}={json.dumps(value)}"]
    words += ["--stop-after", str(number - 1)]
    return shlex.join(words)
