"""``graphopt diff``: what differs between two models, by names; nothing is run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from graphopt.cli.terminal import write, write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import RenderableType

    from graphopt.cli.parser import Parser
    from graphopt.graph.difference import Change, Difference

_SHOWN = 20


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("first", metavar="A", help="the model before: an ONNX file")
    parser.add_argument("second", metavar="B", help="the model after: an ONNX file")
    parser.add_argument("--all", action="store_true", help=f"list all that differs, not {_SHOWN} of a kind")
    parser.epilog = (
        "example:\n  graphopt diff model.onnx small.onnx\n\n`graphopt check` compares what two models compute."
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    from graphopt.graph import read_model
    from graphopt.graph.difference import difference

    found = difference(read_model(arguments.first), read_model(arguments.second))
    if arguments.json:
        write_json({"equal": found.equal, **asdict(found)})
    else:
        write(_page(found, None if arguments.all else _SHOWN))
    return 0


def _page(found: Difference, most: int | None) -> str:
    from rich.console import Group
    from rich.text import Text

    from graphopt.report.console import table, to_text

    before, after = (sum(counts[side] for counts in found.operators.values()) for side in (0, 1))
    rows = [(op, f"{old:,}", f"{new:,}", f"{new - old:+,}") for op, (old, new) in found.operators.items() if old != new]
    rows.append(("all nodes", f"{before:,}", f"{after:,}", f"{after - before:+,}"))
    old_bytes, new_bytes = found.weight_bytes
    rows.append(("bytes of weights", f"{old_bytes:,}", f"{new_bytes:,}", f"{new_bytes - old_bytes:+,}"))
    parts: list[RenderableType] = [table(("", "before", "after", "change"), rows)]
    for title, changes in (
        ("interface", found.interface),
        ("properties", found.properties),
        ("nodes", found.nodes),
        ("weights", found.weights),
    ):
        parts += _listed(title, changes, most)
    if found.equal:
        parts += [Text(), Text("nothing differs")]
    return to_text(Group(*parts))


def _listed(title: str, changes: Sequence[Change], most: int | None) -> list[RenderableType]:
    from rich.text import Text

    from graphopt.report.text import printable

    if not changes:
        return []
    lines: list[RenderableType] = [Text(), Text(f"{title}: {len(changes):,} differ", style="bold")]
    for change in changes[:most]:
        name = printable(change.name, limit=80)
        if not change.after:
            lines.append(Text(f"  - {name}: {printable(change.before, limit=200)}"))
        elif not change.before:
            lines.append(Text(f"  + {name}: {printable(change.after, limit=200)}"))
        else:
            lines.append(Text(f"  ~ {name}: {printable(change.before, limit=200)}"))
            lines.append(Text(f"    now {printable(change.after, limit=200)}"))
    if most is not None and len(changes) > most:
        lines.append(Text(f"  ... and {len(changes) - most:,} more; --all lists them"))
    return lines
