"""Operators that treat every channel alike: what they join goes or stays together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.analysis.channel_groups.flow import given, label
from graphopt.analysis.channel_groups.units import RESIDUAL

if TYPE_CHECKING:
    from graphopt.analysis.channel_groups.flow import Flow, Rule
    from graphopt.analysis.channel_groups.units import Labels
    from graphopt.graph import Node

_ONE = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Dropout Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid "
    "Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_MANY = (
    "Add Sub Mul Div Pow Mod And Or Xor BitwiseAnd BitwiseOr BitwiseXor Equal Greater GreaterOrEqual Less LessOrEqual "
    "Max Mean Min Sum Where PRelu Clip"
)
_JOINING = {"Add", "Sub", "Sum", "Mean"}


def rules() -> dict[str, Rule]:
    """Return the rules of this module by operator."""
    return {**dict.fromkeys(_ONE.split(), unary), **dict.fromkeys(_MANY.split(), broadcast)}


def unary(flow: Flow, node: Node) -> None:
    """Give every output what the first input has."""
    axes = flow.of(node.inputs[0])
    for tensor in node.outputs:
        if tensor.name:
            flow.give(tensor, dict(axes))
    sizes = flow.sizes.get(node.inputs[0])
    if sizes is not None:
        if node.op in {"Identity", "Cast"}:
            flow.sizes[node.outputs[0]] = sizes
        else:
            flow.freeze(node.inputs[0], f"its size is computed with by {label(node)}")


def broadcast(flow: Flow, node: Node) -> None:
    """Tie the inputs axis by axis, as they are broadcast; constants are cut."""
    inputs = [index for index in range(len(node.inputs)) if given(node, index)]
    for index in inputs:
        if node.inputs[index] in flow.sizes:
            flow.freeze(node.inputs[index], f"its size is computed with by {label(node)}")
    if not any(flow.of(node.inputs[index]) for index in inputs):
        return
    ranks = {index: flow.rank(node.inputs[index]) for index in inputs}
    known = [rank for rank in ranks.values() if rank is not None]
    if len(known) != len(inputs) or node.attrs.get("broadcast"):
        flow.stop(node)
        return
    rank = max(known)
    axes = {}
    for axis in range(rank):
        own_axes = [(index, axis - rank + own) for index, own in ranks.items() if own is not None]
        here = [(index, own) for index, own in own_axes if own >= 0]
        joined = tie(flow, node, here)
        if joined is not None:
            axes[axis] = joined
    flow.give(node.outputs[0], axes)


def tie(flow: Flow, node: Node, places: list[tuple[int, int]], *, mark: int | None = None) -> Labels | None:
    """Tie what stands along one axis of several inputs.

    Args:
        flow: The labels so far.
        node: The node that joins the inputs.
        places: (input, axis) of all that reach the axis; those of size one are broadcast and tie nothing.
        mark: Set on channels of two computed inputs that are tied here; by default that of additions.

    Returns:
        The labels along the axis of the result, None where it has none.
    """
    mark = (RESIDUAL if node.op in _JOINING else 0) if mark is None else mark
    joined: Labels | None = None
    for index, axis in places:
        labels = flow.of(node.inputs[index]).get(axis)
        if labels is None:
            continue
        joined = labels if joined is None else flow.units.tie(joined, labels, mark=mark)
    if joined is None:
        return None
    for index, axis in places:
        tensor = node.inputs[index]
        if axis not in flow.of(tensor) and flow.size(tensor, axis) != 1:
            flow.carry(node, index, axis, joined)
    return joined
