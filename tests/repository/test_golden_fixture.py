"""The golden fixture: compares, writes when told to, and fails when there is nothing to compare with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"
ORPHANS = Path(__file__).parent / "test_goldens.py"
TEST = """
import pytest

@pytest.mark.parametrize("word", ["a b", "c/d"])
def test_words(golden, word):
    golden(f"word {word}")
    golden("more", "second")
"""


def pytest_in(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def checkout(folder: Path) -> Path:
    (folder / "tests" / "repository").mkdir(parents=True)
    shutil.copy(CONFTEST, folder / "tests")
    shutil.copy(ORPHANS, folder / "tests" / "repository")
    (folder / "tests" / "test_words.py").write_text(TEST, "utf-8")
    return folder / "tests" / "golden" / "test_words"


def test_missing_written_compared_changed(tmp_path: Path) -> None:
    golden = checkout(tmp_path)
    code, output = pytest_in(tmp_path, "tests/test_words.py")
    assert code == 1
    assert "does not exist; run pytest --update-golden" in output

    assert pytest_in(tmp_path, "tests/test_words.py", "--update-golden")[0] == 0
    names = ["test_words-a-b.second.txt", "test_words-a-b.txt", "test_words-c-d.second.txt", "test_words-c-d.txt"]
    assert sorted(path.name for path in golden.iterdir()) == names
    assert pytest_in(tmp_path)[0] == 0

    (golden / "test_words-a-b.txt").write_text("word z\n", "utf-8")
    code, output = pytest_in(tmp_path, "tests/test_words.py")
    assert code == 1
    assert "-word z" in output
    assert "+word a b" in output


def test_orphans_are_found(tmp_path: Path) -> None:
    golden = checkout(tmp_path)
    assert pytest_in(tmp_path, "--update-golden")[0] == 0
    (golden / "test_gone.txt").write_text("nobody asks\n", "utf-8")
    code, output = pytest_in(tmp_path)
    assert code == 1
    assert "test_gone.txt" in output
    (golden / "test_gone.txt").unlink()
    (golden.parent / "test_removed").mkdir()
    (golden.parent / "test_removed" / "test_x.txt").write_text("no module\n", "utf-8")
    code, output = pytest_in(tmp_path)
    assert code == 1
    assert "test_removed" in output
