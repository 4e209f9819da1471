"""One node with what is known of its tensors: what the rules about single nodes and their neighbours ask."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, Node, constant_value, is_graph_output, producer
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, refers_to_function
from graphopt.rewrite.driver import Rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.analysis.types import Types
    from graphopt.graph import Tensor
    from graphopt.rewrite.patch import Patch, Skip

Array = np.ndarray[Any, Any]

SMALL_CONSTANT = 4096
"""Constants of more elements are not loaded to look at a node."""

FLOATS = (1, 10, 11, 16)
"""Element types float, float16, double, bfloat16 of ONNX."""

INTEGERS = (2, 3, 4, 5, 6, 7, 12, 13)
"""Element types of whole numbers of 8 to 64 bits of ONNX."""

BOOL = 9


class Look:
    """One node with what is known of its tensors.

    Args:
        node: The node; its attributes have values, none refers to a function.
        types: Types of the tensors.
        values: Values of shape computations.
    """

    __slots__ = ("node", "types", "values")

    def __init__(self, node: Node, types: Types, values: ShapeValues) -> None:
        self.node = node
        self.types = types
        self.values = values

    @property
    def opset(self) -> int:
        """Version of the ONNX domain."""
        assert self.node.graph is not None
        return self.node.graph.opset

    @property
    def output(self) -> Tensor:
        """The first output."""
        found: Tensor = self.node.outputs[0]
        return found

    def at(self, node: Node) -> Look:
        """Return the same look at another node."""
        return Look(node, self.types, self.values)

    def above(self, index: int, *ops: str) -> Look | None:
        """Return a look at the producer of an input where it is one of these operators and its attributes have values.

        Args:
            index: Which input.
            ops: Operator types.
        """
        tensor = self.input(index)
        before = None if tensor is None else producer(tensor)
        if before is None or before.op not in ops or before.domain not in DEFAULT_DOMAINS:
            return None
        return None if refers_to_function(before) else self.at(before)

    def input(self, index: int) -> Tensor | None:
        """Return an input, None where it is omitted."""
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) and inputs[index].name else None

    def first(self) -> Tensor | None:
        """Return the first input."""
        return self.input(0)

    def attr(self, name: str, default: Any) -> Any:
        """Return an attribute."""
        return self.node.attrs.get(name, default)

    def dtype(self, tensor: Tensor) -> int:
        """Return the element type, 0 where it is unknown."""
        return self.types.dtype(tensor)

    def shape(self, tensor: Tensor) -> tuple[Dim, ...] | None:
        """Return the shape, None where not even the rank is known."""
        return self.types.shape(tensor)

    def same_type(self, tensor: Tensor) -> bool:
        """Whether a tensor has the element type of the output."""
        have, want = self.types.dtype(tensor), self.types.dtype(self.output)
        return have != 0 and have == want

    def same_shape(self, tensor: Tensor) -> bool:
        """Whether a tensor is proved to have the shape of the output."""
        have, want = self.types.shape(tensor), self.types.shape(self.output)
        return have is not None and have == want

    def constant(self, index: int) -> Array | None:
        """Return the value of a small constant input, else None."""
        tensor = self.input(index)
        return None if tensor is None else small_constant(tensor)

    def scalar(self, index: int) -> Any:
        """Return the one element of a constant input, None where it is no such constant."""
        value = self.constant(index)
        return value.reshape(-1)[0] if value is not None and value.size == 1 else None

    def ints(self, index: int, name: str) -> list[int] | None:
        """Return integers given by an attribute in old opsets and by an input in new ones; None where not known."""
        if name in self.node.attrs:
            return [int(entry) for entry in np.ravel(self.node.attrs[name])]
        tensor = self.input(index)
        if tensor is None:
            return None
        known = self.values.constant(tensor)
        if known is not None:
            return list(known)
        value = small_constant(tensor)
        return None if value is None or value.dtype.kind not in "iu" else [int(entry) for entry in value.ravel()]

    def permutation(self) -> list[int] | None:
        """Return the permutation of a Transpose."""
        given = self.node.attrs.get("perm")
        if given is not None:
            return [int(axis) for axis in given]
        rank = self.types.rank(self.node.inputs[0])
        return None if rank is None else list(range(rank))[::-1]

    def axis(self, name: str, default: int, rank: int | None) -> int | None:
        """Return an axis counted from the front, None where the rank decides and is unknown, or has no such axis.

        Args:
            name: The attribute.
            default: Its default.
            rank: The rank it counts in.
        """
        given = int(self.attr(name, default))
        if rank is None:
            return given if given >= 0 else None
        return given % rank if -rank <= given < rank else None


def small_constant(tensor: Tensor) -> Array | None:
    """Return the value of a constant of few elements, else None; large ones are not loaded."""
    if isinstance(tensor, Constant) and prod(tensor.shape) > SMALL_CONSTANT:
        return None
    return constant_value(tensor)


def read_once(tensor: Tensor) -> bool:
    """Whether exactly one node reads a tensor, once, and no graph gives it out."""
    return len(tensor.outputs) == 1 and not is_graph_output(tensor)


def chained(op: str, types: Types, values: ShapeValues, merge: Callable[[Look, Look], Patch | Skip | None]) -> Rule:
    """Return the rule for an operator whose input another of its kind makes for it alone.

    Args:
        op: Operator type.
        types: Types of the tensors.
        values: Values of shape computations.
        merge: Called with the later and the earlier node; returns what makes one of them.
    """

    def rewrite(node: Node) -> Patch | Skip | None:
        look = Look(node, types, values)
        before = look.above(0, op)
        if before is None or not read_once(before.output) or refers_to_function(node):
            return None
        return merge(look, before)

    return Rule((op,), rewrite)
