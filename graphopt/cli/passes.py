"""``graphopt passes``: the catalogue of passes, or the documentation and options of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.cli.terminal import write, write_json

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="explain this pass; without it, list all")
    parser.epilog = "example:\n  graphopt passes insert-qdq"


def run(arguments: argparse.Namespace) -> int:
    """Print the catalogue or one pass."""
    from graphopt.rewrite.registry import pass_names

    if arguments.name is not None:
        described = _describe(arguments.name)
        if arguments.json:
            write_json(described)
        else:
            write(_page(described))
        return 0
    catalogue = [_describe(name) for name in pass_names()]
    if arguments.json:
        write_json({"passes": catalogue})
        return 0
    from graphopt.report.console import table, to_text

    rows = [(item["name"], item["family"], item["contract"], item["summary"]) for item in catalogue]
    write(to_text(table(("pass", "family", "contract", "what it does"), rows, left=4)))
    return 0


def _describe(name: str) -> dict[str, Any]:
    from graphopt.rewrite.catalogue import meanings
    from graphopt.rewrite.options import option_model
    from graphopt.rewrite.pass_ import sections
    from graphopt.rewrite.registry import pass_class

    found = pass_class(name)
    documented = sections(found)
    schema = option_model(found).model_json_schema()
    explained = meanings(found)
    module = found.__module__.split(".")
    return {
        "name": name,
        "family": module[2] if module[:2] == ["graphopt", "passes"] else f"from {module[0]}",
        "contract": found.contract.name.lower(),
        "summary": documented.pop(""),
        "sections": documented,
        "options": [_option(key, value, explained.get(key, "")) for key, value in schema.get("properties", {}).items()],
    }


def _option(name: str, schema: dict[str, Any], meaning: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": _type_of(schema),
        "default": schema.get("default"),
        "description": meaning,
    }


def _type_of(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        return " | ".join(_type_of(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        items = schema.get("items", {})
        return f"list of {_type_of(items)}" if items else "list"
    return str(schema.get("type", "any"))


def _page(described: dict[str, Any]) -> str:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    from graphopt.report.console import table, to_text
    from graphopt.report.text import printable

    head = f"{described['name']}  ({described['family']}, {described['contract']})"
    parts: list[Any] = [Text(head, style="bold"), Text(printable(described["summary"])), Text()]
    for section, body in described["sections"].items():
        parts += [Text(section, style="bold"), Padding(Text(printable(body)), (0, 0, 0, 2))]
    if described["options"]:
        rows = [
            (
                option["name"],
                option["type"],
                "" if option["default"] is None else str(option["default"]),
                option["description"],
            )
            for option in described["options"]
        ]
        parts += [Text(), table(("option", "type", "default", "meaning"), rows, left=4)]
    return to_text(Group(*parts))
