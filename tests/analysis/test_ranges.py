"""Ranges of activations: exact ends, histograms that double, and memory that does not grow with the data."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.analysis import Facts
from graphopt.analysis.activation_ranges import BINS, CALIBRATORS, Ranges, TensorRange, choose
from graphopt.analysis.activation_ranges import collect as module
from graphopt.errors import DataError
from graphopt.graph import Model, read_model
from graphopt.runtime import Feeds
from graphopt.solve.calibrators import least_error, percentile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ARRAYS = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=3, max_side=20),
    elements=st.floats(-1e6, 1e6, width=32, allow_nan=False),
)


def model_of(graph: str) -> Model:
    return read_model(onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + graph))


def seen_of(arrays: list[NDArray[np.float32]]) -> TensorRange:
    seen = TensorRange()
    for array in arrays:
        seen.add(array)
    return seen


@given(st.lists(ARRAYS, min_size=1, max_size=6))
def test_ends_are_exact_and_no_value_is_lost(arrays: list[NDArray[np.float32]]) -> None:
    seen = seen_of(arrays)
    values = np.concatenate([array.reshape(-1) for array in arrays])
    assert seen.histogram is not None
    assert (seen.low, seen.high) == (values.min(), values.max())
    assert int(seen.histogram.counts.sum()) == values.size == seen.values
    assert seen.zeros == np.count_nonzero(values == 0)
    assert seen.moving_average() == pytest.approx(
        (np.mean([array.min() for array in arrays]), np.mean([array.max() for array in arrays])), rel=1e-6, abs=1e-6
    )


@given(st.lists(ARRAYS, max_size=3), st.lists(ARRAYS, max_size=3), st.lists(ARRAYS, max_size=3))
def test_shards_merge_to_what_one_run_sees_in_any_order(
    a: list[NDArray[np.float32]], b: list[NDArray[np.float32]], c: list[NDArray[np.float32]]
) -> None:
    x, y, z = seen_of(a), seen_of(b), seen_of(c)
    whole, left, right = seen_of([*a, *b, *c]), x.merge(y).merge(z), z.merge(y.merge(x))
    for merged in (left, right):
        assert merged.histogram is not None
        assert whole.histogram is not None
        assert (merged.low, merged.high, merged.values, merged.zeros) == (
            whole.low,
            whole.high,
            whole.values,
            whole.zeros,
        )
        assert merged.histogram.exponent == whole.histogram.exponent
        np.testing.assert_array_equal(merged.histogram.counts, whole.histogram.counts)
        assert merged.moving_average() == pytest.approx(whole.moving_average(), rel=1e-9, abs=1e-9)
        assert (merged.channels is None) == (whole.channels is None)
        if merged.channels is not None and whole.channels is not None:
            np.testing.assert_allclose(merged.channels.squares, whole.channels.squares, rtol=1e-6)


def test_range_doubles_in_both_directions_without_losing_resolution() -> None:
    random = np.random.default_rng(0)
    parts = [(random.standard_normal(10_000) * size).astype(np.float32) for size in (1.0, 10.0, 300.0, 5.0)]
    seen = seen_of(parts)
    assert seen.histogram is not None
    assert seen.histogram.width * BINS <= 4 * max(seen.high, -seen.low)
    assert int(seen.histogram.counts.sum()) == 40_000


def test_without_histogram_only_the_ends_are_seen() -> None:
    seen = TensorRange(histogram=None)
    seen.add(np.array([1.0, -2.0, 0.0], np.float32))
    assert (seen.low, seen.high, seen.distribution) == (-2.0, 1.0, None)


def test_channel_means_are_exact_and_stop_where_the_width_changes() -> None:
    random = np.random.default_rng(0)
    parts = [random.standard_normal((size, 5, 3, 2)).astype(np.float32) for size in (1, 4, 2)]
    seen = TensorRange()
    assert seen.channel_means() is None
    for part in parts:
        seen.add(part)
    means = seen.channel_means()
    assert means is not None
    np.testing.assert_allclose(means, np.concatenate(parts).mean(axis=(0, 2, 3)), rtol=1e-6)
    seen.add(np.zeros((1, 6, 3, 2), np.float32))
    assert seen.channel_means() is None
    seen.add(parts[0])
    assert seen.channel_means() is None


def test_mean_squares_per_channel_are_those_of_the_axis_that_readers_sum_over() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((4, 5, 6)).astype(np.float32)
    for axis, others in ((1, (0, 2)), (-1, (0, 1))):
        seen = TensorRange(axis=axis)
        seen.add(values)
        seen.add(values * 2)
        powers, means = seen.channel_powers(), seen.channel_means()
        assert powers is not None
        assert means is not None
        np.testing.assert_allclose(powers, (values.astype(np.float64) ** 2).mean(axis=others) * 2.5, rtol=1e-5)
        np.testing.assert_allclose(means, values.astype(np.float64).mean(axis=others) * 1.5, rtol=1e-4, atol=1e-6)


def test_every_float_activation_has_a_range_and_integers_have_none() -> None:
    model = model_of(
        "g (float[n, 4] x, float[n, 4] y, int64[n] k) => (float[n, 4] out, int64[n] j) "
        "{ s = Add(x, y) out = Relu(s) j = Neg(k) }"
    )
    x = np.array([[1, -2, 3, -4], [5, 6, -7, 8]], np.float32)
    y = np.ones_like(x)
    data = Feeds.open({"x": x, "y": y, "k": np.array([1, 2])}, model)
    found = Facts(model, feeds=data).get(Ranges)
    assert set(found.tensors) == {"x", "y", "s", "out"}
    assert (found.tensors["x"].low, found.tensors["x"].high) == (-7.0, 8.0)
    assert (found.tensors["s"].low, found.tensors["s"].high) == (-6.0, 9.0)
    assert (found.tensors["out"].low, found.tensors["out"].high) == (0.0, 9.0)
    assert found.samples == 2
    assert [tensor.name for tensor in model.graph.outputs] == ["out", "j"]


def test_samples_of_different_shapes_are_one_range() -> None:
    model = model_of("g (float[n, s] x) => (float[n, s] y) { y = Neg(x) }")
    feeds = [{"x": np.full((1, size), size, np.float32)} for size in (3, 5, 2)]
    found = Facts(model, feeds=Feeds.open(feeds, model)).get(Ranges)
    assert (found.tensors["y"].low, found.tensors["y"].high) == (-5.0, -2.0)


def test_tensors_fetched_in_several_runs_give_the_same_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[n, 64] x) => (float[n, 64] d) { a = Neg(x) b = Exp(a) c = Sqrt(b) d = Add(c, a) }"
    values = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    one, two = model_of(text), model_of(text)
    whole = Facts(one, feeds=Feeds.open({"x": values}, one)).get(Ranges)
    monkeypatch.setattr(module, "FETCHED_BYTES", 1)
    monkeypatch.setattr(module, "_REMEMBERED", type(module._REMEMBERED)())
    parts = Facts(two, feeds=Feeds.open({"x": values}, two)).get(Ranges)
    assert whole == parts


def test_memory_does_not_grow_with_the_data() -> None:
    model = model_of("g (float[1, 200000] x) => (float[1, 200000] y) { y = Neg(x) }")

    def peak(samples: int) -> int:
        def feeds() -> Iterator[dict[str, NDArray[np.float32]]]:
            for number in range(samples):
                yield {"x": np.full((1, 200_000), number, np.float32)}

        data = Feeds.open(feeds, model)
        tracemalloc.start()
        module.collect_ranges(model, ["x", "y"], data)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)
    assert peak(60) < 1.3 * peak(4)


def test_histograms_take_little_memory_beside_the_activations() -> None:
    model = model_of("g (float[n, 4, 64, 64] x) => (float[n, 4, 64, 64] y) { a = Neg(x) b = Exp(a) y = Sqrt(b) }")
    values = np.random.default_rng(0).standard_normal((96, 4, 64, 64)).astype(np.float32)
    data = Feeds.open({"x": values}, model)

    def peak(*, histograms: bool) -> int:
        tracemalloc.start()
        module.collect_ranges(model, ["x", "a", "b", "y"], data, histograms=histograms)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(histograms=True)
    # Behind 8 MB of activations per batch stand four histograms and what one chunk of values is turned into.
    assert peak(histograms=True) < peak(histograms=False) + (4 << 20)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_calibrator_takes_several_inputs_and_changing_shapes(calibrator: str) -> None:
    model = model_of("g (float[n, s] x, float[n, s] y) => (float[n, s] z) { p = Mul(x, y) q = Abs(p) z = Sub(q, x) }")
    random = np.random.default_rng(0)
    feeds = [
        {name: random.standard_normal((1, size)).astype(np.float32) for name in "xy"}
        for size in (3, 50, 7, 50, 50, 200)
    ]
    found = Facts(model, feeds=Feeds.open(feeds, model)).get(Ranges)
    for name, seen in found.tensors.items():
        low, high = choose(seen, calibrator)
        assert seen.low <= low < high <= seen.high, name
        assert choose(seen, calibrator) == (low, high)


def test_no_data_is_an_error_that_names_the_way_out() -> None:
    model = model_of("g (float[n] x) => (float[n] y) { y = Neg(x) }")
    with pytest.raises(DataError, match="no calibration data"):
        Facts(model).get(Ranges)


def test_infinite_activation_has_no_range_and_its_neighbours_have() -> None:
    model = model_of("g (float[n] x) => (float[n] y) { y = Log(x) }")
    data = Feeds.open({"x": np.array([1.0, 0.0], np.float32)}, model)
    assert set(Facts(model, feeds=data).get(Ranges).tensors) == {"x"}


@pytest.mark.parametrize("channel", range(0, 48, 5))
def test_a_loud_channel_is_seen_whatever_its_place(channel: int) -> None:
    values = np.random.default_rng(0).standard_normal((8, 256, 384)).astype(np.float32)
    values[..., channel] *= 30
    seen = TensorRange()
    seen.add(values)
    assert seen.distribution is not None
    assert least_error(seen.distribution)[1] > 40
    assert percentile(seen.distribution, 99.99)[1] > 40
