"""Every golden file belongs to a test that exists."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
GOLDEN = TESTS / "golden"


def test_no_golden_without_its_module() -> None:
    orphans = [
        folder
        for folder in {file.parent for file in GOLDEN.rglob("*.txt")}
        if not (TESTS / folder.relative_to(GOLDEN)).with_suffix(".py").is_file()
    ]
    assert not orphans, f"no test module uses {sorted(map(str, orphans))}"


def test_no_golden_without_its_test(request: pytest.FixtureRequest, collected_goldens: dict[Path, set[str]]) -> None:
    if any("::" in argument for argument in request.config.args):
        pytest.skip("single tests were asked for, so the names of their neighbours are not known")
    orphans = [
        file
        for folder, names in collected_goldens.items()
        for file in folder.glob("*.txt")
        if file.name.split(".")[0] not in names
    ]
    assert not orphans, f"no test asks for {sorted(map(str, orphans))}"
