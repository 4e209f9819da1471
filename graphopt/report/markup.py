"""Pieces of HTML that every section of the page uses. All text goes through `esc`."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from graphopt.report import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NAME_LIMIT = 120
"""Longest name or word of a model that the page shows, in characters."""
SHOWN_ZEROS = 0.1
"""Smallest share of zeros worth showing: 8-bit weights that nobody pruned have a few percent."""
LEAST_BAR = 0.8
"""Percent of the width that anything above zero gets at least, so that it stays visible."""


def esc(value: object, limit: int | None = NAME_LIMIT) -> str:
    """Return any text as inert HTML: markup escaped, control and reordering characters written out.

    Args:
        value: The text.
        limit: Longest result before escaping, in characters; None for no limit.
    """
    return html.escape(text.printable(str(value), limit=limit), quote=True)


def section(title: str, body: str, note: str = "", *, extra: str = "") -> str:
    """Return a section of the page.

    Args:
        title: Its heading, plain text.
        body: Its contents, HTML.
        note: A remark at the right of the heading, plain text.
        extra: HTML between heading and remark.
    """
    right = f'<span class="soft small">{esc(note)}</span>' if note else ""
    return f'<section><div class="head"><h2>{esc(title)}</h2>{extra}{right}</div>{body}</section>\n'


def table(name: str, heads: Sequence[str], rows: Iterable[str], *, numeric: set[int], sortable: bool = False) -> str:
    """Return a table that scrolls within itself.

    Args:
        name: Its id.
        heads: Headings, plain text; a column without one holds bars.
        rows: Rows, HTML.
        numeric: Indices of columns that are aligned right.
        sortable: Whether a click on a heading sorts the rows.
    """
    head = "".join(
        f"<th{' class=n' if index in numeric else ''}>{esc(title)}</th>" for index, title in enumerate(heads)
    )
    sort = " data-sort" if sortable else ""
    return (
        f'<div class="scroll"><table id="{name}"{sort}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def bar(value: float, top: float, kind: str = "", *, zeros: float = 0.0) -> str:
    """Return a bar.

    Args:
        value: Its length.
        top: The length that fills the track.
        kind: ``old`` for the colour of what was before.
        zeros: Share at its end drawn in the colour of zeros.
    """
    share = 0.0 if top <= 0 else max(0.0, min(1.0, value / top))
    width = 0.0 if share == 0.0 else max(share * 100.0, LEAST_BAR)
    empty = f'<b style="width:{zeros * 100.0:.0f}%"></b>' if zeros >= SHOWN_ZEROS else ""
    return f'<div class="bar"><i{f" class={kind}" if kind else ""} style="width:{width:.1f}%">{empty}</i></div>'


def plural(count: int, word: str, ending: str = "s") -> str:
    """Return a count with its noun: "1 patch", "2,100 patches"."""
    return f"{text.count(count)} {word}{'' if count == 1 else ending}"
