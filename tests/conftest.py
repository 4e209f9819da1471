"""Golden files: what a test produced once, was read by a person, and must produce again.

``golden(text)`` compares with ``tests/golden/<folders>/<test module>/<test name>.txt``. ``pytest --update-golden``
writes the files instead; read the difference before you commit it. Goldens that no test asks for any more are found by
``tests/repository/test_goldens.py``.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from graphopt.analysis.cost_table import DEFAULT_TABLE, TABLE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
collected_key = pytest.StashKey[dict[Path, set[str]]]()


def pytest_configure() -> None:
    """Let no cost table that somebody measured on this machine decide in a test."""
    os.environ[TABLE_VARIABLE] = DEFAULT_TABLE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remember, before markers deselect anything, which golden files the collected tests may use."""
    collected = config.stash.setdefault(collected_key, {})
    for item in items:
        names = collected.setdefault(golden_folder(item.path), set())
        if "golden" in getattr(item, "fixturenames", ()):
            names.add(golden_stem(item.name))


def golden_folder(module: Path) -> Path:
    """Return where a test module keeps its golden files."""
    return GOLDEN / module.relative_to(TESTS).with_suffix("")


def golden_stem(test: str) -> str:
    """Return the file name of a test's golden, without its suffix: parameters are kept, odd characters are not."""
    return re.sub(r"[^A-Za-z0-9_\-]+", "-", test).strip("-")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return ``compare(text, part="")``; ``part`` tells several goldens of one test apart."""

    def compare(text: str, part: str = "") -> None:
        stem = golden_stem(request.node.name)
        path = golden_folder(request.path) / (f"{stem}.{part}.txt" if part else f"{stem}.txt")
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            return
        shown = path.relative_to(TESTS.parent)
        if not path.exists():
            pytest.fail(f"{shown} does not exist; run pytest --update-golden and read what it wrote:\n{text}")
        expected = path.read_text("utf-8")
        if text != expected:
            lines = difflib.unified_diff(expected.splitlines(), text.splitlines(), str(shown), "now", lineterm="")
            pytest.fail("\n".join(lines))

    return compare


@pytest.fixture
def collected_goldens(request: pytest.FixtureRequest) -> dict[Path, set[str]]:
    """Return, per golden folder of a collected module, the names that its tests may use."""
    return request.config.stash[collected_key]
