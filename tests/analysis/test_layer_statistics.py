"""LayerStatistics: what layers read, summed in one run; shards saved, loaded and merged are the whole."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt import demo
from graphopt.analysis import Facts
from graphopt.analysis.layer_statistics import (
    Layer,
    LayerStatistics,
    Observed,
    column_norms,
    find_layers,
    fingerprint_of,
    form_of,
    reading,
    segments,
    statistics,
)
from graphopt.errors import DataError, WriteError
from graphopt.graph import read_model
from graphopt.runtime import Feeds, run, session

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.graph import Model

HEAD = '<ir_version: 9, opset_import: ["" : 17]>'
TWO_LAYERS = (
    HEAD
    + """ g (float[n, 2] x) => (float[n, 3] y)
<float[2, 3] a = {1, 2, 0, 0, 1, 3}, float[3, 3] b = {2, 0, 1, 1, 1, 0, 0, 1, 1}> {
    h = MatMul(x, a)
    r = Relu(h)
    p = Gemm(r, b)
    y = Tanh(p)
}"""
)
EVERY = 10**6


def parsed(text: str) -> Model:
    return read_model(onnx.parser.parse_model(text))


def feeds_of(model: Model, count: int = 12, seed: int = 0, **more: Any) -> Feeds:
    rng = np.random.default_rng(seed)
    shape = model.graph.inputs[0].shape
    return Feeds.open({"x": rng.standard_normal((count, *shape[1:])).astype(np.float32), **more}, model)


def collected(model: Model, feeds: Feeds, **options: Any) -> LayerStatistics:
    return LayerStatistics.collect(model, feeds, **{"positions": EVERY, **options})


def seen(found: LayerStatistics, name: str) -> Observed:
    table = found.of(name)
    assert table is not None
    return table


def test_sums_are_those_of_all_rows() -> None:
    model = parsed(TWO_LAYERS)
    feeds = feeds_of(model)
    x = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    r = np.maximum(x @ np.array([[1, 2, 0], [0, 1, 3]]), 0)
    found = collected(model, feeds)
    assert set(found.layers) == {"h", "p"}
    for name, rows in (("h", x), ("p", r)):
        table = seen(found, name)
        (given,) = table.mean(centred=False)
        np.testing.assert_allclose(given.inner, rows.T @ rows / len(rows), rtol=1e-5)
        np.testing.assert_allclose(given.compressed_mean, rows.mean(axis=0), rtol=1e-5, atol=1e-7)
        (centred,) = table.mean(centred=True)
        np.testing.assert_allclose(centred.inner, np.cov(rows.T, bias=True), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(table.mean_squares()[0], (rows**2).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(table.spread.minimum, rows.min(axis=0), rtol=1e-5)
        np.testing.assert_allclose(table.spread.maximum, rows.max(axis=0), rtol=1e-5)
        np.testing.assert_allclose(table.spread.magnitude / table.spread.count, np.abs(rows).mean(axis=0), rtol=1e-5)
        assert table.spread.histogram.counts.sum() == rows.size


def test_one_run_over_the_data_serves_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(demo.CNN)
    feeds = Feeds.open(demo.CALIBRATION, model).take(32)
    made, runs = [], []

    def counted(part: Model) -> Any:
        made.append(len(part.graph.nodes))
        return session(part)

    def count_run(runner: Any, feed: dict[str, Any], names: list[str]) -> Any:
        runs.append(sum(len(value) for value in feed.values()))
        return run(runner, feed, names)

    monkeypatch.setattr(segments, "session", counted)
    monkeypatch.setattr(segments, "run", count_run)
    found = Facts(model, feeds=feeds).get(LayerStatistics)
    assert len(found.layers) >= 3
    assert len(made) == 1
    assert made[0] <= len(model.graph.nodes)
    assert sum(runs) == len(feeds)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(1, 10), second=st.integers(1, 10))
def test_shards_merge_to_the_whole(first: int, second: int, tmp_path: Path) -> None:
    model = parsed(TWO_LAYERS)
    x = np.random.default_rng(first).standard_normal((24, 2)).astype(np.float32)
    cuts = [0, first, first + second, 24]
    shards = []
    for place, (start, end) in enumerate(itertools.pairwise(cuts)):
        collected(model, Feeds.open({"x": x[start:end]}, model)).save(tmp_path / f"{place}.npz")
        shards.append(LayerStatistics.load(tmp_path / f"{place}.npz", model))
    a, b, c = shards
    whole = collected(model, Feeds.open({"x": x}, model))
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b)):
        assert merged.layers == whole.layers
        for name in whole.layers:
            one, other = seen(merged, name), seen(whole, name)
            for mine, theirs in zip(one.mean(centred=True), other.mean(centred=True), strict=True):
                np.testing.assert_allclose(mine.inner, theirs.inner, rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(mine.compressed_mean, theirs.compressed_mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(one.spread.histogram.counts, other.spread.histogram.counts)
            np.testing.assert_array_equal(one.spread.minimum, other.spread.minimum)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    model = read_model(demo.TRANSFORMER)
    feeds = Feeds.open(demo.CALIBRATION, model).take(16)
    found = LayerStatistics.collect(model, feeds)
    found.save(tmp_path / "statistics.npz")
    found.save(tmp_path / "statistics.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.npz"]
    loaded = LayerStatistics.load(tmp_path / "statistics.npz", read_model(demo.TRANSFORMER))
    assert loaded == found
    assert loaded != LayerStatistics.collect(model, feeds, seed=1)


def test_the_same_seed_gives_the_same_numbers() -> None:
    model = read_model(demo.CNN)
    feeds = Feeds.open(demo.CALIBRATION, model).take(16)
    assert LayerStatistics.collect(model, feeds, positions=4) == LayerStatistics.collect(model, feeds, positions=4)
    assert LayerStatistics.collect(model, feeds, positions=4) != LayerStatistics.collect(model, feeds, positions=5)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = parsed(TWO_LAYERS)
    found = collected(model, feeds_of(model))
    path = tmp_path / "a.npz"
    found.save(path)
    other = parsed(TWO_LAYERS.replace("{1, 2, 0, 0, 1, 3}", "{1, 2, 0, 0, 1, 4}"))
    with pytest.raises(DataError, match="belong to other weights"):
        LayerStatistics.load(path, other)
    with pytest.raises(DataError, match="different weights cannot be merged"):
        found.merge(collected(other, feeds_of(other)))
    with pytest.raises(DataError, match="no such file"):
        LayerStatistics.load(tmp_path / "b.npz")
    with pytest.raises(WriteError, match="cannot be written"):
        found.save(tmp_path / "none" / "b.npz")


def damaged(path: Path, change: str) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    head = json.loads(bytes(arrays["head"]))
    if change == "bytes":
        path.write_bytes(path.read_bytes()[:200])
        return
    if change == "text":
        path.write_text("nothing")
        return
    if change == "pickle":
        np.savez(path, head=np.array([{"a": 1}], dtype=object))
        return
    if change == "head":
        del arrays["head"]
    if change == "version":
        head["version"] = 99
    if change == "missing":
        del arrays["table0_moments_rows"]
    if change == "shape":
        arrays["table0_moments_inner"] = arrays["table0_moments_inner"][:, :1]
    if change == "negative":
        arrays["table0_moments_inner"][0, 0, 0] = -1
    if change == "uneven":
        arrays["table0_moments_inner"][0, 0, 1] += 1
    if change == "mean":
        arrays["table0_moments_sum"][0, 0] = 1e6
    if change == "rows":
        arrays["table0_moments_rows"][0] = -3
    if change == "norms":
        arrays["norms0"][0] = np.nan
    if change == "reads":
        head["layers"] = {name: ["nothing#0"] for name in head["layers"]}
    if change == "list":
        head["tables"] = list(head["tables"])
    if change == "deep":
        arrays["head"] = np.frombuffer(b"[" * 100_000, np.uint8)
        np.savez(path, **arrays)
        return
    if change != "head":
        arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bytes", "no .npz file"),
        ("text", "no .npz file"),
        ("pickle", "no .npz file"),
        ("head", "does not say that it holds statistics"),
        ("version", "has the format graphopt.layer-statistics 99"),
        ("missing", "not complete"),
        ("shape", "has the shape"),
        ("negative", "numbers that no samples have"),
        ("uneven", "numbers that no samples have"),
        ("mean", "numbers that no samples have"),
        ("rows", "numbers that no samples have"),
        ("norms", "norms0 is no list of finite numbers"),
        ("reads", "nothing is there of 'nothing#0'"),
        ("list", "not complete"),
        ("deep", "does not say that it holds statistics"),
    ],
)
def test_damage_is_found(tmp_path: Path, change: str, message: str) -> None:
    model = parsed(TWO_LAYERS)
    path = tmp_path / "a.npz"
    collected(model, feeds_of(model)).save(path)
    damaged(path, change)
    with pytest.raises(DataError, match=message):
        LayerStatistics.load(path)


def header(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return file.getvalue()


def test_nothing_larger_than_the_file_is_made(tmp_path: Path) -> None:
    claimed, packed = tmp_path / "claimed.npz", tmp_path / "packed.npz"
    with zipfile.ZipFile(claimed, "w") as archive:
        archive.writestr("head.npy", header((1 << 50,), "<f8") + bytes(64))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("head.npy", header((1 << 27,), "|u1") + bytes(1 << 27))
    tracemalloc.start()
    with pytest.raises(DataError, match="needs 9007199254740992 bytes and the file has 64"):
        LayerStatistics.load(claimed)
    with pytest.raises(DataError, match="its arrays take 134217728 bytes, more than the file has"):
        LayerStatistics.load(packed)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_they_hold_for_layers_that_read_the_same_beside_the_same_weights() -> None:
    model = parsed(TWO_LAYERS)
    found = collected(model, feeds_of(model))
    (layer,) = (each for each in find_layers(model) if isinstance(each, Layer) and each.node.op == "MatMul")
    form = form_of(layer.node, layer.index, layer.array())
    assert not isinstance(form, str)
    norms = column_norms(form, layer.array())
    np.testing.assert_allclose(norms, [np.sqrt(5), np.sqrt(10)])
    seen_by = found.read_by([("x", form)], norms.astype(np.float16).astype(np.float64))
    assert seen_by is found.of("h")
    assert found.read_by([("r", form)], norms) == "the collected statistics hold nothing of what it reads"
    assert found.read_by([], norms) == "the collected statistics hold nothing of what it reads"
    for other in (norms[::-1], 2 * norms, norms[:1], np.append(norms, 0.0)):  # channels moved, scaled, gone, added
        assert "seen beside other weights" in str(found.read_by([("x", form)], other))


def test_statistics_of_models_that_passes_made_unlike_are_not_merged() -> None:
    model, other = parsed(TWO_LAYERS), parsed(TWO_LAYERS.replace("{1, 2, 0, 0, 1, 3}", "{1, 2, 0, 0, 1, 9}"))
    one = LayerStatistics.collect(model, feeds_of(model), fingerprint="same")
    two = LayerStatistics.collect(other, feeds_of(other), fingerprint="same")
    with pytest.raises(DataError, match="other passes changed the model before"):
        one.merge(two)
    contents = dataclasses.replace(one.contents, tables={**one.tables, "x#0": one.tables["r#0"]})
    with pytest.raises(DataError, match="do not go together"):
        one.merge(LayerStatistics(contents))


SHARED = (
    HEAD
    + """ g (float[n, 3] x) => (float[n, 3] y)
