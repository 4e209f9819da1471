"""Calibration caches: saved, edited, merged, reused; nothing in the file is trusted."""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.analysis import Facts
from graphopt.analysis.activation_ranges import CALIBRATORS, Ranges, TensorRange
from graphopt.analysis.calibration_cache import CalibrationCache, structure_of
from graphopt.errors import CalibrationCacheError, WriteError
from graphopt.graph import Model, constant_value, read_model
from graphopt.passes.quantize.insert_qdq import InsertQdq
from graphopt.rewrite import PassManager
from graphopt.runtime import Feeds
from graphopt.target import placement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def _however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let layers be quantized that are too small to gain from it."""
    monkeypatch.setattr(placement, "PRODUCTS_PER_CONVERSION", 0)


NET = (
    "g (float[n, 4, 8, 8] x, float[16, 4, 3, 3] w, float[16, 16, 1, 1] v) => (float[n, 16, 8, 8] y) "
    "{ c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) y = Conv(r, v) }"
)


def net(seed: int = 0, text: str = NET) -> Model:
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    random = np.random.default_rng(seed)
    for value in list(proto.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = random.standard_normal(shape).astype(np.float32) / 5
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{number}"
    return read_model(proto)


def data(seed: int, count: int = 16) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 4, 8, 8)).astype(np.float32)}


def cache(seed: int = 1, *, calibrator: str = "auto", count: int = 16) -> CalibrationCache:
    model = net()
    facts = Facts(model, feeds=Feeds.open(data(seed, count), model))
    return CalibrationCache.of(facts.get(Ranges), structure_of(model), calibrator=calibrator)


def equal(one: CalibrationCache, other: CalibrationCache) -> bool:
    if (one.model, one.samples, one.calibrator) != (other.model, other.samples, other.calibrator):
        return False
    if one.tensors.keys() != other.tensors.keys():
        return False
    return all(
        seen == other.tensors[name] and seen.edited == other.tensors[name].edited for name, seen in one.tensors.items()
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    cache().save(tmp_path / "ranges.json")
    return tmp_path / "ranges.json"


@pytest.fixture
def edit(saved: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Return a function that changes the document in the file."""

    def change(how: Callable[[dict[str, Any]], object]) -> Path:
        document = json.loads(saved.read_text())
        how(document)
        saved.write_text(json.dumps(document))
        return saved

    return change


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_a_saved_cache_is_read_back_the_same(calibrator: str, tmp_path: Path) -> None:
    made = cache(calibrator=calibrator)
    made.save(tmp_path / "ranges.json")
    read = CalibrationCache.load(tmp_path / "ranges.json")
    assert equal(read, made)
    assert not any(seen.edited for seen in read.tensors.values())
    for name, seen in made.tensors.items():
        one, other = seen.channel_means(), read.tensors[name].channel_means()
        assert one is not None
        np.testing.assert_array_equal(one, other)


def test_every_tensor_has_a_readable_line(saved: Path) -> None:
    lines = [line for line in saved.read_text().splitlines() if '"low"' in line]
    assert [line.split('"')[1] for line in lines] == ["x", "c", "r", "y"]


def scales(model: Model) -> dict[str, float]:
    return {
        node.inputs[0].name: float(value)
        for node in model.graph.nodes
        if node.op == "QuantizeLinear" and (value := constant_value(node.inputs[1])) is not None
    }


def quantized(path: Path, feeds: Feeds | None = None, **options: Any) -> Model:
    model = net()
    PassManager([InsertQdq(cache=str(path), **options)], verify="full").run(model, feeds)
    return model


def test_ranges_of_a_cache_stand_in_for_data(saved: Path) -> None:
    model = net()
    PassManager([InsertQdq()]).run(model, Feeds.open(data(1), model))
    assert scales(model)
    assert quantized(saved).to_bytes() == model.to_bytes()


def test_another_calibrator_chooses_again_from_the_cache(saved: Path) -> None:
    model = net()
    PassManager([InsertQdq(calibrator="minmax")]).run(model, Feeds.open(data(1), model))
    assert scales(quantized(saved, calibrator="minmax")) == scales(model) != scales(quantized(saved))


def test_an_edited_range_is_taken_as_it_stands(edit: Callable[..., Path]) -> None:
    path = edit(lambda document: document["tensors"]["r"].update(high=0.255))
    found = CalibrationCache.load(path)
    assert [name for name, seen in found.tensors.items() if seen.edited] == ["r"]
    for calibrator in ("auto", "minmax"):
        assert min(scales(quantized(path, calibrator=calibrator)).values()) == pytest.approx(0.001)
    found.save(path)
    assert '"by hand"' in path.read_text()
    assert equal(CalibrationCache.load(path), found)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations([1, 2, 3]), st.booleans())
def test_shards_merge_in_any_order_and_grouping(order: list[int], left: bool) -> None:
    parts = {seed: cache(seed, count=8) for seed in (1, 2, 3)}
    a, b, c = (parts[seed] for seed in order)
    merged = a.merge(b).merge(c) if left else a.merge(b.merge(c))
    model = net()
    joined = {"x": np.concatenate([data(seed, 8)["x"] for seed in (1, 2, 3)])}
    whole = CalibrationCache.of(
        Facts(model, feeds=Feeds.open(joined, model)).get(Ranges), structure_of(model), calibrator="auto"
    )
    assert merged.samples == 24
    for name, seen in whole.tensors.items():
        other = merged.tensors[name]
        assert (seen.low, seen.high, seen.chosen, seen.values) == (other.low, other.high, other.chosen, other.values)
        assert seen.histogram is not None
        assert other.histogram is not None
        np.testing.assert_array_equal(seen.histogram.counts, other.histogram.counts)
        assert seen.moving_average() == pytest.approx(other.moving_average())


