"""What each layer costs in each precision, as data: the table behind `graphopt quantize --budget-*`, and the plan."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from graphopt.report import text
from graphopt.report.report import Count, Entry, Environment, Finite, SkipEntry, Tool

Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class ChoiceCost(Entry):
    """One way to compute one unit."""

    choice: Literal["float", "int8", "dynamic", "weights8", "weights4"]
    """`int8`: integers in and out; `dynamic`: inputs rounded at run time; `weightsN`: float arithmetic, weights stored
    in N bits."""
    integer: bool
    """Whether it reads and makes integers, so that its border with float has to be converted."""
    seconds: Amount
    damage: Amount
    """What it alone does to the outputs: divergence in nats or noise over signal, by the table's `measure`."""
    bytes: Count
    """Of the constants that it keeps, and of what operators it has more than float."""


class UnitCosts(Entry):
    """A layer with the activation functions behind it, or an operator between layers."""

    name: str
    nodes: tuple[str, ...]
    op: str
    choices: tuple[ChoiceCost, ...]


class HandoverCosts(Entry):
    """A tensor between units."""

    tensor: str
    maker: str
    """Name of the unit; empty for what is float in any case."""
    readers: tuple[str, ...]
    """Names of units; an empty one stands for what is float in any case."""
    rounding: Amount
    """Seconds."""
    restoring: Amount


class PrecisionTable(Entry):
    """Costs of every unit of a model in every precision: with it a plan is determined."""

    schema_version: Literal[1] = 1
    tool: Tool
    model_sha256: str
    """Of the float model that it is about."""
    measure: Literal["kl", "noise"]
    samples: Count
    threads: Count
    float_seconds: Amount
    """Of the whole float model in one run."""
    summed_seconds: Amount
    """Of its units in float, summed: what the unit times are to be multiplied with is the quotient of both."""
    other_bytes: Count
    """Of the file beside the constants of the units."""
    units: tuple[UnitCosts, ...]
    tensors: tuple[HandoverCosts, ...]
    skips: tuple[SkipEntry, ...] = ()
    environment: Environment

    def to_json(self) -> str:
        """Return the table as indented JSON with a final newline."""
        return self.model_dump_json(indent=1) + "\n"


class PlanEntry(Entry):
    """What becomes of one unit."""

    name: str
    op: str
    choice: str
    seconds: Finite
    damage: Finite
    bytes: Count
    weighted: bool
    """Whether it has a weight that could be stored in fewer bits."""
    why: str


class PrecisionPlan(Entry):
    """One choice per unit."""

    entries: tuple[PlanEntry, ...]
    seconds: Amount
    """Predicted for the whole model."""
    float_seconds: Amount
    bytes: Count
    """Predicted of the file."""
    damage: Amount
    measure: Literal["kl", "noise"]


def render_plan(plan: PrecisionPlan) -> str:
    """Return the plan as a table for a terminal."""
    from rich.console import Group
    from rich.text import Text

    from graphopt.report.console import table, to_text

    rows = [
        (
            *(entry.name, entry.op, entry.choice),
            *(f"{entry.seconds * 1e6:.1f}", f"{entry.damage:.2g}", text.size(entry.bytes), entry.why),
        )
        for entry in plan.entries
        if entry.weighted or entry.choice != "float"
    ]
    rest = len(plan.entries) - len(rows)
    more = [Text(), Text(f"{text.count(rest)} further operators without weights stay float.")] if rest else []
    heads = ("layer", "operator", "choice", "µs", "damage", "size", "why")
    unit = "KL divergence in nats" if plan.measure == "kl" else "noise over signal"
    total = (
        f"Predicted: {plan.seconds * 1e3:.3g} ms where float takes {plan.float_seconds * 1e3:.3g}; "
        f"{text.size(plan.bytes)}; damage {plan.damage:.2g} ({unit}, added up)."
    )
    return to_text(
        Group(Text("The plan, before it runs:"), Text(), table(heads, rows, left=3), *more, Text(), Text(total))
    )
