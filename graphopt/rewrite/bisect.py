"""Finds the first wrong patch of a pipeline by binary search: O(log n) runs of the pipeline for n patches.

The model after k patches is wrong if the pipeline stops with an error there, if it is illegal, if ONNX Runtime refuses
it, or if it breaks the weakest contract of the passes that ran, against the original and on the same feeds. A wrong
patch is assumed to stay wrong, so that the first one separates right from wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.errors import GraphoptError, PassError, VerificationError
from graphopt.rewrite.manager import Outcome, PassManager, PatchRecord
from graphopt.verify.bound import rounding_tolerances
from graphopt.verify.contract import Contract, weakest
from graphopt.verify.equality import compare
from graphopt.verify.legality import Interface, check_legal
from graphopt.verify.reference import evaluate, sample_feeds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from graphopt.graph import Model
    from graphopt.rewrite.pass_ import Pass
    from graphopt.rewrite.recipe import Step
    from graphopt.runtime import Feeds

SAMPLES = 4
"""Feeds that every model on the way is compared on."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What bisection found.

    Attributes:
        patches: Patches that the whole pipeline makes (up to the failure, where it fails).
        runs: Pipelines that were run.
        number: The first wrong patch, from 1; None if the last model is right.
        name: Its pass.
        reason: What it says it does.
        nodes: Names of the nodes it worked on.
        problem: What is wrong behind it.
    """

    patches: int
    runs: int
    number: int | None = None
    name: str = ""
    reason: str = ""
    nodes: tuple[str, ...] = ()
    problem: str = ""

    def __str__(self) -> str:
        """Return the finding as one sentence."""
        if self.number is None:
            return f"All {self.patches} patches are right ({self.runs} runs)."
        at = f" at {', '.join(self.nodes)}" if self.nodes else ""
        head = f"Patch {self.number} of {self.patches} is the first wrong one: {self.name}{at}, {self.reason}"
        return f"{head}. {self.problem}"


def bisect(
    model: Model,
    passes: Sequence[Pass | Step | str],
    *,
    data: Feeds | None = None,
    min_sqnr_db: float | None = None,
    seed: int = 0,
    target: str = "ort-cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Finding:
    """Find the first patch behind which the model is wrong.

    Args:
        model: The original; it is not changed.
        passes: The pipeline.
        data: Feeds for the passes and for the comparison; None compares on seeded random ones.
        min_sqnr_db: What a model behind lossy passes must reach on every output, in dB; None demands only that it runs
            and stays finite.
        seed: Seed of passes and random feeds.
        target: Name of the target.
        progress: Told the range that is left, as patches known to be right and the first one known to be wrong.

    Raises:
        UnsupportedError: The original does not run.
        GraphError: The original is not legal.
    """
    check_legal(model)
    search = _Search(model, passes, data, min_sqnr_db, seed, target)
    last, problem = search.problem(None)
    if not problem:
        return Finding(last, search.runs)
    right, wrong = 0, last
    while wrong - right > 1:
        if progress is not None:
            progress(right, wrong)
        middle = (right + wrong) // 2
        _, found = search.problem(middle)
        if found:
            wrong, problem = middle, found
        else:
            right = middle
    patch, name = search.patches.get(wrong, (PatchRecord(wrong, "", ()), ""))
    return Finding(last, search.runs, wrong, name, patch.reason, patch.nodes, problem)


class _Search:
    """The original with its outputs, and the judgement of the models on the way."""

    def __init__(
        self,
        model: Model,
        passes: Sequence[Pass | Step | str],
        data: Feeds | None,
        min_sqnr_db: float | None,
        seed: int,
        target: str,
    ) -> None:
        feeds = data if data is not None else sample_feeds(model, SAMPLES, seed)
        self.model = model
        self.passes = passes
        self.data = data
        self.min_sqnr_db = min_sqnr_db
        self.seed = seed
        self.target = target
        self.feeds = [dict(feed) for feed, _ in zip(feeds, range(SAMPLES), strict=False)]
        self.outputs = evaluate(model, self.feeds)
        self.interface = Interface.of(model)
        self.patches: dict[int, tuple[PatchRecord, str]] = {}
        self.runs = 0
        self._tolerances: Sequence[Mapping[str, Any]] | None = None

    def problem(self, stop_after: int | None) -> tuple[int, str]:
        """Run the pipeline up to a patch; return how many patches were made, and what is wrong then ("" if nothing)."""
        self.runs += 1
        model = self.model.copy()
        manager = PassManager(self.passes, verify="off", stop_after=stop_after, seed=self.seed, target=self.target)
        outcome = Outcome()
        failure: GraphoptError | None = None
        try:
            manager.run(model, self.data, outcome=outcome)
        except (PassError, VerificationError) as error:
            failure = error
        for record in outcome.records:
            self.patches.update({patch.number: (patch, record.name) for patch in record.log})
        if isinstance(failure, PassError):
            number = outcome.patches + 1
            self.patches[number] = (PatchRecord(number, "it raised", ()), outcome.records[-1].name)
            return number, str(failure)
        if failure is not None:
            return outcome.patches, str(failure)
        contracts = [step.contract for step, record in zip(manager.passes, outcome.records, strict=False) if record.log]
        return outcome.patches, self._wrong(model, weakest(contracts))

    def _wrong(self, model: Model, contract: Contract) -> str:
        try:
            check_legal(model, interface=self.interface)
            found = evaluate(model, self.feeds)
        except GraphoptError as error:
            return str(error)
        if contract is Contract.ROUNDING and self._tolerances is None:
            self._tolerances = rounding_tolerances(self.model, self.feeds, self.outputs, seed=self.seed)
        allowed = self._tolerances if contract is Contract.ROUNDING and self._tolerances else [{}] * len(found)
        for number, (right, got, tolerances) in enumerate(zip(self.outputs, found, allowed, strict=True)):
            comparison = compare(right, got, contract, tolerances)
            if not comparison.equal:
                return f"Feed {number}: {comparison.reason}"
            if contract is Contract.LOSSY and self.min_sqnr_db is not None and comparison.sqnr_db < self.min_sqnr_db:
                return f"Feed {number}: the SQNR is {comparison.sqnr_db:.1f} dB, below {self.min_sqnr_db:g}"
        return ""
