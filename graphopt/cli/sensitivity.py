"""``graphopt sensitivity``: how much each layer suffers from each level of compression."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli.job import FEEDS_HELP
from graphopt.cli.outputs import refuse_file, write_file
from graphopt.cli.parser import whole
from graphopt.cli.terminal import log, progress_bar, write
from graphopt.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser

PLOTS = (".svg", ".html")


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", help="the ONNX file")
    parser.add_argument("--data", required=True, metavar="FEEDS", help=FEEDS_HELP)
    parser.add_argument(
        "--levels",
        nargs="+",
        metavar="KIND=V,V",
        help="bits=8,4,3,2,ternary,binary, sparsity=0.5,0.9 or pattern=2:4; default bits=8,4,3,2 sparsity=0.5,0.7,0.9",
    )
    parser.add_argument("-o", "--output", metavar="OUT.json", help="write all figures to this file")
    parser.add_argument("--plot", metavar="OUT.svg|html", help="draw them to this file")
    parser.add_argument("--samples", type=whole(1), metavar="N", help="held-back samples compared at most; default 256")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="NODE", help="leave a layer out; may be repeated"
    )
    parser.add_argument("--threads", type=whole(0), default=1, metavar="N", help="threads of each run; default 1")
    parser.epilog = (
        "example:\n"
        "  graphopt sensitivity model.onnx --data feeds.npz --levels bits=8,4 sparsity=0.8 -o out.json --plot out.svg"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure every layer at every level, print the table, write the files."""
    plot = None if arguments.plot is None else Path(arguments.plot)
    if plot is not None and plot.suffix not in PLOTS:
        raise UsageError(f"'{plot}' is no plot", where="--plot", must=f"The name ends with {' or '.join(PLOTS)}")
    output = None if arguments.output is None else Path(arguments.output)
    files = [path for path in (output, plot) if path is not None]
    for path in files:
        refuse_file(path, force=arguments.force)
    from graphopt.report.sensitivity import render
    from graphopt.report.sensitivity_plot import draw, page
    from graphopt.sensitivity import LEVELS, SAMPLES, measure_sensitivity

    with progress_bar(quiet=arguments.quiet) as progress:
        found = measure_sensitivity(
            arguments.model,
            arguments.data,
            levels=arguments.levels or LEVELS,
            samples=arguments.samples or SAMPLES,
            keep=arguments.skip,
            seed=arguments.seed,
            threads=arguments.threads,
            progress=progress,
        )
    contents = {output: found.to_json(), plot: draw(found) if plot is not None and plot.suffix == ".svg" else ""}
    if plot is not None and plot.suffix == ".html":
        contents[plot] = page(found)
    for path in files:
        write_file(path, contents[path])
        log(f"wrote {path}", quiet=arguments.quiet)
    write(found.to_json() if arguments.json else render(found))
    return 0
