"""Layers with constant weights, and what scaling or shifting their input or output makes of the weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, Variable, constant_value, is_graph_output
from graphopt.passes.simplify.affine import FLOATS, Affine, Frame, only_reader_of
from graphopt.passes.simplify.purity import is_constant, is_op, refers_to_function
from graphopt.passes.simplify.scaling import pieces, product_of
from graphopt.rewrite.patch import node_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter, Tensor, Weight

Array = np.ndarray[Any, Any]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
COPY_BYTES = 4096
"""A weight that others read too is copied up to this size: about what the node that goes took in the file."""


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
    if np.dtype(dtype).name not in FLOATS:
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


# ----------------------------------------------------------------------------------------------------- new weights


@dataclass(frozen=True, slots=True)
class Change:
    """A layer with other weights.

    Attributes:
        layer: The layer as it is.
        weight: The new weight, None where it stays.
        bias: The new bias in the type of the weight, None where there is none.
    """

    layer: Layer
    weight: Array | Weight | None
    bias: Array | None
    names: list[str] = field(default_factory=list)

    def build(self, rewriter: Rewriter, data: Tensor, result: Tensor, origin: Sequence[Node]) -> None:
        """Make the new layer, let it give out ``result``, and take the old one out.

        Args:
            rewriter: The rewriter of the patch.
            data: The input of the new layer.
            result: The tensor that it computes instead of the nodes that did.
            origin: The nodes that it replaces. They are erased, the layer's own included.
        """
        layer, near = self.layer, origin[-1]
        old = layer.node
        made = layer.weight
        if self.weight is not None:
            made = self._constant(rewriter, layer.weight, self.weight, near)
        inputs: list[Tensor] = [data, made]
        attrs = dict(old.attrs)
        added = self.bias is not None and old.op == "MatMul"
        if self.bias is not None and not added:
            inputs.append(self._bias(rewriter, near))
            attrs.pop("beta", None)
        output = rewriter.op(str(old.op), inputs, attrs=attrs, domain=old.domain, like=result, near=near, origin=origin)
        exchange_names(output.inputs[0], old)
        if added:
            output = rewriter.op("Add", [output, self._bias(rewriter, near)], like=result, near=near, origin=origin)
        replace(rewriter, result, output)
        rewriter.erase([*origin, *(node for node in layer.nodes if node not in origin)])
        self.names.append(made.name)

    def _bias(self, rewriter: Rewriter, near: Node) -> Tensor:
        assert self.bias is not None
        layer = self.layer
        if layer.add is not None:
            before: Tensor = layer.add.inputs[0] if is_constant(layer.add.inputs[0]) else layer.add.inputs[1]
        elif layer.node.op != "MatMul" and len(layer.node.inputs) > 2:
            before = layer.node.inputs[2]
        else:
            made: Tensor = new_constant(rewriter, self.bias, f"{layer.node.outputs[0].name}__bias", near)
            return made
        return self._constant(rewriter, before, self.bias, near)

    @staticmethod
    def _constant(rewriter: Rewriter, before: Tensor, value: Array | Weight, near: Node) -> Tensor:
        made: Tensor = new_constant(rewriter, value, f"{before.name}__folded", near)
        if isinstance(before, Constant) and isinstance(made, Constant) and users(before) == 1:
            made.name, before.name = before.name, made.name
        return made


def new_constant(rewriter: Rewriter, value: Array | Weight, name: str, near: Node) -> Any:
    """Create a constant; see Rewriter.constant."""
    return rewriter.constant(value, name=name, near=near)


def exchange_names(new: Node, old: Node) -> None:
    """Let a node that replaces another have its name."""
    new.name, old.name = old.name, new.name


def replace(rewriter: Rewriter, old: Tensor, new: Variable) -> None:
    """Let a new tensor take the place of one of the same value, and its name."""
    if isinstance(old, Variable) and not is_graph_output(old):
        rewriter.replace_tensor(old, new)
        new.name, old.name = old.name, new.name
    else:
        rewriter.replace_tensor(old, new)


def users(constant: Constant) -> int:
    """Return how often a constant is read, outputs of graphs included."""
    return len(constant.outputs) + len(constant.roles)


def why_shared(layer: Layer) -> str:
    """Return why the weight of a layer may not be replaced: others read it and a copy is large; empty where it may."""
    weight = layer.weight
    if not isinstance(weight, Constant) or users(weight) == 1 or weight.nbytes <= COPY_BYTES:
        return ""
    copied = f"and a copy has {weight.nbytes} bytes"
    return f"the weight '{weight.name}' of {layer.label} is read {users(weight)} times, {copied}"


def followed(layer: Layer, affine: Affine) -> Change | str:
    """Return the layer that computes scale * y + shift, else the reason why there is none."""
    bias = layer.own_bias()
    if isinstance(bias, str):
        return bias
    new_bias: Array | None = None
    if bias is not None or affine.shifts:
        new_bias = np.asarray((0.0 if bias is None else bias) * affine.scale + affine.shift)
    return _changed(layer, layer.output_factor(np.asarray(affine.scale)), new_bias, affine.scales)


def preceded(layer: Layer, affine: Affine) -> Change | str:
    """Return the layer that computes what the layer does of scale * x + shift, else the reason why there is none."""
    bias = layer.own_bias()
    if isinstance(bias, str):
        return bias
    if affine.shifts:
        reason = _why_shift_depends_on_place(layer)
        if reason:
            return reason
        reached = _reached(layer, np.asarray(affine.shift))
        bias = reached if bias is None else bias + reached
    return _changed(layer, layer.input_factor(np.asarray(affine.scale)), bias, affine.scales)


def _why_shift_depends_on_place(layer: Layer) -> str:
    node = layer.node
    if node.op == "ConvTranspose":
        return f"{layer.label} adds up another number of weights at each place, so a constant is none behind it"
    if node.op == "MatMul" and len(layer.shape) > 2:
        return f"the weight of {layer.label} is a batch of matrices"
    if node.op != "Conv":
        return ""
    padding = node.attrs.get("auto_pad", "NOTSET")
    padding = padding.decode() if isinstance(padding, bytes) else str(padding)
    if padding == "VALID" or (padding == "NOTSET" and not any(int(p) for p in node.attrs.get("pads", ()))):
        return ""
    return f"{layer.label} pads with zeros, which the shift before it does not reach"


def _reached(layer: Layer, shift: Array) -> Array:
    """Return what a shift of the input adds to the output, per output channel."""
    weight = constant_value(layer.weight)
    assert weight is not None
    axis = layer.output_axis
    assert axis is not None
    inner = tuple(place for place in range(weight.ndim) if place != axis)
    factor = np.broadcast_to(layer.input_factor(shift), weight.shape)
    total: Array | None = None
    parts = []
    for start, stop in pieces(weight):
        part = (weight[start:stop].astype(np.float64) * factor[start:stop]).sum(axis=inner)
        if axis == 0:
            parts.append(part)
        else:
            total = part if total is None else total + part
    result: Array = np.concatenate(parts) if total is None else total
    return result * (float(layer.node.attrs.get("alpha", 1.0)) if layer.node.op == "Gemm" else 1.0)


def _changed(layer: Layer, factor: Array, bias: Array | None, scales: bool) -> Change | str:
    weight = constant_value(layer.weight)
    if weight is None:
        return f"the weight '{layer.weight.name}' of {layer.label} is not constant"
    rounded_bias = None
    if bias is not None:
        wanted = layer.output_frame.channels
        if bias.size > wanted:
            return f"the bias of {layer.label} would have {bias.size} elements for {wanted} channels"
        if layer.node.op in {"Conv", "ConvTranspose"}:
            bias = np.broadcast_to(bias, (wanted,))
        with np.errstate(over="ignore", invalid="ignore"):
            rounded_bias = bias.astype(weight.dtype)
        if not np.isfinite(rounded_bias.astype(np.float64)).all():
            return f"the folded weights of {layer.label} are not finite in {weight.dtype}"
    if not scales:
        return Change(layer, None, rounded_bias)
    reason = why_shared(layer)
    if reason:
        return reason
    made = product_of(layer.weight, factor)
    return made if isinstance(made, str) else Change(layer, made, rounded_bias)
