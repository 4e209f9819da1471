"""New weights for layers: what a scale or a shift around a layer makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, Variable, constant_value, is_graph_output
from graphopt.passes.simplify.linear.scaling import pieces, product_of
from graphopt.passes.simplify.purity import is_constant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.graph import Node, Rewriter, Tensor, Weight
    from graphopt.passes.simplify.linear.affine import Affine
    from graphopt.passes.simplify.linear.layers import Layer

Array = np.ndarray[Any, Any]

COPY_BYTES = 4096
"""A weight that others read too is copied up to this size: about what the node that goes took in the file."""


@dataclass(frozen=True, slots=True)
class Change:
    """A layer with other weights.

    Attributes:
        layer: The layer as it is.
        weight: The new weight, None where it stays.
        bias: The new bias in the type of the weight, None where there is none.
        names: Receives the name of the weight, once built.
        pool: New constants by what they replace, for layers that share them; None where each has its own.
    """

    layer: Layer
    weight: Array | Weight | None
    bias: Array | None
    names: list[str] = field(default_factory=list)
    pool: dict[tuple[Tensor, bytes], Tensor] | None = None

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

    def _constant(self, rewriter: Rewriter, before: Tensor, value: Array | Weight, near: Node) -> Tensor:
        key = before, value.tobytes() if before is not self.layer.weight and isinstance(value, np.ndarray) else b""
        if self.pool is not None and key in self.pool:
            return self.pool[key]
        made: Tensor = new_constant(rewriter, value, f"{before.name}__folded", near)
        if isinstance(before, Constant) and isinstance(made, Constant) and users(before) == 1:
            made.name, before.name = before.name, made.name
        if self.pool is not None:
            self.pool[key] = made
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


def followed(layer: Layer, affine: Affine, scaled: Array | Weight | None = None) -> Change | str:
    """Return the layer that computes scale * y + shift, else the reason why there is none.

    Args:
        layer: The layer that computes y.
        affine: Scale and shift.
        scaled: The new weight where it is known already; then it does not matter who else reads the old one.
    """
    bias = layer.own_bias()
    if isinstance(bias, str):
        return bias
    new_bias: Array | None = None
    if bias is not None or affine.shifts:
        new_bias = np.asarray((0.0 if bias is None else bias) * affine.scale + affine.shift)
    return _changed(layer, layer.output_factor(np.asarray(affine.scale)), new_bias, affine.scales, scaled)


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


def _changed(
    layer: Layer, factor: Array, bias: Array | None, scales: bool, scaled: Array | Weight | None = None
) -> Change | str:
    weight = constant_value(layer.weight)
    if weight is None:
        return f"the weight '{layer.weight.name}' of {layer.label} is not constant"
    rounded_bias = None
    if bias is not None:
        wanted = layer.output_frame.channels
        if bias.size > wanted:
            return f"the bias of {layer.label} would have {bias.size} elements for {wanted} channels"
        if layer.node.op in {"Conv", "ConvTranspose"} and bias.shape != (wanted,):
            bias = np.broadcast_to(bias, (wanted,))
        with np.errstate(over="ignore", invalid="ignore"):
            rounded_bias = bias.astype(weight.dtype)
        if not np.isfinite(rounded_bias.astype(np.float64, copy=False)).all():
            return f"the folded weights of {layer.label} are not finite in {weight.dtype}"
    if not scales:
        return Change(layer, None, rounded_bias)
    if scaled is not None:
        return Change(layer, scaled, rounded_bias)
    reason = why_shared(layer)
    if reason:
        return reason
    made = product_of(layer.weight, factor)
    return made if isinstance(made, str) else Change(layer, made, rounded_bias)
