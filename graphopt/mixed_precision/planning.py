"""Makes a plan from a table: one choice per unit, within a budget of time, bytes or damage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.errors import BudgetError
from graphopt.mixed_precision.costs import rounding_options
from graphopt.report.precision import PlanEntry, PrecisionPlan
from graphopt.solve.islands import OUTSIDE, Handover, Islands, Option, Prices, divide, divide_within, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.report.precision import ChoiceCost, PrecisionTable
    from graphopt.solve.islands import Division

STORED = {"weights8": 8, "weights4": 4}
DYNAMIC, STATIC = "dynamic", "int8"
WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"))


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a model may cost.

    Attributes:
        seconds: Of one run of the whole model; None for any.
        size: Bytes of the file.
        damage: Sum of the damages of its units.
    """

    seconds: float | None = None
    size: float | None = None
    damage: float | None = None


def make_plan(table: PrecisionTable, budgets: Budgets) -> PrecisionPlan:
    """Return the plan: least damage within the time and bytes allowed, or, with a budget of damage alone, least time.

    Args:
        table: What everything costs.
        budgets: What is allowed; without any the fastest model is planned, whatever it damages.

    Raises:
        BudgetError: Nothing that was measured fits.
    """
    problem = islands_of(table)
    factor = scale_of(table)
    limits: dict[str, float] = {}
    if budgets.seconds is not None:
        limits["seconds"] = budgets.seconds / factor
    if budgets.size is not None:
        limits["size"] = budgets.size - table.other_bytes
    if budgets.damage is not None:
        limits["damage"] = budgets.damage
    goal = "damage" if "damage" not in limits and limits else "seconds"
    found = None
    if budgets.size is not None and budgets.seconds is None:
        # bytes alone could be saved at any price in time: not slower than float, where that is possible
        found = divide_within(problem, goal, {**limits, "seconds": table.summed_seconds})
    if found is None:
        found = divide_within(problem, goal, limits) if limits else divide(problem, Prices(seconds=1.0))
    if found is None:
        raise BudgetError(
            f"no choice of precisions fits: {_least(table, problem, factor, limits)}",
            must="A budget lies above what the smallest or fastest choice takes",
            do="Allow more, or compress the model before",
        )
    return _described(table, problem, found, factor)


def islands_of(table: PrecisionTable) -> Islands:
    """Return the problem that a table describes."""
    places = {unit.name: place for place, unit in enumerate(table.units)}
    options = tuple(
        tuple(Option(each.choice, each.integer, each.seconds, each.damage, each.bytes) for each in unit.choices)
        for unit in table.units
    )
    tensors = tuple(
        Handover(
            places.get(each.maker, OUTSIDE),
            tuple(places.get(reader, OUTSIDE) for reader in each.readers),
            each.rounding,
            each.restoring,
        )
        for each in table.tensors
    )
    return Islands(options, tensors)


def scale_of(table: PrecisionTable) -> float:
    """Return what sums of unit times are multiplied with to predict a whole run."""
    return table.float_seconds / table.summed_seconds if table.summed_seconds > 0 else 1.0


def recipe_of_plan(table: PrecisionTable, plan: PrecisionPlan, labels: Iterable[str]) -> dict[str, Any]:
    """Return the recipe that carries a plan out.

    Args:
        table: What it was made from.
        plan: The plan.
        labels: Names of all nodes of the prepared model.
    """
    chosen = {entry.name: entry.choice for entry in plan.entries}
    stored = {name: STORED[choice] for name, choice in chosen.items() if choice in STORED}
    planned = [label for unit in table.units if chosen[unit.name] in {STATIC, DYNAMIC} for label in unit.nodes]
    passes: list[Any] = [{"raise-opset": {"to": 21}}, "fuse-bias"]
    if stored:
        passes.append({"round-weights": {**rounding_options(list(labels), stored)}})
    if planned:
        passes.append({"insert-qdq": {"planned": tuple(planned)}})
    passes.append("eliminate-dead")
    return {
        "name": "mixed",
        "description": "Each layer in the precision that a plan chose for it.",
        "imports": ["default"],
        "passes": passes,
    }


def _described(table: PrecisionTable, problem: Islands, found: Division, factor: float) -> PrecisionPlan:
    entries = []
    for place, unit in enumerate(table.units):
        choice = unit.choices[found.choice[place]]
        entries.append(
            PlanEntry(
                name=unit.name,
                op=unit.op,
                choice=choice.choice,
                seconds=choice.seconds * factor,
                damage=choice.damage,
                bytes=choice.bytes,
                weighted=unit.op in WEIGHTED or any(each.choice in {*STORED, DYNAMIC} for each in unit.choices),
                why=_why(unit.choices, problem, found, place, factor),
            )
        )
    return PrecisionPlan(
        entries=tuple(entries),
        seconds=found.seconds * factor,
        float_seconds=table.float_seconds,
        bytes=round(found.size) + table.other_bytes,
        damage=found.damage,
        measure=table.measure,
    )


def _why(choices: tuple[ChoiceCost, ...], problem: Islands, found: Division, place: int, factor: float) -> str:
    """Return why a unit computes as it does, by what the nearest other choice would change."""
    chosen = choices[found.choice[place]]
    floating = choices[0]
    if chosen.choice != "float":
        without = evaluate(problem, (*found.choice[:place], 0, *found.choice[place + 1 :]))
        saved, smaller = without.seconds - found.seconds, floating.bytes - chosen.bytes
        parts = [f"{saved * factor * 1e6:.1f} µs"] if saved > 0 else []
        parts += [f"{smaller / 1e3:.1f} kB"] if smaller > 0 else []
        return f"saves {' and '.join(parts)}" if parts else "its neighbours are integers: a border would cost more"
    other = next((each for each in choices if each.choice in {STATIC, DYNAMIC}), None)
    if other is None:
        return "no integer form" if len(choices) == 1 else "no integer form, and its weight may stay as it is"
    turned = evaluate(problem, (*found.choice[:place], choices.index(other), *found.choice[place + 1 :]))
    if other.seconds >= floating.seconds:
        return f"slower in int8: {other.seconds * factor * 1e6:.1f} µs against {floating.seconds * factor * 1e6:.1f}"
    if turned.seconds >= found.seconds:
        return "converting its neighbours would cost more than int8 saves"
    return f"int8 would do damage of {other.damage:.2g}"


def _least(table: PrecisionTable, problem: Islands, factor: float, limits: dict[str, float]) -> str:
    """Return what can be reached of what is limited, each for itself."""
    parts = []
    if "seconds" in limits:
        fastest = divide(problem, Prices(seconds=1.0)).seconds * factor
        parts.append(f"{fastest * 1e3:.3g} ms is the fastest")
    if "size" in limits:
        smallest = divide(problem, Prices(size=1.0)).size + table.other_bytes
        parts.append(f"{smallest / 1e3:.4g} kB is the smallest")
    if "damage" in limits:
        parts.append("float does no damage")
    return ", ".join(parts)
