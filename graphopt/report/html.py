"""The report as one HTML page that needs nothing else: no network, no fonts, no scripts from elsewhere.

Everything that comes from a model (names of nodes and operators, reasons, notes) is untrusted. It passes through `esc`,
and the page's own content policy forbids every script but the one of this package, by its hash, and every request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from graphopt.report import summary, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

    from graphopt.report.report import Report
    from graphopt.report.summary import Figure, LayerRow, SkipGroup

NAME_LIMIT = 120
"""Longest name or word of a model that the page shows, in characters."""
MEMBERS_SHOWN = 200
"""Nodes listed under one reason; the rest is in report.json."""
LAYERS_SHOWN = 3000
"""Rows of the layer table; the rest is in report.json."""
OPERATORS_SHOWN = 14
"""Operators whose counts are shown without unfolding."""


def render(report: Report) -> str:
    """Return the page.

    Args:
        report: The report; nothing else is looked at.
    """
    title = f"{_model_name(report)}: graphopt report"
    body = "".join(
        (
            _header(report),
            _verdict(report),
            _cards(summary.figures(report)),
            _notes(report),
            _layers(summary.layer_rows(report)),
            _passes(report),
            _skips(summary.skip_groups(report)),
            _operators(report),
            _provenance(report),
        )
    )
    script = _asset("page.js")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_digest(script)}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{esc(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}"
        f"<footer>Written by {esc(report.tool.name)} {esc(report.tool.version)}. "
        "The same figures are in report.json beside this page.</footer>\n"
        f"</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def esc(value: object, limit: int | None = NAME_LIMIT) -> str:
    """Return any text as inert HTML: markup escaped, control and reordering characters written out.

    Args:
        value: The text.
        limit: Longest result before escaping, in characters; None for no limit.
    """
    return html.escape(text.printable(str(value), limit=limit), quote=True)


def _header(report: Report) -> str:
    tags = [f"recipe {report.recipe}", f"target {report.target}", report.environment.cpu, f"seed {report.seed}"]
    shown = "".join(f'<span class="tag">{esc(tag)}</span>' for tag in tags if tag)
    return (
        f'<header><p class="kicker">graphopt report</p><h1>{esc(_model_name(report), 200)}</h1>'
        f'<div class="tags">{shown}</div></header>\n'
    )


def _verdict(report: Report) -> str:
    if report.quality is None or report.quality.budget is None:
        return ""
    tone = "good" if report.quality.met else "bad"
    return f'<p class="verdict {tone}">{esc(summary.budget_line(report.quality))}</p>\n'


def _cards(figures: Iterable[Figure]) -> str:
    return f'<div class="cards">{"".join(map(_card, figures))}</div>\n'


def _card(figure: Figure) -> str:
    bars = ""
    if figure.before_value is not None and figure.after_value is not None:
        top = max(figure.before_value, figure.after_value)
        bars = (
            '<div class="pair">'
            f"<div><span>before</span>{_bar(figure.before_value, top, 'old')}<span>{esc(figure.before)}</span></div>"
            f"<div><span>after</span>{_bar(figure.after_value, top)}<span>{esc(figure.after)}</span></div></div>"
        )
    was = f" <small>was {esc(figure.before)}</small>" if figure.before and not bars else ""
    change = f'<span class="change {figure.tone}-ink">{esc(figure.change)}</span>' if figure.change else ""
    detail = f'<span class="detail">{esc(figure.detail)}</span>' if figure.detail else ""
    ink = " bad-ink" if figure.tone == "bad" and not bars else ""
    return (
        f'<div class="card"><span class="label">{esc(figure.label)}</span>'
        f'<span class="value{ink}">{esc(figure.after)}{was}</span>{change}{bars}{detail}</div>'
    )


def _notes(report: Report) -> str:
    if not report.notes:
        return ""
    items = "".join(f"<li>{esc(note, 2000)}</li>" for note in report.notes)
    return _section("What was decided", f'<ul class="notes">{items}</ul>')


def _passes(report: Report) -> str:
    if not report.passes:
        return ""
    slowest = max(entry.seconds for entry in report.passes)
    most = max(entry.patches for entry in report.passes)
    rows = []
    for entry in report.passes:
        removed = entry.nodes_after - entry.nodes_before
        options = ", ".join(f"{key} {_option(value)}" for key, value in entry.options.items())
        name = f'<span class="name">{esc(entry.name)}</span>'
        if options:
            name = f'<details><summary>{name}</summary><span class="small soft">{esc(options, 2000)}</span></details>'
        rows.append(
            f'<tr><td class="wide" data-value="{esc(entry.name)}">{name}</td>'
            f'<td class="n" data-value="{entry.patches}">{text.count(entry.patches)}</td>'
            f'<td class="bars" data-value="{entry.patches}">{_bar(entry.patches, most)}</td>'
            f'<td class="n" data-value="{len(entry.skips)}">{text.count(len(entry.skips))}</td>'
            f'<td class="n" data-value="{removed}">{f"{removed:+,}" if removed else "0"}</td>'
            f'<td class="n" data-value="{entry.seconds}">{text.seconds(entry.seconds)}</td>'
            f'<td class="bars" data-value="{entry.seconds}">{_bar(entry.seconds, slowest, "old")}</td></tr>'
        )
    heads = ("Pass", "Patches", "", "Skips", "Nodes", "Time", "")
    total = sum(entry.seconds for entry in report.passes)
    patches = sum(entry.patches for entry in report.passes)
    note = f"{text.count(patches)} patches in {text.seconds(total)}"
    return _section("Passes", _table("passes", heads, rows, numeric={1, 3, 4, 5}, sortable=False), note)


def _layers(rows: Sequence[LayerRow]) -> str:
    if not rows:
        return ""
    weighed = any(row.weight for row in rows)
    largest = max((row.weight.bytes_before for row in rows if row.weight), default=0)
    heads = [
        "Layer",
        "Operator",
        *(("Weight", "", "Zeros", "Type") if weighed else ()),
        "State",
        "What was done and why",
    ]
    cells = [_layer(row, largest, weighed=weighed) for row in rows[:LAYERS_SHOWN]]
    states = [row.status for row in rows]
    counts = [(word, states.count(word)) for word in ("changed", "kept", "reverted", "untouched")]
    note = ", ".join(f"{text.count(number)} {word}" for word, number in counts if number)
    chart = _strip([row for row in rows if row.weight]) if weighed else ""
    find = '<input type="search" placeholder="filter layers" aria-label="filter layers" data-filter="layers" hidden>'
    search = find if len(rows) > 8 else ""
    more = ""
    if len(rows) > LAYERS_SHOWN:
        more = f'<p class="soft small">{text.count(len(rows) - LAYERS_SHOWN)} more layers are in report.json.</p>'
    numeric = {2, 4} if weighed else set()
    table = _table("layers", heads, cells, numeric=numeric)
    return _section("Layers", chart + table + more, note, extra=search)


def _layer(row: LayerRow, largest: int, *, weighed: bool) -> str:
    weight = ""
    if weighed and row.weight is None:
        weight = '<td class="n"></td><td class="bars"></td><td class="n"></td><td></td>'
    elif row.weight is not None:
        known = row.weight
        kind = esc(known.type_after)
        if known.type_after != known.type_before:
            kind = f'<span class="soft">{esc(known.type_before)} →</span> {kind}'
        zeros = text.percent(known.zeros_after) if known.zeros_after >= 0.0005 else ""
        shrunk = text.size(known.bytes_after)
        weight = (
            f'<td class="n" data-value="{known.bytes_after}" title="was {text.size(known.bytes_before)}">{shrunk}</td>'
            f'<td class="bars" data-value="{known.bytes_before}">'
            f"{_bar(known.bytes_before, largest, 'old')}{_bar(known.bytes_after, largest)}</td>"
            f'<td class="n" data-value="{known.zeros_after}">{zeros}</td><td>{kind}</td>'
        )
    done = "<br>".join(_entry_text(entry.what, entry.reason) for entry in row.entries)
    return (
        f'<tr><td class="name">{esc(row.name)}</td><td>{esc(row.op)}</td>{weight}'
        f'<td><span class="state {row.status}">{row.status}</span></td><td class="wide">{done}</td></tr>'
    )


def _entry_text(what: str, reason: str) -> str:
    why = f' <span class="soft">{esc(reason, 600)}</span>' if reason else ""
    return f"{esc(what, 300)}{why}"


def _strip(rows: Sequence[LayerRow]) -> str:
    """Return bars of all weights in model order: bytes before behind bytes after."""
    if len(rows) < 2:
        return ""
    largest = max((row.weight.bytes_before for row in rows if row.weight), default=0)
    if not largest:
        return ""
    width, height = 1000.0, 120.0
    step = width / len(rows)
    bar = step * (0.72 if step > 4 else 0.9)
    drawn = []
    for index, row in enumerate(rows):
        weight = row.weight
        if weight is None:
            continue
        x = index * step + (step - bar) / 2
        old = height * weight.bytes_before / largest
        new = height * min(weight.bytes_after / largest, 1.0)
        tip = f"{row.name}: {text.size(weight.bytes_before)} to {text.size(weight.bytes_after)}"
        drawn.append(
            f"<g><title>{esc(tip, 300)}</title>"
            f'<rect class="o" x="{x:.2f}" y="{height - old:.2f}" width="{bar:.2f}" height="{old:.2f}"/>'
            f'<rect class="a" x="{x:.2f}" y="{height - new:.2f}" width="{bar:.2f}" height="{new:.2f}"/></g>'
        )
    return (
        f'<figure><svg viewBox="0 0 {width:.0f} {height:.0f}" preserveAspectRatio="none" role="img" '
        f'aria-label="bytes of each layer before and after">{"".join(drawn)}</svg>'
        f'<figcaption><span class="key old">weight before</span><span class="key">after</span>'
        f"<span>{text.count(len(rows))} layers in model order, the tallest has {text.size(largest)}</span>"
        f"</figcaption></figure>"
    )


def _skips(groups: Sequence[SkipGroup]) -> str:
    if not groups:
        return ""
    total = sum(len(group.members) for group in groups)
    note = f"{text.count(total)} places, {len(groups)} kind{'' if len(groups) == 1 else 's'} of reasons"
    return _section("What was skipped and why", "".join(map(_skip, groups)), note)


def _skip(group: SkipGroup) -> str:
    items = []
    for node, reason in group.members[:MEMBERS_SHOWN]:
        own = "" if group.uniform else f' <span class="soft small">{esc(reason, 600)}</span>'
        items.append(f'<li><span class="name">{esc(node)}</span>{own}</li>')
    rest = len(group.members) - MEMBERS_SHOWN
    if rest > 0:
        items.append(f'<li class="soft small">{text.count(rest)} more in report.json</li>')
    return (
        f'<details class="skip"><summary><span class="times">{text.count(len(group.members))}x</span>'
        f'<span class="name">{esc(group.pass_name)}</span><span>{esc(group.reason, 600)}</span></summary>'
        f"<ul>{''.join(items)}</ul></details>"
    )


def _operators(report: Report) -> str:
    before, after = report.model.before.operators, report.model.after.operators
    names = sorted({*before, *after}, key=lambda name: (-max(before.get(name, 0), after.get(name, 0)), name))
    if not names:
        return ""
    most = max(max(before.get(name, 0), after.get(name, 0)) for name in names)
    rows = []
    for name in names:
        old, new = before.get(name, 0), after.get(name, 0)
        change = f"{new - old:+,}" if new != old else ""
        rows.append(
            f'<tr><td class="name">{esc(name)}</td><td class="n">{text.count(old)}</td>'
            f'<td class="n">{text.count(new)}</td><td class="n">{change}</td>'
            f'<td class="bars wide">{_bar(old, most, "old")}{_bar(new, most)}</td></tr>'
        )
    heads = ("Operator", "Before", "After", "Change", "")
    shown = _table("operators", heads, rows[:OPERATORS_SHOWN], numeric={1, 2, 3}, sortable=False)
    if len(rows) > OPERATORS_SHOWN:
        rest = _table("operators-rest", heads, rows[OPERATORS_SHOWN:], numeric={1, 2, 3}, sortable=False)
        shown += f"<details><summary>{len(rows) - OPERATORS_SHOWN} more operators</summary>{rest}</details>"
    note = f"{text.count(report.model.before.nodes)} nodes before, {text.count(report.model.after.nodes)} after"
    return _section("Operators", shown, note)


def _provenance(report: Report) -> str:
    place = report.environment
    measured = [
        ("Processor", place.cpu),
        ("Instruction set", place.isa),
        ("Cores", str(place.cores) if place.cores else ""),
        ("System", place.system),
        ("ONNX Runtime", place.onnxruntime),
        ("onnx", place.onnx),
        ("NumPy", place.numpy),
        ("Python", place.python),
    ]
    files = [
        ("Original", report.model.before.path or ""),
        ("SHA-256", report.model.before.sha256),
        ("Result", report.model.after.path or ""),
        ("SHA-256", report.model.after.sha256),
        ("Recipe", report.recipe),
        ("Target", report.target),
        ("Seed", str(report.seed)),
    ]
    return _section("Where this comes from", f'<div class="columns">{_list(files)}{_list(measured)}</div>')


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{esc(key)}</dt><dd>{esc(value, 400)}</dd>" for key, value in pairs if value)
    return f"<dl>{items}</dl>"


def _section(title: str, body: str, note: str = "", *, extra: str = "") -> str:
    right = f'<span class="soft small">{esc(note)}</span>' if note else ""
    return f'<section><div class="head"><h2>{esc(title)}</h2>{extra}{right}</div>{body}</section>\n'


def _table(name: str, heads: Sequence[str], rows: Sequence[str], *, numeric: set[int], sortable: bool = True) -> str:
    head = "".join(f"<th{' class=n' if index in numeric else ''}>{esc(text)}</th>" for index, text in enumerate(heads))
    sort = " data-sort" if sortable else ""
    return (
        f'<div class="scroll"><table id="{name}"{sort}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bar(value: float, top: float, kind: str = "") -> str:
    share = 0.0 if top <= 0 else max(0.0, min(1.0, value / top))
    drawn = 0.0 if share == 0.0 else max(share * 100.0, 0.8)  # what is there stays visible
    return f'<div class="bar"><i{f" class={kind}" if kind else ""} style="width:{drawn:.1f}%"></i></div>'


def _option(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _model_name(report: Report) -> str:
    path = report.model.before.path
    return path.replace("\\", "/").rsplit("/", 1)[-1] if path else "model"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


@cache
def _asset(name: str) -> str:
    return (resources.files("graphopt.report") / name).read_text("utf-8")
