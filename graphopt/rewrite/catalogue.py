"""The catalogue of passes, generated from their docstrings: ``python -m graphopt.rewrite.catalogue`` writes it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import graphopt
from graphopt.rewrite.options import option_model
from graphopt.rewrite.pass_ import SECTIONS, sections
from graphopt.rewrite.registry import builtin_modules, pass_class

if TYPE_CHECKING:
    from graphopt.rewrite.pass_ import Pass

HEAD = """# Passes

One file is one pass: `<family>/<verb_object>.py` holds the class `VerbObject`, whose name in recipes and on the command
line is `verb-object`. Files whose name is a single word, or starts with an underscore, hold what several passes of a
family share. Families do not import each other.

This page is generated from the docstrings by `python -m graphopt.rewrite.catalogue`; a test compares them.
"""


def catalogue() -> str:
    """Return the catalogue of the built-in passes as Markdown."""
    families: dict[str, list[str]] = {}
    for name, module in builtin_modules().items():
        families.setdefault(module.split(".")[-2], []).append(name)
    parts = [HEAD, "| pass | contract | what it does |", "| --- | --- | --- |"]
    for name in sorted(builtin_modules()):
        cls = pass_class(name)
        parts.append(f"| [{name}](#{name}) | {cls.contract.value} | {sections(cls)['']} |")
    parts.append("")
    for family, names in sorted(families.items()):
        parts.append(f"## {family}\n")
        parts.extend(entry(pass_class(name)) for name in sorted(names))
    return "\n".join(parts)


def entry(cls: type[Pass]) -> str:
    """Return the catalogue entry of one pass.

    Args:
        cls: The pass class.

    Raises:
        PassError: Its docstring lacks a section.
    """
    found = sections(cls)
    lines = [f"### {cls.name}\n", f"{found['']} Contract: {cls.contract.value}.\n"]
    lines += [f"* **{name}:** {found[name]}" for name in SECTIONS]
    options = option_table(cls)
    if options:
        lines += ["", "| option | values | default | meaning |", "| --- | --- | --- | --- |", *options]
    return "\n".join(lines) + "\n"


def option_table(cls: type[Pass]) -> list[str]:
    """Return one Markdown table row per option: name, values, default, meaning.

    Args:
        cls: The pass class; its ``Attributes`` or ``Args`` section gives the meanings.
    """
    schema = option_model(cls).model_json_schema()
    explained = meanings(cls)
    rows = []
    for field in dataclasses.fields(cls):
        described = schema["properties"][field.name]
        default = "required" if field.name in schema.get("required", ()) else f"`{_yaml(described.get('default'))}`"
        meaning = explained.get(field.name, "").replace("|", "\\|")
        rows.append(f"| `{field.name}` | {_values(described)} | {default} | {meaning} |")
    return rows


def meanings(cls: type[Pass]) -> dict[str, str]:
    """Return what the options of a pass mean, by name.

    Args:
        cls: The pass class; its ``Attributes``, ``Args`` or ``Options`` section says it, that of a class it derives
            from for what is not in its own.
    """
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        found |= _explained(each.__doc__ or "")
    return found


def _explained(text: str) -> dict[str, str]:
    section = re.search(r"^\s*(?:Attributes|Args|Options):\s*\n((?:\s+.*\n?)*)", text, re.MULTILINE)
    found: dict[str, str] = {}
    for name, meaning in re.findall(
        r"^\s+(\w+): (.*(?:\n\s{8,}(?!\w+: ).*)*)", section.group(1) if section else "", re.MULTILINE
    ):
        found[name] = " ".join(meaning.split())
    return found


def _values(described: dict[str, Any]) -> str:
    if "anyOf" in described:
        return " or ".join(_values(each) for each in described["anyOf"])
    if "enum" in described:
        return ", ".join(f"`{value}`" for value in described["enum"])
    if "const" in described:
        return f"`{described['const']}`"
    if described.get("type") == "array":
        return f"list of {_values(described['items'])}" if "items" in described else "list"
    return {"null": "nothing", "string": "text", "object": "mapping"}.get(
        str(described.get("type")), str(described.get("type", "any"))
    )


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)


def path() -> Path:
    """Return where the catalogue is kept in a checkout."""
    folders = [Path(root) / "passes" for root in graphopt.__path__]
    return next(folder for folder in folders if folder.is_dir()) / "README.md"


if __name__ == "__main__":
    path().write_text(catalogue(), "utf-8")
