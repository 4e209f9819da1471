"""What ``graphopt quantize`` does with a model that is quantized already: keep it, or take it back to float first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.cli.terminal import log

if TYPE_CHECKING:
    import argparse

    from graphopt.cli.parser import Parser
    from graphopt.graph import Model

PRESET = "dequantize"


def add_requantize(parser: Parser) -> None:
    """Add the option that takes a quantized model back to float first."""
    parser.add_argument(
        "--requantize",
        action="store_true",
        help="take a model that is quantized already back to float first; without, it is kept as it is",
    )


def for_quantized_input(arguments: argparse.Namespace, recipe: dict[str, Any]) -> tuple[Model, dict[str, Any]]:
    """Return the model to work on and the recipe to run.

    A quantized model is kept byte for byte, with the reason in the report, unless the user asks to quantize it again:
    what optimizes float graphs would tear its conversions apart. What is quantized again is judged against what it was
    taken back to: the errors that the first quantization made are no merit of the second one.

    Args:
        arguments: What the user gave; ``requantize`` of it.
        recipe: What runs on a float model, with a list of passes and imports.
    """
    from graphopt.graph import read_model
    from graphopt.rewrite import PassManager, load_recipe
    from graphopt.target.quantized import quantized_operators

    model = read_model(arguments.model)
    if not quantized_operators(model):
        return model, recipe
    if not arguments.requantize:
        insertion = next(step for step in recipe["passes"] if isinstance(step, dict) and "insert-qdq" in step)
        return model, {**recipe, "imports": [], "passes": [insertion]}
    floating = model.copy()
    PassManager(list(load_recipe(PRESET).create()), verify=arguments.verify).run(floating, None)
    floating.sort()
    log("note: the model was taken back to float; what follows compares with that", quiet=arguments.quiet)
    return floating, recipe
