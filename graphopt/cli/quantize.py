"""``graphopt quantize``: weights and activations in few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli.choices import offered, require
from graphopt.cli.job import add_judging, add_model, add_target, run_job

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser

PASS = "insert-qdq"
MAX_DROP = 1.0
"""Budget where data is given and the user names none, in percentage points; the same as that of the preset int8."""
LATER_WEIGHTS = ("int8", "int16", "int4", "int3", "int2", "ternary", "binary", "fp8", "none")
LATER_ACTIVATIONS = ("uint8", "int16", "int4", "fp8", "dynamic", "none")


def configure(parser: Parser) -> None:
    """Add the arguments."""
    add_model(parser, output="the file to write", metavar="OUT.onnx")
    parser.add_argument("--weights", default="int8", metavar="W", help="type of the weights; default int8")
    parser.add_argument(
        "--activations", metavar="A", help="uint8 (default when data is given) or dynamic (default without data)"
    )
    add_target(parser)
    add_judging(parser)
    parser.epilog = "example:\n  graphopt quantize model.onnx -o int8.onnx --data feeds.npz"


def run(arguments: argparse.Namespace) -> int:
    """Quantize, print the report, write the model."""
    later = (*LATER_WEIGHTS, *(arguments.weights,) * arguments.weights.startswith("kmeans"))
    options = {"weights": require(arguments.weights, offered(PASS, "weights"), flag="--weights", later=later)}
    if arguments.activations is not None:
        built = offered(PASS, "activations")
        options["activations"] = require(arguments.activations, built, flag="--activations", later=LATER_ACTIVATIONS)
    recipe = {
        "name": "quantize",
        "description": f"Weights in {options['weights']}.",
        "budget": {"max_drop": MAX_DROP},
        "imports": ["default"],
        "passes": ["raise-opset", "fuse-bias", {PASS: options}, "eliminate-dead"],
    }
    return run_job(arguments, recipe, kind="file")