def by_hand(made: CalibrationCache, name: str, low: float, high: float, path: Path) -> CalibrationCache:
    made.save(path)
    document = json.loads(path.read_text())
    document["tensors"][name].update(low=low, high=high)
    path.write_text(json.dumps(document))
    return CalibrationCache.load(path)


def test_merging_keeps_what_was_set_by_hand(tmp_path: Path) -> None:
    one, other = by_hand(cache(1), "r", 0.0, 1.5, tmp_path / "a.json"), cache(2)
    for merged in (one.merge(other), other.merge(one)):
        assert merged.tensors["r"].chosen == (0.0, 1.5)
        assert merged.tensors["r"].edited
        assert not merged.tensors["c"].edited
    conflict = by_hand(cache(2), "r", 0.0, 2.0, tmp_path / "b.json")
    with pytest.raises(CalibrationCacheError, match="GO-D002 tensor 'r' is set by hand to"):
        one.merge(conflict)


def test_caches_of_different_models_or_calibrators_do_not_merge() -> None:
    one = cache()
    other = CalibrationCache("another", 1, "auto", 99.999, {"x": TensorRange()})
    with pytest.raises(CalibrationCacheError, match="different models"):
        one.merge(other)
    with pytest.raises(CalibrationCacheError, match="chosen by auto, the other by entropy"):
        one.merge(cache(calibrator="entropy"))


def test_structure_is_that_of_the_graph_not_of_the_weights() -> None:
    assert structure_of(net(0)) == structure_of(net(1))
    assert structure_of(net()) != structure_of(net(text=NET.replace("Relu(c)", "Sigmoid(c)")))
    assert structure_of(net()) != structure_of(
        net(text=NET.replace("r = Relu(c) y = Conv(r, v)", "q = Relu(c) y = Conv(q, v)"))
    )
    cache().require_model(net(3), "ranges.json")
    with pytest.raises(CalibrationCacheError, match="another model"):
        cache().require_model(net(text=NET.replace("Relu(c)", "Sigmoid(c)")), "ranges.json")


def test_a_range_set_by_hand_of_an_unknown_tensor_names_the_nearest(edit: Callable[..., Path]) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["tensors"]["rr"] = document["tensors"].pop("r") | {"high": 3.0}

    with pytest.raises(CalibrationCacheError, match=r"no tensor 'rr'.*Did you mean 'r'"):
        quantized(edit(rename))


def test_a_cache_that_knows_no_tensor_of_the_model_is_refused(edit: Callable[..., Path]) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["tensors"] = {f"other_{name}": entry for name, entry in document["tensors"].items()}

    with pytest.raises(CalibrationCacheError, match="there is no tensor"):
        quantized(edit(rename))


def packed(size: int) -> str:
    return base64.b64encode(zlib.compress(bytes(size))).decode()


def entry(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["tensors"]["r"].update(changes)


def histogram(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["tensors"]["r"]["histogram"].update(changes)


def channels(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["tensors"]["r"]["channels"].update(changes)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (entry(low=3.0, high=1.0), "the range of 'r' is inverted: 3.0 to 1.0"),
        (entry(high=float("inf")), "'high' of 'r' is inf"),
        (entry(low=float("nan")), "'low' of 'r' is nan"),
        (entry(low="0"), "'low' of 'r' is '0'"),
        (entry(low=True), "'low' of 'r' is True"),
        (entry(low=None), "'low' of 'r' is None"),
        (entry(high=10**400), "damaged"),
        (entry(seen=[1.0]), "was seen from"),
        (entry(seen=[2.0, 1.0]), "was seen from"),
        (entry(batches=-1), "'batches' of 'r' is -1"),
        (entry(values=1.5), "'values' of 'r' is 1.5"),
        (histogram(exponent=10**9), "the exponent 1000000000"),
        (histogram(exponent="3"), "the exponent 3"),
        (histogram(counts="!"), "damaged"),
        (histogram(counts=7), "an array is no text"),
        (histogram(counts=packed(8)), "has not 8192 numbers"),
        (histogram(counts=packed(1 << 24)), "has not 8192 numbers"),
        (channels(count=-4), "'channels' of 'r' is -4"),
        (channels(count=1 << 40), "channels along axis"),
        (channels(axis=7), "along axis 7"),
        (channels(squares=base64.b64encode(zlib.compress(np.full(16, -1.0).tobytes())).decode()), "no sums"),
        (lambda document: document["tensors"]["r"].pop("seen"), "'seen' is missing"),
        (lambda document: document["tensors"].update(r=[]), "damaged"),
        (lambda document: document.update(tensors=3), "damaged"),
        (lambda document: document.update(samples=-1), "samples and model"),
        (lambda document: document.update(calibrator="best"), "calibrator 'best'"),
        (lambda document: document.update(percentile=3), "percentile 3"),
        (lambda document: document.update(version=9), "format graphopt.calibration 9"),
        (lambda document: document.pop("format"), "the format None"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_the_reason(
    edit: Callable[..., Path], how: Callable[[dict[str, Any]], object], words: str
) -> None:
    with pytest.raises(CalibrationCacheError) as caught:
        CalibrationCache.load(edit(how))
    assert words in str(caught.value)
    assert "GO-D002" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '{"format": "graphopt.calibration"}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(CalibrationCacheError):
        CalibrationCache.load(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(CalibrationCacheError, match="cannot be read"):
            CalibrationCache.load(path)
    with pytest.raises(WriteError):
        cache().save(tmp_path / "missing" / "ranges.json")
    assert list(tmp_path.iterdir()) == []
