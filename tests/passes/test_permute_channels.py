"""permute-channels: channels change places in all weights at once, and nothing else changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel_models import NETWORKS, difference, feed_of, groups_of, network
from graphopt import demo
from graphopt.analysis import Facts, RowScale
from graphopt.analysis.layer_statistics import LayerStatistics, find_layers
from graphopt.analysis.layer_statistics.collected import CollectedStatistics
from graphopt.analysis.layer_statistics.form import form_of
from graphopt.graph import Model, Rewriter, dump_text, read_model
from graphopt.passes.prune.permutation.exchange import exchanges, orders, refusal, write
from graphopt.passes.prune.permute_channels import PermuteChannels
from graphopt.passes.prune.prune_magnitude import PruneMagnitude
from graphopt.passes.prune.prune_second_order import PruneSecondOrder
from graphopt.passes.prune.structure import Structure
from graphopt.rewrite import Outcome, PassManager, create
from graphopt.runtime import Feeds, run, session
from graphopt.solve.patterns import Pattern, keep_best
from graphopt.verify.legality import check_legal

if TYPE_CHECKING:
    from collections.abc import Callable

PATTERNS = ("2:4", "1:2", "4x1", "1x4", "4x4")


def permuted(
    model: Model, data: Feeds | None = None, *, verify: Literal["fast", "full"] = "fast", **options: Any
) -> Outcome:
    return PassManager([PermuteChannels(**{"protect_ends": False, **options})], verify=verify).run(model, data)


def reasons(outcome: Outcome) -> list[str]:
    return [reason for record in outcome.records for _, reason in record.skips]


def folded(path: Any) -> Model:
    model = read_model(path)
    PassManager([create("fold-constants"), create("fuse-batch-norm")]).run(model)
    return model


def kept_share(model: Model, name: str, share: float) -> float:
    """Return the mean over the layers of the share of squared weights that a pattern keeps."""
    pattern, found = Pattern.parse(name), []
    for layer in find_layers(model):
        array = layer.node.inputs[1].array()
        form = form_of(layer.node, 1, array)
        assert not isinstance(form, str)
        structure = Structure(form, array.shape, pattern)
        if structure.refusal():
            continue
        parts = [np.square(part) for part in structure.matrices(array)]
        total = sum(float(part.sum()) for part in parts)
        found.append(sum(float(part[keep_best(part, pattern, share)].sum()) for part in parts) / total)
    return float(np.mean(found))


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=st.integers(0, 1 << 16))
@settings(max_examples=5, deadline=None)
def test_any_order_of_what_may_change_places_gives_the_same_results(name: str, seed: int) -> None:
    model = NETWORKS[name]()
    draw = np.random.default_rng(seed)
    other = model.copy()
    channels = groups_of(other)
    found = exchanges(channels, [group for group in channels.groups if not group.reason])
    assert found
    for exchange in found:
        assert not refusal(channels, exchange)
        with Rewriter(other) as rewriter:
            write(rewriter, orders(channels, exchange, draw.permutation(len(exchange.units))))
    check_legal(other)
    assert difference(model, other, feed_of(name)) < 1e-5


def test_exchanges_reach_across_what_is_counted_apart() -> None:
    """Channels that a Pad adds before and behind are alike; those of the shortcut between them are not."""
    channels = groups_of(NETWORKS["padded shortcut"]())
    found = exchanges(channels, [group for group in channels.groups if not group.reason])
    assert sorted(len(each.units) for each in found) == [4, 5]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ["residual", "concat and split", "few groups and shuffle", "flatten", "depthwise"])
def test_the_pass_keeps_results_and_more_of_the_weights(name: str, pattern: str) -> None:
    model = NETWORKS[name]()
    before, original = kept_share(model, pattern, 0.5), model.copy()
    outcome = permuted(model, pattern=pattern, verify="full")
    check_legal(model)
    assert difference(original, model, feed_of(name)) < 1e-5
    after = kept_share(model, pattern, 0.5)
    assert after >= before - 1e-12
    assert bool(outcome.patches) == (after > before * (1 + 1e-9))


@pytest.mark.parametrize(
    ("pattern", "data"),
    [("2:4", False), ("4x1", False), ("4x1", True), pytest.param("2:4", True, marks=pytest.mark.slow)],
)
def test_a_real_network_keeps_its_outputs_and_a_second_run_changes_nothing(pattern: str, data: bool) -> None:
    model = folded(demo.CNN)
    original, twin = model.copy(), model.copy()
    feeds = Feeds.open(demo.CALIBRATION, model).take(32) if data else None
    assert permuted(model, feeds, pattern=pattern, rows=512, starts=2).patches
    assert permuted(twin, feeds, pattern=pattern, rows=512, starts=2).patches
    with np.load(demo.TEST) as test:
        images = {"image": test["image"][:64]}
    one, other = (run(session(each), images, ["logits"])["logits"] for each in (original, model))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    text = model.to_bytes()
    assert twin.to_bytes() == text
    assert not permuted(model, feeds, pattern=pattern, rows=512, starts=2).patches
    assert model.to_bytes() == text


def test_pruning_behind_it_keeps_more() -> None:
    """Rows that were shuffled cost blocks of four rows dearly; the pass finds an order that does not."""
    errors = []
    for permute in (False, True):
        model = shuffled_blocks()
        if permute:
            assert permuted(model, pattern="4x1", sparsity=0.5).patches
        original = model.copy()
        PassManager([PruneMagnitude(pattern="4x1", sparsity=0.5, scope="local", keep=("second",))]).run(model)
        errors.append(difference(original, model, {"x": np.ones((2, 6), np.float32)}))
    assert errors[1] < 0.1 * errors[0]


def shuffled_blocks() -> Model:
    """Two layers; the first is sparse in blocks of four rows that lie apart."""
    draw = np.random.default_rng(0)
    blocks = np.repeat(np.arange(24).reshape(4, 6) % 2 == np.arange(4)[:, None] % 2, 4, axis=0)
    first = np.where(blocks, 1 + draw.random((16, 6)), 1e-4 * draw.random((16, 6))).astype(np.float32)
    weights = {"w": first[draw.permutation(16)], "b": (16,), "v": np.ones((4, 16), np.float32)}
    body = "g (float[N,6] x) => (float[N,4] y) { a = Gemm<transB=1>(x, w, b) r = Relu(a) y = Gemm<transB=1>(r, v) }"
    model = network(body, weights)
    model.graph.nodes[-1].name = "second"
    return model


def test_golden(golden: Callable[[str], None]) -> None:
    body = "g (float[N,2] x) => (float[N,1] y) { a = Gemm<transB=1>(x, w, b) r = Relu(a) y = Gemm<transB=1>(r, v) }"
    rows = np.array([[5, 0.5], [0.5, 6], [7, 0.25], [0.25, 8]], np.float32)
    weights = {"w": rows, "b": np.arange(4, dtype=np.float32), "v": np.arange(4, dtype=np.float32)[None]}
    model = network(body, weights)
    outcome = permuted(model, pattern="1:2")
    assert not outcome.patches  # columns of w are inputs of the model, and those of v hold one row: any order keeps 1:2
    weights["v"] = np.array([[9, 8, 1, 2]], np.float32)
    model = network(body, weights)
    assert permuted(model, pattern="1:2").patches
    values = [f"{each.name} = {each.array().tolist()}" for each in model.graph.initializers]
    golden("\n".join([dump_text(model), *values]))


GATHERED = """g (float[N,1,4,4] x) => (float[N,2] y) {
    a = Conv(x, w0)
    f = Flatten(a)
    p = Gather<axis=1>(f, picked)
    y = Gemm<transB=1>(p, w1)
}"""


@pytest.mark.parametrize(
    ("text", "weights", "options", "reason"),
    [
        (
            "g (float[N,3] x) => (float[N,8] y) { y = Gemm(x, w) }",
            {"w": (3, 8)},
            {},
            "is an output of the model",
        ),
        (
            "g (float[N,3] x) => (float[N,2] y) { a = Gemm(x, w) r = Relu(a) y = Gemm(r, v) }",
            {"w": (3, 8), "v": (8, 2)},
            {"protect_ends": True},
            "no layer gets zeros where pattern 4x1 would see them",
        ),
        (
            "g (float[N,3] x) => (float[N,2] y) { a = Gemm(x, w) r = Relu(a) y = Gemm(r, v) }",
            {"w": (3, 8), "v": (8, 2)},
            {"keep": ("second",)},
            "'second' is to be kept",
        ),
        (
            "g (float[N,3] x) => (float[N,2] y) { a = Gemm(x, w) r = Relu(a) y = Gemm(r, v) }",
            {"w": np.eye(3, 8, dtype=np.float32), "v": (8, 2)},
            {},
            "were pruned",
        ),
        (
            "g (float[N,3] x) => (float[N,2] y) { a = Gemm(x, w) r = Relu(a) y = Gemm(r, v) }",
            {"w": np.ones((3, 8), np.float32), "v": (8, 2)},
            {},
            "no other was found to keep more",
        ),
        (
            GATHERED,
            {"w0": (2, 1, 3, 3), "picked": [1, 0, 2, 3, 4, 5, 6, 7], "w1": (2, 8)},
            {"pattern": "1:2"},
            "picks parts of them",
        ),
        (
            "g (float[N,3] x) => (float[N,2] y) { a = Gemm(x, w) s = CumSum(a, axis) y = Gemm(s, v) }",
            {"w": (3, 8), "v": (8, 2), "axis": np.array(1)},
            {},
            "computes over it",
        ),
    ],
)
def test_what_keeps_its_order_says_why(
    text: str, weights: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    model = network(text, weights)
    last = model.graph.nodes[-1]
    last.name = "second"
    before = model.to_bytes()
    outcome = permuted(model, **options)
    assert any(reason in each for each in reasons(outcome)), reasons(outcome)
    if "output of the model" not in reason:
        assert model.to_bytes() == before


def test_a_model_that_was_pruned_keeps_its_order() -> None:
    model = folded(demo.CNN)
    facts = Facts(model, feeds=Feeds.open(demo.CALIBRATION, model).take(32))
    steps = [PruneSecondOrder(sparsity=0.5, pattern="4x1", rows=512), PermuteChannels()]
    outcome = PassManager(steps).run(model, facts=facts)
    assert "weights were pruned before" in outcome.records[1].skips[0][1]


def test_statistics_of_another_order_are_not_used() -> None:
    model = folded(demo.CNN)
    facts = Facts(model)
    found = LayerStatistics.collect(model, Feeds.open(demo.CALIBRATION, model).take(16))
    facts.record(CollectedStatistics(found))
    outcome = PassManager([PermuteChannels()]).run(model, facts=facts)
    assert not outcome.patches
    assert "would not hold for another order" in reasons(outcome)[0]


def test_scales_of_folded_weights_follow() -> None:
    model = read_model(demo.CNN)
    facts = Facts(model)
    PassManager([create("fold-constants"), create("fuse-batch-norm")]).run(model, facts=facts)
    before = {name: np.array(facts.get(RowScale).of(name)) for name in facts.get(RowScale)}
    weights = {each.name: np.array(each.array()) for each in model.graph.initializers}
    PassManager([PermuteChannels(protect_ends=False)]).run(model, facts=facts)
    moved = 0
    for name, scale in before.items():
        now, then = next(each.array() for each in model.graph.initializers if each.name == name), weights[name]
        norms = [np.square(each.reshape(len(each), -1)).sum(axis=1) for each in (now, then)]
        order = [int(np.argmin(np.abs(norms[1] - norm))) for norm in norms[0]]
        np.testing.assert_array_equal(facts.get(RowScale).of(name), scale[order])
        moved += order != sorted(order)
    assert moved


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pattern": "unstructured"}, "gains nothing"),
        ({"sparsity": 1.5}, "between 0 and 1"),
        ({"starts": 0}, "1 or more"),
        ({"damping": 0.0}, "above 0"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PermuteChannels(**options)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
def test_resnet_keeps_its_outputs(pattern: str) -> None:
    assets = os.environ.get("GRAPHOPT_ASSETS")
    if not assets:
        pytest.skip("GRAPHOPT_ASSETS is not set")
    model = read_model(Path(assets) / "models" / "cifar10_resnet20_legacy_op17.onnx")
    steps = [create(name) for name in ("fold-constants", "eliminate-dead", "eliminate-identity")]
    PassManager(steps).run(model)
    original = model.copy()
    before = kept_share(model, pattern, 0.7)
    assert permuted(model, pattern=pattern, sparsity=0.7).patches >= 9
    assert kept_share(model, pattern, 0.7) > before * 1.01
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    assert difference(original, model, {model.graph.inputs[0].name: images}) < 1e-4
