"""The walk over the layers: what a pass on it gets, and what is done around it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx.parser
import pytest

from graphopt import demo
from graphopt.analysis import Facts
from graphopt.analysis.layer_statistics import (
    CollectedStatistics,
    Layer,
    LayerStatistics,
    Refusal,
    find_layers,
    reading,
    segments,
    statistics,
    stream,
)
from graphopt.graph import Constant, Rewriter, constant_value, read_model
from graphopt.passes.prune.prune_magnitude import PruneMagnitude
from graphopt.passes.prune.prune_wanda import PruneWanda
from graphopt.passes.prune.refit_weights import RefitWeights
from graphopt.passes.quantize.round_weights import RoundWeights
from graphopt.rewrite import Outcome, PassManager
from graphopt.rewrite import sweep as sweep_module
from graphopt.rewrite.layerwise import LayerwisePass, Problem, Solution, Written
from graphopt.runtime import Feeds, run, session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from graphopt.graph import Model
    from graphopt.rewrite.layer_stop import Stop
    from graphopt.rewrite.sweep import Sweep

HEAD = '<ir_version: 9, opset_import: ["" : 17]>'
SEEN: list[Problem] = []
WRITTEN: list[Written] = []
SWEPT: list[tuple[Sweep, Sequence[Stop]]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(LayerwisePass):
    """Change every weight by a function.

    Matches: All layers.
    Produces: What the function says.
    Requires: Nothing.
    Preserves: Nothing.
    Source: This test.
    """

    name: ClassVar[str] = "change"
    by: Callable[[np.ndarray], np.ndarray]
    recurrent: bool = False

    def layers(self, model: Model) -> Iterator[Layer | Refusal]:
        return find_layers(model, keep=self.keep, depthwise=True, recurrent=self.recurrent)

    def plan(self, sweep: Sweep, stops: Sequence[Stop], facts: Facts) -> Mapping[str, Any]:
        SWEPT.append((sweep, stops))
        return {stop.key: place for place, stop in enumerate(stops)}

    def solve(self, problem: Problem) -> Solution | str:
        SEEN.append(problem)

        def record(rewriter: Rewriter, written: Written) -> None:
            WRITTEN.append(written)

        return Solution([self.by(part) for part in problem.dense], what="changed", record=record)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeFreely(Change):
    """Change every weight by a function, with data or without.

    Matches: All layers.
    Produces: What the function says.
    Requires: Nothing.
    Preserves: Nothing.
    Source: This test.
    """

    data_free: ClassVar[bool] = True
    takes_wide: ClassVar[bool] = True


@pytest.fixture(autouse=True)
def forgotten() -> None:
    SEEN.clear()
    WRITTEN.clear()
    SWEPT.clear()


def parsed(text: str) -> Model:
    return read_model(onnx.parser.parse_model(text))


def numbers(*shape: int, seed: int = 0) -> str:
    values = np.random.default_rng(seed).standard_normal(int(np.prod(shape)))
    return ", ".join(f"{value:.6f}" for value in values)


def feeds_of(model: Model, count: int = 64) -> Feeds:
    rng = np.random.default_rng(0)
    fed = {each.name: rng.standard_normal((count, *each.shape[1:])).astype(np.float32) for each in model.graph.inputs}
    return Feeds.open(fed, model)


def applied(model: Model, *passes: LayerwisePass | PruneMagnitude, data: Feeds | None) -> Outcome:
    return PassManager(list(passes), verify="fast").run(model, data)


def outputs(model: Model, feeds: Feeds) -> np.ndarray:
    runner = session(model)
    return np.concatenate([run(runner, feed)["y"].reshape(-1) for feed in feeds])


CHAIN = (
    HEAD
    + f""" g (float[n, 4] x) => (float[n, 3] y)
