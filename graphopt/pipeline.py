"""The main job, read top to bottom: an ONNX file in, a verified, smaller and faster model out.

file -> read -> graph -> analyses -> passes (patches, verified) -> target -> audit -> emit (onnx + kernels) -> report
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import onnxruntime

from graphopt import fusion, preparation
from graphopt.analysis import Facts
from graphopt.analysis.cost_table import DEFAULT_TABLE, CostTable, table_path
from graphopt.analysis.dense_reference import DenseReference
from graphopt.analysis.layer_statistics import CollectedStatistics, LayerStatistics
from graphopt.errors import UsageError, VerificationError
from graphopt.graph import Model, read_model
from graphopt.report.build import Measured, build_report
from graphopt.result import Result
from graphopt.rewrite import Outcome, Pass, PassManager, Recipe, load_recipe, recipe_of
from graphopt.rewrite.guard import Guard, Limit
from graphopt.rewrite.patch import Contract
from graphopt.runtime import Feeds, timings
from graphopt.runtime.named_function import named_function
from graphopt.samples import Samples
from graphopt.target import find_target
from graphopt.target.audit import audit
from graphopt.verify.check import check
from graphopt.verify.contract import weakest
from graphopt.verify.quality import Judge, Metric, open_session

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.rewrite.manager import PassRecord
    from graphopt.rewrite.verification import Level
    from graphopt.runtime.feeds import Source as FeedSource

VERIFIED_SAMPLES = 4
"""Feeds on which a result that must be equal is compared with the original."""

MEASURED_BYTES = 1 << 30
"""Models with more bytes of weights than this are only run where the user gives data: each run holds a copy of them."""

AUDITED_SAMPLES = 2
"""Feeds that a quantized result is run on with and without the runtime's optimizations."""

SUSPICIOUS = 0.2
"""Change by those optimizations, of the largest output, from which it is said: rounding alone is far below."""

SLOWER = 1.1
"""A result that takes this many times as long is called slower; less is noise."""

QUANTIZERS = frozenset(("QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear"))
"""Operators whose presence makes an audit worth running."""

CHOSEN_ON_THE_SAME = (
    "The held-back samples that are reported also decided what the guard kept: they flatter it a little."
)
"""Said where the guard searched: whatever is chosen on samples looks better on them than on others."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def compile(  # noqa: A001 - the verb of the command line and of the public interface
    model: Model | str | Path,
    *,
    recipe: Recipe | str | Path | Mapping[str, Any] = "default",
    data: FeedSource | Feeds | None = None,
    statistics: LayerStatistics | str | Path | None = None,
    target: str = "ort-cpu",
    max_drop: float | None = None,
    metric: Metric | str | None = None,
    options: Mapping[str, Any] | None = None,
    skip: Iterable[str] = (),
    keep: Iterable[str] = (),
    verify: Level = "fast",
    seed: int = 0,
    stop_after: int | None = None,
    threads: int = 1,
    measure: bool | None = None,
    keep_float_if_slower: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Compile a model.

    Args:
        model: An ONNX file or a loaded model; it is not changed.
        recipe: Name of a preset, a recipe file, a document, or a recipe.
        data: Feeds: an .npz, a folder of them, ``module:function``, a dict or an iterable of dicts. A fifth is held
            back for judging and never calibrates anything.
        statistics: What layers read, as `collect_statistics` found it for this model, or the file that it was saved to:
            weights are solved on it, not on the data, which then only gives ranges of activations and judges.
        target: Name of the target whose rules decide placement.
        max_drop: Largest loss allowed: with a metric in its units; else percentage points of top-1 agreement, or dB of
            SQNR below 40. None takes the recipe's budget.
        metric: ``module:function`` or a function of (run, feeds) that returns a number, larger is better.
        options: Changes to the recipe, ``{"pass-name.option": value}``.
        skip: Names of passes to leave out.
        keep: Names of tensors or nodes of the main graph whose values stay in the model under their names.
        verify: ``off``, ``fast`` or ``full``.
        seed: Seeds whatever is random.
        stop_after: Stop after this many patches over the whole run, without the guard.
        threads: Intra-op threads of every measurement.
        measure: Whether the original and the result are run, compared and timed. None does it where there is data or
            the weights take less than 1 GiB.
        keep_float_if_slower: Whether regions of a quantized model that are faster in float here are made float again,
            and all of it where that is faster still. The result then depends on what was measured.
        progress: Told what is going on.

    Returns:
        The result with its report. A budget that is not met is ``met=False``; saving then raises unless asked to keep.

    Raises:
        GraphoptError: The model, the data or the recipe cannot be used; the message says what to do.
    """
    tell = progress or _silent
    tell("reading", 0, 1)
    original = preparation.in_order(model if isinstance(model, Model) else read_model(model))
    judged = data is not None or metric is not None
    collected = _collected(original, statistics)
    plan, gentler = _plan(recipe, options, skip, judged=judged, observed=data is not None or collected is not None)
    feeds = Samples.unused(original) if _is_unmeasured(original, measure, judged) else Samples.of(original, data, seed)
    held_back = feeds.held_back
    judge = None if held_back is None else Judge(original, held_back, metric=_load_metric(metric), threads=threads)
    limit = None if judge is None else _limit(plan, max_drop, given=judged)

    clock = _clock(held_back, threads) if keep_float_if_slower and held_back is not None else None
    work = _Run(original.copy(), feeds, collected, judge, limit, target, verify, seed, stop_after, tell, clock)
    kept = preparation.keep(work.model, keep)
    work.passes(plan.create())
    preparation.release(work.model, kept)

    measured = None
    if held_back is not None and judge is not None:
        tell("verifying", 0, 1)
        if verify != "off":
            verify_equal(original, work.model, held_back, weakest([step.contract for step in work.changing]), seed)
        tell("measuring", 0, 1)
        candidate = open_session(work.model, threads=threads)
        quality = judge.measure_session(candidate)
        measured = Measured(
            quality=quality,
            held_back=data is not None and held_back is not feeds.calibration,
            max_drop=limit.of(quality) if limit else None,
            met=limit is None or stop_after is not None or final(limit, given=max_drop is not None).allows(quality),
            milliseconds=_time(judge, candidate, work.fallback, next(iter(held_back)), threads),
            threads=threads,
            metric_name=metric if isinstance(metric, str) else str(getattr(metric, "__name__", "metric")),
        )
    work.notes += deciding_tables(work.ran)
    work.notes += conclusions(work.fallback or work.model, target, measured, held_back)
    report = build_report(
        original,
        work.model,
        measured,
        records=work.records,
        target=target,
        recipe=plan.name,
        notes=(*feeds.notes, *_said_of(collected), *gentler, *work.notes),
        seed=seed,
    )
    ran = replace(recipe_of(work.ran, name=plan.name, description=plan.description), budget=plan.budget)
    return Result(work.model, work.fallback, report, ran, measured is None or measured.met)


