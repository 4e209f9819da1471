"""Small models from text, and the shapes that are inferred for them, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.analysis import Facts, Types
from shape_agreement import read_text

if TYPE_CHECKING:
    from graphopt.graph import Model

HEAD = '<ir_version: 9, opset_import: ["" : {}]>\n'


def read(body: str, *, opset: int = 17) -> Model:
    """Return the model of a graph as text."""
    return read_text(HEAD.format(opset) + body)


def shapes(model: Model) -> dict[str, str]:
    """Return the shape of every named output of every scope, as text."""
    types = Facts(model).get(Types)
    found = {}
    for _, node in model.walk():
        for tensor in node.outputs:
            shape = types.shape(tensor)
            found[tensor.name] = "?" if shape is None else "[" + ", ".join(map(str, shape)) + "]"
    return found
