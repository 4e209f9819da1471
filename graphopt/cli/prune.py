"""``graphopt prune``: weights set to zero, or channels taken out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from graphopt.cli.choices import require
from graphopt.cli.job import add_judging, add_model, add_statistics, run_job
from graphopt.cli.parser import share, whole
from graphopt.cli.storage import add_storage, with_storage
from graphopt.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser

MAX_DROP = 3.0
"""Budget where data is given and the user names none, in percentage points; the same as that of the preset sparse."""
SCOPES = {"magnitude": "global", "lamp": "lamp", "erk": "erk"}
"""Methods that look at the weights alone, by the scope that prune-magnitude calls them."""
SOLVING = ("second-order", "sparsegpt", "wanda")
"""Methods that need data."""
CHANNELS = ("block-obs", "l1", "l2", "entropy", "lasso", "correlation")
"""Methods for channels; the first is the default where there is data, l2 where there is none."""
PATTERNS = ("unstructured", "4x1", "8x1", "16x1", "1x4", "4x4", "channels")
ALLOCATIONS = ("uniform", "size", "erk", "loss", "kl")
_N_OF_M = re.compile(r"([1-9]\d*):([1-9]\d*)")


def configure(parser: Parser) -> None:
    """Add the arguments."""
    add_model(parser, output="the file to write", metavar="OUT.onnx")
    parser.add_argument(
        "--sparsity",
        type=share,
        metavar="S",
        help="share of zeros over all prunable weights, 0..1; for channels, of each group's channels; N:M has its own",
    )
    parser.add_argument(
        "--method",
        metavar="M",
        help=f"how is chosen what goes: {', '.join(SOLVING)} (they need --data or --statistics; second-order is the "
        f"default with either), lamp (default without), magnitude, erk; for channels {', '.join(CHANNELS)}",
    )
    parser.add_argument(
        "--pattern",
        default=PATTERNS[0],
        metavar="P",
        help=f"where zeros may be: {', '.join(PATTERNS[:-1])} or N:M; or channels, which are taken out",
    )
    parser.add_argument(
        "--allocation",
        metavar="A",
        help="how layers share the zeros out, for methods that need data: uniform (default), size, erk, loss or kl",
    )
    parser.add_argument("--steps", type=whole(1), default=1, metavar="N", help="prune gradually, in N steps; default 1")
    parser.add_argument(
        "--permute",
        action="store_true",
        help="first let channels change places, which changes no result, so that blocks or N:M cost less",
    )
    add_storage(parser)
    add_statistics(parser)
    add_judging(parser)
    parser.epilog = (
        "examples:\n"
        "  graphopt prune model.onnx -o sparse.onnx --sparsity 0.8 --data feeds.npz --store sparse\n"
        "  graphopt prune model.onnx -o sparse.onnx --pattern 2:4 --permute --data feeds.npz\n"
        "  graphopt prune model.onnx -o small.onnx --pattern channels --sparsity 0.25 --data feeds.npz"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prune, print the report, write the model."""
    pattern: str = arguments.pattern
    own = _own_share(pattern)
    if own is None:
        require(pattern, [*PATTERNS, "N:M"], flag="--pattern")
    sparsity = arguments.sparsity if arguments.sparsity is not None else own
    if sparsity is None:
        raise UsageError(f"pattern {pattern} has no share of its own", where="--sparsity", do="Give --sparsity S")
    steps = _channels(arguments, sparsity) if pattern == "channels" else _zeros(arguments, sparsity)
    ((name, _),) = steps.items()
    before = [_permuted(arguments, sparsity)] if arguments.permute else []
    recipe = {
        "name": "prune",
        "description": f"{100 * sparsity:g} % pruned by {name}, pattern {pattern}.",
        "budget": {"max_drop": MAX_DROP},
        "imports": ["default"],
        "passes": with_storage(arguments, [*before, steps, "eliminate-dead"]),
    }
    return run_job(arguments, recipe, kind="file")


def _own_share(pattern: str) -> float | None:
    """Return the share of zeros of N:M, None for other patterns."""
    found = _N_OF_M.fullmatch(pattern)
    if found is None or int(found[1]) >= int(found[2]):
        return None
    return 1 - int(found[1]) / int(found[2])


def _zeros(arguments: argparse.Namespace, sparsity: float) -> dict[str, dict[str, object]]:
    """Return the pass that sets weights to zero, with its options."""
    data = arguments.data is not None or arguments.statistics is not None
    method = require(arguments.method or ("second-order" if data else "lamp"), [*SOLVING, *SCOPES], flag="--method")
    options: dict[str, object] = {"sparsity": sparsity, "pattern": arguments.pattern, "steps": arguments.steps}
    if method in SCOPES:
        if arguments.allocation is not None:
            raise UsageError(f"method {method} shares zeros out by itself", where="--allocation", do="Leave it out")
        if arguments.statistics is not None:
            raise UsageError(f"method {method} looks at weights alone", where="--statistics", do="Leave it out")
        return {"prune-magnitude": {**options, "scope": SCOPES[method]}}
    if not data:
        do = "Give --data FEEDS, or --statistics FILE"
        raise UsageError(f"method {method} looks at what layers read", where="--method", do=do)
    if arguments.allocation == "kl" and arguments.data is None:
        raise UsageError("what layers cost is measured on data", where="--allocation", do="Give --data FEEDS")
    if arguments.allocation is not None:
        options["allocation"] = require(arguments.allocation, ALLOCATIONS, flag="--allocation")
    if method == "wanda":
        return {"prune-wanda": options}
    return {"prune-second-order": {**options, "method": "sparsegpt" if method == "sparsegpt" else "auto"}}


def _permuted(arguments: argparse.Namespace, sparsity: float) -> dict[str, dict[str, object]]:
    """Return the pass that lets channels change places, with its options."""
    if arguments.pattern in {"unstructured", "channels"}:
        why = f"pattern {arguments.pattern} gains nothing from another order of channels"
        raise UsageError(why, where="--permute", do="Leave it out, or give a pattern of blocks or N:M")
    if arguments.statistics is not None:
        raise UsageError("statistics hold for one order of channels", where="--permute", do="Give --data FEEDS instead")
    return {"permute-channels": {"pattern": arguments.pattern, "sparsity": sparsity}}


def _channels(arguments: argparse.Namespace, sparsity: float) -> dict[str, dict[str, object]]:
    """Return the pass that takes channels out, with its options."""
    for flag, given in (("--allocation", arguments.allocation is not None), ("--steps", arguments.steps != 1)):
        if given:
            raise UsageError("channels go from each group alike, at once", where=flag, do="Leave it out")
    observed = arguments.data is not None or arguments.statistics is not None
    method = require(arguments.method or (CHANNELS[0] if observed else "l2"), CHANNELS, flag="--method")
    if method == "entropy" and arguments.data is None and arguments.statistics is not None:
        raise UsageError("statistics do not tell samples apart", where="--method", do="Give --data FEEDS for entropy")
    return {"prune-channels": {"ratio": sparsity, "select": method}}
