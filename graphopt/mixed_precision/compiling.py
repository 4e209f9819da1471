"""Carries plans out: compiles by a plan, looks at what really came of it, and plans tighter where it was too much."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graphopt import pipeline
from graphopt.errors import BudgetError, UsageError
from graphopt.graph.labels import node_label
from graphopt.mixed_precision.costs import CALIBRATION_SAMPLES, HELD_BACK_SAMPLES, JUDGING_SAMPLES, prepare
from graphopt.mixed_precision.planning import Budgets, make_plan, recipe_of_plan
from graphopt.report.build import model_info
from graphopt.rewrite import PassManager, load_recipe
from graphopt.runtime import Feeds, input_specs
from graphopt.verify.quality import Judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.graph import Model
    from graphopt.report.precision import PrecisionPlan, PrecisionTable
    from graphopt.result import Result

ATTEMPTS = 3
"""Plans tried at most: each is tightened by how much the one before was over its budget."""

HEADROOM = 0.98
"""A tightened budget aims this much below."""

MAX_DROP, FEW_BITS_MAX_DROP = 1.0, 3.0
"""Loss allowed where the user names none: of 8 bits, and where a layer has 4."""

DROP_STEPS = 6
"""Bisection steps of the damage that a loss corresponds to."""

DECADES = 4.0
"""How far below the damage of the fastest plan that search begins."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user allows.

    Attributes:
        seconds: Of one run, or a share of float's where ``relative_seconds``.
        relative_seconds: Whether it is a share.
        size: Bytes of the file, or a share of the original's where ``relative_size``.
        relative_size: Whether it is a share.
        drop: Largest loss, in the units of ``--max-drop``.
    """

    seconds: float | None = None
    relative_seconds: bool = False
    size: float | None = None
    relative_size: bool = False
    drop: float | None = None

    def budgets(self, table: PrecisionTable, original_bytes: int) -> Budgets:
        """Return seconds and bytes as such."""
        seconds, size = self.seconds, self.size
        if seconds is not None and self.relative_seconds:
            seconds *= table.float_seconds
        if size is not None and self.relative_size:
            size *= original_bytes
        return Budgets(seconds=seconds, size=size)


def compile_within(
    model: Model,
    table: PrecisionTable,
    request: Request,
    *,
    show: Callable[[PrecisionPlan], None],
    **given: Any,
) -> Result:
    """Compile a model by the plan that its table and a request determine.

    Args:
        model: The float model.
        table: Its costs; see `measure_costs`.
        request: What is allowed.
        show: Told each plan before it runs.
        given: Further arguments of `pipeline.compile`, the recipe aside.

    Returns:
        The result; ``unmet`` says by how much time or bytes are over their budget after the last plan.

    Raises:
        UsageError: The table is about another model.
        BudgetError: Nothing that was measured fits.
    """
    info = model_info(model)
    if table.model_sha256 != info.sha256:
        raise UsageError(
            "the table is about another model",
            where="--precision-table",
            must="Its hash is that of the model",
            do="Name another file: it is written where there is none",
        )
    wanted = budgets = request.budgets(table, info.bytes)
    prepared = prepare(model)
    labels = [node_label(node) for _, node in prepared.walk(functions=False)]
    if request.drop is not None:
        budgets = replace(budgets, damage=_damage_of_drop(prepared, table, budgets, request.drop, labels, given))
    result: Result | None = None
    unmet: list[str] = []
    for _ in range(ATTEMPTS):
        try:
            plan = make_plan(table, budgets)
        except BudgetError:
            if result is None:
                raise
            break
        show(plan)
        recipe = recipe_of_plan(table, plan, labels)
        few = any(entry.choice == "weights4" for entry in plan.entries)
        recipe["budget"] = {"max_drop": FEW_BITS_MAX_DROP if few else MAX_DROP}
        limits = {"max_drop": request.drop} if request.drop is not None else {}
        result = pipeline.compile(model, **{**given, **limits, "recipe": recipe})
        unmet, budgets = _compared(result, request, wanted, budgets)
        if not unmet:
            break
    assert result is not None
    return replace(result, met=result.met and not unmet, unmet=tuple(unmet))


def _compared(result: Result, request: Request, wanted: Budgets, budgets: Budgets) -> tuple[list[str], Budgets]:
    """Return what is over its budget, and budgets to plan with next.

    A share is one of what float takes in the same run: other programs slow both down.
    """
    unmet = []
    latency = result.report.latency_ms
    if request.seconds is not None and budgets.seconds is not None and latency is not None:
        allowed = request.seconds * latency.before if request.relative_seconds else request.seconds * 1e3
        if latency.after > allowed:
            unmet.append(f"A run takes {latency.after:.3g} ms where {allowed:.3g} are allowed.")
            budgets = replace(budgets, seconds=budgets.seconds * HEADROOM * allowed / latency.after)
    size = model_info(result.model, written=False).bytes
    if wanted.size is not None and budgets.size is not None and size > wanted.size:
        unmet.append(f"The file has {size:,} bytes where {wanted.size:,.0f} are allowed.")
        budgets = replace(budgets, size=budgets.size - 1.5 * (size - wanted.size))
    return unmet, budgets


def _damage_of_drop(
    prepared: Model, table: PrecisionTable, budgets: Budgets, drop: float, labels: list[str], given: dict[str, Any]
) -> float:
    """Return the largest damage in the table's unit whose plan loses no more than allowed, by trying plans out."""
    data = given.get("data")
    if data is None:
        raise UsageError("a loss is measured on data", where="--budget-drop", do="Give --data FEEDS")
    feeds = Feeds.open(data, input_specs(prepared))
    calibration, judging = feeds.split(at_least=HELD_BACK_SAMPLES)
    judge = Judge(prepared, judging.take(JUDGING_SAMPLES), threads=table.threads)

    def loses(damage: float) -> bool:
        plan = make_plan(table, replace(budgets, damage=damage))
        trial = prepared.copy()
        steps = load_recipe({**recipe_of_plan(table, plan, labels), "imports": []}).create()
        outcome = PassManager(list(steps), verify="off").run(trial, calibration.take(CALIBRATION_SAMPLES))
        return bool(outcome.patches) and judge.measure(trial).drop > drop

    fastest = make_plan(table, budgets)
    if fastest.damage <= 0 or not loses(fastest.damage):
        return fastest.damage
    low, high = 0.0, DECADES  # decades below the damage of the fastest plan
    for _ in range(DROP_STEPS):
        middle = (low + high) / 2
        if loses(fastest.damage / 10**middle):
            low = middle
        else:
            high = middle
    return fastest.damage / 10**high
