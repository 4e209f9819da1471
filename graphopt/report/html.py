"""The report as one HTML page that needs nothing else: no network, no fonts, no scripts from elsewhere.

Everything that comes from a model (names of nodes and operators, reasons, notes) is untrusted. It passes through `esc`,
and the page's own content policy forbids every script but the one of this package, by its hash, and every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from graphopt.report import summary, text
from graphopt.report.layer_section import layers
from graphopt.report.markup import bar, esc, plural, section, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

    from graphopt.report.report import Report
    from graphopt.report.summary import Figure, SkipGroup

MEMBERS_SHOWN = 200
"""Nodes listed under one reason; the rest is in report.json."""
OPERATORS_LISTED = 500
"""Operators that are listed at all."""
GROUPS_SHOWN = 200
"""Kinds of reasons that are listed."""
NOTES_SHOWN = 200
"""Notes that are listed."""
ONE_ROW = 3
"""Figures that fit one row together."""
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
            layers(summary.layer_rows(report)),
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


def _cards(figures: Sequence[Figure]) -> str:
    """Return a card per figure; those that people ask for first are larger."""
    few = len(figures) <= ONE_ROW
    major = [figure for figure in figures if figure.major or few]
    minor = [figure for figure in figures if not figure.major and not few]
    rows = [("cards", major), ("cards minor", minor)]
    return "".join(f'<div class="{kind}">{"".join(map(_card, row))}</div>\n' for kind, row in rows if row)


def _card(figure: Figure) -> str:
    bars = ""
    if figure.before_value is not None and figure.after_value is not None:
        top = max(figure.before_value, figure.after_value)
        bars = (
            '<div class="pair">'
            f"<div><span>before</span>{bar(figure.before_value, top, 'old')}<span>{esc(figure.before)}</span></div>"
            f"<div><span>after</span>{bar(figure.after_value, top)}<span>{esc(figure.after)}</span></div></div>"
        )
    if figure.share is not None:
        bars = f'<div class="pair single">{bar(figure.share, 1.0)}</div>'
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
    items = "".join(f"<li>{esc(note, 2000)}</li>" for note in report.notes[:NOTES_SHOWN])
    more = _rest(len(report.notes) - NOTES_SHOWN, "more note")
    return section("What was decided", f'<ul class="notes">{items}</ul>{more}')


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
            f'<td class="bars" data-value="{entry.patches}">{bar(entry.patches, most)}</td>'
            f'<td class="n" data-value="{len(entry.skips)}">{text.count(len(entry.skips))}</td>'
            f'<td class="n" data-value="{removed}">{f"{removed:+,}" if removed else "0"}</td>'
            f'<td class="n" data-value="{entry.seconds}">{text.seconds(entry.seconds)}</td>'
            f'<td class="bars" data-value="{entry.seconds}">{bar(entry.seconds, slowest, "old")}</td></tr>'
        )
    heads = ("Pass", "Patches", "", "Skips", "Nodes", "Time", "")
    total = sum(entry.seconds for entry in report.passes)
    patches = sum(entry.patches for entry in report.passes)
    note = f"{plural(patches, 'patch', 'es')} in {text.seconds(total)}"
    return section("Passes", table("passes", heads, rows, numeric={1, 3, 4, 5}), note)


def _skips(groups: Sequence[SkipGroup]) -> str:
    if not groups:
        return ""
    total = sum(len(group.members) for group in groups)
    note = f"{plural(total, 'place')}, {plural(len(groups), 'kind')} of reasons"
    body = "".join(map(_skip, groups[:GROUPS_SHOWN])) + _rest(len(groups) - GROUPS_SHOWN, "more kind")
    return section("What was skipped and why", body, note)


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
            f'<td class="bars wide">{bar(old, most, "old")}{bar(new, most)}</td></tr>'
        )
    heads = ("Operator", "Before", "After", "Change", "")
    shown = table("operators", heads, rows[:OPERATORS_SHOWN], numeric={1, 2, 3})
    if len(rows) > OPERATORS_SHOWN:
        rest = table("operators-rest", heads, rows[OPERATORS_SHOWN:OPERATORS_LISTED], numeric={1, 2, 3})
        rest += _rest(len(rows) - OPERATORS_LISTED, "more operator")
        shown += f"<details><summary>{len(rows) - OPERATORS_SHOWN} more operators</summary>{rest}</details>"
    note = f"{text.count(report.model.before.nodes)} nodes before, {text.count(report.model.after.nodes)} after"
    return section("Operators", shown, note)


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
    return section("Where this comes from", f'<div class="columns">{_list(files)}{_list(measured)}</div>')


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{esc(key)}</dt><dd>{esc(value, 400)}</dd>" for key, value in pairs if value)
    return f"<dl>{items}</dl>"


def _rest(count: int, what: str) -> str:
    """Return how many things are not shown; empty when all are."""
    return f'<p class="soft small">{plural(count, what)} in report.json.</p>' if count > 0 else ""


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
