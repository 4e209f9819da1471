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
from graphopt.analysis import ranges as module
from graphopt.analysis.ranges import BINS, Ranges, TensorRange
from graphopt.errors import DataError
from graphopt.graph import Model, read_model
from graphopt.runtime import Feeds

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


@given(st.lists(ARRAYS, min_size=1, max_size=6))
def test_ends_are_exact_and_no_value_is_lost(arrays: list[NDArray[np.float32]]) -> None:
    seen = TensorRange()
    for array in arrays:
        seen.add(array)
    values = np.concatenate([array.reshape(-1) for array in arrays])
    assert seen.low == values.min()
    assert seen.high == values.max()
    assert int(seen.counts.sum()) == values.size
    assert seen.start <= seen.low
    assert seen.start + seen.width * BINS >= seen.high


@given(st.lists(ARRAYS, min_size=1, max_size=4), st.floats(60, 100))
def test_percentile_lies_within_a_bin_of_numpy(arrays: list[NDArray[np.float32]], share: float) -> None:
    seen = TensorRange()
    for array in arrays:
        seen.add(array)
    values = np.concatenate([array.reshape(-1) for array in arrays]).astype(np.float64)
    low, high = seen.percentile(share)
    assert seen.low <= low <= high <= seen.high
    tail = 100 - share if values.min() >= 0 or values.max() <= 0 else (100 - share) / 2
    if values.min() < 0:
        assert low <= np.percentile(values, tail, method="higher") + seen.width
    if values.max() > 0:
        assert high >= np.percentile(values, 100 - tail, method="lower") - seen.width


def test_range_doubles_in_both_directions_without_losing_resolution() -> None:
    seen = TensorRange()
    random = np.random.default_rng(0)
    for size in (1.0, 10.0, 300.0, 5.0):
        seen.add((random.standard_normal(10_000) * size).astype(np.float32))
    assert seen.width * BINS <= 4 * (seen.high - seen.low)
    assert int(seen.counts.sum()) == 40_000


def test_percentile_keeps_the_zero_end_of_an_activation_function() -> None:
    seen = TensorRange()
    values = np.maximum(np.random.default_rng(0).standard_normal(100_000), 0).astype(np.float32)
    seen.add(values)
    low, high = seen.percentile(99)
    assert low == 0.0
    assert high == pytest.approx(np.percentile(values, 99), abs=2 * seen.width)


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


def test_least_error_cuts_off_a_lone_outlier_and_no_more() -> None:
    random = np.random.default_rng(0)
    seen = TensorRange()
    seen.add(np.array([40.0], np.float32))
    for _ in range(40):
        seen.add(random.standard_normal(60_000).astype(np.float32))
    low, high = seen.least_error()
    assert 3.0 < high < 25.0
    assert low < -3.0
    whole, cut = seen.noise(seen.low, seen.high), seen.noise(low, high)
    assert cut < whole


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
    assert seen.least_error()[1] > 40
    assert seen.percentile(99.99)[1] > 40
