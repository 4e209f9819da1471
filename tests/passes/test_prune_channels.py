"""prune-channels: real removal, repaired by what is left."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from channel_models import NETWORKS, difference, feed_of, groups_of
from graphopt import demo
from graphopt.analysis import Cost, Facts, RowScale
from graphopt.graph import Model, Rewriter, read_model
from graphopt.passes.prune.channels.budget import share_out
from graphopt.passes.prune.channels.choice import Choice, kept_units
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.rewrite import Outcome, PassManager, create
from graphopt.runtime import Feeds, run, session
from graphopt.verify.legality import check_legal

RANKINGS = ("block-obs", "correlation", "lasso", "l1", "l2", "entropy", "random")


def pruned(
    model: Model, data: Feeds | None = None, *, verify: Literal["fast", "full"] = "fast", **options: Any
) -> Outcome:
    return PassManager([PruneChannels(**options)], verify=verify).run(model, data)


def logits(model: Model) -> np.ndarray[Any, Any]:
    with np.load(demo.TEST) as test:
        return np.asarray(run(session(model), {"image": test["image"]}, ["logits"])["logits"])


def folded(path: Any) -> Model:
    model = read_model(path)
    PassManager([create("fold-constants"), create("fuse-batch-norm")]).run(model)
    return model


def calibration(model: Model) -> Feeds:
    return Feeds.open(demo.CALIBRATION, model).take(96)


def parameters(model: Model) -> int:
    return sum(int(np.prod(tensor.shape)) for tensor in model.graph.initializers)


@pytest.mark.parametrize("path", [demo.CNN, demo.TRANSFORMER], ids=["cnn", "transformer"])
def test_what_stays_makes_up_for_what_goes(path: Any) -> None:
    original = folded(path)
    wanted = logits(original).argmax(axis=1)
    agreement = {}
    for data in (False, True):
        model = original.copy()
        outcome = pruned(model, calibration(model) if data else None, ratio=0.5, rows=2048, multiple=1)
        assert outcome.patches
        check_legal(model)
        assert parameters(model) < 0.7 * parameters(original)
        agreement[data] = float((logits(model).argmax(axis=1) == wanted).mean())
    assert agreement[True] > max(0.9, agreement[False] + 0.02)


@pytest.mark.parametrize("select", RANKINGS)
def test_every_ranking_removes_the_same_number(select: str) -> None:
    model = folded(demo.CNN)
    free = [group for group in groups_of(model).groups if not group.reason and not group.tied]
    pruned(model, calibration(model), select=select, ratio=0.25, rows=512, multiple=1)
    after = [group for group in groups_of(model).groups if not group.reason and not group.tied]
    assert [len(group) for group in after] == [kept_units(group, 0.25, 1) for group in free]


@pytest.mark.parametrize("name", NETWORKS)
def test_without_data_the_columns_that_stay_are_as_they_were(name: str) -> None:
    model = NETWORKS[name]()
    outcome = pruned(model, ratio=0.5, tied=True, select="l1", verify="full")
    assert outcome.patches
    check_legal(model)
    assert np.isfinite(next(iter(run(session(model), feed_of(name)).values()))).all()


def test_same_seed_same_model() -> None:
    made = []
    for _ in range(2):
        model = folded(demo.CNN)
        pruned(model, calibration(model), ratio=0.5, rows=512)
        made.append(model.to_bytes())
    assert made[0] == made[1]


def test_nothing_goes_at_ratio_zero() -> None:
    model = NETWORKS["residual"]()
    before = model.to_bytes()
    assert not pruned(model, ratio=0.0, tied=True).patches
    assert model.to_bytes() == before


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("residual", {}, "additions tie them"),
        ("residual", {"tied": True}, "is an output of the model"),
        ("attention", {"what": ("neurons",)}, "does not name heads"),
    ],
)
def test_what_stays_says_why(name: str, options: dict[str, Any], reason: str) -> None:
    outcome = pruned(NETWORKS[name](), **options)
    assert any(reason in text for record in outcome.records for _, text in record.skips)


def test_a_kept_layer_loses_nothing() -> None:
    model = NETWORKS["residual"]()
    node = groups_of(model).groups[1].consumers[0].node
    node.name = "reader"
    outcome = pruned(model, ratio=0.5, keep=("reader",))
    assert not outcome.patches
    assert any("'reader' is to be kept" in text for record in outcome.records for _, text in record.skips)


def test_scales_of_folded_weights_lose_the_same_rows() -> None:
    model = read_model(demo.CNN)
    facts = Facts(model)
    PassManager([create("fold-constants"), create("fuse-batch-norm")]).run(model, facts=facts)
    names = list(facts.get(RowScale))
    assert names
    before = {name: facts.get(RowScale).of(name) for name in names}
    PassManager([PruneChannels(ratio=0.5, multiple=1, select="random")]).run(model, facts=facts)
    scales = facts.get(RowScale)
    assert set(scales) == set(names)
    shorter = 0
    for name in names:
        now, then = scales.of(name), before[name]
        assert now is not None
        assert then is not None
        assert set(now.tolist()) <= set(then.tolist())
        shorter += len(now) < len(then)
    assert shorter


def test_counts_are_rounded_where_there_are_many() -> None:
    group = max(groups_of(folded(demo.CNN)).groups, key=len)
    assert len(group) >= 64
    assert kept_units(group, 0.3, 8) % 8 == 0
    assert kept_units(group, 0.3, 1) == len(group) - round(0.3 * len(group))
    assert kept_units(group, 1.0, 1) == 1


@pytest.mark.parametrize(("options", "word"), [({"ratio": 1.5}, "ratio"), ({"multiple": 0}, "multiple")])
def test_wrong_options_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        PruneChannels(**options)
    with pytest.raises(ValueError, match="layers"):
        PruneChannels(what=("layers",))


def test_a_copy_of_a_channel_costs_nothing() -> None:
    """Two equal channels: one goes, the layer that reads them reads the other twice as much."""
    model = NETWORKS["flatten"]()
    weights = {tensor.name: tensor for tensor in model.graph.initializers}
    with Rewriter(model) as rewriter:
        for name in ("w0", "b0", "s", "t"):
            value = np.array(weights[name].array())
            value[1] = value[0]
            rewriter.set_weight(weights[name], value)
    original = model.copy()
    images = np.random.default_rng(0).standard_normal((64, 1, 6, 6)).astype(np.float32)
    feeds = Feeds.open({"x": images}, model)
    pruned(model, feeds, ratio=1 / 6, what=("channels",), multiple=1, damping=1e-9)
    assert len(groups_of(model).groups[0]) == 5
    assert difference(original, model, feed_of("flatten")) < 1e-4


def test_global_scope_takes_as_many_operations_and_loses_less() -> None:
    original = folded(demo.CNN)
    wanted = logits(original)
    figures = {}
    for scope in ("group", "global"):
        model = original.copy()
        pruned(model, calibration(model), ratio=0.5, scope=scope, rows=1024, multiple=1)
        operations = Facts(model).get(Cost).total(default=1).flops
        figures[scope] = operations, float(((logits(model) - wanted) ** 2).mean())
    assert figures["global"][0] <= 1.02 * figures["group"][0]
    assert figures["global"][1] < 1.05 * figures["group"][1]


def test_the_group_that_costs_least_to_lose_from_loses_most() -> None:
    channels = groups_of(folded(demo.CNN))
    groups = [group for group in channels.groups if not group.reason and not group.tied][:2]
    keep = {group: len(group) // 2 for group in groups}
    choice = Choice(channels, groups, keep, "block-obs", 0)
    ramp = {
        group: np.arange(len(group)) / len(group) * weight for group, weight in zip(groups, (1.0, 9.0), strict=True)
    }
    shared = share_out(choice, ramp, {group: 1.0 / len(group) for group in groups}, multiple=1)
    assert shared[groups[0]] < keep[groups[0]]
    assert shared[groups[1]] > keep[groups[1]]
    assert sum(shared[group] / len(group) for group in groups) <= 1.0 + 1e-9


def test_too_few_rows_share_nothing_out() -> None:
    """A layer seen on fewer rows than it has columns seems to lose nothing; its group keeps the equal share."""
    original = folded(demo.CNN)
    kept = []
    for scope in ("group", "global"):
        model = original.copy()
        pruned(model, calibration(model), ratio=0.5, scope=scope, rows=16, multiple=1)
        kept.append([len(group) for group in groups_of(model).groups])
    assert kept[0] == kept[1]
