"""Data that does not fit, cannot be read, or must not be read: a clear error, and nothing written."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bad_input import Ended, assert_only, assert_refused
from graphopt import demo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IMAGES = np.zeros((20, 1, 8, 8), np.float32)


@pytest.fixture
def refused(run: Callable[..., Ended], tmp_path: Path) -> Callable[..., None]:
    """Return a check that compile refuses data and leaves nothing behind."""

    def check(data: object, *words: str) -> None:
        before = [entry.name for entry in tmp_path.iterdir()]
        ended = run("compile", demo.CNN, "-o", tmp_path / "out", "--recipe", "int8", "--data", data)
        assert_refused(ended, "GO-D001", 2, *words)
        assert_only(tmp_path, before)

    return check


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"picture": IMAGES}, "picture"),
        ({}, "image"),
        ({"image": IMAGES.astype("S4")}, "image"),
        ({"image": IMAGES.astype(np.complex64)}, "image"),
        ({"image": np.zeros((20, 3, 8, 8), np.float32)}, "image"),
        ({"image": np.zeros((20, 8, 8), np.float32)}, "image"),
        ({"image": np.zeros((2, 2, 2, 1, 8, 8), np.float32)}, "image"),
        ({"image": np.zeros((0, 1, 8, 8), np.float32)}, ""),
        ({"image": np.float32(1)}, "image"),
    ],
    ids=["name", "no arrays", "text", "complex", "channels", "rank 3", "rank 6", "no samples", "scalar"],
)
def test_arrays_that_do_not_fit_are_refused(
    refused: Callable[..., None], tmp_path: Path, arrays: dict[str, Any], word: str
) -> None:
    np.savez(tmp_path / "feeds.npz", **arrays)
    refused(tmp_path / "feeds.npz", "feeds.npz", word)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def test_pickled_arrays_are_refused_and_never_loaded(refused: Callable[..., None], tmp_path: Path) -> None:
    trap = tmp_path / "unpickled"
    np.savez(tmp_path / "feeds.npz", image=np.array([Hostile(str(trap))], object))
    refused(tmp_path / "feeds.npz", "feeds.npz")
    assert not trap.exists()


def test_pickle_named_npz_is_refused_and_never_loaded(refused: Callable[..., None], tmp_path: Path) -> None:
    trap = tmp_path / "unpickled"
    np.array([Hostile(str(trap))], object).dump(tmp_path / "feeds.npz")
    trap.unlink(missing_ok=True)
    refused(tmp_path / "feeds.npz", "feeds.npz")
    assert not trap.exists()


def test_missing_file_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    refused(tmp_path / "no.npz", "no.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive at all"], ids=["empty", "zip head", "text"])
def test_file_that_is_no_archive_is_refused(refused: Callable[..., None], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "feeds.npz").write_bytes(content)
    refused(tmp_path / "feeds.npz", "feeds.npz")


def test_truncated_archive_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    whole = demo.CALIBRATION.read_bytes()
    (tmp_path / "feeds.npz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "feeds.npz", "feeds.npz")


def test_damaged_member_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "feeds.npz", "w") as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9")
    refused(tmp_path / "feeds.npz", "feeds.npz")


def test_member_that_claims_terabytes_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1, 8, 8), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    with zipfile.ZipFile(tmp_path / "feeds.npz", "w") as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    refused(tmp_path / "feeds.npz", "feeds.npz")


def test_empty_folder_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "feeds").mkdir()
    refused(tmp_path / "feeds", "feeds")


@pytest.mark.parametrize("name", ["no_such_module_at_all:feeds", "os:no_such_function", "os:sep"])
def test_function_that_is_none_is_refused(refused: Callable[..., None], name: str) -> None:
    refused(name, name.split(":", maxsplit=1)[0])


def test_function_that_raises_is_refused_with_its_message(
    refused: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising_feeds.py").write_text("def feeds():\n    raise ValueError('the disk is gone')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    refused("raising_feeds:feeds", "the disk is gone")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_never_break_a_recipe(
    run: Callable[..., Ended], tmp_path: Path, value: float
) -> None:
    images = np.random.default_rng(0).random((40, 1, 8, 8), np.float32)
    images[3, 0, 2, 2] = value
    np.savez(tmp_path / "feeds.npz", image=images)
    for recipe in ("int8", "smallest"):
        output = tmp_path / recipe
        ended = run("compile", demo.CNN, "-o", output, "--recipe", recipe, "--data", tmp_path / "feeds.npz")
        assert ended.status in {0, 2, 4}, ended.err
        assert "internal error" not in ended.err
        assert output.exists() == (ended.status == 0)