<float[3, 3] w = {2, 0, 1, 1, 1, 0, 0, 1, 1}> {
    a = MatMul(x, w)
    b = Relu(a)
    y = MatMul(b, w)
}"""
)


def test_uses_of_one_weight_are_summed() -> None:
    model = parsed(SHARED)
    feeds = feeds_of(model)
    x = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    b = np.maximum(x @ np.array([[2, 0, 1], [1, 1, 0], [0, 1, 1]]), 0)
    found = collected(model, feeds)
    assert list(found.layers) == ["a"]
    rows = np.concatenate([x, b])
    np.testing.assert_allclose(seen(found, "a").mean(centred=False)[0].inner, rows.T @ rows / len(rows), rtol=1e-5)
    np.testing.assert_allclose(seen(found, "a").spread.maximum, rows.max(axis=0), rtol=1e-5)


BODY = (
    HEAD
    + """ g (float[n, 2] x, bool c) => (float[n, 2] y)
<float[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {1, 2, 3, 5}> {
    a = MatMul(x, w)
    y = If(c) <then_branch = t () => (float[n, 2] p) { p = MatMul(a, v) },
               else_branch = e () => (float[n, 2] q) { q = Relu(a) }>
}"""
)


def test_layers_that_cannot_be_observed_are_refused_with_the_reason() -> None:
    model = parsed(BODY)
    found = collected(model, feeds_of(model, c=np.ones(12, bool)[:, None][:, 0]))
    assert list(found.layers) == ["a"]
    assert found.refused == {"MatMul -> p": "it lies in a body, whose activations cannot be observed"}
    without = Facts(parsed(TWO_LAYERS)).get(LayerStatistics)
    assert without.refused == {"h": "there is no calibration data", "p": "there is no calibration data"}
    assert without.of("h") is None


def test_values_that_are_not_finite_are_left_out_of_the_sums() -> None:
    model = parsed(TWO_LAYERS)
    x = np.ones((8, 2), np.float32)
    x[3, 0] = np.inf
    found = collected(model, Feeds.open({"x": x}, model, allow_nan=True))
    (given,) = seen(found, "h").mean(centred=False)
    np.testing.assert_allclose(given.inner, np.ones((2, 2)))
    assert seen(found, "h").spread.histogram.left_out == 1


@pytest.mark.parametrize("limit", ["columns", "bytes"])
def test_wide_layers_have_squares_only(limit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if limit == "columns":
        monkeypatch.setattr(reading, "LARGEST_COLUMNS", 2)
    else:
        monkeypatch.setattr(statistics, "MATRIX_BYTES", 2 * 2 * 8)
    model = parsed(TWO_LAYERS)
    feeds = feeds_of(model)
    found = collected(model, feeds)
    assert len(seen(found, "h").moments) == 1
    wide = seen(found, "p")
    assert wide.moments == []
    assert wide.mean(centred=True) == []
    x = np.concatenate([feed["x"] for feed in feeds]).astype(np.float64)
    r = np.maximum(x @ np.array([[1, 2, 0], [0, 1, 3]]), 0)
    np.testing.assert_allclose(wide.mean_squares()[0], (r**2).mean(axis=0), rtol=1e-5)
    found.save(tmp_path / "a.npz")
    assert LayerStatistics.load(tmp_path / "a.npz", model) == found
    np.testing.assert_allclose(seen(found.merge(found), "p").mean_squares()[0], wide.mean_squares()[0])


def test_layers_that_read_the_same_in_the_same_way_share_a_table() -> None:
    text = (
        HEAD
        + """ g (float[n, 2] x) => (float[n, 2] y)
    <float[2, 2] w = {1, 2, 3, 4}, float[2, 2] v = {1, 2, 3, 5}, float[2, 2] u = {1, 0, 3, 5}> {
        a = MatMul(x, w)
        b = MatMul(x, v)
        c = Gemm <transB = 1> (x, u)
        d = Add(a, b)
        y = Add(c, d)
    }"""
    )
    model = parsed(text)
    found = collected(model, feeds_of(model))
    assert found.layers == {"a": ("x#0",), "b": ("x#0",), "c": ("x#1",)}


def test_lookups_are_counted(tmp_path: Path) -> None:
    text = (
        HEAD
        + """ g (int64[n, 3] x) => (float[n, 3, 2] y)
    <float[4, 2] table = {1, 2, 3, 4, 5, 6, 7, 8}> { y = Gather(table, x) }"""
    )
    model = parsed(text)
    first = collected(model, Feeds.open({"x": np.array([[0, 1, -1], [1, 1, 3]])}, model))
    second = collected(model, Feeds.open({"x": np.array([[2, 2, 2]])}, model))
    assert first.lookups["y"].tolist() == [1, 3, 0, 2]
    merged = first.merge(second)
    assert merged.lookups["y"].tolist() == [1, 3, 3, 2]
    merged.save(tmp_path / "a.npz")
    assert LayerStatistics.load(tmp_path / "a.npz").lookups["y"].tolist() == [1, 3, 3, 2]


def test_recurrent_layers_are_seen_with_both_weights() -> None:
    rng = np.random.default_rng(0)
    w, r = (np.array2string(rng.standard_normal(n), separator=",")[1:-1].replace("\n", "") for n in (24, 16))
    text = (
        HEAD
        + f""" g (float[5, n, 3] x) => (float[5, 1, n, 2] y)
    <float[1, 8, 3] w = {{{w}}}, float[1, 8, 2] r = {{{r}}}> {{ y = LSTM<hidden_size = 2>(x, w, r) }}"""
    )
    model = parsed(text)
    x = rng.standard_normal((6, 5, 4, 3)).astype(np.float32)
    found = collected(model, Feeds.open({"x": x}, model))
    assert list(found.layers) == ["y", "y/recurrent"]
    rows = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(seen(found, "y").mean(centred=False)[0].inner, rows.T @ rows / len(rows), rtol=1e-4)
    runner = session(model)
    states = np.concatenate([run(runner, {"x": each})["y"][:-1].reshape(-1, 2) for each in x]).astype(np.float64)
    wanted = states.T @ states / len(states)
    np.testing.assert_allclose(seen(found, "y/recurrent").mean(centred=False)[0].inner, wanted, rtol=1e-4)


def test_the_fingerprint_knows_weights_wherever_they_are_stored() -> None:
    text = (
        HEAD
        + """ g (float[n, 2] x) => (float[n, 2] y) <float[2] b = {1, 2}> {
        w = Constant<value = float[2, 2] {1, 2, 3, 4}>()
        m = MatMul(x, w)
        y = Add(m, b)
    }"""
    )
    prints = [
        fingerprint_of(parsed(each))
        for each in (text, text, text.replace("{1, 2, 3, 4}", "{1, 2, 3, 5}"), text.replace("{1, 2}>", "{1, 3}>"))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    model = parsed(text)
    assert list(collected(model, feeds_of(model)).layers) == ["m"]
