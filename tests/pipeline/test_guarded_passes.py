"""Every lossy pass under a budget it cannot keep at full strength: weakened or reverted in part, and said so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import graphopt
from graphopt import demo
from graphopt.analysis.dense_reference import DenseReference
from graphopt.rewrite import Contract, create
from graphopt.rewrite.registry import pass_class, pass_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from graphopt.analysis import Facts

QUICK = {"samples": 48, "rows": 1024}
STRENGTH: dict[str, dict[str, Any]] = {
    "prune-magnitude": {"sparsity": 0.97},
    "prune-second-order": {"sparsity": 0.995, "protect_ends": False, **QUICK},
    "prune-wanda": {"sparsity": 0.99, "protect_ends": False, **QUICK},
    "prune-channels": {"ratio": 0.9, "multiple": 1, **QUICK},
}
LAYERS: dict[str, dict[str, Any]] = {
    "round-weights": {"scheme": "binary", "ends_bits": 2, "variance": False, "method": "nearest", **QUICK},
}
BEFORE = ("fold-constants", "fuse-batch-norm")


def data(samples: int = 160) -> dict[str, np.ndarray]:
    with np.load(demo.CALIBRATION) as feeds:
        return {name: feeds[name][:samples] for name in feeds.files}


def compiled(name: str, options: dict[str, Any], **more: Any) -> graphopt.Result:
    recipe = {"name": "one", "passes": [*BEFORE, {name: options}]}
    return graphopt.compile(demo.CNN, recipe=recipe, data=data(), **more)


def closeness(run: Callable[[Any], Any], feeds: Iterable[Any]) -> float:
    """A metric of the user's: minus the mean square change of the logits."""
    return float(-np.mean([np.square(run(feed)["logits"] - dense(feed)).mean() for feed in feeds]))


def dense(feed: Any) -> np.ndarray:
    from graphopt.runtime import run, session

    return np.asarray(run(session(demo.CNN), feed)["logits"])


def test_every_lossy_pass_says_how_it_may_be_weakened() -> None:
    lossy = [name for name in pass_names() if pass_class(name).contract is Contract.LOSSY]
    assert {name for name in lossy if pass_class(name).guard == "strength"} == set(STRENGTH)
    assert set(LAYERS) <= {name for name in lossy if pass_class(name).guard == "layers"}
    for name, options in STRENGTH.items():
        half = create(name, options).with_strength(0.5)
        key = "ratio" if name == "prune-channels" else "sparsity"
        assert half.options()[key] == pytest.approx(options[key] / 2)
    for name, options in LAYERS.items():
        assert create(name, options).keeping(["a"]).options()["keep"] == ("a",)


@pytest.mark.parametrize(
    "name", ["prune-wanda", *(pytest.param(n, marks=pytest.mark.slow) for n in STRENGTH if n != "prune-wanda")]
)
def test_what_is_too_strong_is_weakened_until_it_fits(name: str) -> None:
    result = compiled(name, STRENGTH[name], max_drop=3.0)
    quality = result.report.quality
    assert quality is not None
    assert quality.drop is not None
    assert result.met
    assert quality.drop <= 3.0
    assert any(f"{name} was weakened to" in note for note in result.report.notes), result.report.notes
    strength = {step.name: step.options() for step in result.recipe.create()}[name]
    key = "ratio" if name == "prune-channels" else "sparsity"
    assert 0 < strength[key] < STRENGTH[name][key]
    assert quality.kl is not None
    assert quality.kl_error is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LAYERS))
def test_what_hurts_too_much_is_reverted_layer_by_layer_and_listed(name: str) -> None:
    result = compiled(name, LAYERS[name], max_drop=0.0)
    quality = result.report.quality
    assert quality is not None
    assert result.met
    reverted = {entry.name for entry in result.report.layers if entry.reverted}
    kept = {entry.name for entry in result.report.layers if entry.kept}
    assert reverted
    assert kept
    assert not reverted & kept
    assert all("alone it loses" in entry.reason for entry in result.report.layers if entry.reverted)
    assert any(f"left {len(reverted)} of" in note for note in result.report.notes)


@pytest.mark.slow
def test_a_metric_of_the_user_decides_in_its_units() -> None:
    result = compiled("prune-wanda", STRENGTH["prune-wanda"], max_drop=0.5, metric=closeness)
    quality = result.report.quality
    assert quality is not None
    assert quality.drop is not None
    assert quality.metric == "closeness"
    assert result.met
    assert quality.drop <= 0.5
    assert any("was weakened to" in note for note in result.report.notes)


def test_a_later_pass_aims_at_the_model_before_all_lossy_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    remember = DenseReference.remember.__func__  # type: ignore[attr-defined]

    def noted(cls: type[DenseReference], model: Any, facts: Facts) -> None:
        remember(cls, model, facts)
        reference = facts.get(DenseReference).model
        assert reference is not None
        arrays = [each.array() for graph in reference.graphs() for each in graph.initializers]
        seen.append(sum(int((array == 0).sum()) for array in arrays if array.ndim == 4))

    monkeypatch.setattr(DenseReference, "remember", classmethod(noted))
    steps = [*BEFORE, {"prune-wanda": {"sparsity": 0.5, **QUICK}}, {"round-weights": {"bits": 8, **QUICK}}]
    result = graphopt.compile(demo.CNN, recipe={"name": "two", "passes": steps}, data=data(), max_drop=50.0)
    assert [step.name for step in result.recipe.create()][-2:] == ["prune-wanda", "round-weights"]
    assert len(seen) >= 2
    assert len(set(seen)) == 1
