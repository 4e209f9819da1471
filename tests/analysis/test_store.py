"""Where activations wait, and the batches they come from."""

from __future__ import annotations

import shutil
import tempfile
from collections import namedtuple
from typing import Any

import numpy as np
import onnx.parser
import pytest

from graphopt.analysis.layer_statistics import Batches
from graphopt.analysis.layer_statistics.store import Spilled, Store
from graphopt.graph import read_model
from graphopt.runtime import Feeds

TEXT = """<ir_version: 9, opset_import: ["" : 17]> g (float[n, %s] x) => (float[n, %s] y) { y = Relu(x) }"""


def feeds_of(text: str, source: Any) -> Feeds:
    return Feeds.open(source, read_model(onnx.parser.parse_model(text)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, bool])
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), ()])
def test_what_waits_in_a_file_comes_back(dtype: type, shape: tuple[int, ...]) -> None:
    held = Store(memory=-1, disk=1 << 20)
    arrays: list[Any] = [np.asarray(np.random.default_rng(seed).random(shape) * 3).astype(dtype) for seed in range(3)]
    spilled = [held.put(array.T) for array in arrays]
    held.turn()
    spilled.append(held.put(arrays[0]))
    for found, array in zip(spilled, [*(each.T for each in arrays), arrays[0]], strict=True):
        assert isinstance(found, Spilled)
        np.testing.assert_array_equal(found.load(), array)
        assert found.load().dtype == array.dtype


def test_memory_comes_first_and_room_is_given_back() -> None:
    array = np.zeros(4, np.float32)
    held = Store(memory=20, disk=20)
    first, second, third = held.put(array), held.put(array), held.put(array)
    assert first is array
    assert isinstance(second, Spilled)
    assert third is None
    held.drop(second)
    assert isinstance(held.put(array), Spilled)
    held.drop(array)
    assert held.put(array) is array


def test_objects_are_never_written() -> None:
    assert Store(memory=0, disk=1 << 20).put(np.array(["a"], object)) is None


def test_without_room_on_the_disk_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    array = np.zeros(100, np.float32)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1000, 500, 700))
    assert Store(memory=0, disk=1 << 20).put(array) is None

    def refuse(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert Store(memory=0, disk=1 << 20).put(array) is None


def test_batches_are_read_again_each_time() -> None:
    batches = Batches.of(feeds_of(TEXT % (2, 2), {"x": np.arange(40, dtype=np.float32).reshape(20, 2)}), 100)
    assert (len(batches), batches.size, batches.counter) == (10, 2, "x")
    for _ in range(2):
        assert [batch["x"].shape for batch in batches] == [(2, 2)] * 10
    assert len(Batches.of(batches.feeds, 8)) == 8


def test_batches_of_samples_that_differ_are_counted() -> None:
    rows = [{"x": np.zeros((1, length), np.float32)} for length in [1] * 9 + [2] * 10]
    batches = Batches.of(feeds_of(TEXT % ("m", "m"), rows), 100)
    assert batches.size == 2
    assert len(batches) == len(list(batches)) == 10
    assert bool(batches)


def test_a_model_of_one_sample_has_batches_of_one() -> None:
    text = TEXT.replace("float[n, %s] x) => (float[n, %s] y)", "float[1, 2] x) => (float[1, 2] y)")
    batches = Batches.of(feeds_of(text, {"x": np.zeros((20, 2), np.float32)}), 100)
    assert (len(batches), batches.counter) == (20, "")
    assert len(list(batches)) == 20
