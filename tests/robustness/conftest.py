"""What the tests of bad input share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bad_input import Ended
from graphopt.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Return the command line as a function of its arguments, run in this process."""

    def call(*arguments: object) -> Ended:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        return Ended(status, *capfd.readouterr())

    return call
