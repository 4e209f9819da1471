"""``graphopt simplify``: graph optimization alone, on standard operators."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from graphopt.cli.job import FEEDS_HELP, run_job
from graphopt.cli.parser import add_set, add_skip, one_of, whole
from graphopt.cli.terminal import log, write, write_json
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.cli.parser import Parser
    from graphopt.graph import Model
    from graphopt.rewrite import Outcome

_PATCHES_SHOWN = 8


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", help="the ONNX file")
    parser.add_argument("-o", "--output", metavar="OUT.onnx", help="the file to write; needed without --dry-run")
    parser.add_argument("--data", metavar="FEEDS", help=FEEDS_HELP.replace("a fifth is held back", "used to compare"))
    asked = parser.add_argument_group("what to optimize")
    asked.add_argument(
        "--input-shape",
        type=_shape,
        action="append",
        default=[],
        metavar="NAME:SIZE,...",
        help="give an input this shape: numbers, or names for sizes that stay dynamic; may be repeated",
    )
    asked.add_argument(
        "--extract", metavar="IN,...:OUT,...", help="take the part between these tensors; an empty side stays as it is"
    )
    asked.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="NAME",
        help="leave this tensor, or the outputs of this node, in the model under its name; may be repeated",
    )
    asked.add_argument(
        "--freeze-weights",
        action="store_true",
        help="weights that are listed as inputs too, so that a caller may replace them, become constants",
    )
    asked.add_argument("--opset", type=whole(1), metavar="N", help="raise the model to these ONNX operators first")
    asked.add_argument(
        "--inline", action="store_true", help="put the nodes of the model's own functions where they are called"
    )
    asked.add_argument(
        "--attention",
        action="store_true",
        help="make Attention operators, raising the opset to 23: ONNX Runtime refuses an empty batch there",
    )
    asked.add_argument(
        "--precision",
        type=one_of("float16", "bfloat16"),
        metavar="P",
        help="compute in float16 or bfloat16; --set convert-precision.keep=[NAME,...] leaves nodes in float32",
    )
    add_skip(asked)
    add_set(asked)
    parser.add_argument("--dry-run", action="store_true", help="write nothing; list what would change and why")
    parser.add_argument(
        "--no-run",
        action="store_true",
        help="do not run the models to compare and time them; so it is without --data from 1 GiB of weights on",
    )
    parser.epilog = (
        "examples:\n"
        "  graphopt simplify model.onnx -o small.onnx\n"
        "  graphopt simplify model.onnx --dry-run\n"
        "  graphopt simplify model.onnx -o part.onnx --extract :features --input-shape image:1,3,224,224"
    )


def run(arguments: argparse.Namespace) -> int:
    """Simplify, print the report, write the model; or print what would be done."""
    from graphopt.simplification import recipe

    if arguments.dry_run:
        return _rehearse(arguments)
    if arguments.output is None:
        raise UsageError("missing -o/--output", where="graphopt simplify", do="Name the file to write, or --dry-run")
    return run_job(
        arguments,
        recipe(arguments.opset, arguments.precision, attention=arguments.attention, inline=arguments.inline),
        kind="file",
        skip=arguments.skip,
        keep=arguments.keep,
        options=dict(arguments.options),
        model=_asked(arguments),
        measure=False if arguments.no_run else None,
    )


def _asked(arguments: argparse.Namespace) -> Model:
    """Return the model or the part of it that is to be optimized."""
    from graphopt import preparation
    from graphopt.graph import read_model

    model = read_model(arguments.model)
    if arguments.extract is not None:
        model = preparation.extract(model, *preparation.ends(model, arguments.extract))
    if arguments.freeze_weights:
        model = preparation.frozen(model)
    if arguments.input_shape:
        model = preparation.with_input_shapes(model, dict(arguments.input_shape))
    return model


def _rehearse(arguments: argparse.Namespace) -> int:
    from graphopt.simplification import simplify

    found = simplify(
        _asked(arguments),
        skip=arguments.skip,
        keep=arguments.keep,
        opset=arguments.opset,
        precision=arguments.precision,
        attention=arguments.attention,
        inline=arguments.inline,
        options=dict(arguments.options),
        verify=arguments.verify,
        seed=arguments.seed,
    )
    if arguments.json:
        write_json(_document(found.outcome))
    else:
        write(_page(found.outcome))
    log("nothing was written (--dry-run)", quiet=arguments.quiet)
    return 0


def _document(outcome: Outcome) -> dict[str, object]:
    return {
        "nodes_before": outcome.records[0].nodes_before if outcome.records else 0,
        "nodes_after": outcome.records[-1].nodes_after if outcome.records else 0,
        "passes": [
            {
                "name": record.name,
                "nodes_before": record.nodes_before,
                "nodes_after": record.nodes_after,
                "patches": [{"reason": patch.reason, "nodes": list(patch.nodes)} for patch in record.log],
                "skips": [{"node": node, "reason": reason} for node, reason in record.skips],
            }
            for record in outcome.records
        ],
    }


def _page(outcome: Outcome) -> str:
    from rich.console import Group
    from rich.text import Text

    from graphopt.report.console import table, to_text
    from graphopt.report.text import printable

    rows = [
        (
            record.name,
            f"{record.nodes_before:,}",
            f"{record.nodes_after:,}",
            f"{record.patches:,}",
            f"{len(record.skips):,}",
        )
        for record in outcome.records
        if record.log or record.skips
    ]
    parts = [table(("pass", "nodes", "after it", "changes", "left alone"), rows)]
    lines: list[Text] = []
    for record in outcome.records:
        if not (record.log or record.skips):
            continue
        lines += [Text(), Text(record.name, style="bold")]
        for patch in record.log[:_PATCHES_SHOWN]:
            at = f" ({printable(patch.nodes[0], limit=60)})" if patch.nodes else ""
            lines.append(Text(f"  {printable(patch.reason, limit=160)}{at}"))
        if len(record.log) > _PATCHES_SHOWN:
            lines.append(Text(f"  ... and {len(record.log) - _PATCHES_SHOWN:,} more; --json lists all"))
        for node, reason in record.skips[:_PATCHES_SHOWN]:
            lines.append(Text(f"  left alone: {printable(node, limit=60)}: {printable(reason, limit=160)}"))
        if len(record.skips) > _PATCHES_SHOWN:
            lines.append(Text(f"  ... and {len(record.skips) - _PATCHES_SHOWN:,} more left alone; --json lists all"))
    return to_text(Group(*parts, *lines))


def _shape(text: str) -> tuple[str, tuple[int | str, ...]]:
    """Convert ``NAME:SIZE,...``; the name may hold colons."""
    name, colon, sizes = text.rpartition(":")
    entries = [entry.strip() for entry in sizes.split(",")] if sizes.strip() else []
    if not colon or not name or any(not entry for entry in entries):
        message = f"'{text}' is not NAME:SIZE,SIZE,..."
        raise argparse.ArgumentTypeError(message)
    found: list[int | str] = []
    for entry in entries:
        if entry.lstrip("-").isdecimal() and int(entry) < 0:
            message = f"'{entry}' in '{text}' is no size; a name leaves it dynamic"
            raise argparse.ArgumentTypeError(message)
        found.append(int(entry) if entry.isdecimal() else entry)
    return name, tuple(found)
