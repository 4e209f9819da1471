"""Models that are damaged, hostile or odd: a clear error with its code and status, and nothing written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bad_input import VALUE, Ended, assert_only, assert_refused, linear
from graphopt import demo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def refused(run: Callable[..., Ended], tmp_path: Path) -> Callable[..., None]:
    """Return a check that both verbs refuse a model and leave nothing behind."""

    def check(model: bytes | onnx.ModelProto, code: str, *words: str, status: int = 3) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        before = [entry.name for entry in tmp_path.iterdir()]
        for ended in (
            run("simplify", path, "-o", tmp_path / "out.onnx"),
            run("compile", path, "-o", tmp_path / "out", "--recipe", "int8"),
        ):
            assert_refused(ended, code, status, *words)
            assert_only(tmp_path, before)

    return check


# ------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.01, 0.5, 0.999999])
def test_truncated_model_is_refused(refused: Callable[..., None], share: float) -> None:
    whole = demo.CNN.read_bytes()
    refused(whole[: int(len(whole) * share)], "GO-R001", "model.onnx")


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_refused(refused: Callable[..., None], seed: int) -> None:
    refused(np.random.default_rng(seed).bytes(10 ** (seed + 1)), "GO-R001", "model.onnx")


def test_text_is_refused(refused: Callable[..., None]) -> None:
    refused(b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "GO-R001")


def test_model_without_a_graph_is_refused(refused: Callable[..., None]) -> None:
    refused(onnx.ModelProto(ir_version=9), "GO-R001")


def test_missing_model_is_refused(run: Callable[..., Ended], tmp_path: Path) -> None:
    assert_refused(run("simplify", tmp_path / "no.onnx", "-o", tmp_path / "o.onnx"), "GO-R001", 3, "no.onnx")
    assert_only(tmp_path, [])


def test_folder_as_model_is_refused(run: Callable[..., Ended], tmp_path: Path) -> None:
    ended = run("simplify", tmp_path, "-o", tmp_path / "o.onnx")
    assert ended.status in {2, 3}
    assert "GO-" in ended.err
    assert_only(tmp_path, [])


# ------------------------------------------------------------------------------------------------------ absurd tensors


def claimed(dims: list[int], data: bytes = b"\0" * 16) -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, raw_data=data)
    weight.dims.extend(dims)
    return linear(weight)


@pytest.mark.parametrize(
    "dims",
    [[1 << 40, 1 << 10], [1 << 62, 1 << 62], [2, -2], [3, 2], [1 << 31, 2], [2] * 70],
    ids=["terabytes", "overflow", "negative", "too few bytes", "gigabytes", "rank 70"],
)
def test_tensor_that_claims_another_size_is_refused(refused: Callable[..., None], dims: list[int]) -> None:
    refused(claimed(dims), "GO-R001", "'w'")


def test_tensor_of_unknown_type_is_refused(refused: Callable[..., None]) -> None:
    model = claimed([2, 2])
    model.graph.initializer[0].data_type = 77
    refused(model, "GO-[RG]00[12]", "'w'")


def test_constant_that_would_fill_the_memory_is_not_folded(run: Callable[..., Ended], tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "s")
    index = numpy_helper.from_array(np.array([0], np.int64), "i")
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("Shape", ["big"], ["size"]),
        helper.make_node("Cast", ["size"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["f", "i"], ["g"]),
        helper.make_node("Add", ["x", "g"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [VALUE("x", TensorProto.FLOAT, [1])], [VALUE("y", TensorProto.FLOAT, [1])], [shape, index]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    ended = run("simplify", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert ended.status in {0, 3}, ended.err
    assert "internal error" not in ended.err
    if ended.status == 0:
        assert (tmp_path / "o.onnx").stat().st_size < 10_000


# ---------------------------------------------------------------------------------------------------------- bad graphs


def graph_of(nodes: list[Any], initializers: list[TensorProto] | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [VALUE("x", TensorProto.FLOAT, [2])], [VALUE("y", TensorProto.FLOAT, [2])], initializers or []
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_cycle_is_refused(refused: Callable[..., None]) -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Neg", ["a"], ["b"], name="second"),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    refused(graph_of(nodes), "GO-G001", "cycle")


def test_node_that_reads_itself_is_refused(refused: Callable[..., None]) -> None:
    refused(graph_of([helper.make_node("Add", ["x", "y"], ["y"], name="loop")]), "GO-G001")


def test_unsorted_nodes_are_put_in_order(run: Callable[..., Ended], tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Exp", ["x"], ["a"])]
    (tmp_path / "m.onnx").write_bytes(graph_of(nodes).SerializeToString())
    ended = run("simplify", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert ended.status == 0, ended.err
    assert [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node] == ["Exp", "Neg"]


@pytest.mark.parametrize(
    "what", ["two producers", "producer and input", "two initializers", "producer and initializer"]
)
def test_two_tensors_of_one_name_are_refused(refused: Callable[..., None], what: str) -> None:
    one = numpy_helper.from_array(np.ones(2, np.float32), "one")
    neg, exp = helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Exp", ["x"], ["y"])
    model = {
        "two producers": graph_of([neg, exp]),
        "producer and input": graph_of([helper.make_node("Neg", ["x"], ["x"]), exp]),
        "two initializers": graph_of([helper.make_node("Add", ["x", "one"], ["y"])], [one, one]),
        "producer and initializer": graph_of([helper.make_node("Neg", ["x"], ["one"]), exp], [one]),
    }[what]
    name = {"two producers": "'y'", "producer and input": "'x'"}.get(what, "'one'")
    refused(model, "GO-G001", name)


def test_output_that_nothing_produces_is_refused(refused: Callable[..., None]) -> None:
    refused(graph_of([helper.make_node("Neg", ["x"], ["z"])]), "GO-G001", "'y'")


def test_input_that_nothing_gives_is_refused(refused: Callable[..., None]) -> None:
    refused(graph_of([helper.make_node("Add", ["x", "ghost"], ["y"])]), "GO-G001", "'ghost'")


def test_deeply_nested_bodies_do_not_overflow_the_stack(run: Callable[..., Ended], tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["t0"])]
    for depth in range(30):
        body = helper.make_graph(nodes, f"b{depth}", [], [VALUE(f"t{depth}", TensorProto.FLOAT, [2])])
        nodes = [helper.make_node("If", ["c"], [f"t{depth + 1}"], then_branch=body, else_branch=body)]
        if depth == 9:  # both branches double the size; beyond, the file would be too large
            break
    graph = helper.make_graph(
        nodes,
        "g",
        [VALUE("c", TensorProto.BOOL, []), VALUE("x", TensorProto.FLOAT, [2])],
        [VALUE("t10", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    ended = run("simplify", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert ended.status == 0, ended.err


def test_unknown_operator_is_refused_or_left_alone(run: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(graph_of([helper.make_node("Frobnicate", ["x"], ["y"])]).SerializeToString())
    ended = run("compile", tmp_path / "m.onnx", "-o", tmp_path / "o")
    assert_refused(ended, "GO-[A-Z][0-9]{3}", 3, "Frobnicate")
    assert_only(tmp_path, ["m.onnx"])


# ------------------------------------------------------------------------------------------------------- external data


def external(location: str, **fields: object) -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    weight.dims.extend([2, 2])
    for key, value in {"location": location, **fields}.items():
        weight.external_data.add(key=key, value=str(value))
    return linear(weight)


def test_missing_external_data_is_refused(refused: Callable[..., None]) -> None:
    refused(external("w.bin"), "GO-R002", "w.bin")


def test_external_data_above_the_folder_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    refused(external("../w.bin"), "GO-R003", "../w.bin")
    (tmp_path / "sub").mkdir()
    refused(external("sub/../../w.bin"), "GO-R003")


def test_external_data_at_an_absolute_path_is_refused(refused: Callable[..., None]) -> None:
    refused(external("/etc/passwd"), "GO-R003", "/etc/passwd")


def test_external_data_behind_a_symbolic_link_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-secret.bin"
    outside.write_bytes(b"\0" * 16)
    (tmp_path / "w.bin").symlink_to(outside)
    refused(external("w.bin"), "GO-R003", "w.bin")


def test_external_data_in_a_linked_folder_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-secrets"
    outside.mkdir()
    (outside / "w.bin").write_bytes(b"\0" * 16)
    (tmp_path / "sub").symlink_to(outside)
    refused(external("sub/w.bin"), "GO-R003")


def test_external_data_that_is_too_short_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 15)
    refused(external("w.bin"), "GO-R002", "w.bin")


@pytest.mark.parametrize(
    "fields",
    [{"offset": -1}, {"offset": "x"}, {"offset": 1 << 63}, {"length": -4}, {"length": 3}, {"length": 1 << 70}],
    ids=str,
)
def test_external_data_with_an_absurd_range_is_refused(
    refused: Callable[..., None], tmp_path: Path, fields: dict[str, object]
) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 16)
    refused(external("w.bin", **fields), "GO-R002")


@pytest.mark.parametrize("location", ["", ".", "sub"])
def test_external_data_that_is_no_file_is_refused(refused: Callable[..., None], tmp_path: Path, location: str) -> None:
    (tmp_path / "sub").mkdir()
    refused(external(location), "GO-R00[23]")


def test_external_data_that_is_a_pipe_is_refused_without_waiting(refused: Callable[..., None], tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "w.bin")
    refused(external("w.bin"), "GO-R00[23]", "w.bin")


# ---------------------------------------------------------------------------------------------------------- NaN weights


@pytest.mark.parametrize("recipe", ["default", "int8", "sparse", "smallest"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_never_break_a_recipe(
    run: Callable[..., Ended], tmp_path: Path, recipe: str, value: float
) -> None:
    weight = np.arange(64, dtype=np.float32).reshape(8, 8)
    weight[3, 4] = value
    model = linear(numpy_helper.from_array(weight, "w"), (8, 8))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    np.savez(tmp_path / "feeds.npz", x=np.random.default_rng(0).random((40, 8), np.float32))
    ended = run(
        "compile", tmp_path / "m.onnx", "-o", tmp_path / "o", "--recipe", recipe, "--data", tmp_path / "feeds.npz"
    )
    assert ended.status == 0, ended.err
    assert "internal error" not in ended.err
    assert np.isnan(value) == np.isnan(stored(tmp_path / "o" / "model.onnx")).any()


def stored(path: Path) -> np.ndarray:
    return next(numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer if each.name == "w")
