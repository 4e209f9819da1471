"""Operators whose meaning or default changed: what must be stated, and what has no newer form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value
from graphopt.passes.convert.change import Change, Site, all_of, has, integers, is_read, never, only_where

if TYPE_CHECKING:
    from graphopt.graph import Node, Rewriter, Tensor

_FLOATS = (1, 10, 11, 16)  # element types of ONNX: float32, float16, float64, bfloat16

_GRID_MODES = {"bilinear": "linear", "bicubic": "cubic"}


def _without(name: str) -> Change:
    """Return the change that drops an attribute."""

    def apply(rw: Rewriter, node: Node, site: Site) -> None:
        if name in node.attrs:
            rw.set_attr(node, name, None)

    return Change(apply)


def _stated(name: str, value: object) -> Change:
    """Return the change that states the former default of an attribute."""

    def apply(rw: Rewriter, node: Node, site: Site) -> None:
        if name not in node.attrs:
            rw.set_attr(node, name, value)

    return Change(apply)


def _one_output(node: Node, site: Site) -> bool:
    return not any(tensor.name for tensor in node.outputs[1:])


def _dropout(rw: Rewriter, node: Node, site: Site) -> None:
    """Write the ratio as an input; without the third input nothing is dropped, as before."""
    ratio = node.attrs.get("ratio")
    if ratio is not None:
        value = np.asarray(ratio, np.float32)
        rw.set_input(node, 1, rw.constant(value, name=f"{node.name or node.op}_ratio", near=node))
        rw.set_attr(node, "ratio", None)
    if len(node.outputs) > 1 and node.outputs[1].name and not is_read(node.outputs[1]):
        rw.drop_output(node, 1)


def _mask_is_unread(node: Node, site: Site) -> bool:
    return len(node.outputs) < 2 or not is_read(node.outputs[1])


def _drop_mask(rw: Rewriter, node: Node, site: Site) -> None:
    if len(node.outputs) > 1 and node.outputs[1].name:
        rw.drop_output(node, 1)


def _scatter(rw: Rewriter, node: Node, site: Site) -> None:
    rw.set_op(node, "ScatterElements")


def _grid_sample(rw: Rewriter, node: Node, site: Site) -> None:
    mode = node.attrs.get("mode")
    if mode in _GRID_MODES:
        rw.set_attr(node, "mode", _GRID_MODES[mode])


def _places_itself(node: Node, site: Site) -> bool:
    """Whether the pads of a ConvTranspose do not follow from a shape: where an odd one goes was stated otherwise."""
    return "output_shape" not in node.attrs and not str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME")


def _has_whole_windows(node: Node, site: Site) -> bool:
    """Whether no window of an AveragePool runs over the edge by rounding up, which opset 19 counts otherwise."""
    return int(node.attrs.get("ceil_mode", 0)) == 0


def _is_float(node: Node, site: Site) -> bool:
    return site.types.dtype(node.inputs[0]) in _FLOATS


def _is_without_past(node: Node, site: Site) -> bool:
    """Whether an Attention reads no cache, caps nothing and gives nothing but its result: the rest was defined anew."""
    return not any(has(node, index) for index in (4, 5)) and _one_output(node, site) and not node.attrs.get("softcap")


def _channels(node: Node, site: Site) -> int | None:
    shape = site.types.shape(node.inputs[0])
    size = shape[1] if shape is not None and len(shape) > 1 else None
    return size if isinstance(size, int) else None


def _group_norm_refused(node: Node, site: Site) -> str | None:
    channels, groups = _channels(node, site), int(node.attrs["num_groups"])
    if channels is None or channels % groups:
        return "GroupNormalization whose number of channels is not known, so that its scale cannot be given to each"
    return None


def _group_norm(rw: Rewriter, node: Node, site: Site) -> None:
    """Give each channel the scale and bias of its group."""
    channels, groups = _channels(node, site), int(node.attrs["num_groups"])
    assert channels is not None
    for index in (1, 2):
        rw.set_input(node, index, _repeated(rw, node, node.inputs[index], groups, channels // groups))


def _repeated(rw: Rewriter, node: Node, tensor: Tensor, groups: int, times: int) -> Tensor:
    if times == 1:
        return tensor
    value = constant_value(tensor)
    if value is not None:
        made: Tensor = rw.constant(np.repeat(value, times), name=f"{tensor.name}_per_channel", near=node)
        return made
    column = rw.op("Reshape", [tensor, integers(rw, node, "column", [groups, 1])], near=node)
    wide = rw.op("Expand", [column, integers(rw, node, "wide", [groups, times])], near=node)
    flat: Tensor = rw.op("Reshape", [wide, integers(rw, node, "flat", [-1])], near=node)
    return flat


_NO_STATISTICS = only_where(_one_output, "BatchNormalization in training form")

MEANINGS: dict[tuple[str, int], Change] = {
    ("BatchNormalization", 9): all_of(
        only_where(lambda node, site: bool(int(node.attrs.get("spatial", 1))), "BatchNormalization of each element"),
        _without("spatial"),
    ),
    ("BatchNormalization", 14): _NO_STATISTICS,
    ("Dropout", 10): all_of(
        only_where(_mask_is_unread, "Dropout whose mask is read, which has another type from opset 10 on"),
        Change(_drop_mask),
    ),
    ("Dropout", 12): all_of(
        only_where(_mask_is_unread, "Dropout whose mask is read, which opset 12 defined"), Change(_dropout)
    ),
    ("Scan", 9): never("Scan of opset 8 has a batch axis of its own"),
    ("Scatter", 11): Change(_scatter, becomes="ScatterElements"),
    ("ConvTranspose", 11): only_where(
        _places_itself, "ConvTranspose whose pads follow from its output shape, which opset 11 places otherwise"
    ),
    ("Erf", 13): only_where(_is_float, "Erf of integers, which opset 13 removed"),
    ("RoiAlign", 16): _stated("coordinate_transformation_mode", "output_half_pixel"),
    ("AveragePool", 19): only_where(
        _has_whole_windows, "AveragePool that rounds its output size up, whose last windows opset 19 averages otherwise"
    ),
    ("GridSample", 20): Change(_grid_sample),
    ("GroupNormalization", 21): Change(_group_norm, _group_norm_refused),
    ("Attention", 24): only_where(_is_without_past, "Attention with a cache, a cap or further outputs"),
    ("Attention", 25): only_where(_is_without_past, "Attention with a cache, a cap or further outputs"),
}
"""Operator and opset to the change."""
