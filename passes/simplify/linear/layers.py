"""Layers with constant weights, and what scaling or shifting their input or output makes of the weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import constant_value
from graphopt.passes.simplify.linear.affine import Frame, is_float, only_reader_of
from graphopt.passes.simplify.purity import is_constant, is_op, refers_to_function
from graphopt.rewrite.patch import node_label

if TYPE_CHECKING:
    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor

Array = np.ndarray[Any, Any]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Layer:
    """A node that is linear in its first input, with a constant weight.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        add: The Add of a constant behind it, which is its bias, or None.
        shape: Shape of the weight.
        output_rank: Number of axes of the output, or fewer: what is certain.
        input_rank: The same of the input.
    """

    node: Node
    add: Node | None
    shape: tuple[int, ...]
    output_rank: int
    input_rank: int

    @property
    def label(self) -> str:
        """How reasons name it."""
        return f"{self.node.op} '{node_label(self.node)}'"

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its nodes, in order."""
        return (self.node,) if self.add is None else (self.node, self.add)

    @property
    def output(self) -> Tensor:
        """What it computes."""
        found: Tensor = (self.add or self.node).outputs[0]
        return found

    @property
    def weight(self) -> Tensor:
        """The constant weight."""
        found: Tensor = self.node.inputs[1]
        return found

    @property
    def groups(self) -> int:
        """Groups of a convolution."""
        return int(self.node.attrs.get("group", 1))

    def _flag(self, name: str) -> bool:
        return bool(int(self.node.attrs.get(name, 0)))

    @property
    def output_axis(self) -> int | None:
        """The axis of the weight that counts output channels; None where no axis does (grouped ConvTranspose)."""
        if self.node.op == "ConvTranspose":
            return 1 if self.groups == 1 else None
        if self.node.op == "Conv" or (self.node.op == "Gemm" and self._flag("transB")):
            return 0
        return len(self.shape) - 1

    @property
    def output_frame(self) -> Frame:
        """Where the channels of the output are."""
        shape = self.shape
        if self.node.op == "ConvTranspose":
            return Frame(len(shape), len(shape) - 2, shape[1] * self.groups)
        if self.node.op == "Conv":
            return Frame(len(shape), len(shape) - 2, shape[0])
        axis = self.output_axis
        assert axis is not None
        return Frame(self.output_rank, 0, shape[axis])

    @property
    def input_frame(self) -> Frame:
        """Where the channels of the input are."""
        shape = self.shape
        if self.node.op == "ConvTranspose":
            return Frame(len(shape), len(shape) - 2, shape[0])
        if self.node.op == "Conv":
            return Frame(len(shape), len(shape) - 2, shape[1] * self.groups)
        if self.node.op == "Gemm":
            return Frame(2, 1 if self._flag("transA") else 0, shape[1] if self._flag("transB") else shape[0])
        return Frame(self.input_rank, 0, shape[-2])

    def output_factor(self, scale: Array) -> Array:
        """Return a scale of the output as an array to multiply the weight by."""
        shape = self.shape
        if scale.ndim == 0:
            return scale
        if self.node.op == "ConvTranspose":  # (in, out / groups, ...): the channels of one group follow each other
            grouped = np.repeat(scale.reshape(self.groups, shape[1]), shape[0] // self.groups, axis=0)
            return grouped.reshape(*shape[:2], *[1] * (len(shape) - 2))
        return scale.reshape([-1 if axis == self.output_axis else 1 for axis in range(len(shape))])

    def input_factor(self, scale: Array) -> Array:
        """Return a scale of the input as an array to multiply the weight by."""
        shape = self.shape
        if scale.ndim == 0:
            return scale
        if self.node.op == "Conv":
            grouped = np.repeat(scale.reshape(self.groups, shape[1]), shape[0] // self.groups, axis=0)
            return grouped.reshape(*shape[:2], *[1] * (len(shape) - 2))
        if self.node.op == "ConvTranspose" or (self.node.op == "Gemm" and not self._flag("transB")):
            return scale.reshape(-1, *[1] * (len(shape) - 1))
        return scale if self.node.op == "Gemm" else scale.reshape(-1, 1)

    def own_bias(self) -> Array | str | None:
        """Return the bias in float64, None where there is none, or the reason why it cannot be told."""
        found: Array | None = None
        if self.node.op != "MatMul" and len(self.node.inputs) > 2 and self.node.inputs[2].name:
            found = constant_value(self.node.inputs[2])
            if found is None:
                return f"the bias '{self.node.inputs[2].name}' of the layer is not constant"
            found = found.astype(np.float64)
            if self.node.op == "Gemm":
                found = found * float(self.node.attrs.get("beta", 1.0))
        if self.add is None:
            return found
        given = constant_value(self.add.inputs[0] if is_constant(self.add.inputs[0]) else self.add.inputs[1])
        assert given is not None
        if self.node.op == "MatMul":
            wide: Array = given.astype(np.float64)
            return wide
        vector = self.output_frame.vector(given)
        if vector is None:
            return f"the Add '{node_label(self.add)}' differs within a channel or changes the shape"
        return vector if found is None else found + vector


def layer_of(node: Node, types: Types) -> Layer | str:
    """Return the layer that a node is, with its bias inside the node, else the reason why it is none."""
    if not is_op(node, *LAYERS):
        return f"its input comes from {node.op}, not from a layer with weights"
    label = f"{node.op} '{node_label(node)}'"
    if refers_to_function(node):
        return f"an attribute of {label} is given by the call of the function"
    if len(node.inputs) < 2:
        return f"{label} has no weight"
    weight = node.inputs[1]
    if node.op == "Gemm" and (node.graph is None or node.graph.opset < 7):
        return f"{label} broadcasts as before opset 7"
    if not is_constant(weight):
        return f"the weight '{weight.name}' of {label} is not constant"
    if is_constant(node.inputs[0]):
        return f"{label} works on constants"
    shape, dtype = weight.shape, weight.dtype
    if shape is None or dtype is None:
        value = constant_value(weight)
        shape, dtype = (None, None) if value is None else (list(value.shape), value.dtype)
    if shape is None or not all(isinstance(size, int) for size in shape) or len(shape) < 2:
        return f"the weight '{weight.name}' of {label} has the shape {shape}"
    if not is_float(np.dtype(dtype)):
        return f"the weight '{weight.name}' of {label} has the type {dtype}"
    if node.op in {"Conv", "ConvTranspose"} and int(shape[0]) % int(node.attrs.get("group", 1)):
        return f"the weight '{weight.name}' of {label} has the shape {shape} in {node.attrs.get('group', 1)} groups"
    sizes = tuple(int(size) for size in shape)
    if node.op != "MatMul":
        return Layer(node, None, sizes, len(sizes), len(sizes))
    output, given = types.rank(node.outputs[0]), types.rank(node.inputs[0])
    return Layer(node, None, sizes, len(sizes) - 1 if output is None else output, 1 if given is None else given)


def layer_before(tensor: Tensor, reader: Node, types: Types) -> Layer | str:
    """Return the layer that computes a tensor for one reader alone, with an Add of a constant behind it.

    Args:
        tensor: What the layer computes.
        reader: The node that reads it.
        types: The types of the model.
    """
    node = only_reader_of(tensor, reader)
    if isinstance(node, str):
        return node
    if not is_op(node, "Add") or (node.graph is not None and node.graph.opset < 7):
        return layer_of(node, types)
    no_layer = "its input comes from Add, not from a layer with weights"
    if len(node.inputs) != 2 or is_constant(node.inputs[0]) == is_constant(node.inputs[1]):
        return no_layer
    position = 1 if is_constant(node.inputs[0]) else 0
    inner = only_reader_of(node.inputs[position], node)
    if isinstance(inner, str) or not is_op(inner, *LAYERS):
        return no_layer
    layer = layer_of(inner, types)
    if isinstance(layer, str):
        return layer
    constant = node.inputs[1 - position]
    if constant.shape is None or len(constant.shape) > layer.output_rank:
        return f"the Add '{node_label(node)}' changes the shape"
    if layer.node.op == "MatMul" and layer.output_frame.may_hold(constant) is False:
        return f"the Add '{node_label(node)}' differs within a channel"
    return dataclasses.replace(layer, add=node)
