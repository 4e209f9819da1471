"""Remove nodes that give out what they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Constant, Model, Node, Tensor, producer
from graphopt.passes.simplify.look import BOOL, INTEGERS, Look
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, refers_to_function
from graphopt.passes.simplify.removal import bypass
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.rewrite.patch import Patch, Skip

Array = np.ndarray[Any, Any]

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_LONGEST_VIEW_CHAIN = 4
_INTEGERS_AND_BOOL = (*INTEGERS, BOOL)
_WIDE_INTEGERS = (7, 13)


@dataclass(frozen=True, slots=True, kw_only=True)
class EliminateIdentity(RulePass):
    """Remove nodes whose output is, bit for bit, one of their inputs.

    Matches:   Identity; Dropout in inference mode; Cast to the type the input has; Reshape, Flatten, Squeeze, Unsqueeze
               (also chains of up to four that return to an earlier shape), Expand, Tile, Slice, Pad, Transpose, Gather,
               Resize, DepthToSpace and SpaceToDepth that change nothing; Transpose that undoes a Transpose; Concat,
               Max, Min, Sum, Mean of one input, Concat of one input that is not empty; Max and Min of one tensor with
               itself; Split into one output; x + 0 and x - 0 where exact, x * 1, x / 1, x ** 1, and the same for
               logical and bitwise operators and shifts; LeakyRelu and PRelu with slope 1; Clip of integers without
               bounds; Einsum that renames nothing; Where of integers with one value to choose.
    Produces:  The readers of the output read the input. Saves the node and the bytes that it copies.
    Requires:  The shapes are proved equal, symbolic sizes included. For floats x + 0 counts only with a zero of
               negative sign, since 0 added to -0 gives +0. An output of a graph keeps its name: its producer
               takes it over, and where the input is itself an input, a constant or an output of a graph, the node
               stays.
    Preserves: Every output bitwise (the payload of a NaN aside); public names, types and shapes.
    Source:    IEEE 754-2019, sections 6.3 (signs of zeros) and 6.2 (NaN).
    """

    name: ClassVar[str] = "eliminate-identity"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return one rule per kind of operator: those that look further up are few."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Patch | Skip | None:
            if refers_to_function(node):
                return None
            source = _RULES[node.op](Look(node, types, values))
            return None if source is None or not node.outputs[0].name else bypass(node, source)

        far = {**dict.fromkeys(_VIEWS, _LONGEST_VIEW_CHAIN), "Transpose": 2}
        near = tuple(op for op in _RULES if op not in far)
        return [Rule(near, rewrite), *(Rule((op,), rewrite, depth) for op, depth in far.items())]


# --------------------------------------------------------------------------------------------------------------- rules


def _identity(look: Look) -> Tensor | None:
    return look.first()


def _dropout(look: Look) -> Tensor | None:
    if look.opset >= 12:
        training = look.input(2)
        if training is None:
            return look.first()
        value = look.constant(2)
        return look.first() if value is not None and not value.any() else None
    if look.opset >= 7:
        return look.first()
    return look.first() if int(look.attr("is_test", 0)) == 1 else None


def _cast(look: Look) -> Tensor | None:
    source = look.first()
    return source if source is not None and look.same_type(source) else None


def _view(look: Look) -> Tensor | None:
    """Return the nearest tensor of the same shape that only views lie between: they never move an element."""
    source = look.first()
    for _ in range(_LONGEST_VIEW_CHAIN):
        if source is None:
            return None
        if look.same_shape(source):
            return source
        before = producer(source)
        if before is None or before.op not in _VIEWS or before.domain not in DEFAULT_DOMAINS:
            return None
        source = before.inputs[0]
    return None


def _broadcast(look: Look) -> Tensor | None:
    source = look.first()
    return source if source is not None and look.same_shape(source) else None


def _tile(look: Look) -> Tensor | None:
    repeats = look.ints(1, "repeats") if look.opset >= 6 else None
    return look.first() if repeats is not None and all(count == 1 for count in repeats) else None


def _slice(look: Look) -> Tensor | None:
    """A slice of every element: forward steps, and as many elements as there were."""
    source = look.first()
    if source is None or not look.same_shape(source):
        return None
    if look.opset < 10 or look.input(4) is None:
        return source
    steps = look.ints(4, "steps")
    return source if steps is not None and all(step > 0 for step in steps) else None


def _pad(look: Look) -> Tensor | None:
    if look.opset < 2:
        return None
    pads = look.ints(1, "pads")
    return look.first() if pads is not None and not any(pads) else None


def _transpose(look: Look) -> Tensor | None:
    source, perm = look.first(), look.permutation()
    if source is None or perm is None:
        return None
    if _keeps_order(perm, look.shape(source)):
        return source
    before = look.above(0, "Transpose")
    inner = None if before is None else before.permutation()
    if before is None or inner is None or len(inner) != len(perm) or [inner[axis] for axis in perm] != sorted(perm):
        return None
    return before.first()


def _keeps_order(perm: list[int], shape: tuple[Any, ...] | None) -> bool:
    """Whether a permutation moves nothing: at most axes of size 1 change places, among each other."""
    if perm == sorted(perm):
        return True
    return shape is not None and all(
        axis == place or shape[axis] == shape[place] == 1 for place, axis in enumerate(perm)
    )


def _only_input(look: Look) -> Tensor | None:
    return look.first() if len(look.node.inputs) == 1 else None


def _extremum(look: Look) -> Tensor | None:
    """Max or Min of one tensor, or of one tensor with itself."""
    source = look.first()
    return source if all(tensor is source for tensor in look.node.inputs) else None


def _concat(look: Look) -> Tensor | None:
    """A Concat whose other operands are empty: what is left has the shape of the output."""
    inputs = look.node.inputs
    if len(inputs) == 1:
        return look.first()
    full: Tensor | None = None
    for tensor in inputs:
        shape = look.shape(tensor)
        axis = None if shape is None else look.axis("axis", 1, len(shape))
        if shape is not None and axis is not None and shape[axis] == 0:
            continue
        if full is not None:
            return None
        full = tensor
    full = look.first() if full is None else full
    return full if full is not None and look.same_shape(full) else None


def _gather(look: Look) -> Tensor | None:
    """A Gather of every element along its axis, in order."""
    source, indices = look.first(), look.constant(1)
    if source is None or indices is None or indices.ndim != 1 or not look.same_shape(source):
        return None
    shape = look.shape(source)
    axis = None if shape is None else look.axis("axis", 0, len(shape))
    if shape is None or axis is None or shape[axis] != indices.size:
        return None
    return source if np.array_equal(indices, np.arange(indices.size)) else None


def _blocks(look: Look) -> Tensor | None:
    return look.first() if int(look.attr("blocksize", 0)) == 1 else None


def _slope(look: Look) -> Tensor | None:
    if look.node.op == "LeakyRelu":
        return look.first() if float(look.attr("alpha", 0.01)) == 1.0 else None
    source, slope = look.first(), look.constant(1)
    if source is None or slope is None or not look.same_type(source) or look.opset < 7:
        return None
    return source if slope.size > 0 and _is_one(slope) and look.same_shape(source) else None


def _clip(look: Look) -> Tensor | None:
    """A Clip of integers without bounds; one of floats turns infinity into the largest number."""
    source = look.first()
    if source is None or look.input(1) is not None or look.input(2) is not None or look.opset < 12:
        return None
    return source if look.dtype(source) in INTEGERS else None


def _einsum(look: Look) -> Tensor | None:
    """An Einsum of one operand that names its axes in the order in which it gives them out."""
    equation = str(look.attr("equation", "")).replace(" ", "")
    given, arrow, made = equation.partition("->")
    if len(look.node.inputs) != 1 or not given.isalpha() or len(set(given)) != len(given):
        return None
    return look.first() if given == (made if arrow else "".join(sorted(given))) else None


def _split(look: Look) -> Tensor | None:
    return look.first() if len(look.node.outputs) == 1 else None


def _resize(look: Look) -> Tensor | None:
    """A resize to the same size that picks elements, which are then all of them in their order.

    One that interpolates weighs neighbours with 0, which is NaN beside an infinity.
    """
    source = look.first()
    if source is None or not look.same_shape(source) or look.attr("mode", "nearest") != "nearest":
        return None
    sampling = look.attr("coordinate_transformation_mode", "half_pixel")
    if sampling not in {"half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"}:
        return None
    if look.node.op == "Upsample" or look.opset < 11:
        scales = look.attr("scales", None) if "scales" in look.node.attrs else look.constant(1)
    elif look.input(3) is not None:
        return source if look.attr("keep_aspect_ratio_policy", "stretch") == "stretch" else None
    else:
        scales = look.constant(2)
    return source if scales is not None and all(float(scale) == 1.0 for scale in np.ravel(scales)) else None


def _neutral(
    element: Callable[[Array], bool], *, both: bool, number: int | None = None
) -> Callable[[Look], Tensor | None]:
    """Return the rule for a binary operator with a neutral element.

    Args:
        element: Whether an array holds nothing else.
        both: Whether it may stand on either side, not on the right alone.
        number: What the element is equal to, where it is a number.
    """

    def rule(look: Look) -> Tensor | None:
        for index in (1, 0) if both else (1,):
            if not _may_be_constant(look.node.inputs[index]):
                continue
            value, source = look.constant(index), look.input(1 - index)
            if value is None or source is None or value.size == 0:
                continue
            # nearly every constant shows in its first element that it is not neutral
            if number is not None and value.item(0) != number:
                continue
            if not element(value):
                continue
            if look.opset < 7 and int(look.attr("broadcast", 0)) and index == 0:
                continue
            if look.same_type(source) and (value.ndim == 0 or _is_absorbed(value.shape, source, look)):
                return source
        return None

    return rule


def _may_be_constant(tensor: Tensor) -> bool:
    if isinstance(tensor, Constant):
        return True
    before = producer(tensor)
    return before is not None and before.op == "Constant"


def _is_absorbed(shape: tuple[int, ...], source: Tensor, look: Look) -> bool:
    """Whether broadcasting with a constant of this shape leaves the shape of the other operand."""
    target = look.shape(source)
    if target is None or len(shape) > len(target):
        return False
    return all(size in (1, want) for size, want in zip(shape[::-1], target[::-1], strict=False))


def _is_exact_zero(*, negative: bool) -> Callable[[Array], bool]:
    """Return whether adding (``negative``) or subtracting a constant of zeros leaves every number, -0 included."""

    def test(value: Array) -> bool:
        if value.dtype.kind in "iu":
            return not value.any()
        if value.dtype.kind == "c" or value.dtype.kind in "bO":
            return False
        wide = value.astype(np.float64)
        return bool((wide == 0).all() and (np.signbit(wide) == negative).all())

    return test


def _is_one(value: Array) -> bool:
    return value.dtype.kind not in "bOc" and bool((value.astype(np.float64) == 1).all())


_POWER_OF_ONE = _neutral(_is_one, both=False, number=1)


def _power(look: Look) -> Tensor | None:
    """A power with the exponent 1; not of 64 bits, which runtimes compute in double precision."""
    return None if look.dtype(look.output) in _WIDE_INTEGERS else _POWER_OF_ONE(look)


def _where(look: Look) -> Tensor | None:
    """A choice that is always the same; not of floats, which ONNX Runtime chooses by adding 0, so that -0 becomes 0."""
    if len(look.node.inputs) != 3 or look.dtype(look.output) not in _INTEGERS_AND_BOOL:
        return None
    source = look.input(1)
    if source is not look.input(2):
        condition = look.constant(0)
        if condition is None or condition.size == 0 or not (condition.all() or not condition.any()):
            return None
        source = look.input(1 if condition.all() else 2)
    return source if source is not None and look.same_shape(source) else None


_RULES: dict[str, Callable[[Look], Tensor | None]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast,
    **dict.fromkeys(_VIEWS, _view),
    "Expand": _broadcast,
    "Tile": _tile,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "Transpose": _transpose,
    "Concat": _concat,
    **dict.fromkeys(("Max", "Min"), _extremum),
    **dict.fromkeys(("Sum", "Mean"), _only_input),
    "Split": _split,
    "Resize": _resize,
    "Upsample": _resize,
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _blocks),
    **dict.fromkeys(("LeakyRelu", "PRelu"), _slope),
    "Clip": _clip,
    "Einsum": _einsum,
    "Add": _neutral(_is_exact_zero(negative=True), both=True, number=0),
    "Sub": _neutral(_is_exact_zero(negative=False), both=False, number=0),
    "Mul": _neutral(_is_one, both=True, number=1),
    "Div": _neutral(_is_one, both=False, number=1),
    "Pow": _power,
    "And": _neutral(lambda value: bool(value.all()), both=True),
    "Or": _neutral(lambda value: not value.any(), both=True),
    "Xor": _neutral(lambda value: not value.any(), both=True),
    "BitwiseAnd": _neutral(lambda value: bool((~value == 0).all()), both=True),
    **dict.fromkeys(("BitwiseOr", "BitwiseXor"), _neutral(lambda value: not value.any(), both=True)),
    "BitShift": _neutral(lambda value: not value.any(), both=False),
    "Where": _where,
}
