"""Upsample and Resize: the coordinates that opset 10 implied must be stated from opset 11 on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import Constant, constant_value
from graphopt.passes.convert.change import Change, Site, has, only_where

if TYPE_CHECKING:
    from graphopt.graph import Node, Rewriter

_LARGEST = 16


def _scales(node: Node) -> list[float] | None:
    """Return the scales of an Upsample or Resize below opset 11, None where they are computed."""
    if "scales" in node.attrs:
        return [float(scale) for scale in node.attrs["scales"]]
    tensor = node.inputs[1] if has(node, 1) else None
    if tensor is None or (isinstance(tensor, Constant) and int(np.prod(tensor.shape)) > _LARGEST):
        return None
    value = constant_value(tensor)
    return None if value is None else [float(scale) for scale in value.ravel()]


def _rounding(node: Node) -> str | None:
    """Return how the nearest sample was chosen: upwards where the tensor shrinks, downwards where it grows."""
    if node.op == "Upsample":
        return "floor"
    scales = _scales(node)
    if scales is None:
        return None
    if all(scale >= 1 for scale in scales):
        return "floor"
    return "ceil" if all(scale <= 1 for scale in scales) else None


def _scales_to_input(rw: Rewriter, node: Node, site: Site) -> None:
    scales = np.asarray(list(node.attrs["scales"]), np.float32)
    rw.set_input(node, 1, rw.constant(scales, name=f"{node.name or node.op}_scales", near=node))
    rw.set_attr(node, "scales", None)


def _upsample(rw: Rewriter, node: Node, site: Site) -> None:
    rw.set_op(node, "Resize")
    if site.target >= 11:
        _state_coordinates(rw, node, site, "floor")


def _resize(rw: Rewriter, node: Node, site: Site) -> None:
    if "coordinate_transformation_mode" in node.attrs:
        return  # it was an Upsample, which has stated them
    _state_coordinates(rw, node, site, _rounding(node))


def _state_coordinates(rw: Rewriter, node: Node, site: Site, rounding: str | None) -> None:
    scales = node.inputs[1]
    rw.set_input(node, 2, scales)
    empty = rw.constant(np.zeros(0, np.float32), name=f"{node.name or node.op}_roi", near=node)
    rw.set_input(node, 1, empty if site.target < 13 else None)
    rw.set_attr(node, "coordinate_transformation_mode", "asymmetric")
    if str(node.attrs.get("mode", "nearest")) == "nearest" and rounding is not None:
        rw.set_attr(node, "nearest_mode", rounding)


def _refuse_mode(node: Node, site: Site) -> str | None:
    mode = str(node.attrs.get("mode", "nearest"))
    if mode not in {"nearest", "linear"}:
        return f"{node.op} in mode {mode}"
    return None


def _refuse(node: Node, site: Site) -> str | None:
    refused = _refuse_mode(node, site)
    if refused:
        return refused
    if str(node.attrs.get("mode", "nearest")) == "nearest" and _rounding(node) is None:
        return "Resize takes the nearest sample, which below opset 11 depends on scales that are not known"
    return None


def _is_still_there(node: Node, site: Site) -> bool:
    return str(node.attrs.get("coordinate_transformation_mode", "half_pixel")) != "tf_half_pixel_for_nn"


RESIZING: dict[tuple[str, int], Change] = {
    ("Upsample", 9): Change(_scales_to_input),
    ("Upsample", 10): Change(_upsample, _refuse_mode, becomes="Resize"),
    ("Resize", 11): Change(_resize, _refuse),
    ("Resize", 13): only_where(_is_still_there, "Resize in the mode tf_half_pixel_for_nn, which opset 13 removed"),
}
"""Operator and opset to the change."""
