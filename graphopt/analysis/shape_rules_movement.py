"""Shape rules of operators that rearrange or select elements: reshape, transpose, concat, split, slice, gather."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from graphopt.analysis.dim_extremes import maximum, minimum
from graphopt.analysis.dims import Expr, at_least, ceildiv, compare, exact_div, floordiv, lower, product
from graphopt.analysis.shape_rules import rule
from graphopt.analysis.site import Known, ShapeClashError, normalized, permuted, unify_dim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.site import PartialShape, Site


def vector_length(site: Site, index: int) -> int | None:
    """Return how many elements a one-dimensional input has, None where unknown."""
    shape = site.shape(index)
    return shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None


def sizes(site: Site, index: int) -> PartialShape | None:
    """Return the shape that an input holds as its value; unknown sizes where only its length is known."""
    entries = site.dims(index)
    if entries is None:
        count = vector_length(site, index)
        return None if count is None else (None,) * count
    return tuple(entry if isinstance(entry, int | Expr) else None for entry in entries)


def may_be_negative(size: Dim | None) -> bool:
    """Return whether a size is symbolic and not proved to be at least 0."""
    low = lower(size) if isinstance(size, Expr) else 0
    return low is None or low < 0


@rule("Reshape")
def reshape(site: Site) -> list[Known]:
    """The target is an input, or an attribute before opset 5; 0 copies a size and -1 takes what is left."""
    attribute = site.attr_ints("shape")
    target = tuple(attribute) if attribute is not None and site.opset < 5 else sizes(site, 1)
    return [Known(site.dtype(0), reshaped(site.shape(0), target, zero_copies=not site.attr_int("allowzero", 0)))]


def reshaped(shape: PartialShape | None, target: PartialShape | None, *, zero_copies: bool) -> PartialShape | None:
    """Return the shape after Reshape.

    A symbolic size that may be 0 is read as itself, not as "copy the same axis": where it is 0 the data is empty, and
    the two readings differ only for an empty tensor that is reshaped along another axis together with a -1.

    Args:
        shape: The shape of the data.
        target: The requested sizes, each with 0 and -1 as Reshape reads them; None for a size that is not known.
        zero_copies: Whether a 0 copies the size of the same axis.

    Raises:
        ShapeClashError: The data cannot have the target's shape.
    """
    if target is None:
        return None
    result: list[Dim | None] = []
    rest: list[int] = []
    for axis, size in enumerate(target):
        if size == -1:
            rest.append(axis)
            result.append(None)
        elif size == 0 and zero_copies:
            if shape is not None and axis >= len(shape):
                msg = f"0 at axis {axis} copies from a shape of rank {len(shape)}"
                raise ShapeClashError(msg)
            result.append(None if shape is None else shape[axis])
        elif may_be_negative(size):
            # It could be -1 at run time and then stands for what is left.
            result.append(None)
        else:
            result.append(size)
    if len(rest) > 1:
        msg = f"target {target} has more than one -1"
        raise ShapeClashError(msg)
    unknown = [axis for axis, size in enumerate(result) if size is None]
    if shape is not None and None not in shape:
        _solve_for_one(shape, target, result, unknown)
    return tuple(result)


def _solve_for_one(shape: PartialShape, target: PartialShape, result: list[Dim | None], unknown: list[int]) -> None:
    """Fill in the one unknown size from the number of elements; check the count where every size is known."""
    total = product([dim for dim in shape if dim is not None])
    given = product([dim for dim in result if dim is not None])
    if not unknown:
        if isinstance(total, int) and isinstance(given, int) and total != given:
            msg = f"{total} elements do not fit the shape {tuple(result)}"
            raise ShapeClashError(msg)
        return
    if len(unknown) > 1 or (isinstance(given, int) and given == 0):
        return
    if target[unknown[0]] != -1 and not at_least(given, 1):
        return  # beside a size of 0, one that is stated may be any; -1 is an error there
    quotient = exact_div(total, given)
    if quotient is None and isinstance(total, int) and isinstance(given, int):
        msg = f"{total} elements do not divide into the shape {target}"
        raise ShapeClashError(msg)
    # At run time the division is exact or the node fails, so rounding never happens.
    result[unknown[0]] = floordiv(total, given) if quotient is None else quotient


@rule("Flatten")
def flatten(site: Site) -> list[Known]:
    """A matrix: the axes before ``axis`` and those from it on."""
    shape = site.shape(0)
    if shape is None:
        return [Known(site.dtype(0), (None, None))]
    axis = site.attr_int("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        msg = f"axis {axis} is outside rank {len(shape)}"
        raise ShapeClashError(msg)
    axis += len(shape) if axis < 0 else 0
    return [Known(site.dtype(0), (_count(shape[:axis]), _count(shape[axis:])))]


def _count(dims: PartialShape) -> Dim | None:
    known = [dim for dim in dims if dim is not None]
    return product(known) if len(known) == len(dims) else None


@rule("Squeeze")
def squeeze(site: Site) -> list[Known]:
    """The named axes, or every axis of size 1, disappear."""
    shape = site.shape(0)
    if shape is None:
        return [Known(site.dtype(0))]
    axes = site.axes(1)
    if axes is None:
        if site.has(1) or any(not isinstance(dim, int) for dim in shape):
            return [Known(site.dtype(0))]
        return [Known(site.dtype(0), tuple(dim for dim in shape if dim != 1))]
    gone = {normalized(axis, len(shape)) for axis in axes}
    for axis in gone:
        unify_dim(shape[axis], 1)
    return [Known(site.dtype(0), tuple(dim for axis, dim in enumerate(shape) if axis not in gone))]


@rule("Unsqueeze")
def unsqueeze(site: Site) -> list[Known]:
    """Axes of size 1 appear at the named places of the output."""
    shape, axes = site.shape(0), site.axes(1)
    if shape is None or axes is None:
        return [Known(site.dtype(0))]
    rank = len(shape) + len(axes)
    new = {normalized(axis, rank) for axis in axes}
    if len(new) != len(axes):
        msg = f"axes {axes} repeat"
        raise ShapeClashError(msg)
    rest = iter(shape)
    return [Known(site.dtype(0), tuple(1 if axis in new else next(rest) for axis in range(rank)))]


@rule("Transpose")
def transpose(site: Site) -> list[Known]:
    """The axes in the order ``perm``; reversed without one."""
    shape, perm = site.shape(0), site.attr_ints("perm")
    if shape is None:
        return [Known(site.dtype(0), None if perm is None else (None,) * len(perm))]
    order = permuted(perm, len(shape)) if perm is not None else reversed(range(len(shape)))
    return [Known(site.dtype(0), tuple(shape[axis] for axis in order))]


@rule("Concat")
def concat(site: Site) -> list[Known]:
    """The sizes of one axis add up; the others are equal."""
    shapes = [site.shape(index) for index in range(len(site.known))]
    given = [shape for shape in shapes if shape is not None]
    if not given:
        return [Known(site.dtype(0))]
    rank = len(given[0])
    if any(len(shape) != rank for shape in given):
        msg = f"ranks {[len(shape) for shape in given]} differ"
        raise ShapeClashError(msg)
    axis = normalized(site.attr_int("axis", 1), rank)
    result = list(given[0])
    for shape in given[1:]:
        for other in range(rank):
            if other != axis:
                result[other] = unify_dim(result[other], shape[other])
    total: Dim | None = 0
    for piece in shapes:
        part = None if piece is None else piece[axis]
        total = None if total is None or part is None else total + part
    result[axis] = total
    return [Known(site.dtype(0), tuple(result))]


@rule("Split")
def split(site: Site) -> list[Known]:
    """One axis is cut into the given sizes, else into equal ones, the last of which may be smaller from opset 18 on."""
    shape = site.shape(0)
    if shape is None:
        return [Known(site.dtype(0))] * site.outputs
    axis = normalized(site.attr_int("axis", 0), len(shape))
    attribute = site.attr_ints("split")
    if attribute is not None:
        parts: PartialShape = tuple(attribute)
    elif site.has(1):
        stated = sizes(site, 1)
        parts = (None,) * site.outputs if stated is None else stated
    else:
        parts = _equal_parts(shape[axis], site.attr_int("num_outputs", site.outputs), uneven=site.opset >= 18)
    if len(parts) != site.outputs:
        msg = f"{len(parts)} sizes for {site.outputs} outputs"
        raise ShapeClashError(msg)
    return [Known(site.dtype(0), (*shape[:axis], part, *shape[axis + 1 :])) for part in parts]


def _equal_parts(size: Dim | None, count: int, *, uneven: bool) -> PartialShape:
    if size is None:
        return (None,) * count
    part = ceildiv(size, count) if uneven else floordiv(size, count)
    return (*[part] * (count - 1), size - part * (count - 1))


# ------------------------------------------------------------------------------------------------- selecting elements


SLICE_END = 2**31 - 1
"""A bound at or beyond this means "to the end": exporters write the largest int32 or int64."""


@rule("Slice")
def slice_axes(site: Site) -> list[Known]:
    """A range of each named axis; bounds are attributes before opset 10, inputs since."""
    shape = site.shape(0)
    if shape is None:
        return [Known(site.dtype(0))]
    if site.opset < 10:
        starts: Sequence[Dim | None] | None = site.attr_ints("starts")
        ends: Sequence[Dim | None] | None = site.attr_ints("ends")
        axes = site.attr_ints("axes")
        steps: Sequence[Dim | None] | None = None
    else:
        starts, ends, steps = sizes(site, 1), sizes(site, 2), sizes(site, 4) if site.has(4) else None
        axes = site.ints(3)
        if axes is None and site.has(3):
            return [Known(site.dtype(0), (None,) * len(shape))]
    if starts is None or ends is None:
        cut = range(len(shape)) if axes is None else [normalized(axis, len(shape)) for axis in axes]
        return [Known(site.dtype(0), tuple(None if axis in cut else dim for axis, dim in enumerate(shape)))]
    result = list(shape)
    for position, axis in enumerate(axes if axes is not None else range(len(starts))):
        step = 1 if steps is None else steps[position]
        index = normalized(axis, len(shape))
        result[index] = sliced(shape[index], starts[position], ends[position], step)
    return [Known(site.dtype(0), tuple(result))]


def sliced(size: Dim | None, start: Dim | None, end: Dim | None, step: Dim | None) -> Dim | None:
    """Return how many elements ``[start:end:step]`` takes of an axis, None where it depends on an unknown sign.

    Raises:
        ShapeClashError: The step is 0.
    """
    if size is None or start is None or end is None or not isinstance(step, int):
        return None
    if step == 0:
        msg = "a slice with step 0"
        raise ShapeClashError(msg)
    if step < 0 and isinstance(end, int) and end >= SLICE_END:
        # Empty by the specification; ONNX Runtime reads it as "through the first".
        return None
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        if step < 0 and start < -size:
            return None  # The first element by the specification, nothing in numpy.
        return len(range(*slice(start, end, step).indices(size))) if step > 0 else _backwards(size, start, end, step)
    if step < 0:
        whole = start == -1 or (isinstance(start, int) and start >= SLICE_END)
        return ceildiv(size, -step) if whole and isinstance(end, int) and end <= -SLICE_END else None
    start, end = _from_end(start, size), _from_end(end, size)
    start_sign, end_sign = _sign(start), _sign(end)
    if start_sign is None or end_sign is None:
        return None
    stop = size if isinstance(end, int) and end >= SLICE_END else minimum(end, size) if end_sign >= 0 else size + end
    taken = stop - start if start_sign >= 0 else minimum(stop, stop - size - start)
    return maximum(ceildiv(taken, step), 0)


def _from_end(bound: Dim, size: Dim) -> Dim:
    """Return a bound that is a number of elements before the end as that negative number, if they mean the same.

    On an axis of size 0, ``size - 1`` is -1, and both are the end of an empty range.
    """
    distance = bound - size
    is_before = isinstance(distance, int) and distance < 0 and isinstance(bound, Expr)
    return distance if is_before and (distance == -1 or at_least(size, -distance)) else bound


def _backwards(size: int, start: int, end: int, step: int) -> int:
    """Count ``[start:end:step]`` for a negative step, where an end below ``-size`` means "through the first"."""
    first = min(start + size if start < 0 else start, size - 1)
    last = max(end + size, -1) if end < 0 else min(end, size - 1)
    return max(0, -((first - last) // step)) if first >= 0 else 0


def _sign(bound: Dim) -> int | None:
    order = compare(bound, 0)
    if order is not None:
        return order
    low = lower(bound)
    return 0 if low is not None and low >= 0 else None


@rule("Gather")
def gather(site: Site) -> list[Known]:
    """The indices' shape takes the place of one axis."""
    data, indices = site.shape(0), site.shape(1)
    if data is None or indices is None:
        return [Known(site.dtype(0))]
    axis = normalized(site.attr_int("axis", 0), len(data))
    return [Known(site.dtype(0), (*data[:axis], *indices, *data[axis + 1 :]))]


