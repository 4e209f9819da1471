"""Where the channels of a tensor get their scale: the layer, the normalization or the factor that writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.passes.quantize.channels.readers import FLOATS, LAYERS, STANDARD, Layer, layer_of

if TYPE_CHECKING:
    from graphopt.graph import Node, Tensor

MOST_STEPS = 12
"""Nodes between where channels are written and where they are read."""

_HOMOGENEOUS = {"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
_CHANGE_SHAPE = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
_UNCHANGED = {"Identity", "Dropout"}
_NORMS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
}
"""Normalizations by the inputs that multiply and shift their channels."""
_LAST_AXIS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
_FUSED_DOMAINS = {*STANDARD, "com.microsoft"}


@dataclass(frozen=True, slots=True)
class Writer:
    """Where channels can be divided by a scale each, exactly but for rounding.

    Attributes:
        node: Where the scale comes from.
        layer: The node as a layer, or None for a normalization or a factor.
        constants: Inputs that are divided: node and index, the weight of a layer not among them.
        path: The nodes between, that behind the writer first.
        plain: Nothing on the path but copies and sums with constants: any shift passes it too, not only a scale.
    """

    node: Node
    layer: Layer | None
    constants: tuple[tuple[Node, int], ...]
    path: tuple[Node, ...]
    plain: bool


@dataclass(slots=True)
class _Climb:
    """The way up from a tensor: what was passed so far."""

    channels: int
    spatial: int
    constants: list[tuple[Node, int]] = field(default_factory=list)
    path: list[Node] = field(default_factory=list)
    plain: bool = True


def writer_of(tensor: Tensor, channels: int, spatial: int) -> Writer | str:
    """Return where the channels of a tensor are written, or why no scale can be moved there.

    Args:
        tensor: What layers read; who reads it is not looked at here.
        channels: Number of channels.
        spatial: Axes behind them; -1 where they are the last axis of any rank.
    """
    climb = _Climb(channels, spatial)
    for _ in range(MOST_STEPS):
        node = producer(tensor)
        if node is None:
            return f"'{tensor.name}' is fed from outside" if not climb.path else f"'{tensor.name}' is not computed"
        if node.domain not in _FUSED_DOMAINS or (climb.path and (len(uses(tensor)) > 1 or is_graph_output(tensor))):
            return _blocked(node, tensor)
        found = _step(node, climb)
        if isinstance(found, Writer | str):
            return found
        climb.path.append(node)
        tensor = found
    return "the way to where its channels are written is too long"


def _blocked(node: Node, tensor: Tensor) -> str:
    if is_graph_output(tensor):
        return f"'{tensor.name}' on the way is an output of the graph"
    if len(uses(tensor)) > 1:
        return f"'{tensor.name}' on the way is read by others too"
    return f"{node.domain}::{node.op} '{node.name}' lies between"


def _step(node: Node, climb: _Climb) -> Writer | Tensor | str:
    """Return the writer where the node is one, the tensor to go on from, or why the way ends."""
    before: list[Tensor] = list(node.inputs)
    if node.op in LAYERS:
        return _layer(node, climb)
    if node.op in _NORMS:
        return _norm(node, climb)
    if node.op in _UNCHANGED and not (node.op == "Dropout" and len(node.inputs) > 2 and node.inputs[2].name):
        return before[0]
    if node.op in _HOMOGENEOUS and not (node.op in _CHANGE_SHAPE and climb.spatial < 0):
        climb.plain = False
        return before[0]
    if node.op == "Clip" and _only_cuts_at_zero(node):
        climb.plain = False
        return before[0]
    if node.op == "Clip":
        own = "a bound of its own for each would take a Min, which runtimes do not fuse"
        return f"{node.op} '{node.name}' bounds all channels at the same value; {own}"
    if node.op in {"Add", "Sub", "Mul", "Div"}:
        return _binary(node, climb)
    return f"{node.op} '{node.name}' lies between, and a scale does not pass it"


def _layer(node: Node, climb: _Climb) -> Writer | str:
    layer = layer_of(node)
    if isinstance(layer, str):
        return f"{node.op} '{node.name}' writes it, but {layer}"
    if layer.outputs != climb.channels or (layer.spatial < 0) != (climb.spatial < 0):
        return f"the channels that {node.op} '{node.name}' writes are not those that are read"
    constants = list(climb.constants)
    if len(node.inputs) > 2 and node.inputs[2].name:
        if not _per_channel(node.inputs[2], climb, bias=True):
            return f"the bias of {node.op} '{node.name}' is not constant"
        constants.append((node, 2))
    return Writer(node, layer, tuple(constants), tuple(reversed(climb.path)), climb.plain)


def _norm(node: Node, climb: _Climb) -> Writer | str:
    last = node.op in _LAST_AXIS
    if last != (climb.spatial < 0):
        return f"the channels that {node.op} '{node.name}' writes are not those that are read"
    if any(tensor.name and uses(tensor) for tensor in list(node.outputs)[1:]):
        return f"{node.op} '{node.name}' has more than one output"
    constants = list(climb.constants)
    for index in _NORMS[str(node.op)]:
        if len(node.inputs) <= index or not node.inputs[index].name:
            continue
        if not _per_channel(node.inputs[index], climb, bias=True):
            return f"the scale of {node.op} '{node.name}' is not one constant per channel"
        constants.append((node, index))
    return Writer(node, None, tuple(constants), tuple(reversed(climb.path)), climb.plain)


def _binary(node: Node, climb: _Climb) -> Writer | Tensor | str:
    """Go past a sum with a constant, end at a constant factor, or go on along one side of a product."""
    before: list[Tensor] = list(node.inputs)
    fixed = [index for index, each in enumerate(node.inputs[:2]) if constant_value(each) is not None]
    if node.op in {"Add", "Sub"}:
        if len(fixed) != 1 or not _per_channel(node.inputs[fixed[0]], climb):
            return f"{node.op} '{node.name}' adds what is not constant"
        climb.constants.append((node, fixed[0]))
        return before[1 - fixed[0]]
    if node.op == "Div":
        return before[0] if len(fixed) == 1 and fixed[0] == 1 and _one_number(node.inputs[1]) else _between(node)
    if len(fixed) == 1 and _per_channel(node.inputs[fixed[0]], climb):
        if _one_number(node.inputs[fixed[0]]):
            climb.plain = False
            return before[1 - fixed[0]]
        constants = (*climb.constants, (node, fixed[0]))
        return Writer(node, None, constants, tuple(reversed(climb.path)), climb.plain)
    if fixed:
        return _between(node)
    climb.plain = False
    return _side(node, climb)


def _side(node: Node, climb: _Climb) -> Tensor | str:
    """Return the side of a product of activations that a layer writes: the scale of one side is that of the product."""
    sides: list[Tensor] = list(node.inputs[:2])
    for tensor in sides:
        made = producer(tensor)
        if made is None or len(uses(tensor)) > 1 or is_graph_output(tensor):
            continue
        layer = layer_of(made)
        if not isinstance(layer, str) and layer.outputs == climb.channels:
            return tensor
    return _between(node)


def _only_cuts_at_zero(node: Node) -> bool:
    """Tell whether a Clip has one bound alone, which is zero: that is a Relu, or one mirrored."""
    given = [tensor for tensor in node.inputs[1:3] if tensor.name]
    bounds = [constant_value(tensor) for tensor in given]
    inside = [float(node.attrs[name]) for name in ("min", "max") if name in node.attrs]
    found = [*inside, *(np.nan if bound is None else float(bound.reshape(-1)[0]) for bound in bounds)]
    return found == [0.0]


def _between(node: Node) -> str:
    return f"{node.op} '{node.name}' lies between, and a scale does not pass it"


def _one_number(tensor: Tensor) -> bool:
    value = constant_value(tensor)
    return value is not None and value.size == 1


def _per_channel(tensor: Tensor, climb: _Climb, *, bias: bool = False) -> bool:
    """Tell whether a constant is a float that lies on the channels: one number, or one per channel.

    Args:
        tensor: The constant.
        climb: What the channels are.
        bias: It is [channels] by definition, whatever the axis of the channels.
    """
    value = constant_value(tensor)
    if value is None or value.dtype.name not in FLOATS:
        return False
    if value.size == 1:
        return True
    if bias:
        return value.shape[-1] == climb.channels and value.size == climb.channels
    behind = max(climb.spatial, 0)
    return value.ndim > behind and value.size == climb.channels == value.shape[value.ndim - 1 - behind]
