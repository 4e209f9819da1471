"""``graphopt check``: do two models compute the same?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli.parser import drop, one_of
from graphopt.cli.terminal import log, write, write_json
from graphopt.errors import CheckFailedError

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser
    from graphopt.verify.check import CheckResult
    from graphopt.verify.equality import Difference


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("first", metavar="A", help="the reference: an ONNX file or a bundle")
    parser.add_argument("second", metavar="B", help="what is compared with it")
    parser.add_argument("--data", metavar="FEEDS", help="inputs to compare on; seeded random ones by default")
    parser.add_argument(
        "--contract",
        type=one_of("exact", "rounding", "lossy"),
        default="rounding",
        metavar="C",
        help="exact: bit for bit; rounding: within the derived bound (default); lossy: only print figures",
    )
    parser.add_argument(
        "--max-drop", type=drop, metavar="X", help="fail beyond this many points of agreement, or dB of SQNR below 40"
    )
    parser.epilog = "example:\n  graphopt check model.onnx small.onnx"


def run(arguments: argparse.Namespace) -> int:
    """Compare, print the figures of every output; status 4 when the contract does not hold."""
    from graphopt.verify.check import check

    found = check(
        arguments.first,
        arguments.second,
        arguments.data,
        contract=arguments.contract,
        seed=arguments.seed,
        max_drop=arguments.max_drop,
    )
    if arguments.json:
        write_json(found.to_dict())
    else:
        write(_page(found))
    if found.passed:
        return 0
    log(f"error: {CheckFailedError.code} {arguments.second}: {found.reason}", quiet=False)
    return CheckFailedError.exit_code


def _page(found: CheckResult) -> str:
    from rich.console import Group
    from rich.text import Text

    from graphopt.report.console import table, to_text
    from graphopt.report.text import printable

    heads = ("output", "", "largest difference", "relative", "signal to noise", "agreement", "elements that differ")
    rows = [_row(output) for output in found.outputs]
    kind = "random inputs" if found.random else "samples"
    verdict = f"{'PASSED' if found.passed else 'FAILED'}: {found.contract.value} on {found.samples} {kind}"
    if found.reason:
        verdict += f"; {printable(found.reason)}"
    return to_text(Group(table(heads, rows, left=2), Text(), Text(verdict, style="bold")))


def _row(output: Difference) -> tuple[str, ...]:
    from graphopt.report import text
    from graphopt.report.summary import decibels

    return (
        text.printable(output.name, limit=48),
        "ok" if output.equal else "differs",
        f"{output.max_abs:.3g}",
        f"{output.max_rel:.3g}",
        decibels(output.sqnr_db),
        "" if output.agreement is None else text.percent(output.agreement),
        text.count(output.differing),
    )
