"""Runs passes: applies every patch they yield, verifies it, and keeps the account."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

from graphopt.analysis.manager import Facts
from graphopt.analysis.node_forms import NodeForms
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.errors import GraphError, GraphoptError, PassError, UsageError, VerificationError
from graphopt.graph import Model, Node, Rewriter, Tensor, collector_paused
from graphopt.rewrite.driver import Joint, JointSteps, RulePass
from graphopt.rewrite.patch import Contract, LayerRecord, Patch, Skip, node_label
from graphopt.rewrite.registry import create
from graphopt.rewrite.verification import LEVELS, Claims, Level, Verifier

if TYPE_CHECKING:
    from graphopt.rewrite.pass_ import Pass, Steps
    from graphopt.rewrite.recipe import Step
    from graphopt.runtime import Feeds

LIVE = (Types, ShapeValues)
"""Analyses that stay true while rule passes edit: every tensor keeps its meaning, and new ones are inferred."""

Progress: TypeAlias = Callable[[int, int, str, int], None]
"""Called with the index of the pass, the number of passes, the name of the pass and its patches so far."""


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """One applied patch.

    Attributes:
        number: Counts from 1 over the whole pipeline; ``stop_after=number`` stops right behind it.
        reason: What it did.
        nodes: Names of the nodes it worked on.
    """

    number: int
    reason: str
    nodes: tuple[str, ...]


@dataclass(slots=True)
class PassRecord:
    """The account of one pass.

    Attributes:
        name: Name of the pass.
        options: All of its options, with defaults filled in.
        log: Its patches, in order.
        skips: Pairs of node name and reason.
        seconds: Wall time, with verification.
        layers: Rows of the per-layer table.
        nodes_before: Nodes of the model, in all scopes and functions, before the pass.
        nodes_after: The same afterwards.
        contract: What the pass promises about the numbers.
    """

    name: str
    options: dict[str, Any]
    log: list[PatchRecord] = field(default_factory=list)
    skips: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    layers: list[LayerRecord] = field(default_factory=list)
    nodes_before: int = 0
    nodes_after: int = 0
    contract: Contract = Contract.LOSSY

    @property
    def patches(self) -> int:
        """Return how many patches were applied."""
        return len(self.log)


@dataclass(slots=True)
class Outcome:
    """The account of a pipeline.

    Attributes:
        records: One per pass that started, in order.
        stopped: Whether ``stop_after`` ended it early.
        notes: What full verification could not check, and why.
    """

    records: list[PassRecord] = field(default_factory=list)
    stopped: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def patches(self) -> int:
        """Return how many patches were applied in all."""
        return sum(record.patches for record in self.records)


class PassManager:
    """A pipeline of passes.

    Args:
        passes: Passes, steps of a recipe, or names of registered passes that run with their defaults.
        verify: ``"off"``, ``"fast"`` or ``"full"``; see `graphopt.rewrite.verification`.
        stop_after: Stop behind this many patches, counted over the whole pipeline; None runs all.
        seed: Seeds whatever a pass draws at random.
        target: Name of the target whose rules the passes follow.
        progress: Told about every pass and patch.

    Raises:
        UsageError: The level or ``stop_after`` makes no sense.
        UnknownPassError: A name is no pass.
    """

    def __init__(
        self,
        passes: Sequence[Pass | Step | str],
        *,
        verify: Level = "fast",
        stop_after: int | None = None,
        seed: int = 0,
        target: str = "ort-cpu",
        progress: Progress | None = None,
    ) -> None:
        if verify not in LEVELS:
            raise UsageError(f"verify is {verify!r}", must=f"It is one of {', '.join(LEVELS)}")
        if stop_after is not None and stop_after < 0:
            raise UsageError(f"stop_after is {stop_after}", must="It counts patches from 0")
        self.passes = [_created(item) for item in passes]
        self.verify: Level = verify
        self.stop_after = stop_after
        self.seed = seed
        self.target = target
        self.progress = progress

    def run(
        self,
        model: Model,
        data: Feeds | None = None,
        facts: Facts | None = None,
        outcome: Outcome | None = None,
    ) -> Outcome:
        """Run the passes in order and edit the model in place.

        On an error the model is left as it was when the error was found, so that it can be looked at: run on
        ``model.copy()``, which shares all weights, to keep the original.

        Args:
            model: The model.
            data: Calibration feeds for passes that want them.
            facts: Analyses to go on with; by default they start empty.
            outcome: An empty account to fill, for callers that want it although a pass fails.

        Raises:
            GraphError: The model is not legal to begin with.
            PassError: A pass raised.
            VerificationError: A patch left the model illegal, or a pass broke its contract.
        """
        facts = facts or Facts(model, feeds=data, target=self.target, seed=self.seed)
        facts.get(NodeForms)
        verifier = Verifier(model, self.verify, data=data, seed=self.seed)
        outcome = Outcome() if outcome is None else outcome
        outcome.notes = verifier.notes
        for unit in self._units():
            if self.stop_after is not None and outcome.patches >= self.stop_after:
                outcome.stopped = True
                break
            with collector_paused() if unit.together else nullcontext():
                unit.run(model, facts, verifier, outcome, self.stop_after)
        return outcome

    def _units(self) -> Iterator[_Unit]:
        """Yield what runs at a time: a pass, or rule passes that follow each other, which share one work list."""
        index = 0
        for together, passes in groupby(self.passes, lambda step: isinstance(step, RulePass)):
            steps = list(passes)
            for unit in [steps] if together else [[step] for step in steps]:
                yield _Unit(unit, index, len(self.passes), self.progress)
                index += len(unit)


class _Unit:
    """One pass, or several that share a work list, on one model."""

    def __init__(self, steps: Sequence[Pass], first: int, passes: int, progress: Progress | None) -> None:
        self.steps = steps
        self.together = isinstance(steps[0], RulePass)
        self.first = first
        self.passes = passes
        self.progress = progress
        self.claims = Claims.of(steps)
        self.records = [PassRecord(step.name, step.options(), contract=step.contract) for step in steps]
        self.deltas = [0] * len(steps)
        self.last = 0

    def run(self, model: Model, facts: Facts, verifier: Verifier, outcome: Outcome, stop_after: int | None) -> None:
        """Run to the end, or behind the last patch allowed."""
        self.model, self.facts, self.verifier = model, facts, verifier
        outcome.records += self.records
        nodes = count_nodes(model)
        for step in self.steps:
            for analysis in step.requires:
                facts.get(analysis)
        verifier.before_pass(self.claims, model, facts)
        if self.together:
            self._rounds(outcome, stop_after)
        else:
            for index in self._patches(outcome, stop_after):
                self._tell(index)
        if self.last:
            self._finish()
        if self.together:
            facts.invalidate(preserving=self.claims.preserves)
        for index, record in enumerate(self.records):
            record.nodes_before = nodes
            nodes += self.deltas[index]
            record.nodes_after = nodes
            self._tell(index)

    def _rounds(self, outcome: Outcome, stop_after: int | None) -> None:
        """Run until a look at the whole model, with facts found anew, changes nothing: so a second run changes nothing.

        The first round does nearly all. Facts that are found anew can tell more than those held while nodes went, and
        what they allow is rare.
        """
        patches = -1
        while patches != outcome.patches and not outcome.stopped:
            patches = outcome.patches
            for record in self.records:
                record.skips.clear()
            with self.facts.holding(LIVE):
                for index in self._patches(outcome, stop_after):
                    self._tell(index)
                self.verifier.check_held(self.claims, self.model, self.facts)
            if patches != outcome.patches:
                self.model.sort()
                self.facts.invalidate()

    def _tell(self, index: int) -> None:
        if self.progress is not None:
            record = self.records[index]
            self.progress(self.first + index, self.passes, record.name, record.patches)

    def _patches(self, outcome: Outcome, stop_after: int | None) -> Iterator[int]:
        """Yield the index of the pass after every applied patch."""
        joint: Joint | None = None
        if self.together:
            start = time.perf_counter()
            rules = [
                (step.name, step.rules(self.model, self.facts)) for step in self.steps if isinstance(step, RulePass)
            ]
            joint = Joint(rules, self.model)
            steps = joint.steps()
        else:
            steps = _alone(self.steps[0].run(self.model, self.facts))
        touched: frozenset[Node] | None = None
        applied = outcome.patches
        while (found := self._ask(steps, touched, timed=joint is None)) is not None:
            index, proposal = found
            touched = frozenset()
            if isinstance(proposal, Skip):
                self.records[index].skips.append((node_label(proposal.node), proposal.reason))
            elif stop_after is not None and applied >= stop_after:
                outcome.stopped = True
                steps.close()
                break
            else:
                applied += 1
                touched = self._apply(index, proposal, applied)
                yield index
        if joint is not None:
            for index, seconds in enumerate(joint.seconds):
                self.records[index].seconds += seconds
            spent = sum(record.seconds for record in self.records)
            # what no rule can be charged with (the walk, visits without a match) is shared by all
            rest = max(0.0, time.perf_counter() - start - spent)
            for record in self.records:
                record.seconds += rest / len(self.records)

    def _ask(
        self, steps: JointSteps, touched: frozenset[Node] | None, *, timed: bool
    ) -> tuple[int, Patch | Skip] | None:
        start = time.perf_counter()
        try:
            return next(steps) if touched is None else steps.send(touched)
        except StopIteration:
            return None
        except (GraphoptError, MemoryError):
            raise
        except Exception as error:
            after = f"after patch {self.last}" if self.last else "before its first patch"
            raise PassError(
                f"it raised {type(error).__name__} {after}: {error}",
                where=self.claims.name,
                must="A pass yields a Skip for what it does not support",
                do="Report it with the model, or take the pass out of the recipe",
            ) from error
        finally:
            if timed:
                self.records[0].seconds += time.perf_counter() - start

    def _apply(self, index: int, patch: Patch, number: int) -> frozenset[Node]:
        start = time.perf_counter()
        step, record = self.steps[index], self.records[index]
        if not isinstance(patch, Patch):
            raise PassError(f"it yielded {patch!r}", where=step.name, must="A pass yields Patch or Skip")
        names = tuple(map(node_label, patch.nodes))
        checked = self.verifier.checks_patches(together=self.together)
        around = self.verifier.before_patch(patch) if checked else []
        try:
            with PatchRewriter(self.model, patch.nodes) as rewriter:
                patch.apply(rewriter)
        except MemoryError:
            raise
        except Exception as error:
            what = error.what if isinstance(error, GraphoptError) else f"{type(error).__name__}: {error}"
            raise PassError(
                f"applying it failed: {what}",
                where=_place(step, patch, number, names),
                must="A patch applies where it matched",
            ) from error
        touched = frozenset(rewriter.touched)
        if checked or not self.together:  # what shared work lists need is held, the rest is not asked for
            self.facts.invalidate(preserving=step.preserves)
        if checked:
            try:
                self.verifier.after_patch(self.model, touched, around)
            except GraphError as error:
                raise self._broken(error, _place(step, patch, number, names), number) from error
        self.last = number
        record.log.append(PatchRecord(number, patch.reason, names))
        record.layers.extend(patch.layers)
        self.deltas[index] += rewriter.growth
        record.seconds += time.perf_counter() - start
        return touched

    def _finish(self) -> None:
        start = time.perf_counter()
        try:
            self.model.sort()
            self.verifier.after_pass(self.claims, self.model, self.facts)
        except GraphError as error:
            raise self._broken(error, f"{self.claims.name}, patches up to {self.last}", self.last) from error
        except VerificationError as error:
            raise VerificationError(
                error.what, where=error.where, must=error.must, do=self._bisect(self.last)
            ) from error
        spent = time.perf_counter() - start
        for record in self.records:
            record.seconds += spent / len(self.records)

    def _broken(self, error: GraphError, where: str, number: int) -> VerificationError:
        detail = f"{error.where}: {error.what}" if error.where else error.what
        return VerificationError(
            f"the model is not legal any more: {detail}", where=where, must=error.must, do=self._bisect(number)
        )

    def _bisect(self, number: int) -> str:
        path = self.model.path or "MODEL"
        return (
            f"`graphopt bisect {path} --recipe RECIPE` finds the first wrong patch; "
            f"--stop-after {number - 1} gives the model before patch {number}"
        )


def _place(step: Pass, patch: Patch, number: int, names: tuple[str, ...]) -> str:
    return f"{step.name}, patch {number} ({patch.reason}), {_at(names)}"


def _alone(steps: Steps) -> JointSteps:
    """Return the steps of one pass in the form of those of several."""
    touched: frozenset[Node] | None = None
    while True:
        try:
            proposal = next(steps) if touched is None else steps.send(touched)
        except StopIteration:
            return
        touched = yield 0, proposal


class PatchRewriter(Rewriter):
    """A rewriter whose new nodes come from the nodes of the patch, where the patch names no origin itself.

    Args:
        model: The model to edit.
        nodes: The nodes of the patch.
    """

    def __init__(self, model: Model, nodes: Sequence[Node]) -> None:
        Rewriter.__init__(self, model)
        # a patch over a whole model says nothing about one new node: there the nearest node tells more
        self._sources = tuple(nodes) if len(nodes) <= MAX_ORIGINS else ()

    def op(self, op_type: str, inputs: Sequence[Tensor | None], *, origin: Sequence[Node] = (), **options: Any) -> Any:
        """Create a node; see `Rewriter.op`."""
        return Rewriter.op(self, op_type, inputs, origin=origin or self._sources, **options)


MAX_ORIGINS = 16
"""Patches of more nodes than this do not name them as the origin of each new node."""


def count_nodes(model: Model) -> int:
    """Return how many nodes the model has in all scopes and functions."""
    return sum(len(graph.nodes) for graph in model.graphs())


def _created(item: Pass | Step | str) -> Pass:
    if isinstance(item, str):
        return create(item)
    return item.create() if hasattr(item, "create") else item


def _at(names: Sequence[str]) -> str:
    return (
        f"node {names[0]!r}" if len(names) == 1 else f"nodes {', '.join(map(repr, names[:4]))}" if names else "no node"
    )
