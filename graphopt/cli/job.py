"""What compile, simplify, prune and quantize share: their options, the run, and how its result is shown and written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graphopt.cli.parser import drop, whole
from graphopt.cli.terminal import log, progress_bar, write
from graphopt.errors import BudgetError, OutputExistsError, WriteError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping

    from graphopt.cli.parser import Parser
    from graphopt.graph import Model
    from graphopt.result import Result
    from graphopt.rewrite.recipe import Recipe

FEEDS_HELP = "feeds: an .npz with one array per input, a folder of such files, or module:function; a fifth is held back"


def add_model(parser: Parser, *, output: str, metavar: str) -> None:
    """Add the model and the output.

    Args:
        parser: The verb's parser.
        output: Help of ``-o``.
        metavar: What ``-o`` takes: DIR or OUT.onnx.
    """
    parser.add_argument("model", metavar="MODEL", help="the ONNX file")
    parser.add_argument("-o", "--output", required=True, metavar=metavar, help=output)


def add_judging(parser: Parser) -> None:
    """Add the options that say on what and how strictly the result is judged."""
    group = parser.add_argument_group("judging")
    group.add_argument("--data", metavar="FEEDS", help=FEEDS_HELP)
    group.add_argument(
        "--max-drop",
        type=drop,
        metavar="X",
        help="largest loss: in the metric's units with --metric, else points of top-1 agreement, or dB of SQNR "
        "below 40",
    )
    group.add_argument("--metric", metavar="MODULE:FUNCTION", help="judge by this function; larger is better")
    group.add_argument(
        "--keep", action="store_true", help="write the output even when the budget is not met (status 4)"
    )
    group.add_argument(
        "--keep-float-if-slower",
        action="store_true",
        help="leave float what is not faster quantized on this machine, region by region, then as a whole",
    )
    group.add_argument(
        "--threads", type=whole(0), default=1, metavar="N", help="threads of every measurement; default 1"
    )


def add_statistics(parser: Parser) -> None:
    """Add the option that names statistics collected before."""
    parser.add_argument(
        "--statistics",
        metavar="FILE.npz",
        help="what `graphopt statistics collect` found for this model: weights are solved on it in place of --data, "
        "which then only gives ranges of activations and judges",
    )


def add_target(parser: Parser) -> None:
    """Add the option that names the target."""
    parser.add_argument(
        "--target",
        default="ort-cpu",
        metavar="T",
        help="where the model will run: ort-cpu (default), ort-cpu-avx2, ort-cpu-arm64, tensorrt, openvino or qnn",
    )


def run_job(
    arguments: argparse.Namespace,
    recipe: str | Recipe | Mapping[str, object],
    *,
    kind: Literal["bundle", "file"],
    options: Mapping[str, object] | None = None,
    skip: Iterable[str] = (),
    keep: Iterable[str] = (),
    model: Model | None = None,
    measure: bool | None = None,
    stop_after: int | None = None,
    compiler: Callable[..., Result] | None = None,
) -> int:
    """Compile the model of the arguments, print its report, and write the output.

    Args:
        arguments: The parsed arguments of a verb built with the functions of this module.
        recipe: What to run.
        kind: Whether ``-o`` names a bundle folder or one ONNX file.
        options: Changes to the recipe, by ``pass.option``.
        skip: Passes to leave out.
        keep: Tensors or nodes that stay.
        model: The model, where it is not the file of the arguments as it stands.
        measure: Whether the models are run; see `pipeline.compile`.
        stop_after: Stop after this many patches.
        compiler: What is called in place of `pipeline.compile`, with the same arguments.

    Returns:
        The exit status: 0, or 4 when the budget was not met.

    Raises:
        GraphoptError: The run failed; nothing was written.
    """
    from graphopt import pipeline
    from graphopt.target import find_target

    target = find_target(getattr(arguments, "target", "ort-cpu")).name
    output = Path(arguments.output)
    refuse_output(output, kind=kind, force=arguments.force)
    with progress_bar(quiet=arguments.quiet) as progress:
        result = (compiler or pipeline.compile)(
            arguments.model if model is None else model,
            recipe=recipe,
            data=getattr(arguments, "data", None),
            statistics=getattr(arguments, "statistics", None),
            target=target,
            max_drop=getattr(arguments, "max_drop", None),
            metric=getattr(arguments, "metric", None),
            options=dict(options or {}),
            skip=tuple(skip),
            keep=tuple(keep),
            measure=measure,
            verify=arguments.verify,
            seed=arguments.seed,
            stop_after=stop_after,
            threads=getattr(arguments, "threads", 1),
            keep_float_if_slower=getattr(arguments, "keep_float_if_slower", False),
            progress=progress,
        )
    anyway = getattr(arguments, "keep", False) is True  # graph optimization keeps tensors by that name
    written = result.met or anyway
    if written and kind == "bundle":
        result.save(output, force=arguments.force, keep=anyway)
    elif written:
        result.save_model(output, force=arguments.force, keep=anyway)
    _show(result, arguments)
    if written:
        log(_written(output, kind), quiet=arguments.quiet)
    if not result.met:
        log(f"error: {_unmet(result, written=written)}", quiet=False)
    return 0 if result.met else BudgetError.exit_code


def refuse_output(output: Path, *, kind: Literal["bundle", "file"], force: bool) -> None:
    """Refuse an output that cannot be written before the work starts, not after it."""
    from graphopt.emit import refuse_unsafe_target
    from graphopt.result import refuse_existing_file

    if kind == "bundle":
        refuse_unsafe_target(output, force=force)
    else:
        refuse_existing_file(output, force=force)
    if output.exists() and not (output.is_file() or output.is_dir()):
        raise OutputExistsError("the output is a device or a pipe", where=str(output), must="It must be a regular file")
    folder = output.absolute().parent
    if kind == "file" and not folder.exists():
        raise WriteError(f"there is no folder '{folder}'", where=str(output), do="Create it, or correct -o")
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise WriteError(f"'{folder}' is a file", where=str(output), must="The output goes into a folder")
    try:
        handle, probe = tempfile.mkstemp(prefix=".graphopt.", suffix=".partial", dir=folder)
    except OSError as error:
        raise WriteError(
            f"the folder '{folder}' cannot be written ({error.strerror})",
            where=str(output),
            do="Choose a folder that may be written, or free space",
        ) from error
    os.close(handle)
    Path(probe).unlink()


def _show(result: Result, arguments: argparse.Namespace) -> None:
    for note in result.report.notes:
        log(f"note: {note}", quiet=arguments.quiet)
    if arguments.json:
        write(result.report.to_json())
        return
    from graphopt.report.console import render

    write(render(result.report))


def _written(output: Path, kind: Literal["bundle", "file"]) -> str:
    if kind == "file":
        return f"wrote {output}"
    return f"wrote {output}; the report is {output / 'report.html'}"


def _unmet(result: Result, *, written: bool) -> str:
    from graphopt.report.summary import budget_line

    quality = result.report.quality
    if result.unmet:
        kept = "" if written else " Nothing was written; --keep writes it all the same."
        return f"{BudgetError.code} {' '.join(result.unmet)}{kept}"
    line = budget_line(quality) if quality is not None else "The budget is not met."
    kept = "" if written else " Nothing was written; --keep writes it all the same."
    return f"{BudgetError.code} {line}{kept}"
