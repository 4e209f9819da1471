"""Runs passes: applies every patch they yield, verifies it, and keeps the account."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from graphopt.analysis import Facts
from graphopt.errors import GraphoptError, PassError, VerificationError
from graphopt.graph import Model, Node, Rewriter
from graphopt.rewrite.patch import LayerRecord, Patch, Skip, node_label
from graphopt.rewrite.registry import create
from graphopt.verify.legality import Interface, check_legal

if TYPE_CHECKING:
    from graphopt.rewrite.pass_ import Pass
    from graphopt.runtime import Feeds

Level = Literal["off", "fast", "full"]
Progress = Callable[[int, int, str, int], None]
"""Called with the index of the pass, the number of passes, the name of the pass and its patches so far."""


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """One applied patch.

    Attributes:
        number: Counts from 1 over the whole pipeline; ``--stop-after number`` stops right behind it.
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
    """

    name: str
    options: dict[str, Any]
    log: list[PatchRecord] = field(default_factory=list)
    skips: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    layers: list[LayerRecord] = field(default_factory=list)
    nodes_before: int = 0
    nodes_after: int = 0

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
    """

    records: list[PassRecord] = field(default_factory=list)
    stopped: bool = False

    @property
    def patches(self) -> int:
        """Return how many patches were applied in all."""
        return sum(record.patches for record in self.records)


class PassManager:
    """A pipeline of passes.

    Args:
        passes: Passes, or names of registered passes that run with their defaults.
        verify: ``"off"`` checks nothing; ``"fast"`` checks that the touched region is legal after every patch and the
            whole model after every pass; ``"full"`` also runs the model before against after each pass.
        stop_after: Stop behind this many patches, counted over the whole pipeline; None runs all.
        seed: Seeds whatever a pass draws at random.
        target: Name of the target whose rules the passes follow.
        progress: Told about every pass and patch.
    """

    def __init__(
        self,
        passes: Sequence[Pass | str],
        *,
        verify: Level = "fast",
        stop_after: int | None = None,
        seed: int = 0,
        target: str = "ort-cpu",
        progress: Progress | None = None,
    ) -> None:
        self.passes = [create(item) if isinstance(item, str) else item for item in passes]
        self.verify = verify
        self.stop_after = stop_after
        self.seed = seed
        self.target = target
        self.progress = progress

    def run(self, model: Model, data: Feeds | None = None, facts: Facts | None = None) -> Outcome:
        """Run the passes in order and edit the model in place.

        Args:
            model: The model; on an error it is left as it was before the failing pass.
            data: Calibration feeds for passes that want them.
            facts: Analyses to go on with; by default they start empty.

        Raises:
            PassError: A pass raised.
            VerificationError: A patch left the model illegal or broke its contract.
        """
        facts = facts or Facts(model, feeds=data, target=self.target, seed=self.seed)
        interface = Interface.of(model)
        outcome = Outcome()
        for index, step in enumerate(self.passes):
            if self.stop_after is not None and outcome.patches >= self.stop_after:
                outcome.stopped = True
                break
            self._run_pass(index, step, model, facts, interface, outcome)
        return outcome

    def _run_pass(
        self, index: int, step: Pass, model: Model, facts: Facts, interface: Interface, outcome: Outcome
    ) -> None:
        start = time.perf_counter()
        record = PassRecord(step.name, step.options(), nodes_before=count_nodes(model))
        outcome.records.append(record)
        for analysis in step.requires:
            facts.get(analysis)
        steps = step.run(model, facts)
        touched: frozenset[Node] | None = None
        while True:
            if self.progress:
                self.progress(index, len(self.passes), step.name, record.patches)
            proposal = self._next(step, steps, touched)
            if proposal is None:
                break
            if isinstance(proposal, Skip):
                record.skips.append((node_label(proposal.node), proposal.reason))
                touched = frozenset()
                continue
            if self.stop_after is not None and outcome.patches >= self.stop_after:
                outcome.stopped = True
                steps.close()
                break
            touched = self._apply(step, proposal, model, facts, interface, outcome, record)
        record.nodes_after = count_nodes(model)
        record.seconds = time.perf_counter() - start

    def _next(self, step: Pass, steps: Any, touched: frozenset[Node] | None) -> Patch | Skip | None:
        try:
            return next(steps) if touched is None else steps.send(touched)  # type: ignore[no-any-return]
        except StopIteration:
            return None
        except GraphoptError:
            raise
        except Exception as error:
            raise PassError(f"it raised {type(error).__name__}: {error}", where=step.name) from error

    def _apply(
        self,
        step: Pass,
        patch: Patch,
        model: Model,
        facts: Facts,
        interface: Interface,
        outcome: Outcome,
        record: PassRecord,
    ) -> frozenset[Node]:
        number = outcome.patches + 1
        names = tuple(node_label(node) for node in patch.nodes)
        try:
            with Rewriter(model) as rewriter:
                patch.apply(rewriter)
        except GraphoptError:
            raise
        except Exception as error:
            raise PassError(
                f"patch {number} ({patch.reason}) raised {type(error).__name__}: {error}", where=step.name
            ) from error
        touched = frozenset(rewriter.touched)
        facts.invalidate(preserving=step.preserves)
        if self.verify != "off":
            try:
                check_legal(model, touched=touched, interface=interface)
            except GraphoptError as error:
                raise VerificationError(
                    f"patch {number} ({patch.reason}) left the model illegal: {error.what}", where=step.name
                ) from error
        record.log.append(PatchRecord(number, patch.reason, names))
        record.layers.extend(patch.layers)
        return touched


def count_nodes(model: Model) -> int:
    """Return how many nodes the model has in all scopes and functions."""
    return sum(1 for _ in model.walk())
