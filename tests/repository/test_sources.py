"""Rules about the files themselves."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from graphopt.rewrite import catalogue
from graphopt.rewrite.pass_ import SECTIONS, Pass, sections
from graphopt.rewrite.registry import builtin_modules, pass_class

ROOT = Path(__file__).parents[2]
LONGEST = 600
"""Lines of the longest source file; the guide is 400."""

FORBIDDEN = {
    "a file's private place": re.compile(r"/work/|/tmp/|/home/"),
    "unfinished work": re.compile(r"\b(TODO|FIXME|XXX|HACK)\b"),
    "how the code came about": re.compile(r"\b(issue \d+|the brief|helper session)\b", re.IGNORECASE),
}
SELF = "tests/repository/test_sources.py"


def tracked(*patterns: str) -> list[str]:
    """Return the committed files that match, or every file where there is no repository."""
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_forbidden_words() -> None:
    found = []
    for name in tracked("*.py", "*.md", "*.yaml", "*.toml", "*.cpp", "*.h", "Makefile", "*.txt"):
        if name == SELF:
            continue
        for number, line in enumerate((ROOT / name).read_text("utf-8", "replace").splitlines(), 1):
            found += [
                f"{name}:{number}: {what}: {line.strip()[:80]}" for what, word in FORBIDDEN.items() if word.search(line)
            ]
    assert not found, "\n".join(found)


def test_files_are_not_too_long() -> None:
    lengths = {
        name: len((ROOT / name).read_text("utf-8").splitlines()) for name in tracked("graphopt/*.py", "passes/*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_names_say_what_files_hold() -> None:
    vague = re.compile(r"(^|_)(utils?|helpers?|common|misc|manager2)$")
    assert not [name for name in tracked("*.py") if vague.search(Path(name).stem)]


def test_no_large_files() -> None:
    sizes = {name: (ROOT / name).stat().st_size for name in tracked()}
    assert not {name: size for name, size in sizes.items() if size > 2 << 20}


def test_libraries_do_not_print_or_exit() -> None:
    found = []
    for name in tracked("graphopt/*.py", "passes/*.py"):
        if name.startswith(("graphopt/cli/", "graphopt/__main__.py")):
            continue
        for node in ast.walk(ast.parse((ROOT / name).read_text("utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            text = ast.unparse(called) if called is not None else ""
            if text in {"print", "sys.exit", "exit", "quit", "warnings.warn"}:
                found.append(f"{name}:{node.lineno}: {text}")  # type: ignore[attr-defined]
    assert not found, "\n".join(found)


def test_nothing_hides_exceptions() -> None:
    found = []
    for name in tracked("graphopt/*.py", "passes/*.py"):
        for node in ast.walk(ast.parse((ROOT / name).read_text("utf-8"))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = "" if node.type is None else ast.unparse(node.type)
            broad = kinds in {"", "Exception", "BaseException"}
            silent = all(isinstance(each, ast.Pass | ast.Continue) for each in node.body)
            if broad and silent:
                found.append(f"{name}:{node.lineno}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", sorted(builtin_modules()))
def test_pass_has_its_five_sections(name: str) -> None:
    found = sections(pass_class(name))
    assert set(found) == {"", *SECTIONS}
    assert found[""].endswith("."), "the summary is a sentence"


@pytest.mark.parametrize("name", sorted(builtin_modules()))
def test_pass_is_declared_like_the_others(name: str) -> None:
    cls = pass_class(name)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert hasattr(cls, "__slots__")
    assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)+", cls.name)
    assert cls.guard in {"none", "strength", "layers"}
    if cls.guard == "layers":
        assert "keep" in {field.name for field in cls.__dataclass_fields__.values()}
    if cls.guard == "strength":
        assert cls.with_strength is not Pass.with_strength


def test_catalogue_is_up_to_date() -> None:
    written = (ROOT / "passes" / "README.md").read_text("utf-8")
    assert written == catalogue.catalogue(), "run python -m graphopt.rewrite.catalogue"


def test_the_passes_have_one_import_name() -> None:
    link = ROOT / "graphopt" / "passes"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "passes"