@dataclass(slots=True)
class _Run:
    """The passes of one compilation under way."""

    model: Model
    feeds: Samples
    collected: LayerStatistics | None
    judge: Judge | None
    limit: Limit | None
    target: str
    verify: Level
    seed: int
    stop_after: int | None
    tell: Progress
    clock: fusion.Clock | None = None
    fallback: Model | None = None
    records: list[PassRecord] = field(default_factory=list)
    ran: list[Pass] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: Facts | None = None

    @property
    def patches(self) -> int:
        """Patches applied so far."""
        return sum(record.patches for record in self.records)

    @property
    def changing(self) -> list[Pass]:
        """The passes that applied patches."""
        patched = {record.name for record in self.records if record.patches}
        return [step for step in self.ran if step.name in patched]

    def passes(self, steps: Sequence[Pass]) -> None:
        """Run all passes: each lossy one, with the repairs behind it, under the guard."""
        groups = group_lossy(steps)
        for index, group in enumerate(groups):
            self.tell(group[0].name, index, len(groups))
            guarded = group[0].contract is Contract.LOSSY and self.limit is not None and self.stop_after is None
            if guarded:
                self._guarded(group)
            else:
                self._plain(group)
            if self.stop_after is not None and self.patches >= self.stop_after:
                break
        self.model.sort()

    def _plain(self, group: Sequence[Pass]) -> None:
        lowers = any(step.lowers for step in group)
        settles = group[0].guard == "layers" and self.stop_after is None
        before = self.model.copy() if settles or (lowers and self.fallback is None) else None
        outcome = self._manage(self.model, group, self._shared_facts(), self._remaining())
        if before is not None and outcome.patches and lowers:
            self.fallback = self.fallback or before
        if before is not None and settles:
            placed = self._settled(before, fusion.Placed(self.model, outcome, tuple(group)), self._attempt)
            self.model, outcome, group = placed.model, placed.outcome, placed.passes
            self.notes += placed.notes
        self.records += outcome.records
        self.ran += group

    def _attempt(self, model: Model, steps: Sequence[Pass]) -> Outcome:
        return self._manage(model, steps, self._shared_facts().fork(model), None)

    def _settled(self, before: Model, placed: fusion.Placed, attempt: fusion.Attempt) -> fusion.Placed:
        """Return what is left after a look at what the runtime makes of it; see `graphopt.fusion`."""
        if not fusion.is_placing(placed.passes, before, placed.model):
            return placed
        self.tell("auditing", 0, 1)
        placed = fusion.settle(before, placed, attempt, self.target)
        if self.clock is None or find_target(self.target).session is None:
            return placed
        return fusion.keep_faster(before, placed, attempt, self.clock, self.target)

    def _guarded(self, group: Sequence[Pass]) -> None:
        assert self.limit is not None
        assert self.judge is not None
        facts, before = self._shared_facts(), self.model
        aimed_at: list[DenseReference] = []

        def attempt(candidate: Model, steps: Sequence[Pass]) -> Outcome:
            own = facts.fork(candidate)
            outcome = self._manage(candidate, steps, own, None)
            aimed_at.append(own.get(DenseReference))
            return outcome

        judge = self.judge
        if self.feeds.unseen is not None and not any(step.uses_data for step in group):
            judge = judge.on(self.feeds.unseen)
        verdict = Guard(judge, self.limit, attempt).apply(self.model, group)
        if verdict.outcome.patches and any(reference.model is not None for reference in aimed_at):
            # Later passes aim at what the model was before this one too, not at what this one left of it.
            DenseReference.remember(before, facts)
        placed = fusion.Placed(verdict.model, verdict.outcome, verdict.passes, verdict.notes)
        placed = self._settled(before, placed, attempt)
        self.model = placed.model
        self.facts = facts.fork(self.model)
        self.records += placed.outcome.records
        self.ran += placed.passes
        self.notes += placed.notes
        if verdict.notes and verdict.quality is not None and CHOSEN_ON_THE_SAME not in self.notes:
            self.notes.append(CHOSEN_ON_THE_SAME)

    def _manage(self, model: Model, steps: Sequence[Pass], facts: Facts, stop_after: int | None) -> Outcome:
        manager = PassManager(
            list(steps), verify=self.verify, stop_after=stop_after, seed=self.seed, target=self.target
        )
        return manager.run(model, self.feeds.calibration, facts)

    def _shared_facts(self) -> Facts:
        if self.facts is None or self.facts.model is not self.model:
            self.facts = Facts(self.model, feeds=self.feeds.calibration, target=self.target, seed=self.seed)
            self.facts.record(CollectedStatistics(self.collected))
        return self.facts

    def _remaining(self) -> int | None:
        return None if self.stop_after is None else self.stop_after - self.patches


