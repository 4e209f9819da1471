"""``graphopt doctor``: is this installation sound, and what will run here?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli.terminal import write, write_json

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser
    from graphopt.report.health import Health


def configure(parser: Parser) -> None:
    """Add nothing: the verb has no arguments of its own."""
    parser.epilog = "status: 0 when all is well, 1 when something is broken"


def run(arguments: argparse.Namespace) -> int:
    """Look at the installation and print what was found and what to do about problems."""
    from graphopt.report.health import examine

    health = examine()
    if arguments.json:
        write_json(health.to_dict())
    else:
        write(_page(health))
    return 0 if health.sound else 1


def _page(health: Health) -> str:
    from rich.console import Group
    from rich.text import Text

    from graphopt.report.console import table, to_text

    mark = {
        "ok": Text("ok", style="green"),
        "note": Text("note", style="yellow"),
        "broken": Text("broken", style="red"),
    }
    rows = [(mark[finding.state], finding.subject, finding.found, finding.advice) for finding in health.findings]
    broken = sum(finding.state == "broken" for finding in health.findings)
    verdict = "All is well." if not broken else f"{broken} problem{'' if broken == 1 else 's'} to solve."
    return to_text(Group(table(("", "", "found", "what to do"), rows, left=4), Text(), Text(verdict, style="bold")))
