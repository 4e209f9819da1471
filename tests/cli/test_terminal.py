from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import pytest

from graphopt.cli.terminal import log, progress_bar, write, write_json

if TYPE_CHECKING:
    from collections.abc import Callable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, _: str) -> int:
        raise OSError(5, "Input/output error")


def test_progress_bar_moves_on_a_terminal_and_clears_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar(quiet=False) as advance:
        assert advance is not None
        advance("insert-qdq [bold]\x1b[31m", 3, 7)
    shown = screen.getvalue()
    assert "insert-qdq [bold]\\x1b[31m" in shown
    assert "3/7" in shown
    assert shown.endswith("\x1b[2K")


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO, False), (Terminal, True)])
def test_no_progress_bar_in_a_log_or_when_quiet(
    monkeypatch: pytest.MonkeyPatch, stream: Callable[[], io.StringIO], quiet: bool
) -> None:
    screen = stream()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar(quiet=quiet) as advance:
        assert advance is None
    assert screen.getvalue() == ""


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_functions_of_the_user_print_is_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stream: Callable[[], io.StringIO]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = stream()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar(quiet=False):
        print("from a metric")
    write("result\n")
    assert "from a metric" in screen.getvalue()
    assert capsys.readouterr().out == "result\n"


def test_log_nobody_can_read_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken())
    log("lost", quiet=False)
    monkeypatch.setattr(sys, "stderr", None)
    log("lost", quiet=False)


def test_log_shows_escape_sequences_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    log("tensor '\x1b[2J'", quiet=False)
    assert capsys.readouterr().err == "tensor '\\x1b[2J'\n"


def test_json_is_valid_for_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (1, "é")}, 3: None})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": None, "b": [None, 1.5], "c": {"d": [1, "é"]}, "3": None}


def test_terminal_of_few_characters_gets_what_it_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    write("12 µs\n")
    sys.stdout.flush()
    assert buffer.getvalue() == b"12 \\xb5s\n"
