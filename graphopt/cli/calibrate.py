"""``graphopt calibrate``: the ranges of activations, in a file that can be edited, merged and reused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.cli.job import FEEDS_HELP, refuse_output
from graphopt.cli.terminal import log, progress_bar, write, write_json
from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.analysis.calibration_cache import CalibrationCache
    from graphopt.cli.parser import Parser

WHERE = "graphopt calibrate"


def configure(parser: Parser) -> None:
    """Add the arguments."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the ONNX file")
    parser.add_argument("-o", "--output", required=True, metavar="CACHE.json", help="the file to write")
    parser.add_argument(
        "--data", metavar="FEEDS", help=FEEDS_HELP.replace("; a fifth is held back", "; all of it is used")
    )
    parser.add_argument(
        "--merge", nargs="+", metavar="CACHE.json", help="in place of MODEL and --data: caches of shards of the data"
    )
    add_calibrator(parser)
    parser.epilog = (
        "examples:\n"
        "  graphopt calibrate model.onnx --data feeds.npz -o ranges.json\n"
        "  graphopt calibrate --merge part1.json part2.json -o ranges.json\n"
        "  graphopt quantize model.onnx -o int8.onnx --calibration-cache ranges.json\n"
        "Change low and high of a tensor in the file, and quantize takes that range."
    )


def run(arguments: argparse.Namespace) -> int:
    """Calibrate or merge, print the ranges, write the cache."""
    from graphopt.analysis.activation_ranges.choice import SHARE

    output = Path(arguments.output)
    _require_arguments(arguments)
    refuse_output(output, kind="file", force=arguments.force)
    if arguments.merge:
        found = _merged(arguments.merge)
    else:
        from graphopt.calibration import calibrate

        with progress_bar(quiet=arguments.quiet) as progress:
            found = calibrate(
                arguments.model,
                arguments.data,
                calibrator=arguments.calibrator or "auto",
                percentile=arguments.percentile or SHARE,
                verify=arguments.verify,
                seed=arguments.seed,
                progress=progress,
            )
    found.save(output)
    log(f"wrote {output}", quiet=arguments.quiet)
    if arguments.json:
        write_json(_document(found))
    else:
        write(_page(found))
    return 0


def add_calibrator(parser: Parser) -> None:
    """Add the options that say how ranges are chosen."""
    parser.add_argument(
        "--calibrator",
        type=_calibrator,
        metavar="C",
        help="how ranges are chosen: auto (default), minmax, moving-average, percentile, entropy or mse",
    )
    parser.add_argument(
        "--percentile",
        type=_percent,
        metavar="P",
        help="percent of the values that --calibrator percentile keeps; default 99.999",
    )


def add_weight_calibrator(parser: Parser) -> None:
    """Add the option that says what the scales of int8 weights follow from."""
    parser.add_argument(
        "--weight-calibrator",
        type=_weight_calibrator,
        metavar="C",
        help="what scales of int8 weights reach to: minmax (default), the largest weight, or mse: what changes the "
        "outputs least, each weight counted by the mean square of what it meets in the data",
    )


def add_cache(parser: Parser) -> None:
    """Add the option that names a cache."""
    parser.add_argument(
        "--calibration-cache",
        metavar="CACHE.json",
        help="ranges of activations: read from this file if it is there, in place of --data, else written to it",
    )


