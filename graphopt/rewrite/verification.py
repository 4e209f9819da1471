"""What is verified around patches and passes, at each level.

* ``off``: nothing.
* ``fast``: the region that a patch touched is legal, after every patch; the whole model is, after every pass that made
  a patch. Linear in all. Passes that share a work list make many small patches, so theirs are checked together at the
  end; that no patch leaves a use of what it erased is what the rewriter itself sees to.
* ``full``: besides, that region is checked for those passes too, and after every pass that made a patch: ONNX's
  checker and strict shape inference accept what they accepted before; writing and reading the model gives it back;
  every analysis that the pass claims to preserve is what the model gives; facts held while rules edited are still true;
  and the model, run in ONNX Runtime with optimizations off, holds the pass's contract against the model before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import onnx

from graphopt.analysis.manager import Facts
from graphopt.analysis.types import Types
from graphopt.errors import (
    DataError,
    GraphError,
    GraphoptError,
    ModelTooLargeError,
    RunError,
    UnsupportedError,
    VerificationError,
)
from graphopt.graph import read_model
from graphopt.verify.bound import rounding_tolerances
from graphopt.verify.contract import Contract, weakest
from graphopt.verify.equality import compare
from graphopt.verify.legality import Interface, check_legal
from graphopt.verify.reference import evaluate, sample_feeds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.analysis.base import Analysis
    from graphopt.graph import Model, Node, Tensor
    from graphopt.rewrite.pass_ import Pass
    from graphopt.rewrite.patch import Patch
    from graphopt.runtime import Feeds

Level = Literal["off", "fast", "full"]
LEVELS: tuple[Level, ...] = ("off", "fast", "full")

SAMPLES = 2
"""Feeds that full verification runs."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What passes that run together promise.

    Attributes:
        name: Their names.
        contract: The weakest of their contracts.
        preserves: What all of them preserve.
    """

    name: str
    contract: Contract
    preserves: tuple[type[Analysis], ...]

    @classmethod
    def of(cls, steps: Sequence[Pass]) -> Claims:
        """Return the claims of passes.

        Args:
            steps: One pass or more.
        """
        kept = [kind for kind in steps[0].preserves if all(kind in step.preserves for step in steps)]
        names = ", ".join(dict.fromkeys(step.name for step in steps))
        return cls(names, weakest([step.contract for step in steps]), tuple(kept))


class Verifier:
    """Verifies one run of a pipeline.

    Args:
        model: The model before the first pass.
        level: ``off``, ``fast`` or ``full``.
        data: Feeds to run in full verification; None draws random ones.
        seed: Seed of random feeds and of the rounding bound.

    Attributes:
        notes: What could not be verified, and why.

    Raises:
        GraphError: The model is not legal to begin with.
    """

    def __init__(self, model: Model, level: Level, *, data: Feeds | None = None, seed: int = 0) -> None:
        self.level = level
        self.seed = seed
        self.notes: list[str] = []
        self._interface = Interface.of(model)
        self._feeds: list[dict[str, Any]] = []
        self._before: Model | None = None
        self._outputs: list[dict[str, Any]] | None = None
        self._accepted: dict[str, bool] = {}
        if level != "off":
            check_legal(model)
        if level == "full":
            self._prepare(model, data)

    def before_pass(self, step: Claims, model: Model, facts: Facts) -> None:
        """Keep what the pass will be compared with: the model (a copy shares all weights) and what it must preserve.

        Args:
            step: What the passes that ran promise.
            model: The model before it.
            facts: Analyses; those that the pass claims to preserve are computed, so that no claim goes unchecked.
        """
        if self.level != "full":
            return
        self._before = model.copy()
        for analysis in step.preserves:
            try:
                facts.get(analysis)
            except (UnsupportedError, RunError, DataError) as error:
                self.notes.append(f"{step.name} preserves {analysis.__name__}, which was not checked: {error}")

    def checks_patches(self, *, together: bool) -> bool:
        """Whether the region of each patch is checked.

        Args:
            together: Whether the passes share a work list.
        """
        return self.level == "full" or (self.level == "fast" and not together)

    def before_patch(self, patch: Patch) -> list[tuple[Tensor, int]]:
        """Return the tensors around the nodes of a patch with their types."""
        around = dict.fromkeys(
            tensor for node in patch.nodes for tensor in (*node.inputs, *node.outputs) if tensor.name
        )
        return [(tensor, tensor.onnx_dtype) for tensor in around]

    def after_patch(self, model: Model, touched: frozenset[Node], around: list[tuple[Tensor, int]]) -> None:
        """Check that what a patch touched is legal and has lost no type.

        Args:
            model: The model after the patch.
            touched: Nodes that the patch created or rewired.
            around: What `before_patch` returned.

        Raises:
            GraphError: It is not.
        """
        check_legal(model, touched, interface=self._interface, tensors=[tensor for tensor, _ in around])
        for tensor, dtype in around:
            if dtype and not tensor.onnx_dtype and (tensor.inputs or tensor.roles):
                raise GraphError(
                    f"tensor {tensor.name!r} lost its element type",
                    must="A tensor whose type was known keeps one",
                    do="Pass like= or use Rewriter.set_type",
                )

    def after_pass(self, step: Claims, model: Model, facts: Facts) -> None:
        """Check the whole model after a pass that made at least one patch.

        Args:
            step: What the passes that ran promise.
            model: The model after it, in topological order.
            facts: Analyses, with those that the pass claims to preserve.

        Raises:
            GraphError: The model is not legal.
            VerificationError: It breaks the contract or another promise of the pass.
        """
        if self.level == "off":
            return
        check_legal(model, interface=self._interface)
        if self.level != "full":
            return
        false = facts.false_claims(step.preserves)
        if false:
            raise VerificationError(
                f"it claims to preserve {', '.join(kind.__name__ for kind in false)}, which the model contradicts",
                where=step.name,
                must="A preserved analysis is what it would be if it were computed again",
                do="Take it out of `preserves`",
            )
        self._check_file(step, model)
        self._check_numbers(step, model)

    def check_held(self, step: Claims, model: Model, facts: Facts) -> None:
        """Check that facts which were held while rules edited are still true: every tensor kept its meaning.

        Args:
            step: What the passes that ran promise.
            model: The model after them.
            facts: Analyses, those that were held among them.

        Raises:
            VerificationError: The type of a tensor is not what the model gives now.
        """
        if self.level != "full":
            return
        held = facts.cached(Types)
        changed = None if held is None else held.contradicts(Facts(model).get(Types))
        if changed is not None:
            raise VerificationError(
                f"the type of tensor {changed.name!r} is not what it was when the passes began",
                where=step.name,
                must="A tensor keeps its meaning; what computes something else gets a new one",
                do="Make new nodes instead of changing what an output holds",
            )

    def _prepare(self, model: Model, data: Feeds | None) -> None:
        data_or_none = self._serialized(model)
        if data_or_none is not None:
            self._accepted = {name: not _refusal(check, data_or_none) for name, check in _CHECKS.items()}
        try:
            feeds = data if data is not None else sample_feeds(model, SAMPLES, self.seed)
            self._feeds = [dict(feed) for feed, _ in zip(feeds, range(SAMPLES), strict=False)]
            *self._outputs, again = evaluate(model, [*self._feeds, *self._feeds[:1]])
        except (UnsupportedError, RunError, DataError, ModelTooLargeError) as error:
            self.notes.append(f"numbers were not compared, since the model cannot be run: {error}")
            self._outputs = None
            return
        if not compare(self._outputs[0], again, Contract.EXACT).equal:
            self.notes.append("numbers were not compared, since the model gives other results in each run")
            self._outputs = None

    def _serialized(self, model: Model) -> bytes | None:
        try:
            return model.to_bytes()
        except ModelTooLargeError as error:
            self.notes.append(f"the file was not checked: {error}")
            return None

    def _check_file(self, step: Claims, model: Model) -> None:
        if not self._accepted:
            return
        serialized = model.to_bytes()
        for name, check in _CHECKS.items():
            refusal = _refusal(check, serialized) if self._accepted[name] else ""
            if refusal:
                raise VerificationError(
                    f"{name} refuses the model now: {refusal}",
                    where=step.name,
                    must="What was valid ONNX before a pass is valid after it",
                )
        if read_model(serialized).to_bytes() != serialized:
            raise VerificationError(
                "the model changes when it is written and read",
                where=step.name,
                must="A round trip gives the same bytes",
            )

    def _check_numbers(self, step: Claims, model: Model) -> None:
        if self._outputs is None or self._before is None:
            return
        before = self._outputs
        tolerances: list[Mapping[str, Any]] = [{} for _ in before]
        if step.contract is Contract.ROUNDING:
            tolerances = list(rounding_tolerances(self._before, self._feeds, before, seed=self.seed))
        try:
            after = evaluate(model, self._feeds)
        except GraphoptError as error:
            raise VerificationError(
                f"the model ran before it and fails now: {error}", where=step.name, must="A pass keeps a model runnable"
            ) from error
        for number, (right, found, allowed) in enumerate(zip(before, after, tolerances, strict=True)):
            comparison = compare(right, found, step.contract, allowed)
            if not comparison.equal:
                raise VerificationError(
                    f"it breaks its contract ({step.contract.value}) on feed {number}: {comparison.reason}",
                    where=step.name,
                    must=_PROMISES[step.contract],
                )
        self._outputs = after


_PROMISES = {
    Contract.EXACT: "Every output is the same bit for bit",
    Contract.ROUNDING: "Outputs move by no more than rounding moves them",
    Contract.LOSSY: "Outputs keep their names, types and shapes and stay finite",
}


def _onnx_checker(model: bytes) -> None:
    onnx.checker.check_model(model, full_check=True)


def _shape_inference(model: bytes) -> None:
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


_CHECKS: Mapping[str, Any] = {"onnx.checker": _onnx_checker, "shape inference": _shape_inference}


def _refusal(check: Any, model: bytes) -> str:
    try:
        check(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split())[:400] or type(error).__name__
    return ""
