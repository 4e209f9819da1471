"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import OutputExistsError, WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST = "manifest.json"
"""The file that makes a folder a bundle, so that only bundles are ever replaced."""


@contextlib.contextmanager
def staged_directory(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside the target that takes the target's place when the block ends without an error.

    Args:
        target: The folder to write.
        force: Replace the target if it is a bundle already.

    Raises:
        OutputExistsError: The target exists and ``force`` is not set, or it is not a bundle (never replaced).
        WriteError: The folder cannot be written; nothing is left behind and an old target stays.
    """
    refuse_unsafe_target(target, force=force)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.absolute().parent))
    except OSError as error:
        raise _write_error(target, error) from error
    try:
        yield stage
        _flush(stage)
        stage.chmod(0o755)
        _swap(stage, target)
    except OSError as error:
        raise _write_error(target, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def refuse_unsafe_target(target: Path, *, force: bool) -> None:
    """Raise OutputExistsError unless the target is absent, empty, or a bundle that may be replaced."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputExistsError(
            "the output exists and is not a folder",
            where=str(target),
            must="A bundle is a folder of its own",
            do="Choose another name with -o",
        )
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        raise OutputExistsError(
            "the folder exists and is not a bundle",
            where=str(target),
            must="Only an empty folder or an earlier bundle is replaced, so that no other files are lost",
            do="Choose another name with -o",
        )
    if not force:
        raise OutputExistsError(
            "the bundle exists already",
            where=str(target),
            must="An existing output is kept",
            do="Choose another name with -o, or give --force to replace it",
        )


def _swap(stage: Path, target: Path) -> None:
    old = None
    if target.exists():
        old = stage.with_suffix(".old")
        target.rename(old)
    try:
        stage.rename(target)
    except BaseException:  # an interrupt too must not cost the earlier bundle
        if old is not None:
            old.rename(target)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _write_error(target: Path, error: OSError) -> WriteError:
    return WriteError(
        f"the folder cannot be written ({error.strerror or error})",
        where=str(target),
        must="Nothing was left half-written",
        do="Free space or choose a folder that may be written",
    )