def range_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of insert-qdq that follow from the arguments; a cache that is not there yet is written.

    Raises:
        UsageError: There is neither a cache nor data to make one.
        CalibrationCacheError: The cache is damaged or of another model.
    """
    from graphopt.analysis.calibration_cache import CalibrationCache
    from graphopt.graph import read_model
    from graphopt.preparation import in_order

    options: dict[str, Any] = {}
    if arguments.calibrator is not None:
        options["calibrator"] = arguments.calibrator
    if arguments.percentile is not None:
        options["percentile"] = arguments.percentile
    if getattr(arguments, "weight_calibrator", None) is not None:
        options["weight_calibrator"] = arguments.weight_calibrator
    if arguments.calibration_cache is None:
        return options
    path = Path(arguments.calibration_cache)
    model = in_order(read_model(arguments.model))
    if path.exists():
        CalibrationCache.load(path).require_model(model, str(path))
    else:
        if arguments.data is None:
            raise UsageError(
                "there is no such file, and no data to make it from",
                where="--calibration-cache",
                do="Give --data FEEDS, or the name of a cache that is there",
            )
        _calibrated(arguments, model).save(path)
        log(f"wrote {path}", quiet=arguments.quiet)
    return {**options, "cache": str(path)}


def _calibrated(arguments: argparse.Namespace, model: Any) -> CalibrationCache:
    """Return a cache of the part of the data that nothing is judged on."""
    from graphopt.analysis.activation_ranges.choice import SHARE
    from graphopt.calibration import calibrate
    from graphopt.samples import Samples

    return calibrate(
        model,
        Samples.of(model, arguments.data, arguments.seed).calibration or arguments.data,
        calibrator=arguments.calibrator or "auto",
        percentile=arguments.percentile or SHARE,
        verify=arguments.verify,
        seed=arguments.seed,
    )


def _require_arguments(arguments: argparse.Namespace) -> None:
    if arguments.merge:
        given = [flag for flag, value in (("MODEL", arguments.model), ("--data", arguments.data)) if value is not None]
        given += [f"--{name}" for name in ("calibrator", "percentile") if getattr(arguments, name) is not None]
        if given:
            raise UsageError(f"{given[0]} has no use beside --merge", where=WHERE, do="Leave it out")
        return
    missing = [flag for flag, value in (("MODEL", arguments.model), ("--data", arguments.data)) if value is None]
    if missing:
        raise UsageError(f"missing {' and '.join(missing)}", where=WHERE, do="Run graphopt calibrate --help")


def _merged(files: list[str]) -> CalibrationCache:
    from graphopt.analysis.calibration_cache import CalibrationCache
    from graphopt.errors import CalibrationCacheError

    found = CalibrationCache.load(files[0])
    for file in files[1:]:
        try:
            found = found.merge(CalibrationCache.load(file))
        except CalibrationCacheError as error:
            raise CalibrationCacheError(error.what, where=error.where or file, must=error.must, do=error.do) from error
    return found


def _weight_calibrator(text: str) -> str:
    from graphopt.cli.parser import one_of

    return one_of("minmax", "mse")(text)


def _calibrator(text: str) -> str:
    from graphopt.analysis.activation_ranges.choice import CALIBRATORS
    from graphopt.cli.parser import one_of

    return one_of(*CALIBRATORS)(text)


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 50 < value <= 100:
        message = f"'{text}' is not a share in percent above 50, at most 100"
        raise argparse.ArgumentTypeError(message)
    return value


def _document(found: CalibrationCache) -> dict[str, object]:
    return {
        "model": found.model,
        "samples": found.samples,
        "calibrator": found.calibrator,
        "tensors": [
            {"name": name, "low": low, "high": high, "seen": [seen.low, seen.high], "by_hand": seen.edited}
            for name, seen in found.tensors.items()
            for low, high in [seen.chosen or (seen.low, seen.high)]
        ],
    }


def _page(found: CalibrationCache) -> str:
    from rich.console import Group
    from rich.text import Text

    from graphopt.report.console import table, to_text
    from graphopt.report.text import printable

    rows = []
    for name, seen in found.tensors.items():
        low, high = seen.chosen or (seen.low, seen.high)
        how = "by hand" if seen.edited else found.calibrator
        rows.append((printable(name, limit=48), how, *(f"{end:.5g}" for end in (low, high, seen.low, seen.high))))
    head = Text(f"{found.samples:,} samples; {len(rows):,} tensors")
    return to_text(Group(head, table(("tensor", "chosen by", "low", "high", "seen from", "to"), rows, left=2)))
