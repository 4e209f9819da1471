"""The guard with a judge whose verdicts are known: what it accepts, weakens, reverts and leaves out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from graphopt.rewrite.guard import Guard, Limit
from graphopt.rewrite.manager import Outcome, PassRecord, PatchRecord
from graphopt.rewrite.patch import LayerRecord
from graphopt.verify.quality import Quality

if TYPE_CHECKING:
    from collections.abc import Sequence

DAMAGE = {"conv1": 0.5, "conv2": 6.0, "conv3": 0.25, "conv4": 3.0}


@dataclass
class FakeModel:
    """Layers compressed so far and the strength applied."""

    layers: tuple[str, ...] = ()
    strength: float = 0.0

    def copy(self) -> FakeModel:
        return replace(self)


@dataclass(frozen=True)
class FakePass:
    """Compresses every layer that is not kept, at a strength."""

    guard: str
    name: str = "fake"
    keep: tuple[str, ...] = ()
    strength: float = 1.0

    def keeping(self, names: Sequence[str]) -> FakePass:
        return replace(self, keep=(*self.keep, *names))

    def with_strength(self, fraction: float) -> FakePass:
        return replace(self, strength=self.strength * fraction)


@dataclass
class FakeJudge:
    """Loses the sum of the layers' damages, or 10 points times a power of the strength."""

    measured: list[float] = field(default_factory=list)
    power: float = 1.0

    def measure(self, model: Any) -> Quality:
        drop = 10.0 * model.strength**self.power if model.strength else sum(DAMAGE[name] for name in model.layers)
        self.measured.append(drop)
        return Quality("top-1", 10, 1000, 1 - drop / 100, 0.0, {"y": 30.0 - drop})


def run(model: Any, group: Sequence[Any]) -> Outcome:
    step = group[0]
    if step.guard == "strength":
        model.strength = step.strength
        return Outcome([PassRecord(step.name, {}, log=[PatchRecord(1, "prune", ())])])
    names = [name for name in DAMAGE if name not in step.keep]
    model.layers = tuple(names)
    layers = [LayerRecord(name, "Conv", "int8") for name in names]
    log = [PatchRecord(number, name, ()) for number, name in enumerate(names)]
    skips = [(name, "kept by option") for name in step.keep]
    return Outcome([PassRecord(step.name, {}, log=log, layers=layers, skips=skips)])


def guard(limit: float) -> tuple[Any, FakeJudge]:
    """Return a guard whose models, passes and judge are the fakes above, and the judge."""
    judge: Any = FakeJudge()
    return Guard(judge, Limit(limit), run), judge


def test_full_strength_within_the_limit_is_accepted_after_one_measurement() -> None:
    subject, judge = guard(10.0)
    verdict = subject.apply(FakeModel(), [FakePass("strength")])
    assert verdict.model.strength == 1.0
    assert judge.measured == [10.0]
    assert verdict.notes == ()


@pytest.mark.parametrize("limit", [1.0, 2.5, 5.0, 7.77, 9.9])
def test_strength_is_the_largest_that_fits_to_one_thirty_second(limit: float) -> None:
    subject, _ = guard(limit)
    verdict = subject.apply(FakeModel(), [FakePass("strength")])
    assert limit / 10 - 1 / 32 < verdict.model.strength <= limit / 10
    assert "weakened to" in verdict.notes[0]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 4.0, 9.0, 20.0])
@pytest.mark.parametrize("limit", [1.0, 2.5, 7.77])
def test_strength_is_found_in_few_trials_however_losses_rise(limit: float, power: float) -> None:
    judge: Any = FakeJudge(power=power)
    verdict: Any = Guard(judge, Limit(limit), cast("Any", run)).apply(
        cast("Any", FakeModel()), cast("Any", [FakePass("strength")])
    )
    fits = (limit / 10) ** (1 / power)
    if power >= 1:
        assert fits - 1 / 32 - 1e-9 <= verdict.model.strength <= fits + 1e-9
        assert len(judge.measured) <= (4 if power <= 9 else 6)
    else:
        assert verdict.model.strength <= fits + 1e-9


def test_a_budget_of_nothing_ends_in_few_trials() -> None:
    subject, judge = guard(0.0)
    assert subject.apply(FakeModel(), [FakePass("strength")]).passes == ()
    assert len(judge.measured) <= 7


