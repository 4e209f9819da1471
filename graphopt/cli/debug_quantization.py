"""``graphopt debug-quantization``: where a quantized model departs from its float one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli.outputs import refuse_file, write_file
from graphopt.cli.parser import whole
from graphopt.cli.terminal import log, progress_bar, write

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="FLOAT", help="the float model, an ONNX file")
    parser.add_argument("quantized", metavar="QUANTIZED", help="the same model quantized, by any tool, in any form")
    parser.add_argument(
        "--data",
        metavar="FEEDS",
        help="feeds of the float model: an .npz, a folder of such files, or module:function; default random inputs",
    )
    parser.add_argument("-o", "--output", metavar="OUT.json", help="write all figures to this file")
    parser.add_argument("--html", metavar="OUT.html", help="write a page with a plot to this file")
    parser.add_argument("--samples", type=whole(1), metavar="N", help="samples compared at most; default 32")
    parser.add_argument("--worst", type=whole(1), metavar="N", help="show only the N tensors with the largest drops")
    parser.add_argument("--threads", type=whole(0), default=1, metavar="N", help="threads of each run; default 1")
    parser.epilog = (
        "example:\n  graphopt debug-quantization model.onnx int8.onnx --data feeds.npz --html errors.html\n\n"
        "own: the error that a layer adds by itself, its inputs taken from the float model\n"
        "sum: the error in the quantized model as it runs"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare the models, print the table, write the files."""
    named = ((arguments.output, "json"), (arguments.html, "html"))
    files = {kind: Path(name) for name, kind in named if name is not None}
    for path in files.values():
        refuse_file(path, force=arguments.force)
    from graphopt.quantization_errors import SAMPLES, find_quantization_errors
    from graphopt.report.quantization_errors import render
    from graphopt.report.quantization_plot import page

    with progress_bar(quiet=arguments.quiet) as progress:
        found = find_quantization_errors(
            arguments.model,
            arguments.quantized,
            arguments.data,
            samples=arguments.samples or SAMPLES,
            seed=arguments.seed,
            threads=arguments.threads,
            progress=progress,
        )
    for kind, path in files.items():
        write_file(path, found.to_json() if kind == "json" else page(found))
        log(f"wrote {path}", quiet=arguments.quiet)
    write(found.to_json() if arguments.json else render(found, rows=arguments.worst))
    return 0
