"""The tools that keep the code in shape: linter, formatter, type checker, layers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tool(name: str, *arguments: str) -> None:
    """Run an installed tool in the checkout; fail with its output."""
    beside = Path(sys.executable).parent / name
    command = str(beside) if beside.exists() else shutil.which(name)
    if command is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{name} {' '.join(arguments)}\n{done.stdout[-8000:]}{done.stderr[-4000:]}")


def test_linter_finds_nothing() -> None:
    tool("ruff", "check", "--quiet", ".")


def test_code_is_formatted() -> None:
    tool("ruff", "format", "--check", "--quiet", ".")


def test_types_are_right() -> None:
    tool("mypy", "--no-error-summary")


def test_layers_hold() -> None:
    tool("lint-imports", "--no-logo")
