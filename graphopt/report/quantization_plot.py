"""Draws the errors of a quantized model: a line per tensor, a mark per figure, decibels along the axis. SVG alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.report.markup import esc
from graphopt.report.plot_page import PLOT_STYLE, plot_page
from graphopt.report.quantization_errors import decibels, sentence, span
from graphopt.report.sensitivity_plot import LEFT, LINE, RIGHT, WIDTH

if TYPE_CHECKING:
    from graphopt.report.quantization_errors import QuantizationErrors, TensorEntry

LOW, HIGH = 0.0, 60.0
"""Ends of the axis in dB; what lies beyond stands at the edge."""
TICK = 10
COLOURS = {"own": "hsl(215 75% 48%)", "sum": "hsl(12 75% 52%)", "weight": "hsl(150 60% 40%)"}
NAMES = {"own": "the layer alone", "sum": "with all layers before", "weight": "its weight"}
HEAD = 84.0


def draw(found: QuantizationErrors) -> str:
    """Return the plot as one SVG document."""
    height = HEAD + LINE * len(found.tensors) + 16.0
    total = LEFT + WIDTH + RIGHT
    box = f'viewBox="0 0 {total:.0f} {height:.0f}" width="{total:.0f}" height="{height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="errors of each tensor in decibels">',
        f"<style>{PLOT_STYLE}</style>",
        f'<text x="12" y="24" font-size="15" font-weight="600">{esc(_title(found))}</text>',
        f'<text class="soft" x="12" y="44">{esc(sentence(found), 150)}</text>',
    ]
    for place, (kind, words) in enumerate(NAMES.items()):
        x = 20.0 + 190.0 * place
        parts.append(_shape(kind, x, 62.0, "") + f'<text x="{x + 12:.0f}" y="66">{words}</text>')
    for value in range(int(LOW), int(HIGH) + 1, TICK):
        x = _place(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{HEAD}" y2="{height - 16:.1f}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{HEAD - 4}" text-anchor="middle">{value} dB</text>')
    for place, entry in enumerate(found.tensors):
        parts += _row(entry, HEAD + LINE * (place + 0.5), worst=entry.name == found.worst)
    return "".join(parts) + "</svg>\n"


def page(found: QuantizationErrors) -> str:
    """Return the plot with a table of all figures as one HTML page that makes no request."""
    heads = ("tensor", "operator", "own dB", "sum dB", "weight dB", "drop dB", "values", "grid", "outside", "reason")
    rows = [
        (
            *(entry.name, entry.op, decibels(entry.own_db), decibels(entry.accumulated_db), decibels(entry.weight_db)),
            *(f"{entry.drop_db:.1f}", span(entry.low, entry.high), span(entry.grid_low, entry.grid_high)),
            *("" if entry.outside is None else f"{100 * entry.outside:.3g} %", entry.reason),
        )
        for entry in found.tensors
    ]
    left = "".join(f"<li>{esc(each.node)}: {esc(each.reason, 600)}</li>" for each in found.unmatched)
    rest = f"<h2>Not compared</h2><ul>{left}</ul>" if left else ""
    footer = f"Written by {found.tool.name} {found.tool.version}; {found.samples:,} samples, seed {found.seed}."
    return plot_page(_title(found), draw(found), heads, rows, rest, footer)


def _title(found: QuantizationErrors) -> str:
    names = [(each.path or "model").replace("\\", "/").rsplit("/", 1)[-1] for each in (found.model, found.quantized)]
    return f"{names[1]} against {names[0]}: signal to quantization noise"


def _row(entry: TensorEntry, y: float, *, worst: bool) -> list[str]:
    weight = ' font-weight="700"' if worst else ""
    parts = [
        f'<line class="row" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>',
        f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end"{weight}>{esc(entry.name, 36)}</text>',
    ]
    figures = {"own": entry.own_db, "sum": entry.accumulated_db, "weight": entry.weight_db}
    for kind, value in figures.items():
        if value is not None:
            tip = f"{entry.name}, {NAMES[kind]}: {decibels(value)} dB"
            parts.append(_shape(kind, _place(value), y, f"{tip}; {entry.reason}" if entry.reason else tip))
    return parts


def _place(value: float) -> float:
    return LEFT + WIDTH * min(1.0, max(0.0, (value - LOW) / (HIGH - LOW)))


def _shape(kind: str, x: float, y: float, tip: str) -> str:
    title = f"<title>{esc(tip, 300)}</title>" if tip else ""
    colour = COLOURS[kind]
    if kind == "own":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}">{title}</circle>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if kind == "weight" else ""
    corner = f'x="{x - 4.5:.1f}" y="{y - 4.5:.1f}"'
    return f'<rect {corner} width="9" height="9" fill="{colour}"{turn}>{title}</rect>'
