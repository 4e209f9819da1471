"""How verbs that write one model store its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.cli.parser import one_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from graphopt.cli.parser import Parser

DENSE, SPARSE = "dense", "sparse"


def add_storage(parser: Parser) -> None:
    """Add the option that says how weights are stored."""
    parser.add_argument(
        "--store",
        type=one_of(DENSE, SPARSE),
        default=DENSE,
        metavar="S",
        help="dense (default): initializers that every tool reads; sparse: where that is smaller a bitmap and the "
        "values that are not zero, on standard operators that runtimes compute when they load the model",
    )


def with_storage(arguments: argparse.Namespace, passes: Sequence[Any]) -> list[Any]:
    """Return the passes, with those around them that take sparse storage back and make it.

    Args:
        arguments: The arguments of the verb.
        passes: The passes of its recipe.
    """
    last = ["store-sparse"] if arguments.store == SPARSE else []
    return ["restore-sparse", *passes, *last]
