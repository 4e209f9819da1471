"""The cache of analyses: what is computed when, what goes stale, and which claims of preservation are false."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import pytest

from graphopt.analysis import Analysis, Captures, Cost, Facts, Liveness, NetworkView, RowScale, ShapeValues, Types, Uses
from graphopt.errors import AnalysisError
from graphopt.graph import Rewriter
from shape_agreement import read_text

if TYPE_CHECKING:
    from graphopt.graph import Model

ALL = (Types, ShapeValues, Uses, Captures, Liveness, Cost, NetworkView)

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
chain (float[batch, 4] x) => (float[batch, 2] y)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, int64[2] target = {-1, 2}>
{
    a = MatMul (x, w)
    b = Relu (a)
    y = Reshape (b, target)
}
"""


class Counted(Analysis):
    """Counts how often it is computed."""

    depends: ClassVar[frozenset[str]] = frozenset({"types"})
    computed: ClassVar[int] = 0

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        Counted.computed += 1
        return cls()

    def same_as(self, other: Self) -> bool:
        return True


class Outer(Counted):
    """Depends on nothing itself, but asks for what depends on the structure."""

    depends: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        facts.get(Uses)
        return super().compute(model, facts)


class Selfish(Counted):
    """Asks for itself through another one."""

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        facts.get(Asks)
        return cls()


class Asks(Counted):
    """Asks for the one that asks for it."""

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:
        facts.get(Selfish)
        return cls()


@pytest.fixture
def model() -> Model:
    return read_text(TEXT)


def test_a_result_is_computed_once_per_version(model: Model) -> None:
    facts, before = Facts(model), Counted.computed
    first = facts.get(Counted)
    assert facts.get(Counted) is first
    model.versions.structure += 1
    model.versions.weights += 1
    assert facts.get(Counted) is first
    model.versions.types += 1
    assert facts.cached(Counted) is None
    assert facts.get(Counted) is not first
    assert Counted.computed == before + 2


def test_dependencies_of_what_it_asks_for_are_inherited(model: Model) -> None:
    facts = Facts(model)
    first = facts.get(Outer)
    model.versions.structure += 1
    assert facts.get(Outer) is not first


def test_inherited_dependencies_hold_when_the_inner_one_was_cached(model: Model) -> None:
    facts = Facts(model)
    facts.get(Uses)
    first = facts.get(Outer)
    model.versions.structure += 1
    assert facts.get(Outer) is not first


def test_an_analysis_that_needs_itself_is_an_error(model: Model) -> None:
    facts = Facts(model)
    with pytest.raises(AnalysisError, match=r"GO-A001 Selfish > Asks > Selfish: the analysis Selfish needs itself"):
        facts.get(Selfish)
    assert facts.get(Counted) is facts.get(Counted)


@pytest.mark.parametrize("kind", ALL)
def test_recomputed_analyses_are_equal(model: Model, kind: type[Analysis]) -> None:
    assert Facts(model).get(kind) == Facts(model).get(kind)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not Captures])
def test_every_analysis_tells_a_changed_model_apart(model: Model, kind: type[Analysis]) -> None:
    facts = Facts(model)
    before = facts.get(kind)
    node = model.graph.nodes[1]
    target = model.graph.nodes[2].inputs[1]
    with Rewriter(model) as rw:
        new = rw.op("Concat", [node.outputs[0], node.outputs[0]], attrs={"axis": 0}, near=node)
        rw.replace_uses(node.outputs[0], new, where=lambda use: use.node.op == "Reshape")
        rw.set_weight(target, np.array([2, -1], np.int64))
    assert Facts(model).get(kind) != before
    assert facts.get(kind) != before


def test_invalidate_keeps_what_stands_still_and_what_is_claimed(model: Model) -> None:
    facts = Facts(model)
    uses, types, counted = facts.get(Uses), facts.get(Types), facts.get(Counted)
    model.versions.structure += 1
    facts.invalidate(preserving=(Types,))
    assert facts.cached(Types) is types
    assert facts.cached(Counted) is counted
    assert facts.cached(Uses) is None
    assert facts.get(Uses) == uses


