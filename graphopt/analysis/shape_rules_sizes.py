"""Shape rules of operators that change sizes by given numbers, and of those that make tensors from shapes."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING

from numpy import float32
from onnx import TensorProto

from graphopt.analysis.dim_extremes import maximum
from graphopt.analysis.dims import Expr, ceildiv, floordiv
from graphopt.analysis.shape_rules import rule
from graphopt.analysis.shape_rules_movement import may_be_negative, sizes
from graphopt.analysis.site import Known, ShapeClashError, broadcast, broadcast_dim, normalized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.site import PartialShape, Site


@rule("Expand")
def expand(site: Site) -> list[Known]:
    """The data broadcasts with the shape that the second input holds."""
    target = sizes(site, 1)
    if target is not None:
        target = tuple(None if may_be_negative(dim) else dim for dim in target)
    return [Known(site.dtype(0), broadcast(site.shape(0), target))]


@rule("Tile")
def tile(site: Site) -> list[Known]:
    """Each size is multiplied by its count; before opset 6 one axis by one count."""
    shape = site.shape(0)
    if site.opset < 6:
        return [Known(site.dtype(0), None if shape is None else (None,) * len(shape))]
    counts = sizes(site, 1)
    if shape is None or counts is None:
        rank = len(shape) if shape is not None else len(counts) if counts is not None else None
        return [Known(site.dtype(0), None if rank is None else (None,) * rank)]
    if len(counts) != len(shape):
        msg = f"{len(counts)} repeats for rank {len(shape)}"
        raise ShapeClashError(msg)
    pairs = zip(shape, counts, strict=True)
    return [Known(site.dtype(0), tuple(None if dim is None or n is None else dim * n for dim, n in pairs))]


@rule("Pad")
def pad(site: Site) -> list[Known]:
    """Sizes grow by the pads before and after; pads are an attribute before opset 11, an input since."""
    shape = site.shape(0)
    if shape is None:
        return [Known(site.dtype(0))]
    attribute = site.attr_ints("pads") or site.attr_ints("paddings")
    pads = tuple(attribute) if attribute is not None else sizes(site, 1)
    axes = site.ints(3)
    if pads is None or (axes is None and site.has(3)):
        return [Known(site.dtype(0), (None,) * len(shape))]
    padded = [normalized(axis, len(shape)) for axis in axes] if axes is not None else list(range(len(shape)))
    if len(pads) != 2 * len(padded):
        msg = f"{len(pads)} pads for {len(padded)} axes"
        raise ShapeClashError(msg)
    result = list(shape)
    for position, axis in enumerate(padded):
        size, before, after = shape[axis], pads[position], pads[position + len(padded)]
        result[axis] = None if size is None or before is None or after is None else size + before + after
    return [Known(site.dtype(0), tuple(result))]


@rule("Resize", "Upsample")
def resize(site: Site) -> list[Known]:
    """Sizes are given, or each is multiplied by a scale and rounded down."""
    shape = site.shape(0)
    if shape is None:
        return [Known(site.dtype(0))]
    named = site.attr_ints("axes")
    axes = list(range(len(shape))) if named is None else [normalized(axis, len(shape)) for axis in named]
    result = list(shape)
    new: Sequence[Dim | None] | None
    if site.op == "Resize" and site.opset >= 11 and site.has(3):
        stretched = site.attr_text("keep_aspect_ratio_policy", "stretch") == "stretch"
        new = sizes(site, 3) if stretched else None
    else:
        new = _scaled([shape[axis] for axis in axes], _scales(site))
    if new is not None and len(new) != len(axes):
        msg = f"{len(new)} sizes or scales for {len(axes)} axes"
        raise ShapeClashError(msg)
    for position, axis in enumerate(axes):
        result[axis] = None if new is None else new[position]
    return [Known(site.dtype(0), tuple(result))]


def _scales(site: Site) -> list[float] | None:
    if "scales" in site.attrs:
        return [float(entry) for entry in site.attrs["scales"]]
    return site.floats(1 if site.opset < 11 else 2)


def _scaled(dims: list[Dim | None], scales: list[float] | None) -> list[Dim | None] | None:
    if scales is None:
        return None
    if len(scales) != len(dims):
        return [None] * len(scales)
    return [_scaled_dim(dim, scale) for dim, scale in zip(dims, scales, strict=True)]


def _scaled_dim(dim: Dim | None, scale: float) -> Dim | None:
    if dim is None:
        return None
    if isinstance(dim, int):
        return floor(float32(float32(dim) * float32(scale)))
    # A product of a symbolic size and a scale of few bits is exact in float32, so it rounds as the exact one does.
    ratio = Fraction(scale)
    if ratio.denominator > 16 or ratio.numerator > 256:
        return None
    return floordiv(dim * ratio.numerator, ratio.denominator)


# ------------------------------------------------------------------------------------------------ tensors from shapes


@rule("Shape")
def shape_of(site: Site) -> list[Known]:
    """A vector of one size per axis, or of those from ``start`` to ``end``."""
    shape = site.shape(0)
    if shape is None:
        return [Known(TensorProto.INT64, (None,))]
    end = site.attrs.get("end")
    return [Known(TensorProto.INT64, (len(shape[site.attr_int("start", 0) : None if end is None else int(end)]),))]


@rule("Size")
def size_of(site: Site) -> list[Known]:
    """A scalar."""
    return [Known(TensorProto.INT64, ())]


@rule("ConstantOfShape")
def constant_of_shape(site: Site) -> list[Known]:
    """The shape is the value of the input; the element type is that of the attribute, else float."""
    fill = site.attrs.get("value")
    dtype = TensorProto.FLOAT if fill is None else fill.onnx_dtype
    return [Known(dtype, sizes(site, 0))]


@rule("Range")
def number_range(site: Site) -> list[Known]:
    """A vector from start to limit by delta."""
    bounds = [site.value(index) for index in range(3)]
    entries = [None if value is None or value.size != 1 else value.ravel()[0] for value in bounds]
    return [Known(site.dtype(0), (_range_length(*entries),))]


def _range_length(start: object, limit: object, delta: object) -> Dim | None:
    if not isinstance(delta, int | float) or delta == 0:
        return None
    if isinstance(start, int | float) and isinstance(limit, int | float):
        return max(0, -floor(-(Fraction(limit) - Fraction(start)) / Fraction(delta)))
    if isinstance(start, int | Expr) and isinstance(limit, int | Expr) and isinstance(delta, int):
        return maximum(ceildiv(limit - start, delta), 0)
    return None


@rule("Einsum")
def einsum(site: Site) -> list[Known]:
    """Each letter names one size; an ellipsis stands for axes that broadcast."""
    left, arrow, right = site.attr_text("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    sizes_of: dict[str, Dim | None] = {}
    batch: PartialShape | None = ()
    for index, term in enumerate(terms):
        shape = site.shape(index)
        if shape is None:
            return [Known(site.dtype(0))]
        before, dots, after = term.partition("...")
        if len(before) + len(after) > len(shape) or (not dots and len(before) != len(shape)):
            msg = f"term {term!r} does not fit rank {len(shape)}"
            raise ShapeClashError(msg)
        tail = len(shape) - len(after)
        batch = broadcast(batch, shape[len(before) : tail])
        for letter, dim in zip(before + after, (*shape[: len(before)], *shape[tail:]), strict=True):
            sizes_of[letter] = broadcast_dim(sizes_of.get(letter, 1), dim)
    if not arrow:
        once = sorted(letter for letter in sizes_of if left.count(letter) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    before, dots, after = right.partition("...")
    if batch is None:
        return [Known(site.dtype(0))]
    middle = batch if dots else ()
    result = (*[sizes_of.get(letter) for letter in before], *middle, *[sizes_of.get(letter) for letter in after])
    return [Known(site.dtype(0), result)]
