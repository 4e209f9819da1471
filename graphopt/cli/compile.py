"""``graphopt compile``: the main job, a model in, a bundle folder out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli.job import add_judging, add_model, add_statistics, add_target, run_job
from graphopt.cli.parser import add_set, add_skip, whole

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser


def configure(parser: Parser) -> None:
    """Add the arguments."""
    add_model(parser, output="folder of the bundle: model, kernels, recipe, report", metavar="DIR")
    parser.add_argument(
        "--recipe", default="default", metavar="NAME|FILE", help="a preset (graphopt recipe list) or a YAML file"
    )
    add_target(parser)
    add_set(parser)
    add_skip(parser)
    parser.add_argument("--stop-after", type=whole(0), metavar="N", help="stop after N patches, to find a wrong one")
    add_statistics(parser)
    add_judging(parser)
    parser.epilog = (
        "examples:\n"
        "  graphopt compile model.onnx -o out --recipe int8 --data feeds.npz\n"
        "  graphopt compile model.onnx -o out --recipe sparse --set prune-second-order.sparsity=0.7"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compile, print the report, write the bundle."""
    return run_job(
        arguments,
        arguments.recipe,
        kind="bundle",
        options=dict(arguments.options),
        skip=arguments.skip,
        stop_after=arguments.stop_after,
    )