def test_a_claim_for_one_edit_does_not_speak_for_all_that_happened_while_it_was_held(model: Model) -> None:
    facts = Facts(model)
    first = facts.get(Counted)
    with facts.holding((Counted,)):
        model.versions.types += 1
        facts.invalidate()
        model.versions.types += 1
        facts.invalidate(preserving=(Counted,))
        assert facts.get(Counted) is first
    assert facts.get(Counted) is not first


def test_a_false_claim_is_found_and_a_true_one_is_not(model: Model) -> None:
    facts = Facts(model)
    for kind in ALL:
        facts.get(kind)
    relu = model.graph.nodes[1]
    with Rewriter(model) as rw:
        rw.set_op(relu, "Neg")
    assert facts.false_claims((Types, ShapeValues, Uses, Liveness, NetworkView)) == []
    with Rewriter(model) as rw:
        rw.set_type(relu.outputs[0], np.float32, ["batch", 2])
        doubled = rw.op("Concat", [relu.outputs[0], relu.outputs[0]], attrs={"axis": 1}, near=relu)
        rw.replace_uses(relu.outputs[0], doubled, where=lambda use: use.node.op == "Reshape")
    assert facts.false_claims(ALL) == [Types, Uses, Liveness, Cost, NetworkView]
    assert facts.false_claims((Captures, RowScale)) == []


def test_a_claim_survives_the_removal_of_what_it_also_knew(model: Model) -> None:
    with Rewriter(model) as rw:
        dead = rw.op("Neg", [model.graph.nodes[1].outputs[0]], near=model.graph.nodes[1])
    facts = Facts(model)
    types = facts.get(Types)
    with Rewriter(model) as rw:
        rw.erase([dead.inputs[0]])
    fresh = Facts(model).get(Types)
    assert types.knows(dead)
    assert not fresh.knows(dead)
    assert types != fresh
    assert facts.false_claims((Types, ShapeValues, Cost)) == []


def test_types_survive_new_weights_but_not_new_shape_constants(model: Model) -> None:
    facts = Facts(model)
    types, cost = facts.get(Types), facts.get(Cost)
    weight, target = model.graph.nodes[0].inputs[1], model.graph.nodes[2].inputs[1]
    with Rewriter(model) as rw:
        rw.set_weight(weight, np.zeros((4, 2), np.float32))
    assert facts.get(Types) is types
    assert facts.get(Cost) is cost
    with Rewriter(model) as rw:
        rw.set_weight(target, np.array([-1, 2], np.int64))
    assert facts.get(Types) is types
    with Rewriter(model) as rw:
        rw.set_weight(target, np.array([2, -1], np.int64))
    after = facts.get(Types)
    assert after is not types
    assert after.shape(model.graph.outputs[0]) != types.shape(model.graph.outputs[0])
    with Rewriter(model) as rw:
        rw.set_weight(weight, np.zeros((4, 6), np.float32))
    assert facts.get(Types) is not after


def test_forgetting_does_not_look_at_weights(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Facts(model)
    facts.get(Types)
    asked: list[Model] = []

    def survives(_types: Types, model: Model) -> bool:
        asked.append(model)
        return True

    monkeypatch.setattr(Types, "survives", survives)
    for _ in range(3):
        with Rewriter(model) as rw:
            rw.set_weight(model.graph.nodes[0].inputs[1], np.zeros((4, 2), np.float32))
        facts.invalidate()
    assert asked == []
    facts.get(Types)
    assert len(asked) == 1


def test_recorded_results_stay_and_follow_the_model(model: Model) -> None:
    facts = Facts(model)
    weight = model.graph.nodes[0].inputs[1]
    assert len(facts.get(RowScale)) == 0
    facts.record(facts.get(RowScale).with_scale(weight, np.array([2.0, 4.0], np.float32), axis=1))
    model.versions.structure += 1
    facts.invalidate()
    found = facts.get(RowScale).of(weight)
    assert found is not None
    assert found.tolist() == [2.0, 4.0]
    copy = facts.fork(model.copy())
    assert list(copy.get(RowScale)) == ["w"]
    assert copy.cached(Types) is None