def verify_equal(original: Model, result: Model, feeds: Feeds, contract: Contract, seed: int) -> None:
    """Run both models on a few feeds and raise unless the contract holds; lossy results are measured, not compared.

    Raises:
        VerificationError: The outputs differ by more than the contract allows.
    """
    if contract is Contract.LOSSY:
        return
    found = check(original, result, feeds.take(VERIFIED_SAMPLES), contract=contract, seed=seed)
    if not found.passed:
        raise VerificationError(
            f"the result differs from the original: {found.reason}",
            must=f"Every pass that ran keeps the contract {contract.value!r}",
            do="`graphopt bisect` with the same recipe and data finds the first wrong patch; please report it",
        )


def final(limit: Limit, *, given: bool) -> Limit:
    """Return what the finished result is held to: the user's word as it stands, a preset's within one standard error.

    How sure to be was the guard's affair, while there was a choice: a result that lost nothing meets every budget,
    however few samples say so.
    """
    return limit if given else replace(limit, standard_errors=min(-1.0, limit.standard_errors))


def deciding_tables(steps: Iterable[Pass]) -> list[str]:
    """Return a sentence on each cost table by which passes decided what runs on kernels."""
    names = (getattr(step, "cost_table", None) for step in steps if step.lowers)
    paths = dict.fromkeys(table_path(name) for name in names if name is not None)
    return [
        f"What runs on kernels was decided by {f'the cost table {path}' if path else 'the cost table of graphopt'}, "
        f"measured on {CostTable.find(path or DEFAULT_TABLE).measured_on}."
        for path in paths
    ]


def conclusions(model: Model, target: str, measured: Measured | None, feeds: Feeds | None = None) -> list[str]:
    """Return sentences on what the runtime made of a quantized result, and a warning where the result is not faster.

    Args:
        model: The result on standard operators.
        target: Where it will run.
        measured: The figures of the result; None where nothing was measured.
        feeds: Samples that a quantized result is run on with the runtime's optimizations and without; None does not.
    """
    found = []
    if any(node.op in QUANTIZERS for _, node in model.walk()):
        few = None if feeds is None else feeds.take(AUDITED_SAMPLES)
        seen = audit(model, target, feeds=few, compare=few is not None)
        if seen.ran:
            found.append(
                f"ONNX Runtime {onnxruntime.__version__} runs operators on integers: {seen.integer_count}; "
                f"beside a quantized tensor but float: {len(seen.stayed_float)}; conversions left: {seen.conversions}."
            )
        else:
            found.append(
                f"Declared for {find_target(target).runtime}, which is not installed here: operators on integers: "
                f"{seen.integer_count}; weighted ones left float: {seen.floating_count}."
            )
        if seen.optimization_error is not None and seen.optimization_error > SUSPICIOUS:
            found.append(
                f"The runtime's optimizations change outputs by {100 * seen.optimization_error:.0f} % of the largest: "
                "they may compute something else than the model says. Compare with `graphopt audit`."
            )
        if seen.broken:
            broken = ", ".join(dict.fromkeys(each.rule for each in seen.broken))
            found.append(f"Rules of {target} that it breaks (see `graphopt audit --target {target}`): {broken}.")
    if measured is not None and find_target(target).session is not None:
        before, after = (median(times) for times in measured.milliseconds[:2])
        if after > SLOWER * before:
            found.append(
                f"The result is slower here: {after:.3g} ms against {before:.3g} ms. "
                "It may still be worth its size; on another machine measure again with `graphopt bench`."
            )
    return found


