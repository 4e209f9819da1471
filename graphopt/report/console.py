"""The report as tables on a terminal or in a log."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from graphopt.report import summary, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from graphopt.report.report import Report

_STYLES = {"good": "green", "bad": "red", "neutral": ""}
_PLAIN_WIDTH = 120
_GROUPS_SHOWN = 12


def render(report: Report, *, stream: TextIO | None = None) -> str:
    """Return the report as text: before and after, passes, what was skipped and why, notes.

    Args:
        report: The report.
        stream: Where the text will go (stdout by default); a terminal gets its width and colours, anything else plain
            text 120 columns wide.
    """
    parts = _short(report)
    if report.passes:
        parts += [Text(), _passes(report)]
    groups = summary.skip_groups(report)
    if groups:
        parts += [Text(), _skips(groups)]
    return to_text(Group(*parts), stream=stream)


def render_short(report: Report, *, stream: TextIO | None = None) -> str:
    """Return only what changed and whether the budget was met, as text.

    Args:
        report: The report.
        stream: Where the text will go, as for `render`.
    """
    return to_text(Group(*_short(report)), stream=stream)


def table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], *, title: str = "", left: int = 1) -> Table:
    """Return a plain table; the first `left` columns are aligned left, the others right.

    Args:
        columns: Headings.
        rows: Cells; plain strings are shown as they are, never read as markup.
        title: Line above the table.
        left: Number of columns that hold words.
    """
    made = Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
        show_header=any(columns),
    )
    for index, heading in enumerate(columns):
        made.add_column(Text(heading), justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(text.printable(cell)) for cell in row))
    return made


def to_text(renderable: RenderableType, *, stream: TextIO | None = None) -> str:
    """Return what rich makes of an object for this stream (stdout by default)."""
    target = stream if stream is not None else sys.stdout
    terminal = target.isatty()
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=None if terminal else _PLAIN_WIDTH,
        force_terminal=terminal,
        no_color=None if terminal else True,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(renderable)
    lines = buffer.getvalue().splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _short(report: Report) -> list[RenderableType]:
    parts: list[RenderableType] = [_comparison(report)]
    if report.quality is not None and report.quality.budget is not None:
        style = "" if report.quality.met else "bold red"
        parts.append(Text(summary.budget_line(report.quality), style=style))
    return parts


def _comparison(report: Report) -> Table:
    rows: list[Sequence[str | Text]] = [
        (
            figure.label,
            figure.before,
            Text(figure.after, style="bold"),
            Text(figure.change, style=_STYLES[figure.tone]),
            figure.detail,
        )
        for figure in summary.figures(report)
    ]
    made = table(("", "before", "after", "change", ""), rows)
    made.columns[3].justify = "left"
    made.columns[4].justify = "left"
    made.columns[4].style = "dim"
    return made


def _passes(report: Report) -> Table:
    rows = [
        (
            entry.name,
            text.count(entry.patches),
            text.count(len(entry.skips)),
            text.count(entry.nodes_after),
            text.seconds(entry.seconds),
        )
        for entry in report.passes
    ]
    return table(("pass", "patches", "skips", "nodes left", "time"), rows)


def _skips(groups: Sequence[summary.SkipGroup]) -> Table:
    largest = sorted(groups, key=lambda group: -len(group.members))[:_GROUPS_SHOWN]
    shown = [group for group in groups if group in largest]
    rows = [(f"{len(group.members)}x", group.pass_name, group.reason) for group in shown]
    rest = sum(len(group.members) for group in groups) - sum(len(group.members) for group in shown)
    if rest:
        rows.append((f"{rest}x", "", "other reasons, listed in the report"))
    made = table(("skipped", "pass", "reason"), rows, left=3)
    made.columns[0].justify = "right"
    made.columns[0].no_wrap = True
    made.columns[1].no_wrap = True
    return made
