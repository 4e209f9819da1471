"""Runs commands of graphopt in the process of the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from graphopt.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Ran:
    """What one command did."""

    status: int
    out: str
    err: str


@pytest.fixture
def graphopt_here(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        shown = capsys.readouterr()
        return Ran(status, shown.out, shown.err)

    return run
