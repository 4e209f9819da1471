"""Which form quantized operators take in the file: the types, symmetry and sharing of scales, and the operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.cli.parser import one_of
from graphopt.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from graphopt.cli.parser import Parser

QDQ, QOPERATOR = "qdq", "qoperator"
CHANNEL, TENSOR = "channel", "tensor"
RUNS_QOPERATORS = "ONNX Runtime"
TYPED = {"int16": 21, "uint16": 21, "fp8": 19}
"""Types of activations that need an opset of their own."""


def add_form(parser: Parser) -> None:
    """Add the options that say how quantized operators are written."""
    group = parser.add_argument_group("form")
    group.add_argument(
        "--format",
        type=one_of(QDQ, QOPERATOR),
        default=QDQ,
        metavar="F",
        help="qdq (default): float operators between QuantizeLinear and DequantizeLinear, which every runtime reads; "
        "qoperator: the integer operators that ONNX Runtime makes of them, MatMulNBits for blocks of few bits",
    )
    group.add_argument(
        "--per",
        type=one_of(CHANNEL, TENSOR),
        default=CHANNEL,
        metavar="P",
        help="what shares a scale of int8 weights: one channel (default) of outputs, or the whole tensor",
    )
    group.add_argument(
        "--symmetric", action="store_true", help="activations with zero points in the middle; default: as the target"
    )


def form_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of insert-qdq that the form sets.

    Raises:
        UsageError: The target does not read the format, or has no kernels for the type of activations.
    """
    from graphopt.target import find_number, find_target
    from graphopt.target.numbers import NUMBERS

    target = find_target(arguments.target)
    if arguments.format == QOPERATOR and target.runtime != RUNS_QOPERATORS:
        raise UsageError(
            f"{target.runtime} does not read integer operators",
            where="--format",
            must="qoperator is for the targets of ONNX Runtime",
            do="Leave it out: qdq is read by all",
        )
    if arguments.activations in NUMBERS:
        find_number(target, arguments.activations)
    found: dict[str, Any] = {}
    if arguments.per == TENSOR:
        found["per_channel"] = False
    if arguments.symmetric:
        found["symmetric"] = True
    return found


def opset_of(arguments: argparse.Namespace) -> Any:
    """Return the pass that raises the opset as far as the types of the form need it."""
    types = {arguments.activations, arguments.weights} & TYPED.keys()
    return {"raise-opset": {"to": max(TYPED[each] for each in types)}} if types else "raise-opset"


def with_form(arguments: argparse.Namespace, passes: Sequence[Any]) -> list[Any]:
    """Return the passes of a recipe with those behind them that write integer operators.

    Args:
        arguments: The arguments of the verb.
        passes: The passes of its recipe.
    """
    last = ["write-qoperators", "write-matmul-nbits", "eliminate-dead"] if arguments.format == QOPERATOR else []
    return [*passes, *last]
