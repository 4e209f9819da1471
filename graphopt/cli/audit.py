"""``graphopt audit``: what the runtime makes of a quantized model, whoever made it, and which rules it breaks."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from graphopt.cli.job import add_target
from graphopt.cli.terminal import write, write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import RenderableType

    from graphopt.cli.parser import Parser
    from graphopt.target import BrokenRule
    from graphopt.target.audit import Audit

BROKEN = 4
"""Status where a rule is broken that matters for the result."""

COSTS = {True: "wrong or refused", False: "time"}
NAME, REASON = 40, 160
"""Characters of names and reasons that are shown; --json has all."""


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file or a bundle")
    parser.add_argument("--data", metavar="FEEDS", help="inputs to compare on; seeded random ones by default")
    add_target(parser)
    parser.epilog = (
        "examples:\n  graphopt audit int8.onnx\n  graphopt audit int8.onnx --target tensorrt\n\n"
        "The status is 4 where a broken rule makes results wrong or gets the model refused."
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the model against the rules of the target, let the runtime optimize it, and print what came of it."""
    from graphopt.target.audit import audit

    feeds = None
    if arguments.data is not None:
        from graphopt.runtime import Feeds, session

        feeds = Feeds.open(arguments.data, session(arguments.model))
    found = audit(arguments.model, arguments.target, feeds=feeds)
    if arguments.json:
        write_json(asdict(found))
    else:
        write(_page(found))
    return BROKEN if any(rule.serious for rule in found.broken) else 0


def _page(found: Audit) -> str:
    from rich.console import Group
    from rich.text import Text

    from graphopt.report import text
    from graphopt.report.console import table, to_text
    from graphopt.target import find_target

    rows = [
        *((op, "integer", text.count(number)) for op, number in found.integer.items()),
        *((op, "float", text.count(number)) for op, number in found.floating.items()),
        ("QuantizeLinear, DequantizeLinear", "between them", text.count(found.conversions)),
    ]
    title = "operator after optimization" if found.ran else "operator, as the model declares it"
    parts: list[RenderableType] = [table((title, "computes in", "nodes"), rows, left=2), Text()]
    if not found.ran:
        runtime = find_target(found.target).runtime
        parts += [Text(f"{runtime} is not installed here: the model was checked against its rules, not run.")]
    if found.optimization_error is not None:
        error = f"Optimization by the runtime changes outputs by at most {100 * found.optimization_error:.3g} %."
        parts += [Text(error)]
    if found.stayed_float:
        shown = [(node.name, node.op, node.rule, node.reason) for node in found.stayed_float]
        parts += [Text(), table(("stays float", "operator", "rule", "reason"), shown, left=4)]
    if found.broken:
        parts += [Text(), *_broken(found.broken)]
    elif not found.ran:
        parts += [Text(f"No rule of {found.target} is broken.")]
    return to_text(Group(*parts))


def _broken(broken: Sequence[BrokenRule]) -> list[RenderableType]:
    """Return a table of the rules with their remedies, and one of the nodes that break them."""
    from rich.text import Text

    from graphopt.report import text
    from graphopt.report.console import table

    worst_first = sorted(broken, key=lambda each: not each.serious)
    counts = Counter(each.rule for each in worst_first)
    rules = {each.rule: each for each in worst_first}.values()
    summary = [(each.rule, COSTS[each.serious], each.remedy, text.count(counts[each.rule])) for each in rules]
    lines = [(each.rule, _short(each.node), each.op, _short(each.reason, REASON)) for each in worst_first]
    return [
        table(("broken rule", "costs", "remedy", "nodes"), summary, left=3),
        Text(),
        table(("rule", "node", "operator", "reason"), lines, left=4),
    ]


def _short(name: str, length: int = NAME) -> str:
    """Return the end of a long name: some exporters write names of several lines."""
    return name if len(name) <= length else f"…{name[1 - length :]}"
