"""Sessions: sources, options, and every failure of the runtime as an error of graphopt."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from graphopt.errors import (
    DataError,
    ExternalDataError,
    ExternalDataEscapeError,
    GraphoptError,
    KernelError,
    ReadError,
    RunError,
    UnsupportedError,
    WriteError,
)
from graphopt.graph import read_model
from graphopt.runtime import (
    Feeds,
    InputSpec,
    input_specs,
    latency,
    platform_tag,
    random_feeds,
    run,
    session,
    timings,
)

if TYPE_CHECKING:
    from pathlib import Path

ADD = """<ir_version: 9, opset_import: ["" : 19]>
g (float[n, 3] x, int64[2] unused) => (float[n, 3] y) <float[3] w = {1.0, 2.0, 3.0}>
{ t = Add(x, w) y = Identity(t) }"""


def model(text: str) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()  # type: ignore[no-any-return]


def test_bytes_file_and_bundle_folder_make_the_same_session(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model(ADD))
    feed = {"x": np.ones((2, 3), np.float32), "unused": np.zeros(2, np.int64)}
    for source in (model(ADD), tmp_path / "model.onnx", str(tmp_path / "model.onnx"), tmp_path):
        assert run(session(source), feed)["y"].tolist() == [[2, 3, 4]] * 2


def test_optimizations_can_be_turned_off_and_the_optimized_model_written(tmp_path: Path) -> None:
    counts = {}
    for level in (False, "basic", True):
        path = tmp_path / f"{level}.onnx"
        session(model(ADD), optimize=level, optimized_path=path)
        counts[level] = len(onnx.load(path).graph.node)
    assert counts == {False: 2, "basic": 1, True: 1}


def test_optimized_model_that_cannot_be_written_is_no_fault_of_the_model(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "optimized.onnx", tmp_path):
        with pytest.raises(WriteError, match="Free space") as caught:
            session(model(ADD), optimized_path=path)
        assert str(path) in str(caught.value)


def test_free_dimensions_and_configuration_entries_reach_the_runtime() -> None:
    made = session(model(ADD), dimensions={"n": 7}, config={"session.use_env_allocators": "0"}, threads=2)
    assert made.get_inputs()[0].shape == [7, 3]
    assert made.get_session_options().intra_op_num_threads == 2


def test_native_code_beside_a_model_is_loaded_only_for_a_named_bundle(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model(ADD))
    library = tmp_path / "lib" / platform_tag() / "libgraphopt_kernels.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"no library")
    session(tmp_path / "model.onnx")
    session(tmp_path, kernels=False)
    with pytest.raises(KernelError, match="does not load"):
        session(tmp_path)
    with pytest.raises(KernelError, match="does not load"):
        session(tmp_path / "model.onnx", kernels=library)
    with pytest.raises(KernelError, match="no such"):
        session(tmp_path / "model.onnx", kernels=tmp_path / "missing.so")


def test_unreadable_models_are_read_errors(tmp_path: Path) -> None:
    (tmp_path / "truncated.onnx").write_bytes(model(ADD)[:50])
    (tmp_path / "random.onnx").write_bytes(np.random.default_rng(0).bytes(300))
    (tmp_path / "folder").mkdir()
    for name in ("truncated.onnx", "random.onnx", "missing.onnx", "folder"):
        with pytest.raises(ReadError) as caught:
            session(tmp_path / name)
        assert name in str(caught.value)
        assert caught.value.exit_code == 3


def test_models_the_runtime_refuses_are_unsupported_with_its_own_words() -> None:
    texts = {
        "my:Nothing(-1) is not a registered function/op": ADD.replace("Identity", "my.Nothing").replace(
            '["" : 19]', '["" : 19, "my" : 1]'
        ),
        "y": ADD.replace("Identity(t)", "Identity(nowhere)"),
    }
    for words, text in texts.items():
        with pytest.raises(UnsupportedError) as caught:
            session(model(text))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 3


def test_version_the_runtime_does_not_know_is_said_without_its_source_files() -> None:
    with pytest.raises(UnsupportedError, match="does not load the model: Unsupported model IR version: 99") as caught:
        session(model(ADD.replace("ir_version: 9", "ir_version: 99")))
    assert ".cc" not in str(caught.value)


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(ADD)
    weight = onnx.numpy_helper.from_array(np.ones(3, np.float32), "w")
    proto.graph.initializer[0].CopyFrom(weight)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    (tmp_path / "m.data").unlink()
    with pytest.raises((ExternalDataError, ReadError), match=r"m\.data"):
        session(tmp_path / "m.onnx")


@pytest.mark.parametrize("place", ["initializer", "constant in a body"])
def test_external_data_outside_the_folder_is_refused_whatever_the_runtime_would_do(tmp_path: Path, place: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    weight = onnx.TensorProto(name="w", data_type=1, dims=[3], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../secret.bin")
    value = onnx.helper.make_tensor_value_info("y", 1, [3])
    if place == "initializer":
        nodes, stored = [onnx.helper.make_node("Identity", ["w"], ["y"])], [weight]
    else:
        body = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["y"], value=weight)], "b", [], [value])
        nodes, stored = [onnx.helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)], []
    condition = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    graph = onnx.helper.make_graph(nodes, "g", [condition], [value], stored)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "m.onnx"
    path.write_bytes(onnx.helper.make_model(graph, ir_version=8).SerializeToString())
    with pytest.raises(ExternalDataEscapeError):
        session(path)


def test_feeds_that_do_not_fit_and_runs_that_fail() -> None:
    made = session(model(ADD))
    with pytest.raises(DataError, match="lacks the inputs unused"):
        run(made, {"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(DataError, match="does not fit"):
        run(made, {"x": np.zeros((1, 4), np.float32), "unused": np.zeros(2, np.int64)})
    with pytest.raises(DataError, match="does not fit"):
        run(made, {"x": np.zeros((1, 3)), "unused": np.zeros(2, np.int64)})
    fixed = session(
        model(
            '<ir_version: 9, opset_import: ["" : 19]>'
            "g (float[n] x) => (float[m] y) <int64[1] s = {4}> { y = Reshape(x, s) }"
        )
    )
    with pytest.raises(RunError, match="Reshape"):
        run(fixed, {"x": np.zeros(3, np.float32)})


def test_entries_that_are_no_inputs_are_ignored_and_outputs_can_be_chosen() -> None:
    feed = {"x": np.zeros((1, 3), np.float32), "unused": np.zeros(2, np.int64), "labels": np.zeros(1)}
    assert list(run(session(model(ADD)), feed, ["y"])) == ["y"]


def test_a_bfloat16_scalar_stays_a_scalar() -> None:
    made = session(model('<ir_version: 9, opset_import: ["" : 19]> g (bfloat16 x) => (bfloat16 y) { y = Identity(x) }'))
    found = run(made, {"x": np.array(1.5, ml_dtypes.bfloat16)})["y"]
    assert found.shape == ()
    assert found == 1.5


def test_bfloat16_goes_in_and_comes_out() -> None:
    made = session(model('<ir_version: 9, opset_import: ["" : 19]> g (bfloat16[n] x) => (bfloat16[n] y, float[n] z) { y = Identity(x) z = Cast<to = 1>(x) }'))  # fmt: skip  # noqa: E501
    x = np.array([1.5, -2.0, 3.0], ml_dtypes.bfloat16)
    found = run(made, {"x": x})
    assert found["y"].dtype == ml_dtypes.bfloat16
    assert found["y"].tolist() == found["z"].tolist() == [1.5, -2.0, 3.0]
    assert len(timings([made], {"x": x}, runs=2)[0]) == 2


def test_input_specs_of_a_session_list_overridable_initializers_as_optional() -> None:
    proto = onnx.parser.parse_model(ADD)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [3]))
    assert input_specs(session(proto.SerializeToString())) == (
        InputSpec("x", np.dtype(np.float32), ("n", 3)),
        InputSpec("unused", np.dtype(np.int64), (2,)),
        InputSpec("w", np.dtype(np.float32), (3,), required=False),
    )
    with pytest.raises(UnsupportedError):
        input_specs(3)


def test_random_feeds_fit_repeat_and_run() -> None:
    made = session(model(ADD))
    feeds = random_feeds(made, count=3, seed=5)
    assert [feed["x"].shape for feed in feeds] == [(1, 3)] * 3
    assert all(run(made, feed)["y"].shape == (1, 3) for feed in feeds)
    again = random_feeds(made, count=3, seed=5)
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(feeds, again, strict=True))
    assert not np.array_equal(feeds.first()["x"], random_feeds(made, count=1, seed=6).first()["x"])
    assert random_feeds(made, count=1, sizes={"n": 4}).first()["x"].shape == (4, 3)


def test_random_feeds_values_by_type() -> None:
    kinds = {name: np.dtype(name) for name in ("bool", "uint8", "int8", "int32", "float16", "float64", "object")}
    specs = tuple(InputSpec(name, dtype, ("n", "length")) for name, dtype in kinds.items())
    specs += (
        InputSpec("attention_mask", np.dtype(np.int64), ("n", "length")),
        InputSpec("state", kinds["float64"], (2, None, 3)),
    )
    feed = random_feeds(specs, count=1).first()
    assert {name: feed[name].dtype for name in kinds} == kinds
    assert feed["uint8"].max() > 100 > feed["int32"].max() >= 0 > feed["int8"].min()
    assert set(feed["attention_mask"].ravel()) == {0, 1}
    assert feed["attention_mask"][0, 0] == 1
    assert feed["state"].shape == (2, 1, 3)
    with pytest.raises(UnsupportedError, match="no tensor"):
        random_feeds((InputSpec("s", None, None),), count=1)


def test_random_feeds_grow_until_a_session_runs() -> None:
    made = session(model('<ir_version: 9, opset_import: ["" : 19]> g (float[n, l] x) => (float[n, m] y) <int64[4] p = {0, 40, 0, 0}> { y = Pad<mode = "reflect">(x, p) }'))  # fmt: skip  # noqa: E501
    assert random_feeds(made, count=1).first()["x"].shape == (1, 64)


def test_latency_runs_all_sessions_equally_often() -> None:
    sessions = [session(model(ADD)) for _ in range(2)]
    feed = random_feeds(sessions[0], count=1).first()
    assert [len(times) for times in timings(sessions, feed, runs=9)] == [9, 9]
    assert all(7 <= len(times) <= 200 for times in timings(sessions, feed, budget_seconds=0.01))
    assert all(each > 0 for each in latency(sessions, feed, runs=3))
    with pytest.raises(GraphoptError, match="0 timed runs"):
        latency(sessions, feed, runs=0)


def test_the_runtime_logs_nothing_while_it_refuses(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(GraphoptError):
        session(model(ADD.replace("Identity(t)", "Identity(nowhere)")))
    assert capfd.readouterr() == ("", "")
    assert ort.get_available_providers()


def test_input_specs_of_a_model_are_those_of_its_session() -> None:
    proto = onnx.parser.parse_model(ADD)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [3]))
    loaded = read_model(proto)
    assert input_specs(loaded) == input_specs(loaded.graph) == input_specs(session(loaded))
    feeds = Feeds.open({"x": np.ones((2, 3), np.float32), "unused": np.zeros((2, 2), np.int64)}, loaded)
    assert [run(session(loaded), feed)["y"].tolist() for feed in feeds] == [[[2, 3, 4]]] * 2


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_8_bit_floats_go_in_and_come_out(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    number = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    nodes = [onnx.helper.make_node("Cast", ["x"], ["f"], to=1), onnx.helper.make_node("Cast", ["f"], ["y"], to=number)]
    ends = [onnx.helper.make_tensor_value_info(each, number, ["n"]) for each in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 19)]
    made = session(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    x = np.array([1.5, -2.0, 0.25], dtype)
    found = run(made, {"x": x})["y"]
    assert found.dtype == dtype
    assert found.tobytes() == x.tobytes()


def test_nothing_is_reported_or_kept_about_models(tmp_path: Path) -> None:
    """ONNX Runtime 1.29 and newer keep a device identifier and send events unless they are told not to."""
    quiet = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    code = "import graphopt; from graphopt import demo; graphopt.session(demo.CNN)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.rglob("*")) == []


def test_outputs_that_the_runtime_optimizes_away_are_run_as_they_stand() -> None:
    """ONNX Runtime 1.31 takes a Transpose into the Gemm behind it, and then misses what it gave out."""
    text = """<ir_version: 9, opset_import: ["" : 19]>
    g (float[N,2,16] x) => (float[32,N] t, float[8,N] u, float[N,3] y)
    <float[32,8] w = {0}, float[8,3] v = {0}> {
        s = Identity(x)
        f = Flatten(s)
        t = Transpose <perm = [1, 0]> (f)
        k = Gemm <transA = 1> (t, w)
        u = Transpose <perm = [1, 0]> (k)
        y = Gemm <transA = 1> (u, v)
    }"""
    proto = onnx.parser.parse_model(text)
    del proto.graph.initializer[:]
    for name, shape in (("w", (32, 8)), ("v", (8, 3))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    found = run(session(proto.SerializeToString()), {"x": np.ones((4, 2, 16), np.float32)})
    np.testing.assert_array_equal(found["y"], np.full((4, 3), 256.0, np.float32))
