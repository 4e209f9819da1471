"""The part of the page on layers: bars of all weights in model order, and a table of what was done to each and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.report import text
from graphopt.report.markup import SHOWN_ZEROS, bar, esc, plural, section, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.report.report import LayerEntry, WeightEntry
    from graphopt.report.summary import LayerRow

ROWS_SHOWN = 3000
"""Rows of the table; the rest is in report.json."""
SEARCH_FROM = 9
"""Number of rows from which the table has a filter."""
COLUMNS_SHOWN = 500
"""Bars of the chart; more layers share bars."""
WIDTH, HEIGHT = 1000.0, 120.0
"""Of the chart, in its own units; the page stretches it."""


def layers(rows: Sequence[LayerRow]) -> str:
    """Return the section, empty when nothing is known of any layer."""
    if not rows:
        return ""
    weights = [row.weight for row in rows if row.weight]
    largest = max((weight.bytes_before for weight in weights), default=0)
    columns = ("Weight", "", "Zeros", "Type") if weights else ()
    heads = ("Layer", "Operator", *columns, "State", "What was done and why")
    shown = [_row(row, largest, weighed=bool(weights)) for row in rows[:ROWS_SHOWN]]
    body = _chart(weights) + table("layers", heads, shown, numeric={2, 4} if weights else set(), sortable=True)
    if len(rows) > ROWS_SHOWN:
        body += f'<p class="soft small">{plural(len(rows) - ROWS_SHOWN, "more layer")} in report.json.</p>'
    find = '<input type="search" placeholder="filter layers" aria-label="filter layers" data-filter="layers" hidden>'
    return section("Layers", body, _counts(rows), extra=find if len(rows) >= SEARCH_FROM else "")


def _counts(rows: Sequence[LayerRow]) -> str:
    states = [row.status for row in rows]
    words = ("changed", "left", "reverted", "untouched")
    return ", ".join(f"{text.count(states.count(word))} {word}" for word in words if word in states)


def _row(row: LayerRow, largest: int, *, weighed: bool) -> str:
    cells = ""
    if row.weight is not None:
        cells = _weight(row.weight, largest)
    elif weighed:
        cells = '<td class="n"></td><td class="bars"></td><td class="n"></td><td></td>'
    return (
        f'<tr><td class="name">{esc(row.name)}</td><td>{esc(row.op)}</td>{cells}'
        f'<td><span class="state {row.status}">{row.status}</span></td>'
        f'<td class="done">{"".join(map(_entry, row.entries))}{_skips(row)}</td></tr>'
    )


def _weight(weight: WeightEntry, largest: int) -> str:
    kind = esc(weight.type_after)
    if weight.type_after != weight.type_before:
        kind = f'<span class="soft">{esc(weight.type_before)} →</span> {kind}'
    zeros = text.percent(weight.zeros_after) if weight.zeros_after >= SHOWN_ZEROS else ""
    before = bar(weight.bytes_before, largest, "old")
    after = bar(weight.bytes_after, largest, zeros=_stored_zeros(weight))
    return (
        f'<td class="n" data-value="{weight.bytes_after}" title="was {text.size(weight.bytes_before)}">'
        f'{text.size(weight.bytes_after)}</td><td class="bars">{before}{after}</td>'
        f'<td class="n" data-value="{weight.zeros_after}">{zeros}</td><td class="kind">{kind}</td>'
    )


def _entry(entry: LayerEntry) -> str:
    by = f' title="{esc(entry.pass_name)}"' if entry.pass_name else ""
    what, why = esc(entry.what, 300), esc(entry.reason, 600)
    if entry.reverted:
        return f'<div{by}><s>{what}</s> <span class="soft">taken back: {why}</span></div>'
    if not entry.kept:
        return f'<div{by}><span class="soft">left as it was: {why or what}</span></div>'
    because = f' <span class="soft">{why}</span>' if why else ""
    return f"<div{by}>{what}{because}</div>"


def _skips(row: LayerRow) -> str:
    """Return why passes skipped the layer, unfolded where nothing else was done to it."""
    unfolded = "" if row.entries else " open"
    return "".join(
        f'<details class="soft small"{unfolded}><summary>{esc(name)} skipped it</summary>{esc(reason, 600)}</details>'
        for name, reason in row.skips
    )


def _stored_zeros(weight: WeightEntry) -> float:
    """Return the share of the stored bytes that are zeros: packed sparse weights store none."""
    return 0.0 if weight.type_after.startswith("sparse") else weight.zeros_after


def _chart(weights: Sequence[WeightEntry]) -> str:
    """Return bars of all weights: bytes before behind bytes after, of which the zeros are marked."""
    together = -(-len(weights) // COLUMNS_SHOWN)
    columns = [_column(weights[start : start + together]) for start in range(0, len(weights), max(together, 1))]
    highest = max((max(column.before, column.after) for column in columns), default=0)
    if len(weights) < 2 or highest == 0:
        return ""
    step = WIDTH / len(columns)
    drawn = "".join(_bars(column, index * step, step, HEIGHT / highest) for index, column in enumerate(columns))
    zeros = '<span class="key zero">of it zeros</span>' if any(column.zeros for column in columns) else ""
    each = f", {together} in each bar" if together > 1 else ""
    return (
        f'<figure><svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="bytes of the weight of each layer before and after">{drawn}</svg><figcaption>'
        '<span class="key old">weight before</span><span class="key">after</span>'
        f"{zeros}<span>{plural(len(weights), 'layer')} in model order{each}, the highest bar has {text.size(highest)}"
        "</span></figcaption></figure>"
    )


@dataclass(frozen=True, slots=True)
class _Column:
    """One bar of the chart: bytes of one layer, or of several in a row; ``zeros`` are part of ``after``."""

    name: str
    before: int
    after: int
    zeros: float


def _column(weights: Sequence[WeightEntry]) -> _Column:
    name = weights[0].name if len(weights) == 1 else f"{weights[0].name} to {weights[-1].name}"
    after = sum(weight.bytes_after for weight in weights)
    zeros = sum(weight.bytes_after * _stored_zeros(weight) for weight in weights)
    before = sum(weight.bytes_before for weight in weights)
    return _Column(name, before, after, zeros if zeros >= SHOWN_ZEROS * after else 0.0)


def _bars(column: _Column, left: float, step: float, scale: float) -> str:
    width = step * (0.72 if step > 4.0 else 0.9)
    left += (step - width) / 2.0
    bars = [("o", column.before * scale, column.before * scale), ("a", column.after * scale, column.after * scale)]
    if column.zeros:
        bars.append(("z", column.after * scale, column.zeros * scale))
    tip = f"{column.name}: {text.size(column.before)} to {text.size(column.after)}"
    drawn = "".join(
        f'<rect class="{kind}" x="{left:.2f}" y="{HEIGHT - top:.2f}" width="{width:.2f}" height="{height:.2f}"/>'
        for kind, top, height in bars
    )
    return f"<g><title>{esc(tip, 300)}</title>{drawn}</g>"
