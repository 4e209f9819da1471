"""Relayouts of operators that name axes: their axes follow the permutation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import constant_value
from graphopt.graph.dtypes import numpy_dtype
from graphopt.passes.simplify.layout.permutations import Perm, extend, restrict
from graphopt.passes.simplify.layout.relayout import Draft, Relayout, Side, broadcast, may_relay, relaid
from graphopt.passes.simplify.look import BOOL, FLOATS, INTEGERS
from graphopt.passes.simplify.purity import is_constant

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.passes.simplify.layout.relayout import Rule
    from graphopt.passes.simplify.look import Look

_SOFTMAX_OF_ONE_AXIS = 13

_SHORT_INTEGERS = (2, 3, 4, 5, 6, 12)
"""Element types of at most 32 bits, whose sums a runtime that adds in double precision gets right in any order."""


def one_axis(default: int, *, data: tuple[int, ...] = (0,), name: str = "axis") -> Rule:
    """Return the rule of operators that work along one axis and give the rank they are given."""

    def rule(look: Look, side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
        axis = look.axis(name, default, len(perm))
        if axis is None or axis >= len(perm) or (not side.is_output and side.place not in data):
            return None
        draft = Draft(look)
        draft.axis(perm, axis, name)
        return draft.done(dict.fromkeys(data, perm), perm, outputs=len(look.node.outputs))

    return rule


def concat(look: Look, _side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """Concat: constants among the inputs are laid out anew."""
    node = look.node
    axis = look.axis("axis", 1, len(perm))
    if axis is None:
        return None
    draft = Draft(look)
    draft.axis(perm, axis)
    inputs: dict[int, Perm] = {}
    for place, tensor in enumerate(node.inputs):
        if not is_constant(tensor):
            inputs[place] = perm
        elif may_relay(tensor, look.types):
            draft.constants[place] = relaid(tensor, perm, shorten=False)
        else:
            return None
    return draft.done(inputs, perm)


def top_k(look: Look, side: Side, perm: Perm, hint: Perm) -> Relayout | None:
    """TopK that sorts; without sorting the order is the runtime's choice."""
    return one_axis(-1)(look, side, perm, hint) if int(look.attr("sorted", 1)) else None


def softmax(look: Look, side: Side, perm: Perm, hint: Perm) -> Relayout | None:
    """Softmax along one axis; before opset 13 over all axes from one on, which then must stay the last in their order.

    ONNX Runtime lays the tensor out anew to work along an axis that is not the last.
    """
    rank = len(perm)
    if look.opset >= _SOFTMAX_OF_ONE_AXIS:
        found = one_axis(-1)(look, side, perm, hint)
        if found is None or found.attrs["axis"] == rank - 1:
            return found
        return Relayout(found.inputs, found.outputs, found.attrs, found.constants, slow=True)
    axis = look.axis("axis", 1, rank)
    if axis is None or any(perm[place] != place for place in range(axis, rank)):
        return None
    draft = Draft(look)
    draft.attrs["axis"] = axis
    return draft.done({0: perm}, perm)


def softmax_now(look: Look) -> bool:
    """Whether a Softmax is slow as it stands."""
    rank = look.types.rank(look.output)
    return look.opset >= _SOFTMAX_OF_ONE_AXIS and rank is not None and look.axis("axis", -1, rank) != rank - 1


