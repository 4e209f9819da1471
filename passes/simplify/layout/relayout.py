"""How a node computes the same with its axes in another order: which tensors are permuted and what changes in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from graphopt.graph import Constant, LazyWeight, constant_value
from graphopt.graph.dtypes import is_sub_byte, numpy_dtype
from graphopt.passes.simplify.layout.permutations import Perm, same_on
from graphopt.passes.simplify.purity import is_constant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from graphopt.analysis.types import Types
    from graphopt.graph import Tensor, Weight
    from graphopt.passes.simplify.look import Look

Array = np.ndarray[Any, Any]

COPY_BYTES = 4096
"""A constant that others read too is laid out a second time up to this size."""

LARGEST_BYTES = 256 << 20
"""A constant above this size is not laid out anew: it would have to be loaded whole."""

_LAZY_BYTES = 4 << 20  # a constant above this size is laid out anew each time it is read, so that it is not kept twice


class Side(NamedTuple):
    """One edge of a node: an input or an output by its position."""

    is_output: bool
    place: int


@dataclass(frozen=True, slots=True)
class Relayout:
    """A node in another layout.

    Attributes:
        inputs: For each input the permutation in which it is read, None where it is read as it is.
        outputs: For each output the permutation in which it is given, None where it is given as it is.
        attrs: Attributes that change; None removes one.
        constants: Inputs that become constants, by position; made when the change is applied.
        op: The operator it becomes; empty where it stays.
        slow: Whether runtimes run it by laying the tensor out anew, which costs as much as a Transpose.
        reverse: Whether the inputs change their order.
    """

    inputs: tuple[Perm | None, ...]
    outputs: tuple[Perm | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, Callable[[], Array | Weight]] = field(default_factory=dict)
    op: str = ""
    slow: bool = False
    reverse: bool = False


Rule: TypeAlias = "Callable[[Look, Side, Perm, Perm], Relayout | None]"
"""Given a node, one edge of it, the permutation wanted there, and a permutation to prefer where one may be chosen."""


class Draft:
    """Collects what changes in a node.

    Args:
        look: The node.
    """

    def __init__(self, look: Look) -> None:
        self.look = look
        self.attrs: dict[str, Any] = {}
        self.constants: dict[int, Callable[[], Array | Weight]] = {}

    def integers(self, place: int, name: str, values: list[int]) -> None:
        """Set integers that are an attribute in old opsets and an input in new ones."""
        node, given = self.look.node, self.look.input(place)
        if name in node.attrs:
            self.attrs[name] = values
            return
        dtype = (None if given is None else numpy_dtype(self.look.dtype(given))) or np.dtype(np.int64)
        self.constants[place] = lambda: np.array(values, dtype)

    def axis(self, perm: Perm, axis: int, name: str = "axis") -> None:
        """Set an axis to where a permutation puts it."""
        self.attrs[name] = perm.index(axis)

    def done(
        self,
        inputs: Mapping[int, Perm],
        perm: Perm,
        *,
        outputs: int = 1,
        op: str = "",
        slow: bool = False,
        reverse: bool = False,
    ) -> Relayout:
        """Return the relayout with these inputs permuted and all outputs in one permutation."""
        every = tuple(inputs.get(place) for place in range(len(self.look.node.inputs)))
        return Relayout(every, (perm,) * outputs, self.attrs, self.constants, op, slow, reverse)


def may_relay(tensor: Tensor, types: Types) -> bool:
    """Whether a constant may get another layout: small, or read here alone; never of elements below one byte."""
    if not is_constant(tensor):
        return False
    dtype, shape = types.dtype(tensor), types.static_shape(tensor)
    if not dtype or shape is None or is_sub_byte(dtype):
        return False
    known = numpy_dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * (known.itemsize if known is not None else 1 << 30)
    return size <= (COPY_BYTES if len(tensor.outputs) > 1 else LARGEST_BYTES)


def broadcast(look: Look, side: Side, perm: Perm, places: range) -> tuple[Perm, dict[int, Perm], Draft] | None:
    """Return what a permutation does to the inputs that are broadcast against each other, the last axes aligned.

    Args:
        look: The node.
        side: The edge on which the permutation is given.
        perm: The permutation.
        places: The inputs that are broadcast.

    Returns:
        The permutation of the output, those of the inputs, and the constants laid out anew; None where an input would
        need axes of size 1 in between.
    """
    node = look.node
    rank = look.types.rank(node.outputs[0])
    if rank is None or len(perm) > rank:
        return None
    missing = rank - len(perm)
    full = (*range(missing), *(axis + missing for axis in perm))
    draft = Draft(look)
    inputs: dict[int, Perm] = {}
    tall = any(
        not is_constant(node.inputs[place]) and look.types.rank(node.inputs[place]) == rank
        for place in places
        if node.inputs[place].name
    )
    for place in places:
        tensor = node.inputs[place]
        shape = look.shape(tensor) if tensor.name else ()
        if shape is None:
            return None
        if all(size == 1 for size in shape):
            continue
        aligned = align(full, rank, len(shape))
        if aligned is not None and same_on(shape, aligned, tuple(range(len(shape)))):
            continue
        if is_constant(tensor):
            if not may_relay(tensor, look.types):
                return None
            draft.constants[place] = relaid(tensor, full, shorten=tall)
        elif aligned is None:
            return None
        else:
            inputs[place] = aligned
    return full, inputs, draft


def align(perm: Perm, rank: int, own: int) -> Perm | None:
    """Return what a permutation of the output does to an input of fewer axes; None where it would gain some.

    Args:
        perm: The permutation of the output.
        rank: Rank of the output.
        own: Rank of the input.
    """
    axes = [axis - (rank - own) for axis in perm]
    while axes and axes[0] < 0:
        del axes[0]
    return None if any(axis < 0 for axis in axes) else tuple(axes)


def relaid(tensor: Tensor, perm: Perm, *, shorten: bool) -> Callable[[], Array | Weight]:
    """Return what lays a constant out anew, against an output that is permuted so; a large one when it is written.

    Args:
        tensor: The constant, of at most as many axes as the permutation.
        perm: The permutation of the output.
        shorten: Whether leading axes of size 1 may go, since another operand has all axes.
    """

    def moved(value: Array) -> Array:
        result = value.reshape((1,) * (len(perm) - value.ndim) + value.shape).transpose(perm)
        while shorten and result.ndim > 0 and result.shape[0] == 1:
            result = result[0]
        return np.ascontiguousarray(result).reshape(result.shape)

    def make() -> Array | Weight:
        if isinstance(tensor, Constant) and tensor.weight.nbytes > _LAZY_BYTES:
            weight = tensor.weight
            shape = (*(1,) * (len(perm) - len(weight.shape)), *weight.shape)
            sizes = [shape[axis] for axis in perm]
            while shorten and sizes and sizes[0] == 1:
                del sizes[0]
            return LazyWeight(lambda: moved(weight.load()), weight.onnx_dtype, sizes)
        value = constant_value(tensor)
        assert value is not None
        return moved(value)

    return make