def group_lossy(steps: Sequence[Pass]) -> list[list[Pass]]:
    """Return the passes in order, in groups that run at once.

    Each lossy pass is joined by the lossy passes behind it that repair it; passes that are neither lossy nor lower to
    custom operators are joined with each other, so that rule passes among them share one work list.
    """
    groups: list[list[Pass]] = []
    for step in steps:
        lossy = step.contract is Contract.LOSSY
        last = groups[-1][0] if groups else None
        if last is None:
            groups.append([step])
            continue
        repairs = lossy and step.guard == "none" and last.contract is Contract.LOSSY
        plain = not (lossy or step.lowers or last.contract is Contract.LOSSY or last.lowers)
        if repairs or plain:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _plan(
    recipe: object, options: Mapping[str, Any] | None, skip: Iterable[str], *, judged: bool, observed: bool
) -> tuple[Recipe, list[str]]:
    """Return the recipe that runs, and sentences for the report where having no data changed it."""
    plan = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)  # type: ignore[arg-type]
    for name, value in (options or {}).items():
        plan = plan.set(name, value)
    plan = plan.without(skip)
    said = []
    if not observed:
        plan, changes = plan.unobserved()
        said += [f"No data shows what layers read, so {change}." for change in changes]
    if not judged:
        plan, changes = plan.data_free()
        gentler = (
            f"Without data nothing can judge the result, so the recipe's gentler variant ran: {', '.join(changes)}."
        )
        said += [gentler] if changes else []
    return plan, said


def _collected(model: Model, statistics: LayerStatistics | str | Path | None) -> LayerStatistics | None:
    """Return the statistics that take the place of data, made sure that they are of this model."""
    if statistics is None:
        return None
    found = statistics if isinstance(statistics, LayerStatistics) else LayerStatistics.load(statistics)
    found.refuse_others(model, where="the statistics" if found is statistics else str(statistics))
    return found


def _said_of(collected: LayerStatistics | None) -> tuple[str, ...]:
    if collected is None:
        return ()
    return (f"Weights were solved on statistics of {collected.samples} samples that were collected before.",)


def _is_unmeasured(model: Model, measure: bool | None, judged: bool) -> bool:
    """Whether no model is run: because the caller says so, or because it is large and no data asks for it."""
    if measure is not None or judged:
        return measure is False
    return sum(c.nbytes for graph in model.graphs() for c in graph.initializers) > MEASURED_BYTES


def _limit(plan: Recipe, max_drop: float | None, *, given: bool) -> Limit | None:
    """Return the loss allowed: the user's as it stands; else the recipe's, where there is real data."""
    if max_drop is not None:
        if max_drop < 0:
            raise UsageError(f"{max_drop} is negative", where="--max-drop", must="A budget is zero or more")
        return Limit(max_drop)
    if plan.budget.max_drop is None or not given:
        return None
    return Limit(plan.budget.max_drop, plan.budget.max_drop_db, plan.budget.standard_errors)


def _load_metric(metric: Metric | str | None) -> Metric | None:
    if metric is None or callable(metric):
        return metric
    return named_function(metric, must="A metric is module:function, called with (run, feeds).", error=UsageError)


def _time(
    judge: Judge,
    result: onnxruntime.InferenceSession,
    fallback: Model | None,
    feed: Mapping[str, Any],
    threads: int,
) -> list[list[float]]:
    """Return all timed milliseconds of the original, the result and, where there is one, the fallback, run in turn."""
    sessions = [judge.session, result]
    if fallback is not None:
        sessions.append(open_session(fallback, threads=threads))
    return timings(sessions, feed)


def _clock(feeds: Feeds, threads: int) -> fusion.Clock:
    """Return what times models on one sample, run in turn: median milliseconds of each."""
    first = next(iter(feeds))

    def clock(models: Sequence[Model]) -> list[float]:
        return [median(times) for times in timings([open_session(each, threads=threads) for each in models], first)]

    return clock


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


__all__ = ["compile", "group_lossy"]
