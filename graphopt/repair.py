"""Mends a quantized model, whoever quantized it, until the runtime computes it on integers as far as it can.

The rules that the audit found broken are mended one by one; what the runtime still computes in float between
conversions becomes float; what came of it is counted, timed and compared with the model that was given.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.errors import RunError, UnsupportedError
from graphopt.fusion import stayed_float
from graphopt.graph.labels import node_label
from graphopt.passes.quantize.repair_qdq import RepairQdq
from graphopt.rewrite import Outcome, PassManager
from graphopt.runtime import Feeds, latency, random_feeds, session
from graphopt.target.audit import as_model, audit
from graphopt.verify.quality import Judge

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from graphopt.graph import Model
    from graphopt.rewrite import Pass, Step
    from graphopt.runtime.feeds import Source
    from graphopt.target.audit import Audit
    from graphopt.verify.quality import Quality

ROUNDS = 3
"""Times that operators are made float and the rest is looked at anew."""

COMPARED = 256
"""Samples compared at most."""

RANDOM_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Repaired:
    """What came of a repair.

    Attributes:
        model: The repaired model; the given one where nothing could be mended, or only for the worse.
        before: The account of the given model.
        after: The account of the result.
        repairs: Nodes mended, by rule.
        left: Operators that could not be mended, with the reason.
        quality: The result against the given model; None where one of them does not run.
        times: Milliseconds of the given model and of the result on one thread; None where one does not run.
        random: Whether both were compared on random inputs.
        refusal: Why the given model is returned although something was mended; "" where it is not.
        failure: Why both could not be compared, or "".
    """

    model: Model
    before: Audit
    after: Audit
    repairs: Mapping[str, int]
    left: Mapping[str, str]
    quality: Quality | None
    times: tuple[float, float] | None
    random: bool
    refusal: str = ""
    failure: str = ""


def repair(
    source: Model | str | Path | bytes,
    target: str = "ort-cpu",
    *,
    data: Source | Feeds | None = None,
    seed: int = 0,
) -> Repaired:
    """Return a quantized model mended for a target.

    Args:
        source: A model, a file, a bundle or serialized bytes; it is not edited.
        target: Name of the target.
        data: Feeds that show the ranges of tensors that lack a pair, and that both models are compared on; without,
            such tensors stay float unless their operator bounds them, and random inputs are compared.
        seed: Seeds random inputs.

    Raises:
        UsageError: The target is unknown.
        ReadError, UnsupportedError: The runtime does not load the model.
        DataError: The data do not fit.
    """
    given = as_model(source)
    before = audit(given, target, compare=True)
    feeds = None if data is None else Feeds.open(data, session(given))
    try:
        model, outcome, floating, after = _settled(given, target, feeds)
    except UnsupportedError as error:
        refusal = f"the runtime does not load the mended model: {error}"
        model, outcome, floating, after = given, Outcome(), {}, before
    else:
        refusal = _refusal(before, after) if outcome.patches else ""
    repairs = Counter(layer.reason for record in outcome.records for layer in record.layers)
    left = {str(name): why for record in outcome.records for name, why in record.skips} | floating
    if refusal:
        model, after = given, before
    samples = random_feeds(session(model), count=RANDOM_SAMPLES, seed=seed) if feeds is None else feeds.take(COMPARED)
    quality, times, failure = _compared(given, model, samples)
    return Repaired(model, before, after, dict(repairs), left, quality, times, feeds is None, refusal, failure)


def _settled(given: Model, target: str, feeds: Feeds | None) -> tuple[Model, Outcome, dict[str, str], Audit]:
    """Return the mended model, its account, operators that are float in it because the runtime leaves them so."""
    model, outcome = _mended(given, target, feeds, ())
    floating: dict[str, str] = {}
    labels = {node_label(node) for _, node in given.walk(functions=False)}
    for _ in range(ROUNDS):
        found = {name: why for name, why in stayed_float(model, target).items() if name in labels - floating.keys()}
        if not found:
            break
        floating |= found
        model, outcome = _mended(given, target, feeds, tuple(floating))
    return model, outcome, floating, audit(model, target, compare=True)


def _mended(given: Model, target: str, feeds: Feeds | None, floating: tuple[str, ...]) -> tuple[Model, Outcome]:
    model = given.copy()
    steps: list[Pass | Step | str] = [RepairQdq(floating=floating), "eliminate-dead"]
    outcome = PassManager(steps, target=target).run(model, feeds)
    model.sort()
    return model, outcome


def _refusal(before: Audit, after: Audit) -> str:
    """Return why a mended model is worse than the given one by the runtime's own account, or ""."""
    if after.failure and not before.failure:
        return f"the mended model does not run without the runtime's optimizations: {after.failure}"
    was = {each.rule for each in before.broken if each.serious}
    new = sorted({each.rule for each in after.broken if each.serious} - was)
    if new:
        return f"it would break {', '.join(new)}, which the given one does not"
    if after.integer_count < before.integer_count and after.conversions >= before.conversions:
        return f"it would have {after.integer_count} integer operators instead of {before.integer_count}"
    return ""


def _compared(given: Model, model: Model, samples: Feeds) -> tuple[Quality | None, tuple[float, float] | None, str]:
    """Return how both models compare, or why they cannot be run side by side."""
    try:
        quality = Judge(given, samples).measure(model)
        one, other = latency([session(given), session(model)], samples.first())
    except RunError as error:
        return None, None, str(error)
    return quality, (one, other), ""
