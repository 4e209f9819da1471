"""``graphopt prune``: weights set to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.cli.choices import require
from graphopt.cli.job import add_judging, add_model, run_job
from graphopt.cli.parser import share
from graphopt.cli.terminal import log

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser

PASS = "prune-magnitude"
MAX_DROP = 3.0
"""Budget where data is given and the user names none, in percentage points; the same as that of the preset sparse."""
SCOPES = {"magnitude": "global", "lamp": "lamp", "erk": "erk"}
"""Methods of this version, by the scope that the pass calls them."""
LATER_METHODS = ("wanda", "sparsegpt", "second-order", "l1", "l2", "entropy", "lasso", "correlation", "block-obs")
PATTERNS = ("unstructured",)
LATER_PATTERNS = ("2:4", "1:4", "4x1", "8x1", "16x1", "1x4", "4x4", "channels")


def configure(parser: Parser) -> None:
    """Add the arguments."""
    add_model(parser, output="the file to write", metavar="OUT.onnx")
    parser.add_argument(
        "--sparsity", type=share, required=True, metavar="S", help="share of zeros over all prunable weights, 0..1"
    )
    parser.add_argument("--method", metavar="M", help="how weights are ranked: lamp (default), magnitude or erk")
    parser.add_argument("--pattern", default=PATTERNS[0], metavar="P", help="where zeros may be: unstructured")
    add_judging(parser)
    parser.epilog = "example:\n  graphopt prune model.onnx -o sparse.onnx --sparsity 0.8 --data feeds.npz"


def run(arguments: argparse.Namespace) -> int:
    """Prune, print the report, write the model."""
    method = require(arguments.method or "lamp", list(SCOPES), flag="--method", later=LATER_METHODS)
    structured = (arguments.pattern,) if ":" in arguments.pattern else LATER_PATTERNS
    require(arguments.pattern, PATTERNS, flag="--pattern", later=structured)
    refit = arguments.method is None and arguments.data is not None
    if refit:
        log(
            "note: second-order pruning is not built into this version: lamp is used, and the weights that stay are "
            "refitted on the data",
            quiet=arguments.quiet,
        )
    prune = {"sparsity": arguments.sparsity, "scope": SCOPES[method], "steps": 0 if refit else 1}
    recipe = {
        "name": "prune",
        "description": f"{100 * arguments.sparsity:g} % of the prunable weights set to zero, ranked by {method}.",
        "budget": {"max_drop": MAX_DROP},
        "imports": ["default"],
        "passes": [{PASS: prune}, *(["refit-weights"] if refit else []), "eliminate-dead"],
    }
    return run_job(arguments, recipe, kind="file")
