"""Writes single conversions, finds short names, and removes what nothing reads any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import is_graph_output, producer, uses
from graphopt.target.stored import restores_constant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor, Variable

NAME_LENGTH = 40
"""Characters of a tensor's name that are kept in names made from it."""


def mean_shift(node: Node, error: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return what an error of the weight changes in the mean of each output, given the mean of each input channel.

    Zeros that a convolution pads are taken for the mean as well. None where the channels do not fit.
    """
    if node.op == "Gemm":
        error = error if node.attrs.get("transB", 0) else error.T
        return error @ means if error.shape[1] == means.size else None
    groups = int(node.attrs.get("group", 1))
    sums = error.reshape(groups, error.shape[0] // groups, error.shape[1], -1).sum(axis=3)
    if groups * error.shape[1] != means.size:
        return None
    shift: NDArray[np.float64] = np.einsum("goc,gc->go", sums, means.reshape(groups, -1)).reshape(-1)
    return shift


def conversion(
    rw: Rewriter, op: str, inputs: list[Tensor], *, near: Node, attrs: Mapping[str, object] | None = None
) -> Variable:
    """Write a QuantizeLinear or DequantizeLinear.

    It keeps no metadata of the operator it serves: exporters note a stack trace there, larger than a small layer.
    """
    made: Variable = rw.op(op, inputs, attrs=dict(attrs or {}), near=near, name=f"{short_name(inputs[0])}_{op}")
    source = producer(made)
    assert source is not None
    source.metadata.clear()
    return made


def short_name(tensor: Tensor) -> str:
    """Return the end of a tensor's name: some exporters write names that are longer than a bias."""
    return tensor.name[-NAME_LENGTH:].removesuffix("_quantized").lstrip("/")


def drop_unused(rw: Rewriter, tensors: Iterable[Tensor]) -> None:
    """Remove nodes that make a constant which nothing reads any more."""
    waiting = list(tensors)
    while waiting:
        tensor = waiting.pop()
        source = producer(tensor)
        if source is None or uses(tensor) or is_graph_output(tensor):
            continue
        if source.op == "Constant" or restores_constant(source):
            waiting += [] if source.op == "Constant" else list(source.inputs)
            rw.erase([source])
