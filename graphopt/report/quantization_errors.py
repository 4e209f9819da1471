"""Where a quantized model departs from its float one, as data: the object behind `graphopt debug-quantization`.

The classes are the schema: `QuantizationErrors.model_json_schema()` prints it and
`QuantizationErrors.model_validate_json(text)` reads a file back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from graphopt.report import text
from graphopt.report.console import table, to_text
from graphopt.report.report import Count, Decibels, Entry, Environment, Finite, ModelInfo, Share, SkipEntry, Tool

if TYPE_CHECKING:
    from rich.console import RenderableType

EQUAL_DB = 200.0
BAD_DB = 20.0
"""SQNR below which a figure is shown in red."""


class TensorEntry(Entry):
    """One tensor of the float model and what stands for it in the quantized one."""

    name: str
    op: str
    """What makes it; empty for an input of the model."""
    layer: str
    """The node that makes it."""
    counterpart: str
    """The tensor of the quantized model that holds its values, before they are rounded."""
    how: str
    """How the two were matched: `input`, `name`, `node`, `structure`, or `absorbed` where the quantized model makes it
    without an operator of its own, by the ends of a grid or inside the weights of the layer before."""
    rounded: bool
    """Whether the values compared are those after rounding."""
    own_db: Decibels
    """SQNR of what its layer makes of inputs from the float model, dB: the error that the layer adds by itself."""
    accumulated_db: Decibels
    """SQNR in the quantized model as it runs, with the errors of all layers before, dB."""
    drop_db: Finite
    """How far the accumulated SQNR falls below that of the layer's inputs, or 40 where those are better, dB."""
    weight_db: Decibels | None = None
    """SQNR of the layer's weight, dB; null where there is none to compare."""
    low: Finite
    """Smallest float value."""
    high: Finite
    grid_low: Finite | None = None
    """Smallest value on the grid that it is rounded to; null where there is none, or several."""
    grid_high: Finite | None = None
    outside: Share | None = None
    """Share of the values beyond the ends of the grid."""
    reason: str = ""
    """What the error most likely comes from, where the drop is large."""


class QuantizationErrors(Entry):
    """Every tensor of a float model that a quantized one has as well."""

    schema_version: Literal[1] = 1
    tool: Tool
    model: ModelInfo
    quantized: ModelInfo
    data: str
    """The feeds, as the user named them; `random` where there were none."""
    samples: Count
    tensors: tuple[TensorEntry, ...]
    """In the order of the float model."""
    worst: str | None = None
    """Tensor behind the first bad layer, the one with the largest drop; null where none stands out."""
    unmatched: tuple[SkipEntry, ...] = ()
    """Tensors of the float model without a counterpart, or that could not be compared, with the reason."""
    environment: Environment
    seed: int = 0

    def to_json(self) -> str:
        """Return the figures as indented JSON with a final newline."""
        return self.model_dump_json(indent=2) + "\n"

    def worst_entry(self) -> TensorEntry | None:
        """Return the entry of the first bad layer."""
        return next((entry for entry in self.tensors if entry.name == self.worst), None)


def decibels(value: float | None) -> str:
    """Return a ratio for people: "31.4", "equal", "" for none."""
    if value is None:
        return ""
    return "equal" if value >= EQUAL_DB else f"{value:.1f}"


def span(low: float | None, high: float | None) -> str:
    """Return a range for people."""
    return "" if low is None or high is None else f"{low:.4g} to {high:.4g}"


def sentence(found: QuantizationErrors) -> str:
    """Return the finding in one sentence."""
    entry = found.worst_entry()
    if entry is None:
        return "No layer stands out: none loses much more than the layers before it."
    where = f"{entry.op} '{entry.layer}'" if entry.layer else f"the input '{entry.name}'"
    return f"First bad layer: {where} loses {entry.drop_db:.1f} dB: {entry.reason}."


def render(found: QuantizationErrors, *, rows: int | None = None) -> str:
    """Return the table for a terminal, the finding below.

    Args:
        found: What was measured.
        rows: So many rows at most, those with the largest drops, in model order; None shows all.
    """
    from rich.console import Group
    from rich.text import Text

    shown = list(found.tensors)
    if rows is not None and len(shown) > rows:
        keep = {entry.name for entry in sorted(shown, key=lambda entry: -entry.drop_db)[:rows]}
        shown = [entry for entry in shown if entry.name in keep]
    cells: list[tuple[str | Text, ...]] = []
    for entry in shown:
        style = "bold red" if entry.name == found.worst else ""
        figures = [
            Text(decibels(value), "red" if value is not None and value < BAD_DB else "")
            for value in (entry.own_db, entry.accumulated_db, entry.weight_db)
        ]
        clipped = "" if not entry.outside else text.percent(entry.outside)
        spans = span(entry.low, entry.high), span(entry.grid_low, entry.grid_high)
        name = Text(text.printable(entry.name), style)
        cells.append((name, entry.op, *figures, f"{entry.drop_db:.1f}", *spans, clipped))
    heads = ("tensor", "operator", "own\ndB", "sum\ndB", "weight\ndB", "drop\ndB", "values", "grid", "outside")
    what = (
        f"Signal to quantization noise on {text.count(found.samples)} samples: of each layer on inputs from the float "
        "model (own), and as the quantized model runs (sum)."
    )
    parts: list[RenderableType] = [Text(what), Text(), table(heads, cells, left=2), Text()]
    if len(shown) < len(found.tensors):
        parts += [Text(f"{len(found.tensors) - len(shown)} tensors with smaller drops are not shown."), Text()]
    if found.unmatched:
        parts += [Text(f"Not compared: {text.count(len(found.unmatched))} tensors, listed in the JSON."), Text()]
    parts.append(Text(text.printable(sentence(found)), "bold"))
    return to_text(Group(*parts))
