"""A model run piece by piece: every node once per batch, whatever waits in between and wherever it waits."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
import pytest

from graphopt.analysis.layer_statistics import Segments, segments, stream
from graphopt.graph import read_model
from graphopt.runtime import run, session

if TYPE_CHECKING:
    from graphopt.graph import Model

TEXT = """<ir_version: 9, opset_import: ["" : 17]> g (float[n, 3] x, bool c) => (float[n, 3] y, float[n, 3] early)
<float[3, 3] w = {1, 2, 0, 0, 1, 3, 2, 0, 1}> {
    early = Relu(x)
    a = MatMul(early, w)
    b = Tanh(a)
    d = If(c) <then_branch = t () => (float[n, 3] p) { p = Add(b, early) },
               else_branch = e () => (float[n, 3] q) { q = Sub(b, early) }>
    f = MatMul(d, w)
    y = Add(f, early)
}"""


@pytest.fixture
def model() -> Model:
    return read_model(onnx.parser.parse_model(TEXT))


@pytest.fixture
def batches() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((2, 3)).astype(np.float32), "c": np.array(turn % 2 == 0)} for turn in range(5)]


def reference(model: Model, names: list[str], batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    every = model.copy()
    tensors = {tensor.name: tensor for node in every.graph.nodes for tensor in node.outputs}
    every.graph.outputs[:] = [tensors[name] for name in names if name in tensors]
    runner = session(every)
    return [{**batch, **run(runner, batch)} for batch in batches]


STOPS = [["x"], ["early"], ["a", "early"], ["d"], ["f"], ["y"]]


@pytest.mark.parametrize(("memory", "disk"), [(1 << 20, 0), (30, 1 << 20), (0, 1 << 20), (0, 0)], ids=str)
def test_values_are_those_of_the_whole_model(
    model: Model, batches: list[dict[str, Any]], memory: int, disk: int
) -> None:
    names = sorted({name for stop in STOPS for name in stop} - {"x"})
    wanted = reference(model, names, batches)
    under_way = Segments(batches, memory=memory, disk=disk)
    for stop in STOPS:
        found = list(under_way.advance(model, stop))
        assert len(found) == len(batches)
        for values, want in zip(found, wanted, strict=True):
            assert list(values) == stop
            for name in stop:
                np.testing.assert_allclose(values[name], want[name], rtol=1e-6)


@pytest.mark.parametrize("memory", [1 << 20, 0], ids=["memory", "file"])
def test_every_node_runs_once(
    model: Model, batches: list[dict[str, Any]], memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: Counter[str] = Counter()
    runs = 0

    def counted(part: Model) -> Any:
        ran.update(node.outputs[0].name for node in part.graph.nodes)
        return session(part)

    def count_run(*given: Any) -> Any:
        nonlocal runs
        runs += 1
        return run(*given)

    monkeypatch.setattr(segments, "session", counted)
    monkeypatch.setattr(segments, "run", count_run)
    under_way = Segments(batches, memory=memory)
    for stop in STOPS:
        for _ in under_way.advance(model, stop):
            pass
    assert ran == Counter(node.outputs[0].name for node in model.graph.nodes)
    assert runs == len(batches) * (len(STOPS) - 1)  # nothing is run for what is fed


def test_what_lies_behind_a_stop_may_change(model: Model, batches: list[dict[str, Any]]) -> None:
    under_way = Segments(batches)
    list(under_way.advance(model, ["a"]))
    changed = read_model(onnx.parser.parse_model(TEXT.replace("Tanh", "Sigmoid")))
    wanted = reference(changed, ["y"], batches)
    for values, want in zip(under_way.advance(changed, ["y"]), wanted, strict=True):
        np.testing.assert_allclose(values["y"], want["y"], rtol=1e-6)


@pytest.mark.parametrize("disk", [1 << 20, 0], ids=["file", "again"])
def test_the_remainder_is_a_model_of_its_own(model: Model, batches: list[dict[str, Any]], disk: int) -> None:
    under_way = Segments(batches, memory=0, disk=disk)
    list(under_way.advance(model, ["b"]))
    rest, held = under_way.remainder(model)
    runner = session(rest)
    assert any(node.op == "Tanh" for node in rest.graph.nodes) == (disk == 0)
    for _ in range(2):
        for values, want in zip(held, reference(model, ["y"], batches), strict=True):
            np.testing.assert_allclose(run(runner, values)["y"], want["y"], rtol=1e-6)


def test_a_stream_is_one_session_and_one_run_per_batch(
    model: Model, batches: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Model] = []

    def counted(part: Model) -> Any:
        made.append(part)
        return session(part)

    monkeypatch.setattr(segments, "session", counted)
    wanted = reference(model, ["a", "f"], batches)
    for values, want in zip(stream(model, ["a", "x", "f"], batches), wanted, strict=True):
        assert list(values) == ["a", "x", "f"]
        for name in values:
            np.testing.assert_allclose(values[name], want[name], rtol=1e-6)
    assert len(made) == 1
