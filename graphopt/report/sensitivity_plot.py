"""Draws sensitivities: one line per layer, one mark per level, on a logarithmic axis. SVG that needs nothing else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graphopt.report.markup import esc
from graphopt.report.plot_page import PLOT_STYLE, plot_page
from graphopt.report.sensitivity import figure, unit_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.report.sensitivity import LevelDamage, Sensitivity

LEFT, WIDTH, RIGHT = 260.0, 660.0, 30.0
"""Room for names, for the axis and behind it."""
LINE = 22.0
"""Height of a layer."""
HUES = {"bits": 215, "sparsity": 12, "pattern": 150}
MOST_DECADES = 9
"""Marks further left than so many decades below the largest stand at the edge: they do no damage that counts."""


def draw(found: Sensitivity) -> str:
    """Return the plot as one SVG document.

    Args:
        found: What was measured.
    """
    low, high = _decades(found)
    legend = 2 + -(-len(found.levels) // 6)
    top = legend * 20.0 + 44.0
    height = top + LINE * len(found.layers) + 16.0
    total = LEFT + WIDTH + RIGHT
    box = f'viewBox="0 0 {total:.0f} {height:.0f}" width="{total:.0f}" height="{height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="damage of each layer at each level">',
        f"<style>{PLOT_STYLE}</style>",
        f'<text x="12" y="24" font-size="15" font-weight="600">{esc(_title(found))}</text>',
        *_legend(found),
        *_axis(low, high, top, height - 16.0),
    ]
    for place, layer in enumerate(found.layers):
        y = top + LINE * (place + 0.5)
        parts.append(f'<line class="row" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{esc(layer.name, 36)}</text>')
        for level in layer.levels:
            parts += _mark(level, y, low, high, _colour(found.levels, level.level), layer.name)
    return "".join(parts) + "</svg>\n"


def page(found: Sensitivity) -> str:
    """Return the plot with a table of all figures as one HTML page that makes no request."""
    heads = ("layer", "op", "weights", *found.levels)
    rows = [
        (layer.name, layer.op, f"{layer.weights:,}", *(figure(level) for level in layer.levels))
        for layer in found.layers
    ]
    skips = "".join(f"<li>{esc(skip.node)}: {esc(skip.reason, 600)}</li>" for skip in found.skips)
    left_out = f"<h2>Not measured</h2><ul>{skips}</ul>" if skips else ""
    footer = (
        f"Written by {found.tool.name} {found.tool.version}; {found.samples:,} held-back samples, seed {found.seed}."
    )
    return plot_page(_title(found), draw(found), heads, rows, left_out, footer)


def _title(found: Sensitivity) -> str:
    path = (found.model.path or "model").replace("\\", "/").rsplit("/", 1)[-1]
    return f"{path}: damage of compressing one layer alone"


def _decades(found: Sensitivity) -> tuple[int, int]:
    """Return the powers of ten that the axis lies between."""
    values = [level.damage for layer in found.layers for level in layer.levels if level.damage > 0]
    if not values:
        return -3, 0
    high = math.ceil(math.log10(max(values)) + 1e-9)
    low = max(math.floor(math.log10(min(values))), high - MOST_DECADES)
    return min(low, high - 1), high


def _axis(low: int, high: int, top: float, bottom: float) -> list[str]:
    parts = []
    for power in range(low, high + 1):
        x = LEFT + WIDTH * (power - low) / (high - low)
        label = f"{10.0**power:g}"
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{top - 6:.1f}" text-anchor="middle">{label}</text>')
    return parts


def _legend(found: Sensitivity) -> list[str]:
    what = f"{unit_of(found)}; lines span one standard error; {found.samples:,} held-back samples"
    parts = [f'<text class="soft" x="12" y="44">{esc(what)}</text>']
    for place, level in enumerate(found.levels):
        x, y = 20.0 + 150.0 * (place % 6), 64.0 + 20.0 * (place // 6)
        parts.append(_shape(level, x, y, _colour(found.levels, level), ""))
        parts.append(f'<text x="{x + 12:.0f}" y="{y + 4:.0f}">{esc(level, 18)}</text>')
    return parts


def _mark(level: LevelDamage, y: float, low: int, high: int, colour: str, layer: str) -> list[str]:
    x = _place(level.damage, low, high)
    before = _place(level.damage - level.damage_error, low, high)
    after = _place(level.damage + level.damage_error, low, high)
    parts = []
    if level.damage_error > 0 and level.damage > 0:
        line = f'x1="{before:.1f}" x2="{after:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        parts.append(f'<line class="whisker" {line}/>')
    tip = f"{layer}, {level.level}: {figure(level)}"
    if level.agreement is not None:
        tip += f", agreement {level.agreement:.4g}"
    return [*parts, _shape(level.level, x, y, colour, f"{tip}, {level.sqnr_db:.1f} dB")]


def _place(damage: float, low: int, high: int) -> float:
    share = 0.0 if damage <= 0 else (math.log10(damage) - low) / (high - low)
    return LEFT + WIDTH * min(1.0, max(0.0, share))


def _shape(level: str, x: float, y: float, colour: str, tip: str) -> str:
    """Return a mark: bits are circles, shares of zeros squares, patterns diamonds."""
    title = f"<title>{esc(tip, 300)}</title>" if tip else ""
    kind = level.partition("=")[0]
    if kind == "bits":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}">{title}</circle>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if kind == "pattern" else ""
    corner = f'x="{x - 4.5:.1f}" y="{y - 4.5:.1f}"'
    return f'<rect {corner} width="9" height="9" fill="{colour}"{turn}>{title}</rect>'


def _colour(levels: Sequence[str], level: str) -> str:
    """Return a colour: the hue says which kind, the darkness how late among its kind."""
    kind = level.partition("=")[0]
    same = [each for each in levels if each.partition("=")[0] == kind]
    step = same.index(level) / max(1, len(same) - 1)
    return f"hsl({HUES.get(kind, 280)} 75% {72 - 38 * step:.0f}%)"
