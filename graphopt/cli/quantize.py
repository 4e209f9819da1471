"""``graphopt quantize``: weights and activations in few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.cli.calibrate import add_cache, add_calibrator, add_weight_calibrator, range_options
from graphopt.cli.choices import offered, require
from graphopt.cli.form import add_form, form_options, opset_of, with_form
from graphopt.cli.job import add_judging, add_model, add_statistics, add_target, run_job
from graphopt.cli.mixed import add_budgets, has_budgets, run_mixed
from graphopt.cli.quantized_input import add_requantize, for_quantized_input
from graphopt.cli.storage import add_storage, with_storage
from graphopt.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser

PASS = "insert-qdq"
MAX_DROP = 1.0
"""Budget of weights of 4 to 7 bits where data is given and the user names none, in percentage points."""
FEW_BITS_MAX_DROP = 3.0
"""The same for weights of less than 4 bits."""
INTEGERS = {"int8": 8, "int6": 6, "int4": 4, "int3": 3, "int2": 2}
"""Integer types of weights by their bits."""
SCHEMES = ("ternary", "binary")
CODEBOOK = "kmeans"
BOOKS = {f"{CODEBOOK}{2**bits}": bits for bits in range(1, 9)}
"""Code books by their number of values, with the bits of a place in them."""
FLOATS = ("fp8",)
LATER_WEIGHTS = ("int16", "none")
ALLOCATIONS = ("uniform", "kl")
DEFAULT_BLOCK = 32
NEWEST_TYPES = (21, 25)
"""The opsets with integers of 4 and of 2 bits; a model that cannot be raised to the newer one stays below."""


def configure(parser: Parser) -> None:
    """Add the arguments."""
    add_model(parser, output="the file to write", metavar="OUT.onnx")
    parser.add_argument(
        "--weights",
        metavar="W",
        help="type of the weights: int8 (default), int6, int4, int3, int2, ternary, binary, kmeansN (N values), or fp8",
    )
    parser.add_argument("--bits", type=int, metavar="B", help="bits of a weight, for --weights intB")
    parser.add_argument(
        "--block",
        type=int,
        metavar="N",
        help="inputs of a matrix that share a scale below 8 bits; default 32, 0 is one scale per output",
    )
    parser.add_argument(
        "--allocation",
        metavar="A",
        help="how layers share the bits of intB out, below 8 and with data: uniform (default), or kl: B on average, "
        "by what each layer costs the outputs",
    )
    parser.add_argument(
        "--activations",
        metavar="A",
        help="uint8 (with data the default of ort-cpu), int8, uint16, int16 or fp8, where the target has kernels; "
        "int4, dynamic (default without data), or none",
    )
    add_calibrator(parser)
    add_weight_calibrator(parser)
    add_cache(parser)
    add_requantize(parser)
    add_budgets(parser)
    add_target(parser)
    add_form(parser)
    add_storage(parser)
    add_statistics(parser)
    add_judging(parser)
    parser.epilog = (
        "examples:\n  graphopt quantize model.onnx -o int8.onnx --data feeds.npz\n"
        "  graphopt quantize model.onnx -o int4.onnx --weights int4 --data feeds.npz\n"
        "  graphopt quantize model.onnx -o mixed.onnx --budget-latency 0.6x --data feeds.npz"
    )


def run(arguments: argparse.Namespace) -> int:
    """Quantize, print the report, write the model."""
    if has_budgets(arguments):
        return run_mixed(arguments)
    weights = _weights(arguments)
    options = {**range_options(arguments), **form_options(arguments)}
    if weights in FLOATS:
        options |= {"weights": weights, "activations": "none"}
    if arguments.activations is not None:
        built = offered(PASS, "activations")
        options["activations"] = require(arguments.activations, built, flag="--activations")
        _refuse_unseen(arguments)
    if arguments.statistics is not None and weights == "int8":
        raise UsageError(
            "int8 weights are rounded with the activations, whose ranges the data shows",
            where="--statistics",
            do="Leave it out, or name --weights of fewer bits",
        )
    rounding = {**_rounding(weights, _block(arguments, weights)), **_allocation(arguments, weights)}
    rounded = [{"raise-opset": {"to": opset}} for opset in NEWEST_TYPES[: 2 if _needs_two_bits(weights) else 1]]
    passes = [
        *(rounded if rounding else [opset_of(arguments)]),
        "fuse-bias",
        *([{"round-weights": rounding}] if rounding else []),
        {PASS: options},
        "eliminate-dead",
    ]
    recipe: dict[str, Any] = {
        "name": "quantize",
        "description": f"Weights in {weights}.",
        "budget": _budget(weights),
        "imports": ["default"],
        "passes": with_storage(arguments, with_form(arguments, passes)),
    }
    model, recipe = for_quantized_input(arguments, recipe)
    return run_job(arguments, recipe, kind="file", model=model)


def _weights(arguments: argparse.Namespace) -> str:
    """Return the type of the weights out of the two flags that may name it."""
    if arguments.bits is not None and arguments.weights is not None and arguments.weights != f"int{arguments.bits}":
        raise UsageError(
            f"{arguments.bits} with --weights {arguments.weights}", where="--bits", must="--bits B is --weights intB"
        )
    wanted = arguments.weights or (f"int{arguments.bits}" if arguments.bits is not None else "int8")
    known = [*INTEGERS, *SCHEMES, *BOOKS, *FLOATS]
    return require(wanted, known, flag="--weights" if arguments.weights else "--bits", later=LATER_WEIGHTS)


def _refuse_unseen(arguments: argparse.Namespace) -> None:
    """Refuse activations on fixed grids where nothing shows their ranges: no layer would be quantized."""
    unseen = arguments.data is None and arguments.calibration_cache is None
    if unseen and arguments.activations not in {"auto", "dynamic", "none"}:
        raise UsageError(
            f"{arguments.activations} activations have ranges that are seen on data",
            where="--activations",
            do="Give --data FEEDS, or take dynamic",
        )


def _block(arguments: argparse.Namespace, weights: str) -> int:
    """Return the inputs that share a scale, 0 for all."""
    if arguments.block is None:
        return DEFAULT_BLOCK
    if weights not in {*INTEGERS, *SCHEMES} or weights == "int8":
        must = f"It is for {', '.join(each for each in INTEGERS if each != 'int8')}, {' and '.join(SCHEMES)}"
        raise UsageError(f"{weights} weights have no blocks", where="--block", must=must)
    block: int = arguments.block
    return block


def _rounding(weights: str, block: int) -> dict[str, Any]:
    """Return the options of round-weights, none where weights are rounded with the activations."""
    sharing = {"granularity": "block", "block": block} if block else {}
    if weights in BOOKS:
        return {"scheme": "codebook", "bits": BOOKS[weights]}
    if weights in SCHEMES:
        return {"scheme": weights, **sharing}
    return {"bits": INTEGERS[weights], **sharing} if weights not in {"int8", *FLOATS} else {}


def _allocation(arguments: argparse.Namespace, weights: str) -> dict[str, Any]:
    """Return the option that shares bits out among layers, where the user names it."""
    if arguments.allocation is None:
        return {}
    chosen = require(arguments.allocation, ALLOCATIONS, flag="--allocation")
    if weights not in INTEGERS or weights == "int8":
        raise UsageError(f"{weights} has no bits to share out", where="--allocation", must="It is for int6 to int2")
    if chosen == "kl" and arguments.data is None:
        raise UsageError("what layers cost is measured on data", where="--allocation", do="Give --data FEEDS")
    return {"allocation": chosen}


def _budget(weights: str) -> dict[str, float]:
    """Return what may be lost where the user names no limit; int8 by the word of its preset."""
    from graphopt.rewrite import load_recipe

    if weights == "int8":
        return load_recipe("int8").budget.model_dump(exclude_none=True)
    return {"max_drop": FEW_BITS_MAX_DROP if _is_coarse(weights) else MAX_DROP}


def _needs_two_bits(weights: str) -> bool:
    return weights in {"int2", *SCHEMES} or BOOKS.get(weights, 8) <= 2


def _is_coarse(weights: str) -> bool:
    return weights in {"int3", "int2", *SCHEMES} or BOOKS.get(weights, 8) <= 3
