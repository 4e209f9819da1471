"""What the README and the page of the examples tell people to type works as it is written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt import demo

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
EXAMPLES = ROOT / "examples"
PAGES = [README, *sorted(ROOT.glob("*/README.md"))]
LINES_OF_A_PAGE = 90

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    found = [body for kind, body in _BLOCK.findall(page.read_text("utf-8")) if kind == language]
    assert found, f"{page.name} has no block of {language}"
    return found


def graphopt_on_path() -> dict[str, str]:
    """Return an environment in which `python` and `graphopt` are those that run this test."""
    here = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}"}


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=graphopt_on_path(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """Return a user's folder: model.onnx and feeds.npz, one array with 80 samples."""
    shutil.copy(demo.TRANSFORMER, tmp_path / "model.onnx")
    with np.load(demo.CALIBRATION) as feeds:
        np.savez(tmp_path / "feeds.npz", image=feeds["image"][:80])
    return tmp_path


def test_readme_is_one_page() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= LINES_OF_A_PAGE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text("utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_make_has_the_two_commands() -> None:
    first = blocks(README, "sh")[0]
    commands = [line.split("#")[0].split() for line in first.splitlines()]
    assert commands == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for _, target in commands)


def test_one_line_then_python_then_a_recipe(user: Path) -> None:
    """One after the other in one folder, as somebody does who reads from top to bottom."""
    (line,) = blocks(README, "sh")[1].splitlines()
    program, *arguments = shlex.split(line)
    assert program == ".venv/bin/graphopt"
    run([sys.executable, "-m", "graphopt", *arguments], user)
    assert {"model.onnx", "report.html", "recipe.yaml"} <= {path.name for path in (user / "bundle").iterdir()}

    (program,) = blocks(README, "python")
    printed = run([sys.executable, "-c", program], user)
    assert 0.9 < float(printed.split()[0]) <= 1.0

    (recipe,) = blocks(README, "yaml")
    (user / "recipe.yaml").write_text(recipe, "utf-8")
    options = ["--recipe", "recipe.yaml", "--data", "feeds.npz", "--quiet"]
    run([sys.executable, "-m", "graphopt", "compile", "model.onnx", "-o", "mine", *options], user)
    assert list((user / "mine").glob("lib/*/*graphopt_kernels*")), "nothing was lowered: the recipe shows nothing"


def test_examples_run_as_their_page_says(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples")
    script, training = blocks(EXAMPLES / "README.md", "sh")
    assert run(["sh", "-e", "-c", script], folder).splitlines()[-1].startswith("class ")
    assert all(Path(ROOT / word).exists() for word in training.split() if word.startswith("examples/"))
    printed = run([sys.executable, "compile_digits.py"], folder).splitlines()[-1]
    guesses, labels = re.findall(r"\[([\d ]+)\]", printed)
    assert guesses == labels
    assert run([sys.executable, "deploy.py", "digits_bundle"], folder).startswith("class ")


def test_every_example_is_on_the_page() -> None:
    page = (EXAMPLES / "README.md").read_text("utf-8")
    programs = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".cpp", ".ipynb"}}
    assert {name for name in programs if f"`{name}`" not in page} == set()
