"""A folder appears whole or not at all, and nothing but an earlier bundle is ever replaced."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from graphopt.emit import staged_directory
from graphopt.errors import OutputExistsError, WriteError

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(target: Path, failure: BaseException) -> None:
    with staged_directory(target) as stage:
        (stage / "half").write_text("half")
        raise failure


def test_folder_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "bundle") as stage:
        (stage / "manifest.json").write_text("{}")
        assert not (tmp_path / "bundle").exists()
    assert names(tmp_path / "bundle") == ["manifest.json"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("failure", [RuntimeError("stop"), KeyboardInterrupt(), MemoryError()])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        write_half(tmp_path / "bundle", failure)
    assert names(tmp_path) == []


def test_full_disk_is_a_write_error_and_keeps_the_old_bundle(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "bundle") as stage:
        (stage / "manifest.json").write_text("old")
    with (
        pytest.raises(WriteError, match="No space left") as caught,
        staged_directory(tmp_path / "bundle", force=True) as stage,
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 2
    assert (tmp_path / "bundle" / "manifest.json").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_an_interrupt_between_the_renames_keeps_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    with staged_directory(target) as stage:
        (stage / "manifest.json").write_text("old")
    rename = type(target).rename

    def interrupted(path: Path, to: Path) -> Path:
        if to == target and path.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(type(target), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged_directory(target, force=True) as stage:
        (stage / "manifest.json").write_text("new")
    assert (target / "manifest.json").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_force_replaces_a_bundle_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with staged_directory(tmp_path / "bundle", force=True) as stage:
            (stage / "manifest.json").write_text(text)
            (stage / text).write_text(text)
    assert names(tmp_path / "bundle") == ["manifest.json", "new"]


def test_existing_bundle_needs_force(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(OutputExistsError, match="--force"), staged_directory(tmp_path):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_other_files_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match="not a bundle"), staged_directory(tmp_path, force=force):
        pytest.fail("the block must not run")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("a file")
    with pytest.raises(OutputExistsError, match="not a folder"), staged_directory(tmp_path / "bundle", force=True):
        pytest.fail("the block must not run")


def test_a_parent_that_is_a_file_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(WriteError), staged_directory(tmp_path / "file" / "bundle"):
        pytest.fail("the block must not run")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with staged_directory(tmp_path / "bundle") as stage:
        (stage / "manifest.json").write_text("{}")
    assert names(tmp_path / "bundle") == ["manifest.json"]