<float[4, 6] a = {{{numbers(4, 6)}}}, float[6] b = {{{numbers(6, seed=1)}}},
 float[6, 3] c = {{{numbers(6, 3, seed=2)}}}> {{
    h = Gemm(x, a, b)
    r = Relu(h)
    y = MatMul(r, c)
}}"""
)


def test_each_layer_sees_what_was_done_to_those_before_it() -> None:
    model = parsed(CHAIN)
    feeds = feeds_of(model)
    applied(model, Change(by=lambda part: part * 2, variance=False), data=feeds)
    first, second = SEEN
    assert [problem.plan for problem in SEEN] == [0, 1]
    assert [problem.centred for problem in SEEN] == [True, False]
    np.testing.assert_allclose(first.fit[0].inner, first.fit[0].cross)
    (given,) = second.fit
    assert not np.allclose(given.inner, given.outer, rtol=1e-2)
    weight = np.array([float(each) for each in numbers(4, 6).split(",")]).reshape(4, 6)
    bias = np.array([float(each) for each in numbers(6, seed=1).split(",")])
    x = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    judged = np.arange(len(x)) // 8 % 4 == 3  # batches of eight, every fourth is kept from the fit
    dense = np.maximum(x @ weight + bias, 0)
    doubled = x @ (2 * weight)
    mean = (x @ weight + bias)[~judged].mean(axis=0)
    changed = np.maximum(doubled - doubled[~judged].mean(axis=0) + mean, 0)
    for part, chosen in ((given, ~judged), (second.judge[0], judged)):
        count = chosen.sum()
        np.testing.assert_allclose(part.outer, dense[chosen].T @ dense[chosen] / count, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(part.inner, changed[chosen].T @ changed[chosen] / count, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(part.cross, dense[chosen].T @ changed[chosen] / count, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(second.squares[0], np.diag(given.inner))


def test_mean_and_variance_are_kept_where_there_is_a_bias() -> None:
    model = parsed(CHAIN)
    feeds = feeds_of(model)
    applied(model, Change(by=lambda part: part * 3), data=feeds)
    np.testing.assert_allclose(WRITTEN[0].gains[0], 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(WRITTEN[1].gains[0], 1)
    bias = constant_value(model.graph.nodes[0].inputs[2])
    assert bias is not None
    np.testing.assert_allclose(bias, np.array([float(each) for each in numbers(6, seed=1).split(",")]), rtol=1e-4)
    assert isinstance(WRITTEN[0].tensor, Constant)
    np.testing.assert_array_equal(WRITTEN[0].tensor.array(), WRITTEN[0].weight)


def test_without_data_and_in_bodies_only_passes_that_can_do_without_act() -> None:
    text = (
        HEAD
        + """ g (float[n, 2] x, bool[1] c) => (float[n, 2] y)
    <float[2, 2] a = {1, 2, 3, 4}, float[2, 2] b = {1, 2, 3, 5}> {
        h = MatMul(x, a)
        s = Squeeze(c)
        y = If(s) <then_branch = t () => (float[n, 2] p) { p = MatMul(h, b) },
                   else_branch = e () => (float[n, 2] q) { q = Relu(h) }>
    }"""
    )
    x = np.random.default_rng(0).standard_normal((16, 1, 2)).astype(np.float32)
    for passes, data, changed in (
        (Change(by=np.negative), False, []),
        (Change(by=np.negative), True, ["a"]),
        (ChangeFreely(by=np.negative), False, ["a", "b"]),
        (ChangeFreely(by=np.negative), True, ["a", "b"]),
    ):
        SEEN.clear()
        model = parsed(text)
        feeds = Feeds.open({"x": x, "c": np.ones((16, 1), bool)}, model) if data else None
        outcome = applied(model, passes, data=feeds)
        assert sorted(problem.layer.weight.name for problem in SEEN) == changed
        assert outcome.records[0].patches == len(changed)
        for problem in SEEN:
            assert problem.measured == (data and problem.layer.weight.name == "a")
            if not problem.measured:
                np.testing.assert_array_equal(problem.fit[0].inner, np.eye(2))
        if not changed:
            assert "needs calibration data" in outcome.records[0].skips[0][1]
        elif changed == ["a"]:
            assert outcome.records[0].skips == [
                ("MatMul -> p", "it lies in a body, whose activations cannot be observed")
            ]


def test_wide_layers_come_only_to_passes_that_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGEST_COLUMNS", 4)
    model = parsed(CHAIN)
    outcome = applied(model, Change(by=np.negative), data=feeds_of(model))
    assert len(SEEN) == 1
    assert "too many columns" in outcome.records[0].skips[0][1]
    SEEN.clear()
    model = parsed(CHAIN)
    applied(model, ChangeFreely(by=lambda part: part * 1.5), data=feeds_of(model))
    assert [len(problem.fit) for problem in SEEN] == [1, 0]
    assert SEEN[1].measured
    assert not SEEN[1].centred
    assert SEEN[1].squares[0].shape == (6,)
    np.testing.assert_allclose(WRITTEN[-1].weight, SEEN[1].layer.array())


def test_layers_that_would_not_change_are_skipped() -> None:
    model = parsed(CHAIN)
    outcome = applied(model, ChangeFreely(by=np.array), data=None)
    assert outcome.records[0].patches == 0
    assert {reason for _, reason in outcome.records[0].skips} == {"its weights are already what they would become"}


def test_what_does_not_fit_the_type_is_refused() -> None:
    model = parsed(CHAIN)
    outcome = applied(model, ChangeFreely(by=lambda part: part * 1e39), data=None)
    assert {reason for _, reason in outcome.records[0].skips} == {"the solution does not fit float32"}


REPAIRED = {
    "shared weight": f"""g (float[n, 6] x) => (float[n, 6] y) <float[6, 6] w = {{{numbers(6, 6)}}}> {{
        a = MatMul(x, w) b = Tanh(a) y = MatMul(b, w) }}""",
    "transposed convolution": f"""g (float[n, 4, 5] x) => (float[n, 6, m] y)
        <float[4, 3, 3] w = {{{numbers(4, 3, 3)}}}> {{
        y = ConvTranspose<strides = [2], group = 2, pads = [1, 0]>(x, w) }}""",
    "stacked matrices": f"""g (float[n, 2, 5, 6] x) => (float[n, 2, 5, 4] y)
        <float[2, 6, 4] w = {{{numbers(2, 6, 4)}}}> {{
        y = MatMul(x, w) }}""",
    "convolution in three dimensions": f"""g (float[n, 2, 4, 4, 4] x) => (float[n, 4, a, b, c] y)
        <float[4, 2, 2, 2, 2] w = {{{numbers(4, 2, 2, 2, 2)}}}> {{ y = Conv(x, w) }}""",
}  # fmt: skip


@pytest.mark.parametrize("text", REPAIRED.values(), ids=REPAIRED)
def test_refitting_repairs_layers_of_every_form(text: str) -> None:
    dense = parsed(f"{HEAD} {text}")
    feeds = correlated(dense)
    calibration, judging = feeds.split(0.25)
    errors = []
    for passes in ([PruneMagnitude(sparsity=0.5)], [PruneMagnitude(sparsity=0.5), RefitWeights()]):
        model = dense.copy()
        outcome = applied(model, *passes, data=calibration)
        assert outcome.records[-1].patches == 1
        errors.append(float(np.square(outputs(model, judging) - outputs(dense, judging)).mean()))
    assert errors[1] < 0.7 * errors[0]


def correlated(model: Model) -> Feeds:
    """Return samples whose columns go together, so that what stays can stand for what goes."""
    (given,) = model.graph.inputs
    shape = (96, *given.shape[1:])
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape)
    axis = -1 if shape[-1] == 6 else 1
    mixed = np.moveaxis(x, axis, -1)
    mixed = mixed @ (np.ones((mixed.shape[-1],) * 2) * 0.6 + 0.4 * np.eye(mixed.shape[-1]))
    return Feeds.open({given.name: np.moveaxis(mixed, -1, axis).astype(np.float32)}, model)


def test_recurrent_weights_are_solved_before_their_node_runs_again() -> None:
    text = f"""g (float[5, n, 3] x) => (float[5, 1, n, 2] y)
    <float[1, 8, 3] w = {{{numbers(1, 8, 3)}}}, float[1, 8, 2] r = {{{numbers(1, 8, 2)}}},
     float[2, 2] v = {{1, 2, 3, 4}}> {{
        s = LSTM<hidden_size = 2>(x, w, r)
        y = MatMul(s, v)
    }}"""
    model = parsed(f"{HEAD} {text}")
    x = np.random.default_rng(0).standard_normal((24, 5, 4, 3)).astype(np.float32)
    feeds = Feeds.open({"x": x}, model)
    applied(model, Change(by=lambda part: part * 0.5, recurrent=True), data=feeds)
    assert [(problem.stop.key, problem.fit[0].inner.shape) for problem in SEEN] == [
        ("s", (3, 3)), ("s/recurrent", (2, 2)), ("y", (2, 2)),
    ]  # fmt: skip
    runner = session(read_model(model.to_bytes()), optimize=False)
    assert runner.get_outputs()[0].name == "y"
    cut = model.copy()
    cut.graph.outputs[:] = [tensor for node in cut.graph.nodes for tensor in node.outputs if tensor.name == "s"]
    states = session(cut)
    kept = [run(states, {"x": each})["s"].reshape(-1, 2) for at, each in enumerate(x) if at % 4 != 3]
    rows = np.concatenate(kept).astype(np.float64)
    np.testing.assert_allclose(SEEN[2].fit[0].inner, rows.T @ rows / len(rows), rtol=1e-3)


def test_a_sweep_runs_each_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(demo.CNN)
    feeds = Feeds.open(demo.CALIBRATION, model).take(64)
    applied(model, PruneMagnitude(), data=None)
    ran: Counter[str] = Counter()

    def counted(part: Model) -> Any:
        ran.update(node.outputs[0].name for node in part.graph.nodes)
        return session(part)

    monkeypatch.setattr(segments, "session", counted)
    applied(model, Change(by=lambda part: part * 0.9), data=feeds)
    assert len(SEEN) > 3
    assert set(ran.values()) == {2}  # once in the dense model, once in the changed one


def test_all_layers_are_observed_in_runs_that_fit_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parsed(CHAIN)
    applied(model, Change(by=np.array), data=feeds_of(model))
    ((sweep, stops),) = SWEPT
    runs: list[Sequence[str]] = []

    def counted(model: Model, names: Sequence[str], batches: Any) -> Any:
        runs.append(names)
        return stream(model, names, batches)

    monkeypatch.setattr(sweep_module, "stream", counted)
    together = sweep.observe(stops)
    assert len(runs) == 1
    for most, count in ((10**6, 1), (16 * 36, 2), (1, 2)):
        runs.clear()
        apart = {stop.key: sums for stop, sums in sweep.observed(stops, most)}
        assert len(runs) == count
        assert apart.keys() == together.keys()
        for key, sums in apart.items():
            for mine, wanted in zip(sums.fit, together[key].fit, strict=True):
                mine.settle()
                wanted.settle()
                np.testing.assert_allclose(mine.inner, wanted.inner, rtol=1e-5)
                assert mine.outer is mine.inner


def test_statistics_collected_before_take_the_place_of_data(tmp_path: Path) -> None:
    model = parsed(CHAIN)
    feeds = feeds_of(model)
    LayerStatistics.collect(model, feeds).save(tmp_path / "statistics.npz")
    facts = Facts(model)
    facts.record(LayerStatistics.load(tmp_path / "statistics.npz", model))
    PassManager([Change(by=lambda part: part * 2, variance=False)]).run(model, facts=facts)
    x = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    assert [problem.measured for problem in SEEN] == [True, True]
    np.testing.assert_array_equal(SEEN[0].judge[0].inner, SEEN[0].fit[0].inner)
    np.testing.assert_allclose(SEEN[0].fit[0].inner, np.cov(x.T, bias=True), rtol=1e-3, atol=1e-6)
    assert SEEN[1].fit[0].cross is SEEN[1].fit[0].inner
    ((sweep, stops),) = SWEPT
    assert sweep.observe(stops).keys() == {"h", "y"}
    SEEN.clear()
    outcome = PassManager([Change(by=np.negative)]).run(model, facts=facts)  # they are of weights that have changed
    assert not SEEN
    assert "needs calibration data" in outcome.records[0].skips[0][1]


def test_collected_statistics_outlive_what_passes_change_but_not_other_channels() -> None:
    model = parsed(CHAIN)
    feeds = feeds_of(model)
    for given in (None, feeds):  # data that is given too is not looked at
        model = parsed(CHAIN)
        facts = Facts(model, feeds=given)
        facts.record(CollectedStatistics(LayerStatistics.collect(model, feeds)))
        for factor in (2, 3):  # the layers are aimed at the dense ones, beside whose weights they were collected
            SEEN.clear()
            PassManager([Change(by=partial(np.multiply, factor), variance=False)]).run(model, facts=facts)
            assert [problem.fit[0].cross is problem.fit[0].inner for problem in SEEN] == [True, True]
    moved = parsed(CHAIN)
    weight = moved.graph.nodes[0].inputs[1]
    with Rewriter(moved) as rewriter:
        rewriter.set_weight(weight, np.ascontiguousarray(weight.array()[::-1]))
    facts = Facts(moved)
    facts.record(CollectedStatistics(LayerStatistics.collect(parsed(CHAIN), feeds)))
    SEEN.clear()
    outcome = PassManager([Change(by=np.negative)]).run(moved, facts=facts)
    assert [problem.stop.key for problem in SEEN] == ["y"]
    assert "seen beside other weights" in outcome.records[0].skips[0][1]


def test_layers_for_which_collected_statistics_do_not_hold_are_solved_on_data() -> None:
    feeds = feeds_of(parsed(CHAIN))
    model = parsed(CHAIN)
    weight = model.graph.nodes[2].inputs[1]
    facts = Facts(model, feeds=feeds)
    facts.record(CollectedStatistics(LayerStatistics.collect(model, feeds)))
    with Rewriter(model) as rewriter:
        rewriter.set_weight(weight, np.ascontiguousarray(weight.array()[::-1]))
    outcome = PassManager([Change(by=partial(np.multiply, 2), variance=False)]).run(model, facts=facts)
    assert not outcome.records[0].skips
    assert [problem.stop.key for problem in SEEN] == ["h", "y"]
    assert SEEN[0].fit[0].cross is SEEN[0].fit[0].inner  # known
    assert SEEN[1].fit[0].cross is not SEEN[1].fit[0].inner  # run to: it sees that the layer before it was changed
    assert (np.diag(SEEN[1].fit[0].inner) > 2 * np.diag(SEEN[1].fit[0].outer)).all()


def test_layers_of_which_only_mean_squares_were_collected_come_to_passes_that_take_those(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = parsed(CHAIN)
    monkeypatch.setattr(statistics, "MATRIX_BYTES", 8 * 4 * 4)
    facts = Facts(model)
    facts.record(CollectedStatistics(LayerStatistics.collect(model, feeds_of(model))))
    outcome = PassManager([Change(by=np.negative)]).run(model, facts=facts)
    assert [problem.stop.key for problem in SEEN] == ["h"]
    assert outcome.records[0].skips[0][1] == "of what it reads the collected statistics hold mean squares only"
    outcome = PassManager([PruneWanda(protect_ends=False)]).run(model, facts=facts)
    assert "by the mean squares of its inputs" in outcome.records[0].layers[1].what


def test_a_pass_that_has_to_run_the_model_needs_data_beside_statistics() -> None:
    model = parsed(CHAIN)
    facts = Facts(model)
    facts.record(CollectedStatistics(LayerStatistics.collect(model, feeds_of(model))))
    for step in (PruneWanda(allocation="kl"), RoundWeights(allocation="kl")):
        outcome = PassManager([step]).run(model, facts=facts)
        assert [why for _, why in outcome.records[0].skips] == [
            "the allocation kl compares outputs of the model, which no statistics hold; give --data too"
        ]
        assert outcome.patches == 0


@pytest.mark.parametrize(
    ("samples", "fitted", "judged"), [(1, 0, 0), (2, 1, 1), (3, 2, 1), (4, 3, 1), (7, 6, 1), (8, 6, 2)]
)
def test_of_few_batches_the_last_one_judges(samples: int, fitted: int, judged: int) -> None:
    model = parsed(CHAIN)
    applied(model, ChangeFreely(by=lambda part: part * 0.9), data=feeds_of(model, samples))
    (sweep, stops), *_ = SWEPT
    sums = sweep.observe(stops)["h"]
    counts = [moments.count for moments in (*sums.fit, *sums.judge) if moments.finite()]
    assert counts == ([fitted, judged] if judged else [1])
