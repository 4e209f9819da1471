"""Fold BatchNormalization into the weights of the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.row_scale import RowScale
from graphopt.analysis.types import Types
from graphopt.graph import Constant, Model, Node, Tensor, Variable, constant_value, is_graph_output, producer
from graphopt.passes.simplify.purity import is_constant, is_op, refers_to_function
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Generator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Rewriter

Array = np.ndarray[Any, Any]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseBatchNorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before it.

    Matches:   BatchNormalization in inference mode with constant parameters, behind Conv, ConvTranspose, Gemm or
               MatMul with constant weight (grouped and depthwise too), or behind such a layer and an Add of a
               constant.
    Produces:  The layer with W' = W g per output channel and b' = (b - mean) g + beta, where g = gamma /
               sqrt(var + eps); a MatMul gets an Add of b'. A weight that others read too is copied. Computed in
               float64, rounded once.
    Requires:  The layer's output is read by the BatchNormalization alone and is no graph output; MatMul has a matrix as
               its output, whose columns are the channels; all new values are finite in the type of the weight.
    Preserves: Names, types and shapes of all outputs; values up to rounding. The factor g is recorded as RowScale.
    Source:    Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """

    name: ClassVar[str] = "fuse-batch-norm"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (RowScale,)

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per folded BatchNormalization, in topological order."""
        scales = facts.get(RowScale)
        types: Types | None = None
        folded: list[_Fold] = []
        try:
            for _, node in list(model.walk()):
                if not is_op(node, "BatchNormalization"):
                    continue
                types = types or facts.get(Types)  # many models have no normalization: they pay for no analysis
                found = _match(node, types)
                if isinstance(found, str):
                    yield Skip(node, found)
                    continue
                where = f"{found.layer.op} '{node_label(found.layer)}'"
                yield Patch(f"fold '{node_label(node)}' into {where}", found.nodes, found.apply)
                folded.append(found)
        finally:  # also where the manager stops in between: what was folded so far stays known
            for fold in folded:
                if fold.weight_name and fold.axis is not None:
                    scales = scales.with_scale(fold.weight_name, fold.factor, axis=fold.axis)
            facts.record(scales)


@dataclass(slots=True)
class _Fold:
    """A BatchNormalization that can be folded.

    Attributes:
        norm: The BatchNormalization.
        layer: The layer it is folded into.
        add: The Add of a constant between them, None where there is none.
        weight: The new weight.
        bias: The new bias.
        factor: gamma / sigma per output channel, shape (channels,).
        axis: The axis of the weight that counts output channels; None where no axis does (grouped ConvTranspose).
        weight_name: The name of the folded weight, once applied.
    """

    norm: Node
    layer: Node
    add: Node | None
    weight: Array
    bias: Array
    factor: Array
    axis: int | None
    weight_name: str = ""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes the fold is made of, in order."""
        return (self.layer, *([self.add] if self.add else ()), self.norm)

    def apply(self, rewriter: Rewriter) -> None:
        """Write the new weight and bias and let the readers of the normalization read the layer."""
        self._set_weight(rewriter)
        source, output = self._set_bias(rewriter), self.norm.outputs[0]
        if isinstance(source, Variable):
            rewriter.set_type(source, output.dtype, output.shape)
        rewriter.replace_tensor(output, source)
        rewriter.erase(self.norm)

    def _set_weight(self, rewriter: Rewriter) -> None:
        before = self.layer.inputs[1]
        if isinstance(before, Constant) and len(before.outputs) == 1 and not is_graph_output(before):
            rewriter.set_weight(before, self.weight)
            self.weight_name = before.name
            return
        made = rewriter.constant(self.weight, name=f"{before.name}__folded", near=self.layer)
        rewriter.set_input(self.layer, 1, made)
        self.weight_name = made.name

    def _set_bias(self, rewriter: Rewriter) -> Tensor:
        """Put the bias where the layer has one; return the tensor that now holds what the normalization gave."""
        bias = rewriter.constant(self.bias, name=f"{self.layer.outputs[0].name}__bias", near=self.layer)
        output: Tensor = self.layer.outputs[0]
        if self.add is not None:
            rewriter.set_input(self.add, 0 if is_constant(self.add.inputs[0]) else 1, bias)
            output = self.add.outputs[0]
        elif self.layer.op == "MatMul":
            added = rewriter.op("Add", [output, bias], like=self.norm.outputs[0], near=self.norm, origin=[self.norm])
            assert isinstance(added, Variable)
            output = added
        else:
            rewriter.set_input(self.layer, 2, bias)
            if self.layer.op == "Gemm":
                rewriter.set_attr(self.layer, "beta", None)
        return output


