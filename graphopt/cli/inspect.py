"""``graphopt inspect``: what a model consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli.parser import size
from graphopt.cli.terminal import write, write_json

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file or a bundle")
    parser.add_argument(
        "--size",
        dest="sizes",
        type=size,
        action="append",
        default=[],
        metavar="NAME=N",
        help="take a symbolic dimension as N when counting what a run costs (default 1); may be repeated",
    )
    parser.epilog = "example:\n  graphopt inspect model.onnx --size sequence=128"


def run(arguments: argparse.Namespace) -> int:
    """Read the model and print its contents."""
    from graphopt.report.inspection import inspect

    found = inspect(arguments.model, dict(arguments.sizes))
    if arguments.json:
        write_json(found.to_dict())
    else:
        from graphopt.report.inspection import render

        write(render(found))
    return 0
