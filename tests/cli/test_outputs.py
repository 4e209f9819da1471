"""Files beside what is printed appear whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from graphopt.cli.outputs import write_file
from graphopt.errors import WriteError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text("old")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        for path in (old, tmp_path / "new.json"):
            with pytest.raises(WriteError, match="cannot be written"):
                write_file(path, "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["old.json"]  # noqa: PTH208 - hidden files count
    assert old.read_text() == "old"


def test_a_link_stays_a_link_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_file(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_file(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
