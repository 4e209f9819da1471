"""``graphopt tune``: measure on this machine which kernels are faster than dense operators, and from where on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.cli.outputs import refuse_file, write_file
from graphopt.cli.terminal import log, progress_bar, write, write_json

if TYPE_CHECKING:
    import argparse

    from graphopt.analysis.cost_table import CostTable
    from graphopt.cli.parser import Parser


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where the table goes; the user's cache if not given"
    )
    parser.add_argument("--quick", action="store_true", help="a coarse grid, in one or two minutes")
    parser.add_argument("--show", action="store_true", help="measure nothing; show the table that decides now")
    parser.add_argument("--forget", action="store_true", help="remove the table in the user's cache")
    parser.epilog = (
        "The table in the user's cache decides from then on which layers are lowered to kernels. A pass takes another\n"
        "with its option cost_table, and so does the variable GRAPHOPT_COST_TABLE: a path, or `default` for the table\n"
        "that comes with graphopt.\n\n"
        "examples:\n"
        "  graphopt tune --quick\n"
        "  graphopt tune -o server.json\n"
        "  graphopt compile model.onnx -o out --recipe sparse --set lower-sparse-matmul.cost_table=server.json"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, write and print a table."""
    from graphopt.analysis.cost_table import CostTable, table_path, tuned_path
    from graphopt.errors import UsageError

    if arguments.show and (arguments.forget or arguments.output or arguments.quick):
        raise UsageError("--show goes with no other option of this verb", where="graphopt tune", do="Leave one out")
    if arguments.forget and (arguments.output or arguments.quick):
        raise UsageError("--forget measures nothing", where="graphopt tune", do="Leave --quick and -o out")
    if arguments.show:
        return _print(CostTable.find(), {"path": table_path()}, as_json=arguments.json)
    if arguments.forget:
        return _forget(tuned_path(), as_json=arguments.json)

    path = arguments.output
    if path is None:
        path = tuned_path()
    else:
        refuse_file(path, force=arguments.force)
    start = time.perf_counter()
    table = _measured(arguments)
    seconds = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, table.to_json())
    log(f"measured in {seconds:.0f} s", quiet=arguments.quiet)
    return _print(table, {"path": str(path), "seconds": seconds}, as_json=arguments.json)


def _measured(arguments: argparse.Namespace) -> CostTable:
    from graphopt.tuning import FULL, QUICK, tune

    with progress_bar(quiet=arguments.quiet) as progress:
        return tune(QUICK if arguments.quick else FULL, progress=progress)


def _forget(path: Path, *, as_json: bool) -> int:
    there = path.is_file()
    path.unlink(missing_ok=True)
    if as_json:
        write_json({"path": str(path), "removed": there})
    else:
        write(f"{'removed' if there else 'there is no'} {path}\n")
    return 0


def _print(table: CostTable, more: dict[str, Any], *, as_json: bool) -> int:
    rows = [_row(table, kernel, isa) for kernel in table.kernels for isa in sorted(table.kernels[kernel].speedup)]
    if as_json:
        write_json({**more, "measured_on": table.measured_on, "margin": table.margin, "kernels": rows})
        return 0
    from graphopt.report.console import table as of_rows
    from graphopt.report.console import to_text

    cells = [
        (
            row["kernel"],
            row["isa"],
            *(_share(row[f"from_{name}"]) for name in ("few", "many")),
            *(_times(row[f"best_{name}"]) for name in ("few", "many")),
        )
        for row in rows
    ]
    heads = ("kernel", "set", "pays from (few)", "(many)", "largest gain (few)", "(many)")
    write(to_text(of_rows(heads, cells)))
    write(
        f"\n{more['path'] or 'the table that comes with graphopt'}: measured on {table.measured_on}\n"
        f"few and many: the smallest and the largest number of rows measured, at the largest weight; "
        f"a kernel pays where it is {table.margin:.0%} faster than dense.\n"
    )
    return 0


def _row(table: CostTable, kernel: str, isa: str) -> dict[str, Any]:
    from graphopt.analysis.cost_table import KERNELS, SPARSITY

    grid = table.kernels[kernel]
    row: dict[str, Any] = {"kernel": kernel, "isa": isa}
    for name, m in (("few", grid.m[0]), ("many", grid.m[-1])):
        speedups = {level: table.predicted(kernel, m, grid.weights[-1], level, isa) for level in grid.levels}
        row[f"best_{name}"] = max(speedups.values())
        if KERNELS[kernel] == SPARSITY:
            row[f"from_{name}"] = table.break_even(kernel, m, grid.weights[-1], isa)
        else:
            paying = [level for level, speedup in speedups.items() if speedup >= 1 + table.margin]
            row[f"from_{name}"] = max(paying, default=None)
    return row


def _share(value: float | None) -> str:
    if value is None:
        return "never"
    return f"{value:.0%} zeros" if value < 1 else f"{value:g} bits"


def _times(value: float) -> str:
    return f"{value:.1f}x"