def _match(norm: Node, types: Types) -> _Fold | str:
    """Return the fold, or the reason why there is none."""
    reason = _why_training(norm)
    if reason:
        return reason
    if len(norm.inputs) < 5:
        return f"it has {len(norm.inputs)} inputs, not 5"
    parameters = [constant_value(tensor) if is_constant(tensor) else None for tensor in norm.inputs[1:5]]
    if any(value is None for value in parameters):
        names = [t.name for t, value in zip(norm.inputs[1:5], parameters, strict=True) if value is None]
        return f"its parameters {', '.join(names)} are not constant"
    gamma, beta, mean, variance = (np.asarray(value, dtype=np.float64) for value in parameters)
    if gamma.ndim != 1 or not gamma.shape == beta.shape == mean.shape == variance.shape:
        return "its parameters are not vectors of one length"
    source = norm.inputs[0]
    add, layer = None, _only_reader_of(source, norm)
    if isinstance(layer, str):
        return layer
    if is_op(layer, "Add"):
        inner = _added_layer(layer)
        if inner is None:
            return f"its input comes from {layer.op}, not from a layer with weights"
        add, layer = layer, inner
    if not is_op(layer, *_LAYERS):
        return f"its input comes from {layer.op}, not from a layer with weights"
    spread = variance + float(np.float32(norm.attrs.get("epsilon", 1e-5)))  # an attribute is a float32
    if not (spread > 0).all():
        return "its variance plus epsilon is not positive in every channel"
    factor = gamma / np.sqrt(spread)
    return _folded(norm, layer, add, factor, beta - mean * factor, types)


def _why_training(norm: Node) -> str:
    graph = norm.graph
    assert graph is not None
    read = [t.name for t in norm.outputs[1:] if t.name and (t.outputs or is_graph_output(t))]
    if read:
        return f"its statistics {', '.join(read)} are read"
    if refers_to_function(norm):
        return "an attribute is given by the call of the function"
    if graph.opset >= 14:
        return "it is in training mode" if int(norm.attrs.get("training_mode", 0)) else ""
    if any(tensor.name for tensor in norm.outputs[1:]):
        return "it has the outputs of training mode"
    if graph.opset < 7 and not int(norm.attrs.get("is_test", 0)):
        return "it is in training mode"
    if not int(norm.attrs.get("spatial", 1)):
        return "it normalizes each element (spatial is 0)"
    return ""


def _only_reader_of(tensor: Tensor, reader: Node) -> Node | str:
    """Return the producer of a tensor that only one node of the same graph reads, else the reason."""
    node = producer(tensor)
    if node is None:
        return f"its input '{tensor.name}' is computed by no layer"
    if node.graph is not reader.graph:
        return f"its input '{tensor.name}' comes from the graph around it"
    if is_graph_output(tensor) or len(tensor.outputs) != 1:
        others = "an output of the graph" if is_graph_output(tensor) else f"read {len(tensor.outputs)} times"
        return f"the output '{tensor.name}' of the layer before it is {others}"
    return node


def _added_layer(add: Node) -> Node | None:
    """Return the layer to which an Add adds a constant."""
    if len(add.inputs) != 2:
        return None
    for index in (0, 1):
        if is_constant(add.inputs[1 - index]) and not is_constant(add.inputs[index]):
            layer = _only_reader_of(add.inputs[index], add)
            return layer if isinstance(layer, Node) and is_op(layer, *_LAYERS) else None
    return None


