"""A page of its own for one plot: the drawing, a table of all its figures, and nothing that makes a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.report.markup import esc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PLOT_STYLE = (
    "svg{font:12px system-ui,sans-serif;background:#fff}text{fill:#16191f}.soft{fill:#5b6472}"
    ".grid{stroke:#e2e6ec}.row{stroke:#f0f2f5}.whisker{stroke:#8a94a3}"
    "@media(prefers-color-scheme:dark){svg{background:#171b21}text{fill:#e7eaef}.soft{fill:#98a2b3}"
    ".grid{stroke:#2a303a}.row{stroke:#20252d}}"
)

TEXT_LIMIT = 300
"""Characters of a cell that are shown."""


def plot_page(
    title: str, drawing: str, heads: Sequence[str], rows: Iterable[Sequence[str]], rest: str, footer: str
) -> str:
    """Return an HTML page.

    Args:
        title: Its title, as text.
        drawing: An SVG document.
        heads: Headings of the table, as text; the first two columns are aligned left.
        rows: Cells, as text.
        rest: HTML behind the table.
        footer: The last line, as text.
    """
    head = "".join(f"<th>{esc(each)}</th>" for each in heads)
    body = "".join("<tr>" + "".join(f"<td>{esc(cell, TEXT_LIMIT)}</td>" for cell in row) + "</tr>" for row in rows)
    style = (
        "body{font:14px/1.5 system-ui,sans-serif;margin:32px;color:#16191f;background:#fff}"
        "table{border-collapse:collapse}td,th{white-space:nowrap;padding:4px 12px;text-align:right}"
        "td,th{border-bottom:1px solid #e2e6ec}"
        "td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}"
        "svg{max-width:100%;height:auto}.scroll{overflow:auto}"
        "@media(prefers-color-scheme:dark){body{background:#171b21;color:#e7eaef}td,th{border-color:#2a303a}}"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{esc(title)}</title><style>{style}</style></head><body>{drawing}"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{rest}'
        f"<p>{esc(footer, TEXT_LIMIT)}</p></body></html>\n"
    )
