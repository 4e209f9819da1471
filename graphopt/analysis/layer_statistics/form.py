"""Which form a layer has, and what it reads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.layer_statistics.recurrent import RecurrentForm
from graphopt.analysis.layer_statistics.rows import Form, MatrixForm
from graphopt.analysis.layer_statistics.windows import window_form
from graphopt.graph import constant_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Tensor


def form_of(node: Node, index: int, weight: NDArray[Any]) -> Form | str:
    """Return how a layer is read as y = W x, or why it cannot be.

    Args:
        node: Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU or RNN.
        index: Which input is the weight.
        weight: Its values.
    """
    if node.op in {"Conv", "ConvTranspose"}:
        return window_form(node, weight) if weight.ndim > 2 else f"its weight has rank {weight.ndim}"
    if node.op == "Gemm":
        transposed, flipped = not node.attrs.get("transB", 0), bool(node.attrs.get("transA", 0))
        return MatrixForm("Gemm", transposed=transposed, flipped=flipped)
    if node.op == "MatMul":
        stack = tuple(weight.shape[:-2])
        return MatrixForm("MatMul", int(np.prod(stack)), index=index, transposed=index == 1, stack=stack)
    direction = str(node.attrs.get("direction", "forward"))
    backward = {"reverse": (True,), "bidirectional": (False, True)}.get(direction, (False,))
    batch_first = bool(node.attrs.get("layout", 0))
    reads = "input" if index == 1 else "states"
    return RecurrentForm(node.op, len(backward), reads=reads, batch_first=batch_first, backward=backward)


def inputs_of(node: Node, index: int, form: Form) -> list[tuple[Tensor, Form]] | str:
    """Return the tensors that a layer multiplies its weight with, each with how it is read, or why none shows that.

    Args:
        node: The layer.
        index: Which input is the weight.
        form: Its form.
    """
    if not isinstance(form, RecurrentForm) or form.reads == "input":
        tensor = node.inputs[1 - index if node.op == "MatMul" else 0]
        return "what it reads is constant" if constant_value(tensor) is not None else [(tensor, form)]
    if node.op == "GRU" and not node.attrs.get("linear_before_reset", 0):
        return "a GRU multiplies part of its recurrent weights with a state it has reset, which no output shows"
    if len(node.inputs) > 4 and node.inputs[4].name:
        return f"its recurrent weights read the states of {node.op}, and its sequences may end early"
    if not node.outputs or not node.outputs[0].name:
        return f"its recurrent weights read the states of {node.op}, and no output shows them"
    found: list[tuple[Tensor, Form]] = [(node.outputs[0], form)]
    start = node.inputs[5] if len(node.inputs) > 5 else None
    if start is not None and start.name and constant_value(start) is None:
        found.append((start, replace(form, reads="start")))
    return found


def use_of(node: Node, weight: Tensor) -> int:
    """Return which input of a node a weight is."""
    return next(index for index, each in enumerate(node.inputs) if each is weight)