@rule("GatherElements")
def gather_elements(site: Site) -> list[Known]:
    """The output has the shape of the indices."""
    return [Known(site.dtype(0), site.shape(1))]


@rule("GatherND")
def gather_nd(site: Site) -> list[Known]:
    """The last axis of the indices addresses axes of the data after the batch axes."""
    data, indices = site.shape(0), site.shape(1)
    if data is None or indices is None or not indices or not isinstance(indices[-1], int):
        return [Known(site.dtype(0))]
    batch = site.attr_int("batch_dims", 0)
    return [Known(site.dtype(0), (*indices[:-1], *data[batch + indices[-1] :]))]


@rule("Compress")
def compress(site: Site) -> list[Known]:
    """How many elements stay depends on the condition's values."""
    shape = site.shape(0)
    if "axis" not in site.attrs:
        return [Known(site.dtype(0), (None,))]
    if shape is None:
        return [Known(site.dtype(0))]
    axis = normalized(site.attr_int("axis", 0), len(shape))
    return [Known(site.dtype(0), (*shape[:axis], None, *shape[axis + 1 :]))]


@rule("NonZero")
def non_zero(site: Site) -> list[Known]:
    """One row per axis of the input, one column per element found."""
    shape = site.shape(0)
    # A scalar counts as a vector of one element in ONNX Runtime, and as rank 0 in the specification.
    rows = len(shape) if shape else None
    return [Known(TensorProto.INT64, (rows, None))]


@rule("OneHot")
def one_hot(site: Site) -> list[Known]:
    """An axis of size ``depth`` is inserted."""
    shape, depth = site.shape(0), site.dims(1)
    if shape is None:
        return [Known(site.dtype(2))]
    axis = normalized(site.attr_int("axis", -1), len(shape) + 1)
    size = depth[0] if depth and isinstance(depth[0], int | Expr) else None
    return [Known(site.dtype(2), (*shape[:axis], size, *shape[axis:]))]
