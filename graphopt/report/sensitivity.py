"""How much each layer suffers from each level of compression, as data: the object behind `graphopt sensitivity`.

The classes are the schema: `Sensitivity.model_json_schema()` prints it and `Sensitivity.model_validate_json(text)`
reads a file back. A change that an older reader cannot read raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from graphopt.report import text
from graphopt.report.console import table, to_text
from graphopt.report.report import Count, Decibels, Entry, Environment, Finite, ModelInfo, Share, SkipEntry, Tool

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA_VERSION = 1
GROUPS_SHOWN = 8
"""Reasons for layers without figures that the terminal lists; all of them are in the JSON."""


class LevelDamage(Entry):
    """What compressing one layer to one level does to the outputs of a model that is otherwise as it was."""

    level: str
    """`kind=value`, one of the file's `levels`."""
    size: Share
    """Share of the layer's size that is left: bits of a weight over 32, or weights that are not zero."""
    damage: Finite
    """What layers are compared by, in the unit of the file's `measure`; 0 for equal outputs."""
    damage_error: Finite
    """Its standard error."""
    kl: Finite | None = None
    """KL(original || result) of the first output's classes, nats; null unless it is class scores."""
    kl_error: Finite | None = None
    agreement: Share | None = None
    """Share of rows with the same largest class (for embeddings: the rank correlation of their similarities)."""
    agreement_error: Finite | None = None
    sqnr_db: Decibels
    """Signal to noise ratio of the worst output, dB; 200 stands for equal outputs."""
    sqnr_error_db: Finite | None = None


class LayerDamage(Entry):
    """One layer at every level."""

    name: str
    op: str
    shape: tuple[int, ...]
    """Of its weight."""
    weights: Count
    solved: bool
    """True when the weights were solved on statistics of the layer's inputs; false for rounding to nearest and
    magnitude, where these could not be had."""
    levels: tuple[LevelDamage, ...]


class Sensitivity(Entry):
    """Every layer of a model at every level."""

    schema_version: Literal[1] = 1
    tool: Tool
    model: ModelInfo
    data: str
    """The feeds, as the user named them."""
    samples: Count
    """Samples that the outputs were compared on; none of them was used for solving."""
    calibration_samples: Count
    """Samples that statistics were collected on."""
    measure: Literal["kl", "noise"]
    """The unit of `damage`: `kl`, divergence in nats where the first output is class scores; else `noise`, the energy
    of the difference over that of the output, for the worst output."""
    levels: tuple[str, ...]
    layers: tuple[LayerDamage, ...]
    """In model order."""
    skips: tuple[SkipEntry, ...] = ()
    environment: Environment
    seed: int = 0

    def to_json(self) -> str:
        """Return the figures as indented JSON with a final newline."""
        return self.model_dump_json(indent=2) + "\n"


def unit_of(found: Sensitivity) -> str:
    """Return what the damage is, in words."""
    return "KL divergence in nats" if found.measure == "kl" else "noise over signal"


def figure(level: LevelDamage) -> str:
    """Return a damage with its standard error, short: "0.013 ± 0.002"; "0" for equal outputs."""
    return "0" if level.damage == 0 else f"{level.damage:.2g} ± {level.damage_error:.1g}"


def render(found: Sensitivity) -> str:
    """Return the table for a terminal: a row per layer, a column per level, the worst layer of each level marked."""
    from rich.console import Group
    from rich.text import Text

    worst = {
        place: max((layer.levels[place].damage for layer in found.layers), default=0.0)
        for place in range(len(found.levels))
    }
    rows: list[tuple[str | Text, ...]] = []
    for layer in found.layers:
        cells: list[Text] = []
        for place, level in enumerate(layer.levels):
            top = level.damage > 0 and level.damage == worst[place]
            value, _, error = figure(level).partition(" ")
            style = "bold red" if top else ""
            cells.append(Text.assemble((value, style), (f"\n{error}" if error else "", "dim")))
        name = layer.name if layer.solved else f"{layer.name} *"
        rows.append((name, layer.op, text.short_count(layer.weights), *cells))
    heads = [level.replace("=", "\n") for level in found.levels]
    made = table(("layer", "op", "weights", *heads), rows, left=2)
    what = (
        f"Damage of compressing one layer alone: {unit_of(found)}, with its standard error, on "
        f"{text.count(found.samples)} held-back samples."
    )
    parts: list[RenderableType] = [Text(what), Text(), made]
    if any(not layer.solved for layer in found.layers):
        parts += [Text(), Text("* rounded to nearest and pruned by magnitude: its inputs could not be observed")]
    if found.skips:
        parts += [Text(), _skipped(found)]
    return to_text(Group(*parts))


def _skipped(found: Sensitivity) -> RenderableType:
    groups: dict[str, list[str]] = {}
    for skip in found.skips:
        groups.setdefault(skip.reason, []).append(skip.node)
    rows = [
        (f"{len(nodes)}x", nodes[0] if len(nodes) == 1 else f"{nodes[0]} and others", reason)
        for reason, nodes in list(groups.items())[:GROUPS_SHOWN]
    ]
    if len(groups) > GROUPS_SHOWN:
        rows.append(("", "", f"{len(groups) - GROUPS_SHOWN} more reasons, listed in the JSON"))
    return table(("not measured", "layer", "reason"), rows, left=3)
