"""``graphopt simplify``: graph optimization alone, on standard operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli.job import FEEDS_HELP, add_model, run_job

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser


def configure(parser: Parser) -> None:
    """Add the arguments."""
    add_model(parser, output="the file to write", metavar="OUT.onnx")
    parser.add_argument("--data", metavar="FEEDS", help=FEEDS_HELP.replace("a fifth is held back", "used to compare"))
    parser.add_argument("--skip", action="append", default=[], metavar="PASS", help="leave a pass out; may be repeated")
    parser.epilog = "example:\n  graphopt simplify model.onnx -o small.onnx"


def run(arguments: argparse.Namespace) -> int:
    """Simplify, print the report, write the model."""
    return run_job(arguments, "default", kind="file", skip=arguments.skip)
