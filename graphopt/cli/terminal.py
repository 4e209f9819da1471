"""What a command shows: the result on stdout, the log and the progress bar on stderr."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from graphopt.errors import WriteError
from graphopt.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress = Callable[[str, int, int], None]


def write(text: str) -> None:
    """Write the result to stdout.

    A reader that went away (``graphopt passes | head -1``) is no error: the rest is dropped and the exit status stays
    that of the command.

    Raises:
        WriteError: stdout cannot take the text, for example on a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except UnicodeEncodeError:  # a terminal that is not UTF-8: show what it can
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    except OSError as error:
        _silence_stdout()
        if error.errno == errno.EPIPE:
            return
        raise WriteError(f"stdout cannot be written: {error.strerror}", do="Check where the output goes") from error


def write_json(value: object) -> None:
    """Write one JSON object to stdout.

    Args:
        value: Anything `json` can write; figures that are not finite become null.

    Raises:
        WriteError: stdout cannot take it.
    """
    write(json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


def log(message: str, *, quiet: bool) -> None:
    """Write one line of the log to stderr."""
    if quiet or sys.stderr is None:
        return
    try:
        sys.stderr.write(printable(message) + "\n")
        sys.stderr.flush()
    except OSError:  # nobody reads the log; the result does not depend on it
        return


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Progress | None]:
    """Yield a function `(stage, done, total)` that moves a progress bar; None unless stderr is a terminal.

    What metrics and data functions of the user print meanwhile goes to stderr: stdout carries the result alone.
    """
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        with redirect_stdout(sys.stderr):
            yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with redirect_stdout(sys.stderr), Progress(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("reading", total=None)

        def advance(stage: str, done: int, total: int) -> None:
            bar.update(task, description=escape(printable(stage, limit=36)).ljust(36), completed=done, total=total)

        yield advance


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _silence_stdout() -> None:
    # Python flushes stdout once more at exit, which would raise again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