def test_a_strength_too_weak_leaves_the_pass_out_and_the_model_untouched() -> None:
    model = FakeModel()
    verdict = guard(0.1)[0].apply(model, [FakePass("strength")])
    assert verdict.model is model
    assert verdict.passes == ()
    assert "left out" in verdict.notes[0]
    assert verdict.outcome.patches == 0


@pytest.mark.parametrize(
    ("limit", "reverted"),
    [(9.75, set()), (4.0, {"conv2"}), (0.8, {"conv2", "conv4"}), (0.3, {"conv1", "conv2", "conv4"})],
)
def test_fewest_of_the_worst_layers_are_reverted(limit: float, reverted: set[str]) -> None:
    verdict = guard(limit)[0].apply(FakeModel(), [FakePass("layers")])
    assert set(verdict.model.layers) == set(DAMAGE) - reverted
    rows = verdict.outcome.records[0].layers
    assert {row.name for row in rows if row.reverted} == reverted
    assert all("alone it loses" in row.reason for row in rows if row.reverted)
    assert len(rows) == len(DAMAGE)
    assert not {name for name, _ in verdict.outcome.records[0].skips} & reverted


@dataclass(frozen=True)
class SociablePass(FakePass):
    """Compresses conv3, which does the least damage, only beside another layer."""


def run_sociable(model: Any, group: Sequence[Any]) -> Outcome:
    names = [name for name in DAMAGE if name not in group[0].keep]
    return run(model, [group[0].keeping(["conv3"]) if names == ["conv3"] else group[0]])


def test_a_layer_that_is_nothing_without_its_neighbours_does_not_end_the_search() -> None:
    subject: Any = Guard(cast("Any", FakeJudge()), Limit(0.6), run_sociable)
    verdict = subject.apply(FakeModel(), [SociablePass("layers")])
    assert verdict.model.layers == ("conv1",)
    reasons = {row.name: row.reason for row in verdict.outcome.records[0].layers if row.reverted}
    assert reasons["conv3"] == "it is not compressed without its neighbours"
    assert set(reasons) == {"conv2", "conv3", "conv4"}


def test_no_layer_fits_leaves_the_pass_out_with_every_layer_reverted() -> None:
    verdict = guard(0.1)[0].apply(FakeModel(), [FakePass("layers")])
    assert verdict.passes == ()
    assert all(row.reverted and not row.kept for row in verdict.outcome.records[0].layers)


def test_a_pass_that_did_nothing_is_not_measured() -> None:
    subject, judge = guard(0.0)
    everything = FakePass("layers", keep=tuple(DAMAGE))
    verdict = subject.apply(FakeModel(), [everything])
    assert judge.measured == []
    assert verdict.outcome.patches == 0


def test_standard_errors_make_a_limit_forgiving_or_demanding() -> None:
    one_of_16 = Quality("top-1", 16, 16, 15 / 16, 0.0605, {"y": 30.0})
    all_of_16 = Quality("top-1", 16, 16, 1.0, 0.0, {"y": 30.0})
    all_of_100 = Quality("top-1", 100, 100, 1.0, 0.0, {"y": 30.0})
    assert Limit(1.0, standard_errors=-1).allows(one_of_16)
    assert not Limit(1.0).allows(one_of_16)
    assert Limit(3.0).allows(all_of_16)
    assert not Limit(3.0, standard_errors=1).allows(all_of_16)
    assert Limit(3.0, standard_errors=1).allows(all_of_100)


def test_expected_loss_takes_the_place_of_the_drop_only_where_bad_luck_is_forgiven() -> None:
    near_ties = Quality("top-1", 16, 16, 13 / 16, 0.0976, {"y": 22.0}, 0.4, 0.3)
    real_losses = Quality("top-1", 16, 16, 13 / 16, 0.0976, {"y": 22.0}, 12.0, 6.0)
    assert Limit(1.0, standard_errors=-1).allows(near_ties)
    assert not Limit(1.0).allows(near_ties)
    assert not Limit(1.0, standard_errors=-1).allows(real_losses)


def test_outputs_judged_by_sqnr_have_a_limit_of_their_own() -> None:
    quality = Quality("sqnr", 10, 0, None, None, {"y": 32.5})
    assert Limit(1.0, 8.0).allows(quality)
    assert not Limit(1.0, 7.0).allows(quality)
    assert not Limit(1.0).allows(quality)
