"""Files: external data read and written, atomic replacement, and what untrusted descriptions must not reach."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import (
    ExternalDataError,
    ExternalDataEscapeError,
    ModelTooLargeError,
    OutputExistsError,
    ReadError,
    WriteError,
)
from graphopt.graph import Constant, ExternalWeight, LazyWeight, Model, Rewriter, files, read_model

if TYPE_CHECKING:
    from collections.abc import Iterator


def big_model(count: int = 4, size: int = 3000) -> onnx.ModelProto:
    """Return a chain of additions of large weights, one of them int4, one small."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), f"w{i}") for i in range(count)]
    nodes = [helper.make_node("Add", [f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"add{i}") for i in range(count)]
    codes = rng.integers(-8, 8, 5001).astype(np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.INT4)))
    weights.append(numpy_helper.from_array(codes, "codes"))
    weights.append(numpy_helper.from_array(np.float32(0.5), "scale"))
    nodes.append(helper.make_node("DequantizeLinear", ["codes", "scale"], ["d"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("t0", 1, [size])],
        [helper.make_tensor_value_info(f"t{count}", 1, [size]), helper.make_tensor_value_info("d", 1, [5001])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def weights_of(model: Model) -> dict[str, np.ndarray]:
    return {c.name: c.array() for c in model.graph.initializers}


def constant(model: Model, name: str) -> Constant:
    return next(c for c in model.graph.initializers if c.name == name)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A model with external data, written by onnx."""
    path = tmp_path / "in" / "m.onnx"
    path.parent.mkdir()
    onnx.save(big_model(), path, save_as_external_data=True, location="m.bin", size_threshold=64)
    return path


def test_external_data_is_read_lazily_and_inlined_on_demand(stored: Path) -> None:
    model = read_model(stored)
    assert isinstance(constant(model, "w0").weight, ExternalWeight)
    want = {t.name: numpy_helper.to_array(t) for t in big_model().graph.initializer}
    got = weights_of(model)
    for name, array in want.items():
        assert np.array_equal(got[name].astype(np.float32), array.astype(np.float32)), name
    inlined = model.to_proto()
    onnx.checker.check_model(inlined, full_check=True)
    assert not any(t.external_data for t in inlined.graph.initializer)


def test_external_model_stays_external_in_another_folder(stored: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "n.onnx"
    target.parent.mkdir()
    read_model(stored).save(target)
    assert listing(target.parent) == ["n.onnx", "n.onnx.data"]
    onnx.checker.check_model(str(target), full_check=True)
    again = read_model(target)
    for name, array in weights_of(read_model(stored)).items():
        assert np.array_equal(array.astype(np.float32), weights_of(again)[name].astype(np.float32))
    for item in again.graph.initializers:
        if isinstance(item.weight, ExternalWeight):
            assert item.weight.offset % 64 == 0
    read_model(target).save(target.with_name("n2.onnx"), external="n.onnx.data.2")
    twin = onnx.load(target.with_name("n2.onnx"))
    assert numpy_helper.to_array(twin.graph.initializer[0]).tolist() == weights_of(again)["w0"].tolist()


def test_large_weights_start_at_pages(tmp_path: Path) -> None:
    model = read_model(big_model(count=2, size=1 << 19))
    model.save(tmp_path / "m.onnx", external="m.data")
    offsets = {c.name: c.weight.offset for c in read_model(tmp_path / "m.onnx").graph.initializers if c.name[0] == "w"}
    assert all(offset % 4096 == 0 for offset in offsets.values())
    assert len(set(offsets.values())) == 2


def test_many_weights_alive_at_once_do_not_use_up_file_descriptors(tmp_path: Path) -> None:
    model = read_model(big_model(count=3, size=1 << 19))
    model.save(tmp_path / "m.onnx", external="m.data")
    path = tmp_path / "many.onnx"
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for i in range(300):
        copy = proto.graph.initializer.add()
        copy.CopyFrom(proto.graph.initializer[0])
        copy.name = f"copy{i}"
    path.write_bytes(proto.SerializeToString())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        alive = [c.array() for c in read_model(path).graph.initializers]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(np.array_equal(alive[0], array) for array in alive[-3:])


def test_small_model_is_written_inline(tmp_path: Path) -> None:
    read_model(big_model()).save(tmp_path / "m.onnx")
    assert listing(tmp_path) == ["m.onnx"]
    read_model(tmp_path / "m.onnx").save(tmp_path / "m.onnx", external=None)
    assert (tmp_path / "m.onnx").read_bytes() == read_model(big_model()).to_bytes()


def test_model_is_saved_over_its_own_files(stored: Path) -> None:
    before = weights_of(read_model(stored))
    model = read_model(stored)
    unread = constant(model, "w3")
    with Rewriter(model) as rw:
        rw.set_weight(constant(model, "w1"), np.zeros(7000, np.float32))
        rw.set_weight(constant(model, "w0"), np.ones(2, np.float32))
    for _ in range(2):  # the second time from the files that are no longer there
        model.save(stored, external="m.bin")
        assert np.array_equal(unread.array(), before["w3"])
        again = weights_of(read_model(stored))
        assert np.array_equal(again["w3"], before["w3"])
        assert np.array_equal(again["w2"], before["w2"])
        assert again["w1"].shape == (7000,)
    assert listing(stored.parent) == ["m.bin", "m.onnx"]


def test_external_to_inline(stored: Path, tmp_path: Path) -> None:
    target = tmp_path / "inline.onnx"
    read_model(stored).save(target, external=None)
    assert target.read_bytes() == read_model(stored).to_bytes()


def test_checksum_is_that_of_the_new_file(stored: Path, tmp_path: Path) -> None:
    proto = onnx.load(stored, load_external_data=False)
    want = hashlib.sha1((stored.parent / "m.bin").read_bytes(), usedforsecurity=False).hexdigest()
    proto.graph.initializer[0].external_data.add(key="checksum", value=want)
    onnx.save(proto, stored)
    assert read_model(stored).to_bytes(inline=False) == proto.SerializeToString(deterministic=True)
    target = tmp_path / "n.onnx"
    read_model(stored).save(target)
    written = onnx.load(target, load_external_data=False)
    entries = {e.key: e.value for e in written.graph.initializer[0].external_data}
    data = (tmp_path / "n.onnx.data").read_bytes()
    assert entries["checksum"] == hashlib.sha1(data, usedforsecurity=False).hexdigest()


def test_weights_in_bodies_and_attributes_are_kept(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "inner"], ["b"])],
        "b",
        [],
        [helper.make_tensor_value_info("b", 1, [2000])],
        [numpy_helper.from_array(np.arange(2000, dtype=np.float32), "inner")],
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(2000, np.float32), "v")),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, [2000]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, [2000])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    read_model(proto).save(tmp_path / "m.onnx", external="m.data")
    assert (tmp_path / "m.data").stat().st_size >= 2 * 8000
    assert read_model(tmp_path / "m.onnx").to_bytes() == proto.SerializeToString(deterministic=True)


# ---------------------------------------------------------------------------------------------------------- failure


def fail_at(calls: int, error: BaseException) -> Iterator[bytes]:
    """Yield chunks, then raise: a disk that fills up or a user who presses Ctrl-C while weights are written."""
    for _ in range(calls):
        yield b"\0" * 4000
    raise error


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
@pytest.mark.parametrize("existing", [True, False])
def test_nothing_is_left_behind_or_changed_when_writing_fails(
    tmp_path: Path, error: BaseException, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.onnx"
    model = read_model(big_model())
    if existing:
        model.save(target, external="m.data")
    before = digest(tmp_path)
    monkeypatch.setattr(type(constant(model, "w3").weight), "chunks", lambda self: fail_at(1, error))
    expected = WriteError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        model.save(target, external="m.data")
    assert digest(tmp_path) == before


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("at", [0, 1])
def test_rename_that_fails_restores_both_files(
    tmp_path: Path, at: int, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.onnx"
    model = read_model(big_model())
    if existing:
        model.save(target, external="m.data")
    before = digest(tmp_path)
    with Rewriter(model) as rw:
        rw.set_weight(constant(model, "w0"), np.zeros(9, np.float32))
    original, calls = Path.replace, []

    def replace(self: Path, other: Path) -> Path:
        calls.append(self)
        if len(calls) == at + 1:
            raise OSError(errno.EIO, "Input/output error")
        return original(self, other)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(WriteError, match="Input/output error"):
        model.save(target, external="m.data")
    assert digest(tmp_path) == before


def test_disk_that_is_really_full(tmp_path: Path) -> None:
    """/dev/full refuses every write; a folder that is no folder refuses the temporary file."""
    with pytest.raises(WriteError):
        read_model(big_model()).save(tmp_path / "missing" / "m.onnx")
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError):
        read_model(big_model()).save(tmp_path / "file" / "m.onnx")
    assert listing(tmp_path) == ["file"]


def test_existing_output_is_kept_unless_forced(tmp_path: Path, chain: Model) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        chain.save(target, force=False)
    assert target.read_bytes() == b"mine"
    target.chmod(0o640)
    chain.save(target)
    assert target.stat().st_mode & 0o777 == 0o640
    assert read_model(target).to_bytes() == chain.to_bytes()


@pytest.mark.parametrize("name", ["../escape.data", "a/b.data", "", ".", "m.onnx", "/abs.data"])
def test_data_file_is_a_plain_name(tmp_path: Path, chain: Model, name: str) -> None:
    with pytest.raises(WriteError, match="data file"):
        chain.save(tmp_path / "m.onnx", external=name)


def too_large_model() -> Model:
    """Return a model of 2.1 GB whose values are made when they are asked for."""
    model = read_model(big_model(count=1))
    first = constant(model, "w0")
    with Rewriter(model) as rw:
        rw.set_weight(
            first, LazyWeight(lambda: np.zeros((1 << 21, 256), np.float32), TensorProto.FLOAT, (1 << 21, 256))
        )
    return model


def test_model_beyond_two_gigabytes_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    model = too_large_model()
    with pytest.raises(ModelTooLargeError, match="external data"):
        model.to_bytes()
    with pytest.raises(ModelTooLargeError):
        model.save(tmp_path / "m.onnx", external=None)
    assert listing(tmp_path) == []


def test_auto_puts_weights_outside_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "AUTO_LIMIT_BYTES", 40_000)
    read_model(big_model()).save(tmp_path / "m.onnx")
    assert listing(tmp_path) == ["m.onnx", "m.onnx.data"]


# -------------------------------------------------------------------------------------------------- untrusted input


def describe(folder: Path, **entries: str) -> Path:
    """Write a model whose first weight of 12 000 bytes has this external data."""
    proto = big_model()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location",
    [
        "../w.bin",
        "a/../../w.bin",
        "/etc/passwd",
        "..",
        "C:\\w.bin",
        "\\\\host\\w.bin",
        "..\\w.bin",
        "sub/link/w.bin",
        "link",
    ],
)
def test_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "w.bin").write_bytes(b"\0" * 20_000)
    (tmp_path / "w.bin").write_bytes(b"\0" * 20_000)
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "link").symlink_to(outside)
    (folder / "link").symlink_to(outside / "w.bin")
    with pytest.raises(ExternalDataEscapeError, match="GO-R003"):
        read_model(describe(folder, location=location))


def test_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(b"\0" * 12_000)
    (tmp_path / "link.bin").symlink_to("real.bin")
    model = read_model(describe(tmp_path, location="link.bin"))
    assert not constant(model, "w0").array().any()


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({}, "location"),
        ({"location": "missing.bin"}, "does not exist"),
        ({"location": "a\0b"}, "not a file name"),
        ({"location": "folder"}, "not a regular file"),
        ({"location": "pipe"}, "not a regular file"),
        ({"location": "short.bin"}, "ends at 12000"),
        ({"location": "w.bin", "offset": "-1"}, "not a size"),
        ({"location": "w.bin", "offset": "1e3"}, "not a size"),
        ({"location": "w.bin", "offset": "9" * 30}, "not a size"),
        ({"location": "w.bin", "offset": "99999999999999999"}, "ends at"),
        ({"location": "w.bin", "offset": "8001"}, "ends at"),
        ({"location": "w.bin", "length": "11999"}, "does not fit"),
        ({"location": "w.bin", "length": "0"}, "does not fit"),
        ({"location": "w.bin", "length": "-5"}, "not a size"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(tmp_path: Path, entries: dict[str, str], text: str) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 20_000)
    (tmp_path / "short.bin").write_bytes(b"\0" * 11_999)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ExternalDataError, match=text):
        read_model(describe(tmp_path, **entries))


def test_external_data_without_a_folder_is_refused(stored: Path) -> None:
    data = stored.read_bytes()
    with pytest.raises(ExternalDataError, match="base=FOLDER"):
        read_model(data)
    assert read_model(data, base=stored.parent).to_bytes() == read_model(stored).to_bytes()


def test_data_file_that_shrinks_while_the_model_is_open(stored: Path) -> None:
    model = read_model(stored)
    with (stored.parent / "m.bin").open("r+b") as stream:
        stream.truncate(10)
    with pytest.raises(ExternalDataError, match="shorter"):
        constant(model, "w0").array()
    with pytest.raises(ExternalDataError, match="shorter"):
        model.save(stored.with_name("n.onnx"))
    assert listing(stored.parent) == ["m.bin", "m.onnx"]


def test_strings_and_unknown_types_cannot_be_external(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 20_000)
    for kind in (TensorProto.STRING, 99):
        path = describe(tmp_path, location="w.bin")
        proto = onnx.load(path, load_external_data=False)
        proto.graph.initializer[0].data_type = kind
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ExternalDataError, match="cannot be stored"):
            read_model(path)


@pytest.mark.parametrize("source", ["missing.onnx", ".", "empty.onnx", "pipe"])
def test_sources_that_are_no_model_files(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty.onnx").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReadError, match="GO-R001"):
        read_model(tmp_path / source)
