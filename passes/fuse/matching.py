"""What every fusion asks of the nodes it wants to replace: who made a tensor, who reads it, is it one known number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Constant, RawAttribute, constant_value, is_graph_output, producer
from graphopt.rewrite.patch import Patch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter, Tensor

Array = np.ndarray[Any, Any]

DEFAULT_DOMAINS = (None, "", "ai.onnx")
FLOAT, FLOAT16, DOUBLE, BFLOAT16 = 1, 10, 11, 16

_WITHOUT_VALUE = (gs.Node.AttributeRef, RawAttribute)
_LARGEST_VECTOR = 1 << 20
_MOST_READERS = 16


def above(tensor: Tensor, *ops: str) -> Node | None:
    """Return the node that made a tensor if it is one of these operators of the ONNX domain and this its first output.

    Args:
        tensor: The tensor.
        ops: Operator types.
    """
    node = producer(tensor)
    if node is None or node.op not in ops or node.domain not in DEFAULT_DOMAINS or node.outputs[0] is not tensor:
        return None
    return None if refers_to_function(node) else node


def below(tensor: Tensor, *ops: str) -> Node | None:
    """Return the only reader of a tensor if it is one of these operators; None if anything else reads it.

    Args:
        tensor: The tensor; it is no output of a graph.
        ops: Operator types.
    """
    if len(tensor.outputs) != 1 or is_graph_output(tensor):
        return None
    node: Node = tensor.outputs[0]
    if node.op not in ops or node.domain not in DEFAULT_DOMAINS or refers_to_function(node):
        return None
    return node


def refers_to_function(node: Node) -> bool:
    """Whether an attribute is set by the caller of the function around the node, or is of a kind without a value."""
    for value in node.attrs.values():  # noqa: SIM110 - asked at nearly every visit, and a generator costs more
        if isinstance(value, _WITHOUT_VALUE):
            return True
    return False


def is_fed_by(node: Node, ops: Collection[str]) -> bool:
    """Whether an input comes from one of these operators, of any domain: what few nodes pass, before a closer look."""
    for tensor in node.inputs:
        made = producer(tensor)
        if made is not None and made.op in ops:
            return True
    return False


def other(node: Node, tensor: Tensor) -> Tensor | None:
    """Return the other operand of a binary node, None where the node reads the tensor twice or not at all."""
    first, second = node.inputs
    if (first is tensor) == (second is tensor):
        return None
    return second if first is tensor else first  # type: ignore[no-any-return]


def scalar(tensor: Tensor) -> float | None:
    """Return the value of a constant of one float, whatever its rank, else None."""
    value = vector(tensor, 1)
    return None if value is None or value.size != 1 else float(value.reshape(-1)[0])


def number(tensor: Tensor) -> float | None:
    """Return the value of a constant of one number of any real type, such as an exponent, else None."""
    if isinstance(tensor, Constant):
        if int(np.prod(tensor.shape, dtype=np.int64)) != 1:
            return None
    elif above(tensor, "Constant") is None:
        return None
    value = constant_value(tensor)
    if value is None or value.size != 1 or not (is_float(value) or value.dtype.kind in "iu"):
        return None
    return float(value.reshape(-1)[0])


def vector(tensor: Tensor, most: int = _LARGEST_VECTOR) -> Array | None:
    """Return the value of a constant of floats that is no larger than asked, else None.

    Args:
        tensor: The tensor.
        most: Number of elements up to which it is loaded.
    """
    if isinstance(tensor, Constant):
        if int(np.prod(tensor.shape, dtype=np.int64)) > most:
            return None
    elif above(tensor, "Constant") is None:
        return None
    value = constant_value(tensor)
    if value is None or value.size > most or not is_float(value):
        return None
    return value


def multiple_of(tensor: Tensor, source: Tensor) -> tuple[Node, float] | None:
    """Return the Mul that made a tensor as a positive multiple of another, and the factor.

    Args:
        tensor: The multiple.
        source: What it is a multiple of.
    """
    node = above(tensor, "Mul")
    operand = None if node is None else other(node, source)
    factor = None if operand is None else scalar(operand)
    return None if node is None or factor is None or not 0 < factor < np.inf else (node, factor)


def is_float(value: Array) -> bool:
    """Whether an array holds floating-point numbers of at least 16 bits."""
    return bool(value.dtype.kind == "f" or value.dtype.name == "bfloat16")


def is_about(value: float, wanted: float, dtype: int) -> bool:
    """Whether a constant is a number up to the rounding of its element type.

    Args:
        value: The constant.
        wanted: The number in full precision.
        dtype: Element type as the ONNX enum; a double may have been written with the digits of a float.
    """
    relative = {FLOAT16: 2.0**-10, BFLOAT16: 2.0**-7}.get(dtype, 2.0**-22)
    return abs(value - wanted) <= relative * abs(wanted)


def are_private(nodes: Collection[Node], root: Node) -> bool:
    """Whether nodes can go once the root went: in its graph, read by each other alone, giving out nothing.

    Args:
        nodes: The nodes, the root among them or not.
        root: The node whose output the replacement takes over.
    """
    inside = {*nodes, root}
    for node in inside:
        if node is root:
            continue
        if node.graph is not root.graph:
            return False
        for tensor in node.outputs:
            if not tensor.name:
                continue
            if is_graph_output(tensor) or len(tensor.outputs) > _MOST_READERS:
                return False
            if any(reader not in inside for reader in tensor.outputs):
                return False
    return True


def only_first_output(node: Node) -> bool:
    """Whether nothing but the first output of a node is read."""
    return not any(tensor.name and (tensor.outputs or is_graph_output(tensor)) for tensor in node.outputs[1:])


def axes_of(node: Node, values: ShapeValues) -> list[int] | None:
    """Return the axes of a reduction that keeps its dimensions: the attribute, the input, or [] for all.

    None where they are not known, the dimensions are dropped, or nothing is reduced.
    """
    if int(node.attrs.get("keepdims", 1)) != 1:
        return None
    return reduced_axes(node, values)


def reduced_axes(node: Node, values: ShapeValues) -> list[int] | None:
    """Return the axes of a reduction, [] for all; None where they are not known or nothing is reduced."""
    if "axes" in node.attrs:
        return [int(axis) for axis in node.attrs["axes"]]
    if len(node.inputs) > 1 and node.inputs[1].name:
        known = values.constant(node.inputs[1])
        if known is None or (not known and int(node.attrs.get("noop_with_empty_axes", 0))):
            return None
        return list(known)
    return None if int(node.attrs.get("noop_with_empty_axes", 0)) else []


def suffix_length(axes: Iterable[int], rank: int) -> int | None:
    """Return how many last axes these are, None where they are others; no axes stand for all.

    Args:
        axes: Axes, negative ones counted from the end.
        rank: Number of axes of the tensor.
    """
    found = sorted({axis % rank for axis in axes}) if rank else []
    if not found:
        return rank or None
    return len(found) if found == list(range(rank - len(found), rank)) else None


def same_shape(types: Types, first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are proved to have the same shape."""
    shape = types.shape(first)
    return shape is not None and shape == types.shape(second)


def replacement(
    root: Node,
    nodes: Iterable[Node],
    op: str,
    inputs: Iterable[Tensor | Array | None],
    attrs: Mapping[str, Any] | None = None,
    *,
    reason: str,
) -> Patch:
    """Return the patch that puts one node in the place of several.

    Args:
        root: The node whose first output the new node gives.
        nodes: All nodes that go, the root among them or not.
        op: Operator type of the new node.
        inputs: What it reads; arrays become constants.
        attrs: Its attributes.
        reason: What the patch does, for people.
    """
    gone = [*dict.fromkeys((*nodes, root))]
    operands = list(inputs)

    def apply(rewriter: Rewriter) -> None:
        output = root.outputs[0]
        made = [rewriter.constant(each, near=root) if isinstance(each, np.ndarray) else each for each in operands]
        new = rewriter.op(op, made, attrs=dict(attrs or {}), like=output, near=root, origin=gone)
        rewriter.replace_tensor(output, new)
        rewriter.erase(gone)

    return Patch(reason, tuple(gone), apply)
