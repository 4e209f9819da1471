"""Models that cannot be used: a clear error with code and status, no traceback, nothing half-written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]
    Spoil = Callable[[onnx.ModelProto, Path], bytes]

BAD: dict[str, tuple[Spoil, str]] = {}


def bad(said: str) -> Callable[[Spoil], Spoil]:
    """Register a way to spoil a model, with what the message must contain."""

    def register(spoil: Spoil) -> Spoil:
        BAD[spoil.__name__] = (spoil, said)
        return spoil

    return register


@bad("GO-R")
def empty(_: onnx.ModelProto, __: Path) -> bytes:
    return b""


@bad("GO-R")
def truncated(model: onnx.ModelProto, _: Path) -> bytes:
    return bytes(model.SerializeToString())[:-200]


@bad("GO-R")
def random(_: onnx.ModelProto, __: Path) -> bytes:
    return np.random.default_rng(1).bytes(5000)


@bad("GO-")
def cyclic(model: onnx.ModelProto, _: Path) -> bytes:
    model.graph.node[0].input[0] = "d"
    return bytes(model.SerializeToString())


@bad("GO-")
def duplicate_name(model: onnx.ModelProto, _: Path) -> bytes:
    model.graph.node[1].output[0] = "a"
    return bytes(model.SerializeToString())


@bad("GO-")
def dangling_input(model: onnx.ModelProto, _: Path) -> bytes:
    model.graph.node[2].input[0] = "nothing"
    return bytes(model.SerializeToString())


def external(model: onnx.ModelProto, location: str, **fields: object) -> bytes:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, str(value)
    return bytes(model.SerializeToString())


@bad("GO-R002")
def missing_external_data(model: onnx.ModelProto, _: Path) -> bytes:
    return external(model, "absent.bin")


@bad("GO-R002")
def short_external_data(model: onnx.ModelProto, folder: Path) -> bytes:
    (folder / "short.bin").write_bytes(b"\0" * 100)
    return external(model, "short.bin")


@bad("GO-R003")
def escaping_external_data(model: onnx.ModelProto, folder: Path) -> bytes:
    (folder.parent / "outside.bin").write_bytes(b"\0" * 512)
    return external(model, "../outside.bin")


@bad("GO-R003")
def absolute_external_data(model: onnx.ModelProto, folder: Path) -> bytes:
    (folder / "w.bin").write_bytes(b"\0" * 512)
    return external(model, str(folder / "w.bin"))


@bad("GO-R003")
def linked_external_data(model: onnx.ModelProto, folder: Path) -> bytes:
    target = folder.parent / "outside.bin"
    target.write_bytes(b"\0" * 512)
    (folder / "link.bin").symlink_to(target)
    return external(model, "link.bin")


@bad("GO-")
def weight_with_too_few_bytes(model: onnx.ModelProto, _: Path) -> bytes:
    model.graph.initializer[0].raw_data = b"\0" * 7
    return bytes(model.SerializeToString())


@bad("GO-")
def weight_of_absurd_size(model: onnx.ModelProto, _: Path) -> bytes:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 40, 1 << 40])
    return bytes(model.SerializeToString())


@bad("GO-")
def operator_nobody_knows(model: onnx.ModelProto, _: Path) -> bytes:
    model.graph.node[2].op_type = "Releu"
    return bytes(model.SerializeToString())


@bad("GO-")
def custom_operator(model: onnx.ModelProto, _: Path) -> bytes:
    model.graph.node[2].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    return bytes(model.SerializeToString())


@bad("GO-")
def shapes_that_do_not_fit(model: onnx.ModelProto, _: Path) -> bytes:
    array = np.zeros((9, 16), np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, model.graph.initializer[0].name))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("verb", ["compile", "simplify"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_model_is_status_3_with_a_code(
    graphopt_here: Run, model: Path, tmp_path: Path, kind: str, verb: str
) -> None:
    spoil, said = BAD[kind]
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "bad.onnx"
    path.write_bytes(spoil(onnx.load(model), folder))
    before = {each.name for each in [*folder.iterdir(), *tmp_path.iterdir()]}
    ran = graphopt_here(verb, path, "-o", tmp_path / "out")
    assert ran.err.startswith("error: GO-"), ran.err
    assert said in ran.err
    assert ran.status == 3
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert {each.name for each in [*folder.iterdir(), *tmp_path.iterdir()]} == before


def test_folder_in_place_of_a_model(graphopt_here: Run, tmp_path: Path) -> None:
    ran = graphopt_here("simplify", tmp_path, "-o", tmp_path / "out.onnx")
    assert ran.status == 3
    assert ran.err.startswith("error: GO-")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of POSIX")
def test_named_pipe_in_place_of_a_model_does_not_hang(graphopt_process: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    ran = graphopt_process("inspect", tmp_path / "pipe.onnx")
    assert ran.status == 3
    assert ran.err.startswith("error: GO-R")


def test_unsorted_model_is_put_in_order(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    unsorted = onnx.load(model)
    nodes = list(unsorted.graph.node)[::-1]
    del unsorted.graph.node[:]
    unsorted.graph.node.extend(nodes)
    path = tmp_path / "unsorted.onnx"
    path.write_bytes(unsorted.SerializeToString())
    ran = graphopt_here("simplify", path, "-o", tmp_path / "out.onnx")
    assert ran.status == 0, ran.err
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_left_alone(
    graphopt_here: Run, model: Path, feeds: Path, tmp_path: Path, value: float
) -> None:
    spoiled = onnx.load(model)
    weight = spoiled.graph.initializer[0]
    array = numpy_helper.to_array(weight).copy()
    array[0, 0] = value
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    path = tmp_path / "nan.onnx"
    onnx.save(spoiled, path)
    for recipe in ("int8", "default"):
        ran = graphopt_here("compile", path, "-o", tmp_path / recipe, "--recipe", recipe, "--data", feeds)
        assert ran.status in {0, 3, 4}, ran.err
        assert "internal error" not in ran.err
        assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.full((20, 8), "word")}, "x"),
        ({"x": np.zeros((20, 9), np.float32)}, "9"),
        ({"x": np.full((20, 8), np.nan, np.float32)}, "x"),
        ({"x": np.zeros((0, 8), np.float32)}, "sample"),
        ({"y": np.zeros((20, 8), np.float32)}, "x"),
        ({"x": np.array([object()], dtype=object)}, "x"),
    ],
)
def test_feeds_that_do_not_fit_are_status_2(
    graphopt_here: Run, model: Path, tmp_path: Path, arrays: dict[str, Any], said: str
) -> None:
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)
    ran = graphopt_here("compile", model, "-o", tmp_path / "out", "--recipe", "int8", "--data", path)
    assert ran.status == 2, ran.err
    assert ran.err.startswith("error: GO-D")
    assert said in ran.err
    assert not (tmp_path / "out").exists()


def test_data_file_that_is_no_npz(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 broken")
    ran = graphopt_here("compile", model, "-o", tmp_path / "out", "--data", tmp_path / "x.npz")
    assert ran.status == 2
    assert ran.err.startswith("error: GO-D")


def test_data_function_that_raises(graphopt_here: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken_feeds.py").write_text("def feeds():\n    raise RuntimeError('no disk')\n")
    ran = graphopt_here("compile", model, "-o", tmp_path / "out", "--data", f"{tmp_path / 'broken_feeds.py'}:feeds")
    assert ran.status == 2
    assert "no disk" in ran.err
    assert ran.err.startswith("error: GO-D")
