"""Normalizations with constant parameters: in what they multiply and add at the end, they are like layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import constant_value, is_graph_output
from graphopt.passes.simplify.linear.affine import Affine, Frame, is_float
from graphopt.passes.simplify.linear.changes import exchange_names, new_constant, replace
from graphopt.passes.simplify.purity import is_constant, is_op, refers_to_function
from graphopt.rewrite.patch import node_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter, Tensor

Array = np.ndarray[Any, Any]

NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization")


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalization whose scale and bias are constant.

    Attributes:
        node: The node.
        frame: Where its channels are.
        scale: What it multiplies by, one number per channel; float64.
        bias: What it adds then.
        moments: Of a BatchNormalization the mean and the variance plus epsilon; float64.
    """

    node: Node
    frame: Frame
    scale: Array
    bias: Array
    moments: tuple[Array, Array] | None = None

    @property
    def label(self) -> str:
        """How reasons name it."""
        return f"{self.node.op} '{node_label(self.node)}'"

    def followed(self, affine: Affine) -> tuple[Array, Array] | str:
        """Return the scale and bias with which it computes scale * y + shift too, else the reason against them."""
        return self._rounded(self.scale * affine.scale, self.bias * affine.scale + affine.shift)

    def preceded(self, affine: Affine) -> tuple[Array, Array] | str:
        """Return the scale and bias of a BatchNormalization that works on scale * x + shift, else the reason."""
        assert self.moments is not None
        mean, spread = self.moments
        gain = self.scale / np.sqrt(spread)
        return self._rounded(self.scale * affine.scale, self.bias + (mean * (affine.scale - 1) + affine.shift) * gain)

    def _rounded(self, scale: Array, bias: Array) -> tuple[Array, Array] | str:
        given = constant_value(self.node.inputs[1])
        assert given is not None
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            rounded = [value.astype(given.dtype) for value in (scale, bias)]
        if not all(np.isfinite(value.astype(np.float64)).all() for value in rounded):
            return f"the folded parameters of {self.label} are not finite in {given.dtype}"
        if ((scale != 0) & (rounded[0].astype(np.float64) == 0)).any():
            return f"the folded parameters of {self.label} are too small for {given.dtype}"
        return rounded[0], rounded[1]

    def build(
        self, rewriter: Rewriter, values: tuple[Array, Array], data: Tensor, result: Tensor, origin: Sequence[Node]
    ) -> None:
        """Make the normalization with another scale and bias, let it give out ``result``, and erase what did so far."""
        near, old = origin[-1], self.node
        scale = new_constant(rewriter, values[0], f"{old.inputs[1].name}__folded", near)
        bias = new_constant(rewriter, values[1], f"{old.inputs[1].name}__bias", near)
        inputs = [data, scale, bias, *old.inputs[3:]]
        output = rewriter.op(
            str(old.op), inputs, attrs=dict(old.attrs), domain=old.domain, like=result, near=near, origin=origin
        )
        exchange_names(output.inputs[0], old)
        replace(rewriter, result, output)
        rewriter.erase([*origin, *([] if old in origin else [old])])


def norm_of(node: Node, types: Types) -> Norm | str:
    """Return the normalization that a node is, else the reason why it is none that can be changed."""
    if not is_op(node, *NORMS) or len(node.inputs) < 2:
        return f"{node.op} is no normalization"
    if refers_to_function(node):
        return "an attribute is given by the call of the function"
    used = [tensor for tensor in node.outputs[1:] if tensor.name and (tensor.outputs or is_graph_output(tensor))]
    if used:
        return f"its statistics {', '.join(tensor.name for tensor in used)} are read"
    rank = types.rank(node.inputs[0])
    if rank is None:
        return "the rank of its input is not known"
    if node.op == "BatchNormalization":
        reason = why_training(node)
        if reason or len(node.inputs) < 5:
            return reason or f"it has {len(node.inputs)} inputs, not 5"
    given = node.inputs[1 : (5 if node.op == "BatchNormalization" else 3)]
    if any(not tensor.name or not is_constant(tensor) for tensor in given):
        return (
            f"its parameters {', '.join(tensor.name for tensor in given if not is_constant(tensor))} are not constant"
        )
    values = [constant_value(tensor) for tensor in given]
    arrays = [value for value in values if value is not None]
    if len(arrays) < len(values) or arrays[0].ndim != 1 or len({value.shape for value in arrays}) > 1:
        return "its parameters are not vectors of one length"
    if len({value.dtype for value in arrays}) > 1 or not is_float(arrays[0].dtype):
        return "its parameters are not floats of one type"
    wide = [np.asarray(value, dtype=np.float64) for value in arrays[:2]]
    moments: tuple[Array, Array] | None = None
    if node.op == "LayerNormalization":
        axis = int(node.attrs.get("axis", -1))
        if axis not in {-1, rank - 1}:
            return "its parameters span several axes"
        frame = Frame(rank, 0, wide[0].size)
    else:
        if node.op == "BatchNormalization":
            epsilon = float(np.float32(node.attrs.get("epsilon", 1e-5)))  # an attribute is a float32
            moments = arrays[2].astype(np.float64), arrays[3].astype(np.float64) + epsilon
            if not (moments[1] > 0).all():
                return "its variance plus epsilon is not positive in every channel"
        frame = Frame(rank, rank - 2, wide[0].size)
    return Norm(node, frame, wide[0], wide[1] if len(wide) > 1 else np.zeros_like(wide[0]), moments)


def as_affine(norm: Norm) -> Affine:
    """Return what a BatchNormalization does to its input."""
    assert norm.moments is not None
    mean, spread = norm.moments
    factor = norm.scale / np.sqrt(spread)
    return Affine(factor, norm.bias - mean * factor)


def why_training(norm: Node) -> str:
    """Return why a BatchNormalization is more than a scale and a shift; empty where it is in inference mode."""
    graph = norm.graph
    assert graph is not None
    if graph.opset >= 14:
        return "it is in training mode" if int(norm.attrs.get("training_mode", 0)) else ""
    if any(tensor.name for tensor in norm.outputs[1:]):
        return "it has the outputs of training mode"
    if graph.opset < 7 and not int(norm.attrs.get("is_test", 0)):
        return "it is in training mode"
    if not int(norm.attrs.get("spatial", 1)):
        return "it normalizes each element (spatial is 0)"
    return ""
