"""Runs passes: applies every patch they yield, verifies it, and keeps the account."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from graphopt.analysis.manager import Facts
from graphopt.analysis.node_forms import NodeForms
from graphopt.errors import GraphError, GraphoptError, PassError, UsageError, VerificationError
from graphopt.graph import Model, Node, Rewriter, Tensor
from graphopt.rewrite.patch import Contract, LayerRecord, Patch, Skip, node_label
from graphopt.rewrite.registry import create
from graphopt.rewrite.verification import LEVELS, Level, Verifier

if TYPE_CHECKING:
    from graphopt.rewrite.pass_ import Pass
    from graphopt.rewrite.recipe import Step
    from graphopt.runtime import Feeds

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
        for index, step in enumerate(self.passes):
            if self.stop_after is not None and outcome.patches >= self.stop_after:
                outcome.stopped = True
                break
            start = time.perf_counter()
            nodes = count_nodes(model)
            record = PassRecord(step.name, step.options(), nodes_before=nodes, contract=step.contract)
            outcome.records.append(record)
            run = _Run(step, model, facts, verifier, record)
            for _ in run.patches(outcome, self.stop_after):
                self._tell(index, record)
            self._tell(index, record)
            record.nodes_after = count_nodes(model)
            record.seconds = time.perf_counter() - start
        return outcome

    def _tell(self, index: int, record: PassRecord) -> None:
        if self.progress is not None:
            self.progress(index, len(self.passes), record.name, record.patches)


class _Run:
    """One pass on one model."""

    def __init__(self, step: Pass, model: Model, facts: Facts, verifier: Verifier, record: PassRecord) -> None:
        self.step = step
        self.model = model
        self.facts = facts
        self.verifier = verifier
        self.record = record

    def patches(self, outcome: Outcome, stop_after: int | None) -> Iterator[None]:
        """Yield None after every applied patch; stop at the end of the pass or behind the last patch allowed."""
        for analysis in self.step.requires:
            self.facts.get(analysis)
        self.verifier.before_pass(self.step, self.model, self.facts)
        steps = self.step.run(self.model, self.facts)
        proposal = self._ask(lambda: next(steps))
        while proposal is not None:
            if isinstance(proposal, Skip):
                self.record.skips.append((node_label(proposal.node), proposal.reason))
                touched: frozenset[Node] = frozenset()
            elif stop_after is not None and outcome.patches >= stop_after:
                outcome.stopped = True
                steps.close()
                break
            else:
                touched = self._apply(proposal, outcome.patches + 1)
                yield
            proposal = self._ask(lambda: steps.send(touched))  # noqa: B023 - called at once
        if self.record.log:
            self._finish()

    def _ask(self, resume: Callable[[], Patch | Skip]) -> Patch | Skip | None:
        try:
            return resume()
        except StopIteration:
            return None
        except (GraphoptError, MemoryError):
            raise
        except Exception as error:
            after = f"after patch {self.record.log[-1].number}" if self.record.log else "before its first patch"
            raise PassError(
                f"it raised {type(error).__name__} {after}: {error}",
                where=self.step.name,
                must="A pass yields a Skip for what it does not support",
                do="Report it with the model, or take the pass out of the recipe",
            ) from error

    def _apply(self, patch: Patch, number: int) -> frozenset[Node]:
        if not isinstance(patch, Patch):
            raise PassError(f"it yielded {patch!r}", where=self.step.name, must="A pass yields Patch or Skip")
        names = tuple(node_label(node) for node in patch.nodes)
        where = f"{self.step.name}, patch {number} ({patch.reason}), {_at(names)}"
        around = self.verifier.before_patch(patch)
        try:
            with PatchRewriter(self.model, patch.nodes) as rewriter:
                patch.apply(rewriter)
        except MemoryError:
            raise
        except Exception as error:
            what = error.what if isinstance(error, GraphoptError) else f"{type(error).__name__}: {error}"
            raise PassError(
                f"applying it failed: {what}", where=where, must="A patch applies where it matched"
            ) from error
        touched = frozenset(rewriter.touched)
        self.facts.invalidate(preserving=self.step.preserves)
        try:
            self.verifier.after_patch(self.model, touched, around)
        except GraphError as error:
            raise self._broken(error, where, number) from error
        self.record.log.append(PatchRecord(number, patch.reason, names))
        self.record.layers.extend(patch.layers)
        return touched

    def _finish(self) -> None:
        last = self.record.log[-1].number
        try:
            self.model.sort()
            self.verifier.after_pass(self.step, self.model, self.facts)
        except GraphError as error:
            raise self._broken(error, f"{self.step.name}, patches up to {last}", last) from error
        except VerificationError as error:
            raise VerificationError(error.what, where=error.where, must=error.must, do=self._bisect(last)) from error

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
    return sum(1 for _ in model.walk())


def _created(item: Pass | Step | str) -> Pass:
    if isinstance(item, str):
        return create(item)
    return item.create() if hasattr(item, "create") else item


def _at(names: Sequence[str]) -> str:
    return (
        f"node {names[0]!r}" if len(names) == 1 else f"nodes {', '.join(map(repr, names[:4]))}" if names else "no node"
    )
