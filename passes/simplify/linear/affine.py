"""Multiplications and additions of constants, read as y = scale * x + shift along one axis."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, constant_value, is_graph_output, producer
from graphopt.passes.simplify.purity import is_constant, is_op, refers_to_function

if TYPE_CHECKING:
    from graphopt.graph import Node, Tensor

Array = np.ndarray[Any, Any]

FLOATS = frozenset({"float32", "float16", "float64", "bfloat16"})

_BUILT_IN = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16))
ONE, ZERO = np.float64(1.0), np.float64(0.0)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a numpy type is one of `FLOATS`; numpy takes its time to make up a name."""
    return dtype in _BUILT_IN or dtype.name in FLOATS


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """y = scale * x + shift.

    Attributes:
        scale: One number, shape (), or one per channel, shape (channels,); float64.
        shift: The same.
    """

    scale: Array | np.float64 = ONE
    shift: Array | np.float64 = ZERO

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    @property
    def scales(self) -> bool:
        """Whether it does more than add."""
        return bool((np.asarray(self.scale) != 1).any())

    @property
    def shifts(self) -> bool:
        """Whether it does more than multiply."""
        return bool(np.asarray(self.shift).any())


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the channels of a tensor are.

    Attributes:
        rank: The number of axes, or fewer: what is certain.
        behind: Axes behind that of the channels.
        channels: Size of the axis of the channels.
    """

    rank: int
    behind: int
    channels: int

    def vector(self, array: Array) -> Array | None:
        """Return a constant that is broadcast against the tensor as a number or one per channel, else None.

        None also where the constant would make the tensor larger.
        """
        if array.ndim > self.rank:
            return None
        if array.size == 1:
            return np.asarray(array.reshape(()), dtype=np.float64)
        axis = array.ndim - 1 - self.behind
        if array.size != self.channels or axis < 0 or array.shape[axis] != self.channels:
            return None
        return np.asarray(array.reshape(-1), dtype=np.float64)

    def may_hold(self, constant: Tensor) -> bool:
        """Whether a constant has few enough elements to be looked at; nothing is loaded."""
        return not isinstance(constant, Constant) or prod(constant.shape) <= max(1, self.channels)


@dataclass(frozen=True, slots=True)
class Terms:
    """A node that is one arithmetic step with a constant.

    Attributes:
        data: The tensor it works on.
        constant: The constant, None for Neg.
        kind: ``add``, ``sub`` (x - c), ``from`` (c - x), ``mul``, ``div`` (x / c) or ``neg``.
    """

    data: Tensor
    constant: Tensor | None
    kind: str

    def affine(self, frame: Frame) -> Affine | None:
        """Return what the node does along the channels of its input, None where it does something else."""
        if self.constant is None:
            return Affine(scale=np.float64(-1.0))
        if not frame.may_hold(self.constant):
            return None
        value = constant_value(self.constant)
        if value is None or not is_float(value.dtype):
            return None
        vector = frame.vector(value)
        if vector is None:
            return None
        if self.kind == "div" and not vector.all():
            return None
        if self.kind in {"mul", "div"}:
            made = Affine(vector if self.kind == "mul" else 1.0 / vector)
        elif self.kind == "from":
            made = Affine(np.float64(-1.0), vector)
        else:
            made = Affine(shift=vector if self.kind == "add" else -vector)
        return made if made.is_finite else None


_KINDS = {"Add": ("add", "add"), "Mul": ("mul", "mul"), "Sub": ("sub", "from"), "Div": ("div", "")}

AFFINE_OPS = (*_KINDS, "Neg")


def terms_of(node: Node) -> Terms | None:
    """Return the arithmetic step that a node is, None where it has no constant operand or is something else."""
    kinds = _KINDS.get(str(node.op))
    if kinds is None:
        return Terms(node.inputs[0], None, "neg") if is_op(node, "Neg") and len(node.inputs) == 1 else None
    graph = node.graph
    if not is_op(node, *_KINDS) or len(node.inputs) != 2 or graph is None or graph.opset < 7:
        return None
    first, second = node.inputs
    if is_constant(second):
        return None if is_constant(first) else Terms(first, second, kinds[0])
    if is_constant(first) and kinds[1]:
        return Terms(second, first, kinds[1])
    return None


def only_reader_of(tensor: Tensor, reader: Node) -> Node | str:
    """Return the producer of a tensor that one node of the same graph reads once and nothing else, else the reason."""
    node = producer(tensor)
    if node is None:
        return f"its input '{tensor.name}' is computed by no layer"
    if node.graph is not reader.graph:
        return f"its input '{tensor.name}' comes from the graph around it"
    if is_graph_output(tensor) or len(tensor.outputs) != 1:
        others = "an output of the graph" if is_graph_output(tensor) else f"read {len(tensor.outputs)} times"
        return f"the output '{tensor.name}' of the layer before it is {others}"
    if refers_to_function(node):
        return f"an attribute of '{node.name}' is given by the call of the function"
    return node
