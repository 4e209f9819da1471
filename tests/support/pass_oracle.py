"""What every pass is tested by: legality, contract, idempotence, and two evaluators that share no code.

def test_relu_relu(golden):
    done = check_pass(MyPass(), TEXT)
    golden(done.text)
    assert done.record.patches == 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
import onnx.parser

from graphopt.errors import UnsupportedError
from graphopt.graph import Model, dump_text, read_model
from graphopt.rewrite.manager import Outcome, PassManager, PassRecord
from graphopt.verify.bound import rounding_tolerances
from graphopt.verify.contract import Contract
from graphopt.verify.equality import compare
from graphopt.verify.legality import check_legal
from graphopt.verify.reference import evaluate, interpret, sample_feeds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphopt.rewrite.pass_ import Pass
    from graphopt.runtime import Feeds


@dataclass(frozen=True)
class Done:
    """A pass that ran and was found right.

    Attributes:
        before: The model before.
        model: The model after.
        outcome: The account of the manager.
        text: The model after, for a golden.
    """

    before: Model
    model: Model
    outcome: Outcome

    @property
    def record(self) -> PassRecord:
        return self.outcome.records[0]

    @property
    def text(self) -> str:
        return dump_text(self.model)

    @property
    def ops(self) -> list[str]:
        return [node.op for _, node in self.model.walk()]

    @property
    def skips(self) -> dict[str, str]:
        return dict(self.record.skips)


def parse(source: str | bytes | onnx.ModelProto | Model) -> Model:
    """Return a new model from ONNX text, bytes, a message or a model (copied)."""
    if isinstance(source, Model):
        return source.copy()
    if isinstance(source, str):
        return read_model(onnx.parser.parse_model(source))
    return read_model(source)


def run_pass(step: Pass, source: Any, data: Feeds | None = None, **options: Any) -> Done:
    """Run one pass under full verification and return what it did."""
    before = parse(source)
    model = before.copy()
    manager = PassManager([step], **{"verify": "full", **options})
    return Done(before, model, manager.run(model, data))


def check_pass(
    step: Pass,
    source: Any,
    data: Feeds | None = None,
    *,
    idempotent: bool = True,
    samples: int = 2,
    interpreted: bool = True,
) -> Done:
    """Run one pass and check everything that holds for every pass.

    Full verification during the run; legality; the model after against the model before, in ONNX Runtime without
    optimizations and in onnx.reference, under the contract of the pass; a second run that makes no patch.

    Args:
        step: The pass.
        source: ONNX text, bytes, a message or a model.
        data: Feeds; random ones by default.
        idempotent: Whether a second run must find nothing.
        samples: Feeds to compare on.
        interpreted: Compare in onnx.reference too, where it implements both models.
    """
    done = run_pass(step, source, data)
    assert not done.outcome.notes, done.outcome.notes
    check_legal(done.model)
    feeds = some_feeds(done.before, data, samples)
    expected = evaluate(done.before, feeds)
    assert_equal(done.before, step.contract, feeds, expected, evaluate(done.model, feeds))
    if interpreted:
        try:
            right = interpret(done.before.to_bytes(), feeds)
            found = interpret(done.model.to_bytes(), feeds)
        except UnsupportedError:
            pass  # one evaluator is left: onnx.reference does not know every operator
        else:
            assert_equal(done.before, step.contract, feeds, right, found)
    if idempotent:
        again = PassManager([step]).run(done.model.copy(), data)
        assert again.patches == 0, [patch.reason for patch in again.records[0].log]
    return done


def some_feeds(model: Model, data: Feeds | None = None, samples: int = 2) -> list[dict[str, Any]]:
    """Return the first feeds of the data, else random ones."""
    chosen = data if data is not None else sample_feeds(model, samples, seed=1)
    return [dict(feed) for feed, _ in zip(chosen, range(samples), strict=False)]


def assert_equal(
    model: Model,
    contract: Contract,
    feeds: Sequence[Mapping[str, Any]],
    expected: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
) -> None:
    """Assert that outputs hold a contract; the rounding bound is that of ``model``, which gave ``expected``."""
    tolerances: list[Mapping[str, Any]] = [{} for _ in feeds]
    if contract is Contract.ROUNDING:
        tolerances = list(rounding_tolerances(model, feeds, evaluate(model, feeds)))
    for right, got, allowed in zip(expected, found, tolerances, strict=True):
        comparison = compare(right, got, contract, allowed)
        assert comparison.equal, comparison.reason
