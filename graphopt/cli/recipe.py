"""``graphopt recipe``: presets, the schemas of recipes and reports, and validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli.parser import one_of
from graphopt.cli.terminal import write, write_json
from graphopt.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "action",
        type=one_of("list", "show", "schema", "validate"),
        metavar="list|show|schema|validate",
        help="list the presets; show NAME|FILE complete; print the schema; validate FILE",
    )
    parser.add_argument("name", nargs="?", metavar="NAME|FILE", help="a preset or a recipe file")
    parser.add_argument("--report", action="store_true", help="with schema: that of report.json instead")
    parser.epilog = (
        "examples:\n"
        "  graphopt recipe show int8 > mine.yaml\n"
        "  graphopt recipe validate mine.yaml\n"
        "  graphopt recipe schema > recipe.schema.json"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what the action says."""
    takes_name = arguments.action in {"show", "validate"}
    if takes_name != (arguments.name is not None):
        what = "needs the name of a preset or a file" if takes_name else f"takes no name, not '{arguments.name}'"
        raise UsageError(f"'{arguments.action}' {what}", where="graphopt recipe", do="Run graphopt recipe --help")
    if arguments.action == "schema":
        return _schema(report=arguments.report)
    if arguments.action == "list":
        return _list(as_json=arguments.json)
    return _show(arguments.name, validate=arguments.action == "validate", as_json=arguments.json)


def _schema(*, report: bool) -> int:
    if report:
        from graphopt.report import Report

        found = Report.model_json_schema()
        found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        found["title"] = "graphopt report"
    else:
        from graphopt.rewrite.recipe import schema

        found = schema()
    write_json(found)
    return 0


def _list(*, as_json: bool) -> int:
    from graphopt.rewrite.recipe import load_recipe, preset_names

    presets = [load_recipe(name) for name in preset_names()]
    if as_json:
        found = [{"name": each.name, "description": each.description} for each in presets]
        write_json({"recipes": found})
        return 0
    from graphopt.report.console import table, to_text

    write(to_text(table(("recipe", "what it does"), [(each.name, each.description) for each in presets], left=2)))
    return 0


def _show(name: str, *, validate: bool, as_json: bool) -> int:
    from graphopt.rewrite.recipe import load_recipe

    recipe = load_recipe(name)
    if as_json:
        import yaml

        document = yaml.safe_load(recipe.to_yaml())
        write_json({"valid": True, "recipe": document} if validate else document)
    elif validate:
        write(f"{name} is valid: {len(recipe.passes)} passes\n")
    else:
        write(recipe.to_yaml())
    return 0
