"""Text files that verbs write beside what they print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.errors import OutputExistsError, WriteError

if TYPE_CHECKING:
    from pathlib import Path


def refuse_file(path: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written before the work starts.

    Raises:
        OutputExistsError: It is there and ``force`` is not set, or it is a folder.
        WriteError: Its folder is missing.
    """
    if path.is_dir():
        raise OutputExistsError("the output is a folder", where=str(path), must="This verb writes files")
    if path.exists() and not force:
        do = "Choose another name, or give --force to replace it"
        raise OutputExistsError("the output exists already", where=str(path), do=do)
    if not path.absolute().parent.is_dir():
        raise WriteError(f"there is no folder '{path.absolute().parent}'", where=str(path), do="Create it")


def write_file(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; a device or a pipe takes what it takes.

    Raises:
        WriteError: The system refuses it.
    """
    from graphopt.graph.files import Staging

    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        with Staging() as staging, staging.file(path.resolve()) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise WriteError(f"it cannot be written ({error.strerror})", where=str(path)) from error
