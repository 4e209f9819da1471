"""``graphopt statistics``: what the layers of a model read, collected in shards, merged, shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.cli.job import FEEDS_HELP, refuse_output
from graphopt.cli.parser import one_of, whole
from graphopt.cli.terminal import log, progress_bar, write, write_json
from graphopt.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from graphopt.analysis.layer_statistics import LayerStatistics
    from graphopt.cli.parser import Parser

ACTIONS = ("collect", "merge", "show")
REFUSED_SHOWN = 12


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "action",
        type=one_of(*ACTIONS),
        metavar="|".join(ACTIONS),
        help="collect what the layers of MODEL read in --data; merge FILES of one model into one; show a FILE",
    )
    parser.add_argument(
        "files", nargs="+", metavar="MODEL|FILE.npz", help="the ONNX file, or files that were collected"
    )
    parser.add_argument("-o", "--output", metavar="OUT.npz", help="the file to write, for collect and merge")
    parser.add_argument(
        "--data", metavar="FEEDS", help=FEEDS_HELP.replace("; a fifth is held back", "; all of it is used")
    )
    parser.add_argument("--samples", type=whole(1), metavar="N", help="samples that are run at most; default all")
    parser.add_argument(
        "--positions",
        type=whole(1),
        metavar="N",
        help="places looked at per sample and layer at most: pixels, words; default 64",
    )
    parser.epilog = (
        "examples:\n"
        "  graphopt statistics collect model.onnx --data part1.npz -o part1.stats.npz\n"
        "  graphopt statistics merge part1.stats.npz part2.stats.npz -o all.stats.npz\n"
        "  graphopt prune model.onnx -o sparse.onnx --sparsity 0.5 --statistics all.stats.npz"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what the action says."""
    _require_arguments(arguments)
    if arguments.action == "show":
        from graphopt.analysis.layer_statistics import LayerStatistics

        found = LayerStatistics.load(arguments.files[0])
        if arguments.json:
            write_json(_document(found))
        else:
            write(_page(found))
        return 0
    output = Path(arguments.output)
    refuse_output(output, kind="file", force=arguments.force)
    found = _collect(arguments) if arguments.action == "collect" else _merge(arguments.files)
    found.save(output)
    log(f"wrote {output}", quiet=arguments.quiet)
    if arguments.json:
        write_json(_document(found))
    else:
        write(_page(found))
    return 0


def _require_arguments(arguments: argparse.Namespace) -> None:
    action, where = arguments.action, f"graphopt statistics {arguments.action}"
    if action == "merge" and len(arguments.files) < 2:
        raise UsageError("there is one file only", where=where, must="Two or more are merged")
    if action != "merge" and len(arguments.files) > 1:
        what = "MODEL" if action == "collect" else "FILE"
        raise UsageError(f"unexpected argument '{arguments.files[1]}'", where=where, must=f"It takes one {what}")
    needs = {"--data": arguments.data, "-o": arguments.output} if action == "collect" else {}
    needs |= {"-o": arguments.output} if action == "merge" else {}
    missing = [flag for flag, value in needs.items() if value is None]
    if missing:
        raise UsageError(f"missing {' and '.join(missing)}", where=where, do="Run graphopt statistics --help")
    takes = {"collect": (), "merge": ("data", "samples", "positions")}.get(
        action, ("data", "samples", "positions", "output")
    )
    given = [name for name in takes if getattr(arguments, name) is not None]
    if given:
        raise UsageError(f"--{given[0]} has no use here", where=where, do="Leave it out")


def _collect(arguments: argparse.Namespace) -> LayerStatistics:
    from graphopt.analysis.layer_statistics.statistics import POSITIONS
    from graphopt.calibration import collect_statistics

    with progress_bar(quiet=arguments.quiet) as progress:
        return collect_statistics(
            arguments.files[0],
            arguments.data,
            samples=arguments.samples,
            positions=arguments.positions or POSITIONS,
            verify=arguments.verify,
            seed=arguments.seed,
            progress=progress,
        )


def _merge(files: list[str]) -> LayerStatistics:
    from graphopt.analysis.layer_statistics import LayerStatistics
    from graphopt.errors import DataError

    whole_of = LayerStatistics.load(files[0])
    for file in files[1:]:
        part = LayerStatistics.load(file)
        try:
            whole_of = whole_of.merge(part)
        except DataError as error:
            raise DataError(error.what, where=f"{files[0]} and {file}", must=error.must, do=error.do) from error
    return whole_of


def _document(found: LayerStatistics) -> dict[str, object]:
    return {
        "fingerprint": found.fingerprint,
        "samples": found.samples,
        "layers": [
            {"name": name, "reads": reads, "columns": columns, "rows": rows, "matrices": full}
            for name, reads, columns, rows, full in _layers(found)
        ],
        "skips": [{"node": name, "reason": reason} for name, reason in found.refused.items()],
    }


def _layers(found: LayerStatistics) -> list[tuple[str, list[str], int, int, bool]]:
    """Return of each layer its name, the tensors it reads, columns, rows seen, and whether there are matrices."""
    rows = []
    for name, tables in found.layers.items():
        observed = [found.tables[table] for table in tables]
        reads = [found.forms[table][0] for table in tables]
        # every group of a tensor sees as many rows
        count = sum(max((group.count for group in (each.moments or each.squares)), default=0) for each in observed)
        rows.append((name, reads, len(found.norms[name]), count, all(each.moments for each in observed)))
    return rows


def _page(found: LayerStatistics) -> str:
    from rich.console import Group
    from rich.text import Text

    from graphopt.report.console import table, to_text
    from graphopt.report.text import printable

    rows = [
        (
            printable(name, limit=48),
            printable(", ".join(reads), limit=48),
            f"{columns:,}",
            f"{count:,}",
            "all" if full else "mean squares",
        )
        for name, reads, columns, count, full in _layers(found)
    ]
    parts: list[object] = [
        Text(f"{found.samples:,} samples of the model {found.fingerprint[:12]}"),
        table(("layer", "reads", "columns", "rows seen", "sums"), rows, left=2),
    ]
    shown = list(found.refused.items())[:REFUSED_SHOWN]
    parts += [Text(f"not observed: {printable(name, limit=48)}: {printable(why, limit=120)}") for name, why in shown]
    if len(found.refused) > len(shown):
        parts.append(Text(f"... and {len(found.refused) - len(shown):,} more; --json lists all"))
    return to_text(Group(*parts))  # type: ignore[arg-type]
