"""The accuracy guard: how strong may a lossy pass be, and which layers must it leave alone.

A lossy pass is tried as its user asked. Where the result loses more than the budget on held-back data, one of two
searches weakens it:

* ``strength`` (pruning): the strength, the fraction of what was asked, is sought where a power law through the losses
  measured so far meets the budget, by bisection where that does not close in;
* ``layers`` (quantization): each layer's damage is measured by compressing it alone; the worst layers are reverted, as
  few as the budget allows, found by bisection over how many.

Whatever was weakened or reverted is recorded with the measured reason. The model that goes in is never edited: each
trial works on a copy, which shares all weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graphopt.rewrite.manager import Outcome
from graphopt.rewrite.sensitivity import damage

if TYPE_CHECKING:
    from graphopt.graph import Model
    from graphopt.rewrite.pass_ import Pass
    from graphopt.rewrite.patch import LayerRecord
    from graphopt.verify.quality import Judge, Quality

STRENGTH_STEPS = 6
"""Strengths that are tried at most; two or three do where losses follow a power law."""

STRENGTH_STEP = 1 / 32
"""To so much of what was asked the strength is found."""

FIRST_POWER = 4.0
"""Losses of pruning rise with the strength to about this power: the guess before a second loss is known."""

POWERS = (0.5, 32.0)
"""Powers that two losses may imply; others are noise."""

WEAKEST_STRENGTH = 1 / 16
"""Below this fraction a pass is left out: what it still changes is not worth its place."""

MEASURED_GROUPS = 48
"""Layers are measured one by one up to this many, in groups of neighbours beyond."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The loss that is allowed.

    Attributes:
        max_drop: In the units of ``Quality.drop``.
        max_drop_db: For outputs judged by SQNR, in dB below 40; None takes ``max_drop``.
        standard_errors: So many are added to a drop of agreement before it is compared. Above zero the drop has to fit
            even if the held-back samples were lucky. Below zero bad luck is forgiven, and the expected loss of class
            scores may take the place of the drop, so that few samples do not decide by one of them.
    """

    max_drop: float
    max_drop_db: float | None = None
    standard_errors: float = 0.0

    def of(self, quality: Quality) -> float:
        """Return the largest loss allowed in the unit of a measurement."""
        return self.max_drop_db if quality.kind == "sqnr" and self.max_drop_db is not None else self.max_drop

    def allows(self, quality: Quality) -> bool:
        """Tell whether a measured quality fits."""
        allowed = self.of(quality) + 1e-9
        if quality.drop + self.standard_errors * quality.drop_error <= allowed:
            return True
        if self.standard_errors >= 0 or quality.expected_loss is None or quality.expected_loss_error is None:
            return False
        return quality.expected_loss + self.standard_errors * quality.expected_loss_error <= allowed


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to run a group of passes, with what came of it."""

    model: Model
    outcome: Outcome
    quality: Quality | None
    passes: tuple[Pass, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guard decided.

    Attributes:
        model: The model to go on with: the input model itself where the group was left out.
        outcome: Records of the passes as they finally ran, reverted layers marked.
        quality: The last accepted measurement, or None where nothing was kept.
        passes: The passes with their final options; empty where the group was left out.
        notes: Sentences for the report.
    """

    model: Model
    outcome: Outcome
    quality: Quality | None
    passes: tuple[Pass, ...]
    notes: tuple[str, ...]


Run = Callable[["Model", Sequence["Pass"]], Outcome]
"""Runs passes on a model in place, with the pipeline's settings."""


class Guard:
    """Runs groups of lossy passes under a budget.

    Args:
        judge: Measures candidates against the original model on held-back data.
        limit: The loss that is allowed against the original, over all lossy passes together.
        run: Runs passes on a model in place.
    """

    def __init__(self, judge: Judge, limit: Limit, run: Run) -> None:
        self._judge = judge
        self._limit = limit
        self._run = run

    def apply(self, model: Model, group: Sequence[Pass]) -> Verdict:
        """Run a group (a pass to guard and the lossy passes that repair after it) as strongly as the budget allows."""
        full = self._try(model, tuple(group))
        if not full.outcome.patches:
            return Verdict(model, full.outcome, None, tuple(group), ())
        if self._allows(full):
            return self._accept(full, ())
        if group[0].guard == "strength":
            return self._weaken(model, tuple(group), full)
        if group[0].guard == "layers":
            return self._revert_layers(model, tuple(group), full)
        return self._leave_out(model, full, "it cannot be weakened")

    def _try(self, model: Model, group: tuple[Pass, ...]) -> Trial:
        candidate = model.copy()
        outcome = self._run(candidate, group)
        quality = self._judge.measure(candidate) if outcome.patches else None
        return Trial(candidate, outcome, quality, group)

    def _allows(self, trial: Trial) -> bool:
        return trial.quality is None or self._limit.allows(trial.quality)

    def _accept(self, trial: Trial, notes: tuple[str, ...]) -> Verdict:
        return Verdict(trial.model, trial.outcome, trial.quality, trial.passes, notes)

    def _leave_out(self, model: Model, full: Trial, why: str) -> Verdict:
        name = full.passes[0].name
        assert full.quality is not None
        reason = f"{self._loss(full.quality)}, and {why}"
        outcome = revert_all(full.outcome, reason)
        return Verdict(model, outcome, None, (), (f"{name} was left out: {reason}.",))

    def _loss(self, quality: Quality) -> str:
        return f"loses {quality.drop:.2f} {quality.unit} where {self._limit.of(quality):g} are allowed"

    def _share(self, quality: Quality) -> float:
        """Return the loss as a share of the one allowed; infinite where none is."""
        allowed, loss = (
            self._limit.of(quality),
            quality.drop + max(0.0, self._limit.standard_errors) * quality.drop_error,
        )
        return loss / allowed if allowed > 0 else math.inf

    def _weaken(self, model: Model, group: tuple[Pass, ...], full: Trial) -> Verdict:
        assert full.quality is not None
        low, high, best = 0.0, 1.0, None
        known = [(1.0, self._share(full.quality))]
        halved = True
        for _ in range(STRENGTH_STEPS):
            expected = _meets_budget(known)
            if high <= WEAKEST_STRENGTH or min(expected, high) - low <= STRENGTH_STEP:
                break
            gap = high - low
            aim = min(max(expected - STRENGTH_STEP / 2, low + gap / 10), high - gap / 10)
            strength = aim if halved else (low + high) / 2
            trial = self._try(model, (group[0].with_strength(strength), *group[1:]))
            fits = self._allows(trial)
            if fits:
                low, best = strength, trial
            else:
                high = strength
            halved = high - low <= gap / 2
            share = 0.0 if trial.quality is None else self._share(trial.quality)
            known.append((strength, min(share, 1.0) if fits else max(share, 1.0)))
        if best is None or low < WEAKEST_STRENGTH:
            return self._leave_out(model, full, "no strength worth its place fits")
        note = f"{group[0].name} was weakened to {low:.3f} of what was asked: in full it {self._loss(full.quality)}."
        return self._accept(best, (note,))

    def _revert_layers(self, model: Model, group: tuple[Pass, ...], full: Trial) -> Verdict:
        names = [layer.name for record in full.outcome.records for layer in record.layers if changed(layer)]
        names = list(dict.fromkeys(names))
        if len(names) < 2:
            return self._leave_out(model, full, "it has no other layer to keep")
        ranked = self._rank(model, group, names)
        found = self._fewest(model, group, ranked)
        if found is None and any(loss is None for _, loss in ranked):
            # what is not compressed without its neighbours came last and left nothing: now it is reverted first
            ranked.sort(key=lambda layer: layer[1] is not None)
            found = self._fewest(model, group, ranked)
        if found is None:
            return self._leave_out(model, full, "no choice of layers fits")
        count, best = found
        damage = dict(ranked[:count])
        assert full.quality is not None
        outcome = mark_reverted(best.outcome, full.outcome, damage, best.quality)
        note = (
            f"{group[0].name} left {len(damage)} of {len(names)} layers as they were: "
            f"with all of them it {self._loss(full.quality)}."
        )
        return Verdict(best.model, outcome, best.quality, best.passes, (note,))

    def _fewest(
        self, model: Model, group: tuple[Pass, ...], ranked: Sequence[tuple[str, float | None]]
    ) -> tuple[int, Trial] | None:
        """Return how many layers to revert, worst first, with the trial; None where no choice that acts fits."""
        low, high, best = 0, len(ranked), None
        while high - low > 1:
            middle = (low + high) // 2
            trial = self._try(model, self._keeping(group, [name for name, _ in ranked[:middle]]))
            if self._allows(trial):
                high, best = middle, trial
            else:
                low = middle
        return None if best is None or not best.outcome.patches else (high, best)

    def _rank(self, model: Model, group: tuple[Pass, ...], names: list[str]) -> list[tuple[str, float | None]]:
        """Return layers with the loss that compressing them alone causes, worst first (ties: later layers first).

        The loss is None for layers that the pass does not compress without their neighbours; they come last.
        """
        size = -(-len(names) // MEASURED_GROUPS)
        chunks = [names[start : start + size] for start in range(0, len(names), size)]
        damage: list[tuple[float, int, str, float | None]] = []
        for chunk in chunks:
            others = [name for name in names if name not in set(chunk)]
            trial = self._try(model, self._keeping(group, others))
            rank, loss = _damage(trial.quality)
            damage.extend((rank, len(damage) + place, name, loss) for place, name in enumerate(chunk))
        damage.sort(key=lambda layer: layer[:2], reverse=True)
        return [(name, loss) for _, _, name, loss in damage]

    def _keeping(self, group: tuple[Pass, ...], names: Sequence[str]) -> tuple[Pass, ...]:
        return (group[0].keeping(names), *group[1:])


def _meets_budget(known: Sequence[tuple[float, float]]) -> float:
    """Return the strength whose loss is expected to be the one allowed.

    Args:
        known: (strength, loss as a share of the one allowed) measured so far, the full strength first.
    """
    tried = sorted(each for each in known if 0 < each[1] < math.inf)
    if not tried:
        return min(strength for strength, _ in known) / 2
    # The two strengths around the budget, or the two nearest to it.
    over = next((place for place, (_, share) in enumerate(tried) if share > 1), len(tried) - 1)
    second = tried[over]
    first = tried[over - 1] if over else (tried[1] if len(tried) > 1 else None)
    power = FIRST_POWER
    if first is not None and first[0] != second[0]:
        slope = math.log(second[1] / first[1]) / math.log(second[0] / first[0])
        power = min(max(slope, POWERS[0]), POWERS[1])
    return float(second[0] * second[1] ** (-1 / power))


def _damage(quality: Quality | None) -> tuple[float, float | None]:
    """Return what layers are ranked by and the loss to print.

    They are ranked by a metric's drop, else by what is smooth: the divergence, or the noise where there is none.
    """
    if quality is None:
        return -math.inf, None
    return (quality.drop if quality.kind == "metric" else damage(quality)[0]), quality.drop


def changed(layer: LayerRecord) -> bool:
    """Tell whether a layer's record says that it was changed and stayed so."""
    return layer.kept and not layer.reverted


def mark_reverted(outcome: Outcome, full: Outcome, damage: dict[str, float | None], quality: Quality | None) -> Outcome:
    """Return the outcome whose first record also lists the layers that the guard reverted, with their damage."""
    unit = quality.unit if quality else ""
    was = {layer.name: layer for record in full.records for layer in record.layers if changed(layer)}
    reverted = [
        replace(was[name], kept=False, reverted=True, reason=_why_reverted(loss, unit))
        for name, loss in damage.items()
        if name in was
    ]
    first = outcome.records[0]
    kept = [layer for layer in first.layers if layer.name not in damage]
    skips = [skip for skip in first.skips if skip[0] not in damage]
    return replace(outcome, records=[replace(first, layers=[*kept, *reverted], skips=skips), *outcome.records[1:]])


def _why_reverted(loss: float | None, unit: str) -> str:
    return (
        "it is not compressed without its neighbours" if loss is None else f"alone it loses {loss:.2f} {unit}".rstrip()
    )


def revert_all(outcome: Outcome, reason: str) -> Outcome:
    """Return the outcome with no patches, every layer marked as reverted for one reason."""

    def back(layer: LayerRecord) -> LayerRecord:
        return replace(layer, kept=False, reverted=True, reason=reason) if changed(layer) else layer

    records = [
        replace(record, log=[], layers=[back(layer) for layer in record.layers], nodes_after=record.nodes_before)
        for record in outcome.records
    ]
    return replace(outcome, records=records)
