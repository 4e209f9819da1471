"""What follows a matrix product and goes into the kernel that replaces it: a bias, a residual, an activation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, Tensor, Variable, constant_value, is_graph_output, producer, uses
from graphopt.passes.lower.curves import match_curve

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from numpy.typing import NDArray

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter

_STANDARD = (None, "", "ai.onnx")
_CONTRIBUTED = "com.microsoft"
_QUICK = 1.702  # what QuickGelu multiplies x with by default
_BROADCASTS_LIKE_NUMPY = 7  # before this opset an attribute says along which axis an operand lies


@dataclass(frozen=True, slots=True)
class Following:
    """act(y + bias + residual) as it stands in the graph behind y.

    Attributes:
        output: What holds the result.
        nodes: The nodes that compute it, in order.
        bias: float32 of shape [N], or None.
        added: The Add of a residual and the place of that among its inputs, or None.
        attrs: The kernel's attributes that name the activation.
    """

    output: Variable
    nodes: tuple[Node, ...] = ()
    bias: NDArray[np.float32] | None = None
    added: tuple[Node, int] | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def residual(self) -> Tensor | None:
        """The tensor that is added, as the graph stands now."""
        if self.added is None:
            return None
        node, place = self.added
        tensor: Tensor = node.inputs[place]
        return tensor


def read_epilogue(
    y: Variable,
    n: int | None,
    types: Types,
    *,
    bias: NDArray[np.float32] | None = None,
    taken: Container[Node] = (),
    rounded: bool = False,
) -> Following:
    """Return what follows a product, each step the only reader of the one before.

    Args:
        y: The product, float32.
        n: Its last dimension, along which a bias lies; None where no bias is taken.
        types: Shapes.
        bias: What was added to the product already.
        taken: Nodes that go with another product.
        rounded: Whether an activation is found where values are rounded to bytes within it.
    """
    nodes: list[Node] = []
    added: tuple[Node, int] | None = None
    while (add := _only_reader(y)) is not None and _is(add, "Add") and added is None and add not in taken:
        place = 1 if add.inputs[0] is y else 0
        other = add.inputs[place]
        assert add.graph is not None
        if add.graph.opset < _BROADCASTS_LIKE_NUMPY or other is y:
            break
        vector = None if n is None or bias is not None else as_bias(other, n, rank=types.rank(y))
        if vector is not None:
            bias = vector
        elif _is_alike(other, y, types):
            added = (add, place)
        else:
            break
        nodes.append(add)
        y = add.outputs[0]
    steps, attrs = _activation(y, rounded=rounded)
    if any(step in taken for step in steps):
        steps, attrs = (), {}
    output = steps[-1].outputs[0] if steps else y
    return Following(output, (*nodes, *steps), bias, added, attrs)


def as_bias(tensor: Tensor, n: int, *, rank: int | None) -> NDArray[np.float32] | None:
    """Return the [N] vector that a constant adds to a result of at least this rank; None if it adds anything else.

    Args:
        tensor: The operand.
        n: Last dimension of the result.
        rank: Of the result; None where unknown, which is 1 at least.
    """
    value: NDArray[Any] | None = constant_value(tensor)
    if value is None or value.dtype != np.float32 or value.ndim > (1 if rank is None else rank):
        return None
    if value.size != (value.shape[-1] if value.ndim else 1) or value.size not in {1, n}:
        return None
    return np.ascontiguousarray(np.broadcast_to(value.reshape(-1), (n,)))


def added_inputs(
    rewriter: Rewriter,
    bias: Tensor | NDArray[np.float32] | None,
    residual: Tensor | None,
    n: int,
    *,
    label: str,
    near: Node,
) -> list[Tensor]:
    """Return the last inputs of a kernel: bias and residual, as far as there are any.

    Args:
        rewriter: The rewriter of the patch.
        bias: What has one number per output.
        residual: What has the shape of the result.
        n: Outputs.
        label: What a new constant is named after.
        near: A node of the graph.
    """
    if bias is None and residual is None:
        return []
    # An input left out before another one crashes ONNX Runtime before 1.23.
    given = np.zeros(n, np.float32) if bias is None else bias
    if not isinstance(given, Constant | Variable):
        given = rewriter.constant(given, name=f"{label}_bias", near=near)
    return [given] if residual is None else [given, residual]


def _only_reader(y: Tensor) -> Node | None:
    readers = uses(y)
    if is_graph_output(y) or len(readers) != 1:
        return None
    reader: Node = readers[0].node
    made = producer(y)
    return reader if made is not None and reader.graph is made.graph else None


def _is(node: Node | None, op: str) -> bool:
    return node is not None and node.op == op and node.domain in _STANDARD


def _is_alike(other: Tensor, y: Tensor, types: Types) -> bool:
    shape = types.shape(y)
    known = shape is not None and all(dim is not None for dim in shape)
    return known and types.shape(other) == shape and constant_value(other) is None and not other.is_empty()


def _activation(y: Tensor, *, rounded: bool) -> tuple[tuple[Node, ...], dict[str, Any]]:
    node = _only_reader(y)
    name = None if node is None else _named(node)
    if node is not None and name is not None:
        return (node,), {"activation": name}
    if node is not None and _is(node, "Clip"):
        return _clip(node)
    spelled = match_curve(y, rounded=rounded)
    return ((), {}) if spelled is None else (spelled[0], {"activation": spelled[1]})


def _named(node: Node) -> str | None:
    """The activation that an operator is, as the kernels name it."""
    ours, contributed = node.domain in _STANDARD, node.domain == _CONTRIBUTED
    match node.op:
        case "Relu" if ours:
            return "relu"
        case "Swish" if ours and node.attrs.get("alpha", 1.0) == 1.0:
            return "silu"
        case "QuickGelu" if contributed and node.attrs.get("alpha", _QUICK) == 1.0:
            return "silu"
        case "Gelu" if ours or contributed:
            return "gelu_tanh" if node.attrs.get("approximate", "none") == "tanh" else "gelu"
        case "FastGelu" if contributed and len(node.inputs) == 1:
            return "gelu_tanh"
        case _:
            return None


def _clip(node: Node) -> tuple[tuple[Node, ...], dict[str, Any]]:
    bounds = [node.attrs.get("min"), node.attrs.get("max")]
    for place, tensor in enumerate(node.inputs[1:3]):
        if tensor.name:
            value = constant_value(tensor)
            if value is None:
                return (), {}
            bounds[place] = float(value.reshape(-1)[0])
    low = float("-inf") if bounds[0] is None else float(bounds[0])
    high = float("inf") if bounds[1] is None else float(bounds[1])
    if not low <= high:  # Clip gives the upper bound then, and NaN for NaN
        return (), {}
    if (low, high) == (0.0, 6.0):
        return (node,), {"activation": "relu6"}
    return (node,), {"activation": "clip", "low": low, "high": high}
