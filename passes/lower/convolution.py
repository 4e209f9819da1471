"""Convolutions with a constant weight, and what may be folded into the operator that replaces them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.graph import Constant, Function, constant_value, producer
from graphopt.passes.lower.epilogue import Following, read_epilogue

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor, Variable
    from graphopt.passes.lower.rows import RowCounts

STANDARD_DOMAINS = (None, "", "ai.onnx")
_FLOAT32 = 1
_RANKS = {3, 4}


@dataclass(frozen=True, slots=True)
class Convolution:
    """Y = act(conv(X, W) + b + R) as it stands in the graph.

    Attributes:
        node: The Conv.
        pads: As ONNX lists them, whatever auto_pad says.
        positions: Output positions over the batch; None where unknown.
        epilogue: What follows.
    """

    node: Node
    pads: tuple[int, ...]
    positions: int | None
    epilogue: Following

    @property
    def stored_weight(self) -> Tensor:
        """The tensor that holds the weight."""
        weight: Tensor = self.node.inputs[1]
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The tensor that holds the bias, if there is one."""
        bias: Tensor | None = self.node.inputs[2] if len(self.node.inputs) > 2 and self.node.inputs[2].name else None
        return bias

    @property
    def group(self) -> int:
        """Groups of channels."""
        return group_of(self.node)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The node and those folded with it, in order."""
        return (self.node, *self.epilogue.nodes)

    @property
    def output(self) -> Variable:
        """The tensor that holds Y."""
        return self.epilogue.output

    def weight(self) -> NDArray[np.float32]:
        """Return W, shape [M, C / group, kernel...]."""
        value = constant_value(self.stored_weight)
        assert value is not None
        return value

    def attributes(self) -> dict[str, Any]:
        """Return what the kernel needs to know beside the weight."""
        weight = self.weight()
        sizes = {"kernel_shape": list(weight.shape[2:]), "out_channels": int(weight.shape[0])}
        return {**sizes, **window_attributes(self.node, self.pads), **self.epilogue.attrs}


def is_conv(node: Node) -> bool:
    """Return whether the node is a Conv of the standard domain."""
    return node.op == "Conv" and node.domain in STANDARD_DOMAINS


def match_convolution(node: Node, types: Types, counts: RowCounts, taken: Container[Node] = ()) -> Convolution | str:
    """Return the convolution at a node with what follows it, or the reason why it is left alone.

    Args:
        node: A Conv.
        types: Shapes of the activations.
        counts: Counts the output positions.
        taken: Nodes that go with another layer.
    """
    reason = _why_no_weight(node)
    if reason:
        return reason
    weight = node.inputs[1].shape
    assert weight is not None
    pads = explicit_pads(node, [int(size) for size in weight[2:]], types)
    if isinstance(pads, str):
        return pads
    y: Variable = node.outputs[0]
    # To add a constant behind a convolution is its bias's work, not the kernel's.
    return Convolution(node, pads, counts.positions(y), read_epilogue(y, None, types, taken=taken))


def group_of(node: Node) -> int:
    """Return the groups of channels of a Conv."""
    return int(node.attrs.get("group", 1))


def window_attributes(node: Node, pads: Sequence[int]) -> dict[str, Any]:
    """Return the attributes of a Conv's window that are not as they are by default.

    Args:
        node: A Conv.
        pads: As ONNX lists them, whatever auto_pad says.
    """
    found: dict[str, Any] = {}
    for name in ("strides", "dilations"):
        values = [int(value) for value in node.attrs.get(name, ())]
        if any(value != 1 for value in values):
            found[name] = values
    if any(pads):
        found["pads"] = list(pads)
    if group_of(node) != 1:
        found["group"] = group_of(node)
    return found


def why_other_groups(node: Node, shape: Sequence[int]) -> str:
    """Return why the kernels do not take a Conv with a weight of this shape in its groups; nothing if they do."""
    group = group_of(node)
    if group > 1 and shape[1] == 1:
        return "it is depthwise, where few products share an input; it stays dense"
    if group < 1 or shape[0] % group:
        return f"its {shape[0]} output channels are not a multiple of its {group} groups"
    return ""


def explicit_pads(node: Node, kernel: Sequence[int], types: Types) -> tuple[int, ...] | str:
    """Return the pads of a Conv as ONNX lists them, whatever auto_pad says, or why they are not known or not taken.

    Args:
        node: A Conv.
        kernel: The sizes of its window.
        types: Shapes of the activations.
    """
    axes = len(kernel)
    automatic = node.attrs.get("auto_pad", "NOTSET")
    if automatic == "VALID":
        return (0,) * (2 * axes)
    if automatic not in {"SAME_UPPER", "SAME_LOWER"}:
        pads = tuple(int(pad) for pad in node.attrs.get("pads", (0,) * (2 * axes)))
        negative = any(pad < 0 for pad in pads) or len(pads) != 2 * axes
        return "it has pads that the kernel does not take" if negative else pads
    shape = types.shape(node.inputs[0])
    sizes = [size for size in (() if shape is None else shape[2:]) if isinstance(size, int)]
    if len(sizes) != axes:
        return f"its pads follow from sizes that are not known (auto_pad is {automatic})"
    strides = [int(value) for value in node.attrs.get("strides", (1,) * axes)]
    dilations = [int(value) for value in node.attrs.get("dilations", (1,) * axes)]
    before, after = [], []
    for size, extent, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (extent - 1) * dilation + 1
        missing = max(0, (-(-size // stride) - 1) * stride + reach - size)
        less = missing // 2
        first = less if automatic == "SAME_UPPER" else missing - less
        before.append(first)
        after.append(missing - first)
    return (*before, *after)


def _why_no_weight(node: Node) -> str:
    if isinstance(node.graph, Function):
        return "it is in the body of a function, which has no initializers; inline the function first"
    if len(node.inputs) < 2 or not node.inputs[0].name:
        return "it has no second input"
    weight = node.inputs[1]
    if constant_value(weight) is None:
        made = producer(weight)
        if isinstance(weight, Constant):
            return f"its weight '{weight.name}' is an input of the graph as well, so that a caller may replace it"
        source = f"computed by {made.op} '{made.name}'" if made is not None else "fed from outside"
        return f"its second input '{weight.name}' is not constant but {source}"
    if weight.shape is None or len(weight.shape) not in _RANKS or 0 in weight.shape:
        return f"its weight has the shape {weight.shape}; the kernel has one and two spatial axes"
    if weight.onnx_dtype != _FLOAT32:
        return f"its weight is {weight.dtype}; the kernel has float32 only"
    return why_other_groups(node, weight.shape)
