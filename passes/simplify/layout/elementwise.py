"""Relayouts of operators that compute every element from those at the same place, and of matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph import producer
from graphopt.passes.simplify.layout.permutations import Perm, is_identity
from graphopt.passes.simplify.layout.relayout import Draft, Relayout, Side, align, broadcast, may_relay, relaid
from graphopt.passes.simplify.purity import is_constant, is_op

if TYPE_CHECKING:
    from graphopt.passes.simplify.layout.relayout import Rule
    from graphopt.passes.simplify.look import Look

_SINCE_BROADCAST = 7  # the opset that brought the present broadcasting
_SINCE_VARIADIC_BROADCAST = 8
_WIDE = 32


def unary(look: Look, _side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """One tensor in, one out; further inputs are scalars."""
    node = look.node
    if any(tensor.name and look.types.rank(tensor) not in {0, 1} for tensor in node.inputs[1:]):
        return None
    return Draft(look).done({0: perm}, perm, outputs=len(node.outputs))


def dropout(look: Look, side: Side, perm: Perm, hint: Perm) -> Relayout | None:
    """Dropout where it drops nothing; its mask is true everywhere."""
    if look.opset >= 12 and look.input(2) is not None:
        training = look.constant(2)
        if training is None or training.any():
            return None
    elif look.opset < 7 and not int(look.attr("is_test", 0)):
        return None
    return unary(look, side, perm, hint)


def operands(look: Look, side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """All inputs are broadcast against each other."""
    if look.opset < _SINCE_BROADCAST:
        return None
    found = broadcast(look, side, perm, range(len(look.node.inputs)))
    if found is None:
        return None
    full, inputs, draft = found
    return draft.done(inputs, full)


def variadic(look: Look, side: Side, perm: Perm, hint: Perm) -> Relayout | None:
    """Operators that take any number of inputs."""
    return None if look.opset < _SINCE_VARIADIC_BROADCAST else operands(look, side, perm, hint)


def quantized(look: Look, side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """QuantizeLinear and DequantizeLinear: one scale for all, or one for each index of an axis; not for blocks."""
    node = look.node
    scale = look.shape(node.inputs[1])
    rank = len(perm)
    if (side.is_output and side.place) or (not side.is_output and side.place) or scale is None or len(scale) > 1:
        return None
    if int(look.attr("block_size", 0)):
        return None
    draft = Draft(look)
    if len(scale) == 1:
        axis = look.axis("axis", 1, rank)
        if look.opset >= 13 and axis is not None and axis < rank:
            draft.axis(perm, axis)
        elif scale[0] != 1:
            return None
    return draft.done({0: perm}, perm)


def matrix_product(look: Look, side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """MatMul: axes of the batch among each other, and the last two of all three by changing the operands' order.

    A constant matrix changes its side only where both sizes of the result are large, since runtimes pack a constant on
    the right in advance and are slow where a result is narrow. Quantized operands stay, as runtimes fuse them.
    """
    node = look.node
    ranks = [look.types.rank(tensor) for tensor in (*node.inputs, node.outputs[0])]
    if len(ranks) != 3 or any(rank is None or rank < 2 for rank in ranks):
        return None
    rank = max(rank for rank in ranks if rank is not None)
    missing = rank - len(perm)
    full = (*range(missing), *(axis + missing for axis in perm))
    if sorted(full[-2:]) != [rank - 2, rank - 1]:
        return None
    swaps = full[-1] == rank - 2
    if swaps and not _may_swap(look):
        return None
    draft = Draft(look)
    inputs: dict[int, Perm] = {}
    for place in (0, 1):
        own = ranks[place]
        shape = look.shape(node.inputs[place])
        assert own is not None
        assert shape is not None
        batch = align(full[:-2], rank - 2, own - 2) if any(size != 1 for size in shape[:-2]) else tuple(range(own - 2))
        if batch is None:
            return None
        last = (own - 1, own - 2) if swaps else (own - 2, own - 1)
        found = (*batch, *last)
        if is_identity(found):
            continue
        if not is_constant(node.inputs[place]):
            inputs[place] = found
        elif may_relay(node.inputs[place], look.types):
            draft.constants[place] = relaid(node.inputs[place], found, shorten=False)
        else:
            return None
    return draft.done(inputs, full, reverse=swaps)


def _may_swap(look: Look) -> bool:
    operands_made = [producer(tensor) for tensor in look.node.inputs]
    if any(is_op(made, "DequantizeLinear") for made in operands_made):
        return False
    if not any(is_constant(tensor) for tensor in look.node.inputs):
        return True
    shape = look.shape(look.output)
    return shape is not None and all(isinstance(size, int) and size >= _WIDE for size in shape[-2:])


def batch_norm(look: Look, _side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """BatchNormalization in inference mode, as long as the channels stay on axis 1."""
    node = look.node
    if look.opset < 9 or len(node.outputs) != 1 or int(look.attr("training_mode", 0)) or perm[1:2] != (1,):
        return None
    return Draft(look).done({0: perm}, perm)


def instance_norm(look: Look, _side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """InstanceNormalization, as long as batch and channels stay on axes 0 and 1."""
    return Draft(look).done({0: perm}, perm) if perm[:2] == (0, 1) else None


def layer_norm(look: Look, side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """Normalization over the last axes, as long as these stay."""
    node = look.node
    axis = look.axis("axis", -1, len(perm))
    if side != Side(side.is_output, 0) or axis is None or any(tensor.name for tensor in node.outputs[1:]):
        return None
    if any(perm[place] != place for place in range(axis, len(perm))):
        return None
    draft = Draft(look)
    draft.attrs["axis"] = axis
    return draft.done({0: perm}, perm)


# fmt: off
EXACT: dict[str, Rule] = {
    **dict.fromkeys((
        "Abs", "BitwiseNot", "Cast", "Ceil", "Clip", "Floor", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Neg", "Not",
        "Relu", "Round", "Sign", "Sqrt", "ThresholdedRelu",
    ), unary),
    **dict.fromkeys((
        "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
        "Less", "LessOrEqual", "Mod", "Mul", "Or", "PRelu", "Sub", "Where", "Xor",
    ), operands),
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), variadic),
    "Dropout": dropout,
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantized),
    "LayerNormalization": layer_norm,
    "RMSNormalization": layer_norm,
}
"""Operators whose results are the same bits in every layout."""

ROUNDING: dict[str, Rule] = {
    **dict.fromkeys((
        "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Gelu",
        "HardSigmoid", "HardSwish", "Log", "Mish", "Reciprocal", "Selu", "Shrink", "Sigmoid", "Sin", "Sinh",
        "Softplus", "Softsign", "Swish", "Tan", "Tanh",
    ), unary),
    "Pow": operands,
    "MatMul": matrix_product,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
}
# fmt: on
"""Operators that runtimes approximate or sum up in an order that depends on the layout."""
