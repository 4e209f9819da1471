"""Budgets of ``graphopt quantize``: a precision for each layer, within bytes, time or loss."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.cli.job import run_job
from graphopt.cli.outputs import refuse_file, write_file
from graphopt.cli.parser import drop
from graphopt.cli.terminal import log, progress_bar
from graphopt.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.cli.parser import Parser
    from graphopt.graph import Model
    from graphopt.report.precision import PrecisionPlan, PrecisionTable
    from graphopt.result import Result

SIZES: dict[str, float] = {"": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024, "MiB": 1 << 20, "GiB": 1 << 30}
TIMES: dict[str, float] = {"": 1e-3, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
SHARE = "x"


def add_budgets(parser: Parser) -> None:
    """Add the options that choose a precision for each layer."""
    group = parser.add_argument_group("a precision for each layer, by what it costs here (with --data)")
    group.add_argument(
        "--budget-size", type=amount(SIZES), metavar="X", help="largest file: 1.2MB, 300kB, or 0.4x of the original"
    )
    group.add_argument(
        "--budget-latency", type=amount(TIMES), metavar="X", help="longest run: 3ms, 200us, or 0.6x of float's"
    )
    group.add_argument(
        "--budget-drop", type=drop, metavar="X", help="the fastest that loses no more, in the units of --max-drop"
    )
    group.add_argument(
        "--precision-table",
        metavar="FILE.json",
        help="take the measured costs from this file; it is written where there is none",
    )


def amount(units: Mapping[str, float]) -> Any:
    """Return an argument type for an amount with a unit, or a share of the original's: (number, whether a share)."""

    def convert(text: str) -> tuple[float, bool]:
        found = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([A-Za-zµ]*)", text)
        if found is None or (found[2] != SHARE and found[2] not in units) or float(found[1]) <= 0:
            known = ", ".join(unit for unit in units if unit)
            message = f"'{text}' is not a number above 0 with one of the units {known}, or {SHARE} for a share"
            raise argparse.ArgumentTypeError(message)
        return (float(found[1]), True) if found[2] == SHARE else (float(found[1]) * units[found[2]], False)

    return convert


def has_budgets(arguments: argparse.Namespace) -> bool:
    """Tell whether the user named a budget."""
    named = (arguments.budget_size, arguments.budget_latency, arguments.budget_drop)
    return any(each is not None for each in named)


def run_mixed(arguments: argparse.Namespace) -> int:
    """Measure or read the costs, plan, print the plan, carry it out.

    Raises:
        UsageError: There is no data, or another option chooses precisions as well.
    """
    chosen = {"--weights": arguments.weights, "--bits": arguments.bits, "--activations": arguments.activations}
    for flag, value in chosen.items():
        if value is not None:
            raise UsageError("a budget chooses precisions itself", where=flag, do="Leave it out, or the budget")
    if arguments.data is None:
        raise UsageError("what layers cost is measured on data", where="--budget-*", do="Give --data FEEDS")
    from graphopt.graph import read_model
    from graphopt.mixed_precision import Request, compile_within
    from graphopt.report.precision import render_plan

    model = read_model(arguments.model)
    table = _table(arguments, model)
    size, seconds = arguments.budget_size or (None, False), arguments.budget_latency or (None, False)
    request = Request(seconds[0], seconds[1], size[0], size[1], arguments.budget_drop)

    def show(plan: PrecisionPlan) -> None:
        for line in render_plan(plan).splitlines():
            log(line, quiet=arguments.quiet)

    def compiler(source: Model, **given: Any) -> Result:
        return compile_within(source, table, request, show=show, **given)

    return run_job(arguments, "default", kind="file", model=model, compiler=compiler)


def _table(arguments: argparse.Namespace, model: Model) -> PrecisionTable:
    from pydantic import ValidationError

    from graphopt.mixed_precision import measure_costs
    from graphopt.report.precision import PrecisionTable

    path = None if arguments.precision_table is None else Path(arguments.precision_table)
    if path is not None and path.is_file():
        try:
            return PrecisionTable.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, OSError, UnicodeDecodeError) as error:
            first = str(error).splitlines()[0]
            what = f"the table of costs cannot be understood ({first})"
            raise RecipeError(what, where=str(path), do="Remove it, so that it is measured again") from error
    if path is not None:
        refuse_file(path, force=arguments.force)
    with progress_bar(quiet=arguments.quiet) as progress:
        table = measure_costs(
            model,
            arguments.data,
            target=arguments.target,
            threads=arguments.threads,
            seed=arguments.seed,
            progress=progress,
        )
    if path is not None:
        write_file(path, table.to_json())
        log(f"wrote {path}", quiet=arguments.quiet)
    return table