def _folded(norm: Node, layer: Node, add: Node | None, factor: Array, shift: Array, types: Types) -> _Fold | str:
    """Return the fold with its new values, or the reason why they cannot be made."""
    label = f"{layer.op} '{node_label(layer)}'"
    if refers_to_function(layer):
        return f"an attribute of {label} is given by the call of the function"
    if len(layer.inputs) < 2:
        return f"{label} has no weight"
    weight = constant_value(layer.inputs[1]) if is_constant(layer.inputs[1]) else None
    if weight is None:
        return f"the weight '{layer.inputs[1].name}' of {label} is not constant"
    if weight.dtype.name not in {"float32", "float16", "float64", "bfloat16"}:
        return f"the weight '{layer.inputs[1].name}' of {label} has the type {weight.dtype}"
    scaled = _scaled(layer, weight, factor, types)
    if isinstance(scaled, str):
        return scaled
    new_weight, axis = scaled
    bias = _bias(layer, add, factor, shift, types)
    if isinstance(bias, str):
        return bias
    with np.errstate(over="ignore", invalid="ignore"):
        rounded, rounded_bias = new_weight.astype(weight.dtype), bias.astype(weight.dtype)
    if not (np.isfinite(rounded.astype(np.float64)).all() and np.isfinite(rounded_bias.astype(np.float64)).all()):
        return f"the folded weights of {label} are not finite in {weight.dtype}"
    return _Fold(norm, layer, add, rounded, rounded_bias, factor, axis)


def _scaled(layer: Node, weight: Array, factor: Array, types: Types) -> tuple[Array, int | None] | str:
    """Return the weight times the factor per output channel, and the axis that counts these."""
    wide = weight.astype(np.float64)
    channels = factor.size
    if layer.op == "ConvTranspose":  # (in, out / groups, ...): the channels of one group follow each other
        groups = int(layer.attrs.get("group", 1))
        if weight.shape[1] * groups != channels or weight.shape[0] % groups:
            return f"the weight has shape {list(weight.shape)} in {groups} groups, not {channels} output channels"
        grouped = wide.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        per_channel = factor.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        return (grouped * per_channel).reshape(weight.shape), 1 if groups == 1 else None
    if layer.op == "MatMul" and (weight.ndim != 2 or types.rank(layer.outputs[0]) != 2):
        return "the output of the MatMul is not known to be a matrix, so its columns are not the channels"
    rows_are_channels = layer.op == "Conv" or (layer.op == "Gemm" and bool(int(layer.attrs.get("transB", 0))))
    axis = 0 if rows_are_channels else 1
    if weight.ndim < 2 or weight.shape[axis] != channels:
        return f"the weight has shape {list(weight.shape)}, not {channels} output channels"
    return wide * factor.reshape([-1 if place == axis else 1 for place in range(weight.ndim)]), axis


def _bias(layer: Node, add: Node | None, factor: Array, shift: Array, types: Types) -> Array | str:
    """Return bias times factor plus shift: of the Add in its shape, else as the layer wants it."""
    own: Array | None = None
    if layer.op != "MatMul" and len(layer.inputs) > 2 and layer.inputs[2].name:
        own = constant_value(layer.inputs[2]) if is_constant(layer.inputs[2]) else None
        if own is None:
            return f"the bias '{layer.inputs[2].name}' of the layer is not constant"
        own = own.astype(np.float64) * (float(layer.attrs.get("beta", 1.0)) if layer.op == "Gemm" else 1.0)
    if add is None:
        return shift if own is None else own * factor + shift
    if own is not None:
        return f"the layer has a bias and an Add '{node_label(add)}' behind it"
    given = constant_value(add.inputs[0] if is_constant(add.inputs[0]) else add.inputs[1])
    rank = types.rank(layer.outputs[0])
    assert given is not None
    if rank is None or given.ndim > rank or types.shape(add.outputs[0]) != types.shape(layer.outputs[0]):
        return f"the Add '{node_label(add)}' changes the shape"
    per_channel = [-1 if axis == 1 else 1 for axis in range(rank)]
    shape = (1,) * (rank - given.ndim) + given.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return f"the Add '{node_label(add)}' differs within a channel"
    new = given.astype(np.float64).reshape(shape) * factor.reshape(per_channel) + shift.reshape(per_channel)
    return new if rank > 2 else new.reshape(-1)
