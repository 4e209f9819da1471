"""What is judged, and how: agreement, nearest neighbours, SQNR, the user's metric."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
import pytest

from graphopt.errors import DataError
from graphopt.graph import Model, read_model
from graphopt.runtime import Feeds, input_specs
from graphopt.verify.quality import SQNR_CEILING_DB, Judge, Quality, kind_of
from graphopt.verify.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

RNG = np.random.default_rng(5)


def model(body: str, outputs: str = "float[N,4] y") -> Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => ({outputs}) {{ {body} }}'
    return read_model(onnx.parser.parse_model(text))


def feeds(count: int = 40) -> Feeds:
    rows = RNG.standard_normal((count, 4)).astype(np.float32)
    return Feeds.open({"x": rows}, input_specs(model("y = Identity(x)")))


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (RNG.standard_normal((8, 10)), "top-1"),
        (np.full((8, 10), 0.1), "top-1"),
        (RNG.uniform(0, 1, (8, 10)), "sqnr"),
        (np.eye(8)[:, :4] + 0.0, "sqnr"),
        (np.array([[0.6, -0.8], [-0.8, 0.6]]), "similarity"),
        (RNG.standard_normal((2, 5, 64)), "top-1"),
        (RNG.standard_normal((2, 5, 3)), "sqnr"),
        (RNG.uniform(0, 1, (2, 5, 64)), "sqnr"),
        (RNG.standard_normal((2, 1)), "sqnr"),
        (RNG.standard_normal((2, 3, 8, 8)), "sqnr"),
        (np.arange(8).reshape(2, 4), "sqnr"),
        (np.full((2, 4), np.nan), "sqnr"),
    ],
)
def test_kind_follows_from_the_reference_output(output: np.ndarray[Any, Any], kind: str) -> None:
    assert kind_of([output]) == kind


def test_one_row_that_looks_like_probabilities_or_an_embedding_decides_nothing() -> None:
    logits = RNG.standard_normal((30, 1, 4))
    assert kind_of([np.array([[0.1, 0.2, 0.3, 0.4]]), *logits]) == "top-1"
    assert kind_of([np.array([[0.6, -0.8]]), np.array([[3.0, 4.0]])]) == "top-1"


def test_equal_models_agree_fully_and_reach_the_ceiling() -> None:
    quality = Judge(model("y = Identity(x)"), feeds()).measure(model("y = Identity(x)"))
    assert quality.agreement == 1.0
    assert quality.standard_error == pytest.approx(math.sqrt(40.5 / 41 * 0.5 / 41 / 40))
    assert quality.worst_sqnr_db == SQNR_CEILING_DB
    assert quality.drop == 0.0
    assert quality.samples == 40


def test_agreement_and_sqnr_are_those_of_the_definition() -> None:
    data = feeds(200)
    noisy = model("c = Constant<value = float[4] {0.5, 0.0, 0.0, 0.0}>() y = Add(x, c)")
    quality = Judge(model("y = Identity(x)"), data).measure(noisy)
    x = np.concatenate([feed["x"] for feed in data])
    same = (x.argmax(1) == (x + np.array([0.5, 0, 0, 0], np.float32)).argmax(1)).mean()
    assert quality.agreement == pytest.approx(same)
    shifted = (200 * same + 0.5) / 201
    assert quality.standard_error == pytest.approx(math.sqrt(shifted * (1 - shifted) / 200))
    assert quality.sqnr_db["y"] == pytest.approx(10 * math.log10(float((x**2).sum()) / (200 * 0.25)), abs=1e-3)
    assert quality.drop == pytest.approx(100 * (1 - same))


def test_expected_loss_weighs_a_changed_choice_by_the_margin_it_had() -> None:
    rows = np.array([[2.0, 1.9, -9, -9], [5.0, -9, -9, -9], [3.0, 1.0, -9, -9]], np.float32)
    data = Feeds.open({"x": rows}, input_specs(model("y = Identity(x)")))
    swapped = model("c = Constant<value = float[4] {0.0, 0.2, 0.0, 0.0}>() y = Add(x, c)")
    quality = Judge(model("y = Identity(x)"), data).measure(swapped)
    chance = math.exp(2.0) / (math.exp(2.0) + math.exp(1.9) + 2 * math.exp(-9))
    other = math.exp(1.9) / (math.exp(2.0) + math.exp(1.9) + 2 * math.exp(-9))
    assert quality.agreement == pytest.approx(2 / 3)
    assert quality.expected_loss == pytest.approx(100 * (chance - other) / 3, rel=1e-4)
    assert (quality.expected_loss_error or 0.0) > 0.0


def test_embeddings_are_judged_by_the_order_of_their_similarities() -> None:
    unit = "n = ReduceL2<axes = [1]>(x) y = Div(x, n)"
    scrambled = "n = ReduceL2<axes = [1]>(x) u = Div(x, n) y = Abs(u)"
    judge = Judge(model(unit), feeds())
    assert judge.measure(model(unit)).kind == "similarity"
    assert judge.measure(model(unit)).agreement == pytest.approx(1.0)
    assert (judge.measure(model(scrambled)).agreement or 0.0) < 0.9


def test_maps_are_judged_by_the_worst_output() -> None:
    reference = "y = Sigmoid(x) z = Identity(x)"
    close = "c = Constant<value = float {0.001}>() z = Add(x, c) y = Sigmoid(x)"
    judge = Judge(model(reference, "float[N,4] y, float[N,4] z"), feeds())
    quality = judge.measure(model(close, "float[N,4] y, float[N,4] z"))
    assert quality.kind == "sqnr"
    assert quality.sqnr_db["y"] == SQNR_CEILING_DB
    assert quality.worst_sqnr_db == quality.sqnr_db["z"]
    assert quality.drop == 0.0


def test_not_a_number_where_the_reference_has_a_number_counts_as_total_loss() -> None:
    broken = "c = Constant<value = float {-1.0}>() s = Sqrt(c) y = Mul(x, s)"
    quality = Judge(model("y = Identity(x)"), feeds()).measure(model(broken))
    assert quality.worst_sqnr_db == -SQNR_CEILING_DB


def test_rows_that_are_not_a_number_never_agree() -> None:
    rows = np.zeros((20, 4), np.float32)
    rows[:, 0] = 5.0
    data = Feeds.open({"x": rows}, input_specs(model("y = Identity(x)")))
    broken = "c = Constant<value = float {-1.0}>() s = Sqrt(c) y = Mul(x, s)"
    quality = Judge(model("y = Identity(x)"), data).measure(model(broken))
    assert quality.agreement == 0.0
    assert quality.expected_loss == 100.0


def test_rows_of_an_output_whose_shape_changed_never_agree() -> None:
    data = feeds(20)
    shorter = (
        "s = Constant<value = int64[1] {0}>() e = Constant<value = int64[1] {3}>() a = Constant<value = int64[1] {1}>()"
    )
    cut = model(f"{shorter} y = Slice(x, s, e, a)", "float[N,M] y")
    quality = Judge(model("y = Identity(x)", "float[N,M] y"), data).measure(cut)
    assert (quality.agreement, quality.rows, quality.drop) == (0.0, 20, 100.0)


def test_a_metric_decides_in_its_own_units() -> None:
    def mean(run: Callable[[Any], Any], samples: Iterable[Any]) -> float:
        return float(np.mean([run(feed)["y"].mean() for feed in samples]))

    data = Feeds.open({"x": np.ones((20, 4), np.float32)}, input_specs(model("y = Identity(x)")))
    half = model("c = Constant<value = float {0.5}>() y = Mul(x, c)")
    quality = Judge(model("y = Identity(x)"), data, metric=mean).measure(half)
    assert (quality.metric_reference, quality.metric, quality.drop) == (1.0, 0.5, 0.5)
    assert quality.unit == "metric units"


@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit(3)])
def test_a_metric_that_raises_is_the_users(error: BaseException) -> None:
    def metric(run: object, samples: object) -> float:
        raise error

    with pytest.raises(DataError, match=f"the metric raised {type(error).__name__}"):
        Judge(model("y = Identity(x)"), feeds(), metric=metric).measure(model("y = Identity(x)"))


def test_a_metric_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="finite number"):
        Judge(model("y = Identity(x)"), feeds(), metric=lambda run, samples: math.nan).measure(model("y = Identity(x)"))


def test_a_gain_is_no_drop() -> None:
    assert Quality("metric", 1, 1, 1.0, 0.0, {}, metric=2.0, metric_reference=1.0).drop == 0.0


def test_a_bundle_folder_or_file_is_judged_like_the_model_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model("y = Identity(x)").save(path)
    assert Judge(path, feeds()).measure(path).agreement == 1.0


def softmax(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("scores", ["logits", "probabilities"])
def test_divergence_is_that_of_the_definition(scores: str) -> None:
    data = feeds(200)
    last = "" if scores == "logits" else "y = Softmax<axis = 1>(s)"
    name = "y" if scores == "logits" else "s"
    half = model(f"c = Constant<value = float {{0.5}}>() {name} = Mul(x, c) {last}")
    quality = Judge(model(f"{name} = Identity(x) {last}"), data).measure(half)
    x = np.concatenate([feed["x"] for feed in data]).astype(np.float64)
    rows = (softmax(x) * (np.log(softmax(x)) - np.log(softmax(x / 2)))).sum(axis=1)
    assert quality.kl == pytest.approx(rows.mean(), rel=1e-3)
    assert quality.kl_error == pytest.approx(rows.std(ddof=1) / math.sqrt(200), rel=1e-3)


def test_divergence_of_equal_models_is_zero_and_of_broken_rows_the_largest() -> None:
    data = feeds(20)
    judge = Judge(model("y = Identity(x)"), data)
    assert judge.measure(model("y = Identity(x)")).kl == 0.0
    broken = judge.measure(model("c = Constant<value = float {-1.0}>() s = Sqrt(c) y = Mul(x, s)"))
    assert broken.kl == pytest.approx(-math.log(float(np.finfo(np.float32).tiny)))


def test_probabilities_that_underflow_leave_a_finite_divergence() -> None:
    rows = np.array([[90.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]], np.float32)
    data = Feeds.open({"x": rows}, input_specs(model("y = Softmax<axis = 1>(x)")))
    far = model("c = Constant<value = float[4] {-300.0, 0.0, 0.0, 0.0}>() a = Add(x, c) y = Softmax<axis = 1>(a)")
    kl = Judge(model("y = Softmax<axis = 1>(x)"), data).measure(far).kl
    assert kl is not None
    assert 40.0 < kl < 90.0


def test_maps_have_no_divergence_and_an_error_of_their_ratio() -> None:
    rng = np.random.default_rng(3)
    rows = rng.uniform(0.1, 0.2, (400, 4)).astype(np.float32)
    data = Feeds.open({"x": rows}, input_specs(model("y = Identity(x)")))
    # squaring a value near 0.15 adds noise that differs from sample to sample
    quality = Judge(model("y = Identity(x)"), data).measure(model("s = Mul(x, x) y = Sub(x, s)"))
    assert quality.kind == "sqnr"
    assert (quality.kl, quality.kl_error) == (None, None)
    noise = (rows.astype(np.float64) ** 4).sum(axis=1)
    expected = 10 / math.log(10) * noise.std(ddof=1) / noise.mean() / math.sqrt(400)
    assert quality.sqnr_error_db == pytest.approx(expected, rel=1e-3)
    assert quality.drop_error == quality.sqnr_error_db


def test_samples_of_one_batch_count_one_by_one() -> None:
    rng = np.random.default_rng(4)
    want, got = rng.standard_normal((2, 24, 6))
    whole, single = Tally("top-1"), Tally("top-1")
    whole.add({"y": want}, {"y": got}, samples=24)
    for row in range(24):
        single.add({"y": want[row : row + 1]}, {"y": got[row : row + 1]})
    assert whole.samples == single.samples == 24
    assert whole.agreement() == single.agreement()
    assert whole.divergence.figures() == pytest.approx(single.divergence.figures())
    assert whole.sqnr_error_db() == pytest.approx(single.sqnr_error_db())
    assert whole.relative_noise() == pytest.approx(single.relative_noise())
    assert whole.relative_noise()[0] == pytest.approx(10 ** (-whole.sqnr_db()["y"] / 10))


def test_scores_in_bytes_agree_where_the_choice_is_among_the_best() -> None:
    assert kind_of([np.array([[3, 200, 7]], np.uint8)]) == "top-1"
    assert kind_of([np.zeros((1, 3, 8, 8), np.uint8)]) == "sqnr"
    tally = Tally("top-1")
    want = np.array([[9, 9, 1], [1, 2, 3], [5, 4, 3]], np.uint8)
    got = np.array([[1, 9, 8], [1, 2, 4], [1, 9, 2]], np.uint8)  # a tie, the same, another one
    tally.add({"y": want}, {"y": got}, samples=3)
    assert tally.agreement()[0] == pytest.approx(2 / 3)
    assert tally.divergence.figures() is None  # nothing says what a step of the codes is
