"""``graphopt audit``: what the runtime fused of a quantized model, and which rule the rest breaks."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from graphopt.cli.job import add_target
from graphopt.cli.terminal import write, write_json

if TYPE_CHECKING:
    import argparse

    from rich.console import RenderableType

    from graphopt.cli.parser import Parser
    from graphopt.target.audit import Audit


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file or a bundle")
    parser.add_argument("--data", metavar="FEEDS", help="inputs to compare on; seeded random ones by default")
    add_target(parser)
    parser.epilog = "example:\n  graphopt audit int8.onnx"


def run(arguments: argparse.Namespace) -> int:
    """Let the runtime optimize the model and print what came of it."""
    from graphopt.target.audit import audit

    feeds = None
    if arguments.data is not None:
        from graphopt.runtime import Feeds, session

        feeds = Feeds.open(arguments.data, session(arguments.model))
    found = audit(arguments.model, arguments.target, feeds=feeds)
    if arguments.json:
        write_json({**asdict(found), "stayed_float": [asdict(node) for node in found.stayed_float]})
    else:
        write(_page(found))
    return 0


def _page(found: Audit) -> str:
    from rich.console import Group
    from rich.text import Text

    from graphopt.report import text
    from graphopt.report.console import table, to_text

    rows = [
        *((op, "integer", text.count(number)) for op, number in found.integer.items()),
        *((op, "float", text.count(number)) for op, number in found.floating.items()),
        ("QuantizeLinear, DequantizeLinear", "between them", text.count(found.conversions)),
    ]
    parts: list[RenderableType] = [table(("operator after optimization", "computes in", "nodes"), rows, left=2), Text()]
    if found.optimization_error is not None:
        error = f"Optimization by the runtime changes outputs by at most {100 * found.optimization_error:.3g} %."
        parts += [Text(error)]
    if found.stayed_float:
        shown = [(node.name, node.op, node.rule, node.reason) for node in found.stayed_float]
        parts += [Text(), table(("stays float", "operator", "rule", "reason"), shown, left=4)]
    return to_text(Group(*parts))