def cumulated(look: Look, side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """CumSum along a constant axis."""
    given = look.scalar(1)
    if given is None or (not side.is_output and side.place):
        return None
    axis = int(given) % len(perm)
    tensor = look.node.inputs[1]
    shape = look.types.static_shape(tensor) or ()
    dtype = numpy_dtype(look.dtype(tensor))
    draft = Draft(look)
    draft.constants[1] = lambda: np.full(shape, perm.index(axis), dtype)
    return draft.done({0: perm}, perm)


def reduction(look: Look, side: Side, perm: Perm, hint: Perm) -> Relayout | None:
    """Reductions over constant axes, whether these stay as size 1 or go."""
    rank = look.types.rank(look.node.inputs[0])
    if rank is None or (not side.is_output and side.place):
        return None
    named = "axes" in look.node.attrs or look.input(1) is not None
    given = look.ints(1, "axes") if named else None
    if named and given is None:
        return None
    if not given and int(look.attr("noop_with_empty_axes", 0)):
        return None
    axes = sorted(axis % rank for axis in given) if given else list(range(rank))
    return _reduced(look, side, perm, hint, rank, axes, name="axes" if given else "")


def arg_reduction(look: Look, side: Side, perm: Perm, hint: Perm) -> Relayout | None:
    """ArgMax and ArgMin."""
    rank = look.types.rank(look.node.inputs[0])
    axis = look.axis("axis", 0, rank)
    return None if rank is None or axis is None else _reduced(look, side, perm, hint, rank, [axis], name="axis")


def _reduced(
    look: Look, side: Side, perm: Perm, hint: Perm, rank: int, axes: list[int], *, name: str
) -> Relayout | None:
    keeps = bool(int(look.attr("keepdims", 1)))
    kept = [axis for axis in range(rank) if axis not in axes]
    source = perm
    if side.is_output and not keeps:
        source = extend(perm, kept, rank, hint)
    if len(source) != rank:
        return None
    draft = Draft(look)
    moved = sorted(source.index(axis) for axis in axes)
    if name == "axis":
        draft.attrs["axis"] = moved[0]
    elif name:
        draft.integers(1, "axes", moved)
    return draft.done({0: source}, source if keeps else restrict(source, kept))


def of_types(rule: Rule, *types: int) -> Rule:
    """Return a rule that holds for some element types of the first input only.

    Args:
        rule: The rule.
        types: ONNX element types.
    """

    def limited(look: Look, side: Side, perm: Perm, hint: Perm) -> Relayout | None:
        return rule(look, side, perm, hint) if look.dtype(look.node.inputs[0]) in types else None

    return limited


def gather(look: Look, side: Side, perm: Perm, hint: Perm) -> Relayout | None:
    """Gather along an axis of its data; the axes of the indices stay together and in order."""
    data, indices = (look.types.rank(tensor) for tensor in look.node.inputs)
    axis = look.axis("axis", 0, data)
    if data is None or indices is None or axis is None or (not side.is_output and side.place):
        return None
    if side.is_output:
        source = _before_gather(perm, axis, data, indices, hint)
        if source is None:
            return None
    else:
        source = perm
    target: list[int] = []
    for each in source:
        if each == axis:
            target.extend(range(axis, axis + indices))
        else:
            target.append(each if each < axis else each - 1 + indices)
    draft = Draft(look)
    draft.axis(source, axis)
    return draft.done({0: source}, tuple(target))


def _before_gather(perm: Perm, axis: int, data: int, indices: int, hint: Perm) -> Perm | None:
    if indices == 0:
        return extend(perm, [each for each in range(data) if each != axis], data, hint)
    start = perm.index(axis)
    if perm[start : start + indices] != tuple(range(axis, axis + indices)):
        return None
    rest = (*perm[:start], axis, *perm[start + indices :])
    return tuple(each if each <= axis else each - indices + 1 for each in rest)


def sliced(look: Look, side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """Slice along constant axes; where it starts and ends may be computed."""
    node, rank = look.node, len(perm)
    if not side.is_output and side.place:
        return None
    if look.opset < 10:
        count: Any = len(look.attr("starts", ()))
        axes = look.attr("axes", None)
    else:
        shape = look.shape(node.inputs[1])
        count = shape[0] if shape is not None and len(shape) == 1 else None
        axes = look.ints(3, "axes") if look.input(3) is not None else None
        if axes is None and look.input(3) is not None:
            return None
    if axes is None:
        if not isinstance(count, int):
            return None
        axes = range(count)
    moved = [perm.index(int(axis) % rank) for axis in axes]
    draft = Draft(look)
    if look.opset < 10:
        draft.attrs["axes"] = moved
    else:
        dtype = numpy_dtype(look.dtype(node.inputs[1])) or np.int64
        draft.constants[3] = lambda: np.array(moved, dtype)
    return draft.done({0: perm}, perm)


def padded(look: Look, side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """Pad by constant amounts, or by any along constant axes."""
    rank = len(perm)
    if look.opset < 2 or (not side.is_output and side.place):
        return None
    draft = Draft(look)
    if look.input(3) is not None:
        axes = look.ints(3, "axes")
        if axes is None:
            return None
        draft.integers(3, "axes", [perm.index(axis % rank) for axis in axes])
        return draft.done({0: perm}, perm)
    pads = look.ints(1, "pads")
    if pads is None or len(pads) != 2 * rank:
        return None
    draft.integers(1, "pads", [pads[axis + end] for end in (0, rank) for axis in perm])
    return draft.done({0: perm}, perm)


def tiled(look: Look, side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """Tile by constant counts."""
    repeats = look.ints(1, "repeats") if look.opset >= 6 else None
    if repeats is None or len(repeats) != len(perm) or (not side.is_output and side.place):
        return None
    draft = Draft(look)
    draft.integers(1, "repeats", [repeats[axis] for axis in perm])
    return draft.done({0: perm}, perm)


def expanded(look: Look, side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """Expand to a constant shape."""
    target = look.ints(1, "shape")
    if target is None or (not side.is_output and side.place):
        return None
    found = broadcast(look, side, perm, range(1))
    if found is None:
        return None
    full, inputs, draft = found
    sizes = [1] * (len(full) - len(target)) + target
    draft.integers(1, "shape", [sizes[axis] for axis in full])
    return draft.done(inputs, full)


def resized(look: Look, side: Side, perm: Perm, _hint: Perm) -> Relayout | None:
    """Resize by constants; where it interpolates, only to the layout that has batch and channels first."""
    if look.opset < 11 or (not side.is_output and side.place):
        return None
    if look.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    rank, draft = len(perm), Draft(look)
    axes = look.attr("axes", None)
    if axes is not None:
        moved = [perm.index(int(axis) % rank) for axis in axes]
        draft.attrs["axes"] = moved
    else:
        changed = _permuted_sizes(look, perm, draft)
        if changed is None:
            return None
        moved = changed
    if look.attr("mode", "nearest") != "nearest" and (rank != 4 or not set(moved) <= {2, 3}):
        return None
    return draft.done({0: perm}, perm)


def _permuted_sizes(look: Look, perm: Perm, draft: Draft) -> list[int] | None:
    """Permute scales or sizes; return the axes that change, in the new layout."""
    place = 3 if look.input(3) is not None else 2
    tensor, value = look.input(place), look.constant(place)
    if tensor is None or value is None or value.size != len(perm):
        return None
    draft.constants[place] = _taken(tensor, perm)
    if place == 2:
        return [where for where, axis in enumerate(perm) if value[axis] != 1]
    shape = look.shape(look.node.inputs[0])
    return None if shape is None else [where for where, axis in enumerate(perm) if shape[axis] != int(value[axis])]


def _taken(tensor: Any, perm: Perm) -> Callable[[], np.ndarray[Any, Any]]:
    def make() -> np.ndarray[Any, Any]:
        value = constant_value(tensor)
        assert value is not None
        return value[list(perm)]

    return make


def nearest(look: Look, side: Side, perm: Perm, hint: Perm) -> Relayout | None:
    """Resize that picks elements."""
    return resized(look, side, perm, hint) if look.attr("mode", "nearest") == "nearest" else None


# fmt: off
EXACT: dict[str, Rule] = {
    "Concat": concat,
    "Split": one_axis(0),
    "Slice": sliced,
    "Pad": padded,
    "Tile": tiled,
    "Expand": expanded,
    "Gather": gather,
    "GatherElements": one_axis(0, data=(0, 1)),
    "ScatterElements": one_axis(0, data=(0, 1, 2)),
    "TopK": top_k,
    "Resize": nearest,
    **dict.fromkeys(("ArgMax", "ArgMin"), of_types(arg_reduction, *INTEGERS)),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), of_types(reduction, *INTEGERS, BOOL)),
    **dict.fromkeys(("ReduceL1", "ReduceSum"), of_types(reduction, *_SHORT_INTEGERS)),
}
"""Operators whose results are the same bits in every layout."""

ROUNDING: dict[str, Rule] = {
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "LpNormalization": one_axis(-1),
    "CumSum": cumulated,
    "Resize": resized,
    **dict.fromkeys(("ArgMax", "ArgMin"), arg_reduction),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), reduction),
    **dict.fromkeys(("ReduceL1", "ReduceSum"), of_types(reduction, *FLOATS, *_SHORT_INTEGERS)),
    **dict.fromkeys((
        "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSumSquare",
    ), of_types(reduction, *FLOATS)),
}
# fmt: on
"""Operators that sum up in an order that depends on the layout.

So does what ONNX Runtime makes of a NaN in ReduceMax and ReduceMin.
"""
