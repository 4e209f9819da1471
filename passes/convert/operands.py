"""Attributes that became inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import RawAttribute
from graphopt.graph.dtypes import numpy_dtype
from graphopt.passes.convert.change import Change, Site, has, integers

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.graph import Node, Rewriter

_FLOATS = (1, 10, 11)  # element types of ONNX: float32, float16, float64
_LARGEST_FLOAT = 3.402823e38


def _integer_inputs(*names: str) -> Callable[[Rewriter, Node, Site], None]:
    """Return what turns integer attributes into inputs behind the first one, in order; absent ones stay absent."""

    def apply(rw: Rewriter, node: Node, site: Site) -> None:
        for place, name in enumerate(names, start=1):
            value = node.attrs.get(name)
            if value is not None:
                rw.set_input(node, place, integers(rw, node, name, list(value)))
                rw.set_attr(node, name, None)

    return apply


def _reduction(rw: Rewriter, node: Node, site: Site) -> None:
    """Write the axes as an input; an empty list meant all of them, as no input does."""
    axes = node.attrs.get("axes")
    if axes is not None:
        if list(axes):
            rw.set_input(node, 1, integers(rw, node, "axes", list(axes)))
        rw.set_attr(node, "axes", None)


def _slice(rw: Rewriter, node: Node, site: Site) -> None:
    starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
    axes = list(node.attrs.get("axes", range(len(starts))))
    for place, (name, value) in enumerate((("starts", starts), ("ends", ends), ("axes", axes)), start=1):
        rw.set_input(node, place, integers(rw, node, name, value))
        if name in node.attrs:
            rw.set_attr(node, name, None)


def _top_k(rw: Rewriter, node: Node, site: Site) -> None:
    rw.set_input(node, 1, integers(rw, node, "k", [int(node.attrs["k"])]))
    rw.set_attr(node, "k", None)


def _split_evenly(rw: Rewriter, node: Node, site: Site) -> None:
    """State the number of parts where the sizes are not."""
    if not has(node, 1):
        rw.set_attr(node, "num_outputs", len(node.outputs))


def _floats(node: Node, site: Site, *names: str) -> str | None:
    """Refuse bounds that the element type of the data does not hold, since the input must have that type."""
    given = [float(node.attrs[name]) for name in names if name in node.attrs]
    if not given:
        return None
    dtype = site.types.dtype(node.inputs[0])
    if dtype not in _FLOATS:
        return f"{node.op} of elements of a type that is unknown or no float, which its bounds would have to be of"
    kind = numpy_dtype(dtype)
    with np.errstate(over="ignore"):
        exact = all(float(np.asarray(value, kind)) == value or abs(value) >= _LARGEST_FLOAT for value in given)
    return None if exact else f"{node.op} with a bound that its element type {kind} does not hold"


def _float_input(rw: Rewriter, node: Node, site: Site, name: str, place: int) -> None:
    value = node.attrs.get(name)
    if value is None:
        return
    with np.errstate(over="ignore"):
        array = np.asarray(float(value), numpy_dtype(site.types.dtype(node.inputs[0])))
    rw.set_input(node, place, rw.constant(array, name=f"{node.name or node.op}_{name}", near=node))
    rw.set_attr(node, name, None)


def _clip(rw: Rewriter, node: Node, site: Site) -> None:
    _float_input(rw, node, site, "min", 1)
    _float_input(rw, node, site, "max", 2)


def _pad(rw: Rewriter, node: Node, site: Site) -> None:
    rw.set_input(node, 1, integers(rw, node, "pads", list(node.attrs["pads"])))
    rw.set_attr(node, "pads", None)
    if node.attrs.get("mode", "constant") != "constant":
        rw.set_attr(node, "value", None)
    _float_input(rw, node, site, "value", 2)


def _pad_refused(node: Node, site: Site) -> str | None:
    mode = node.attrs.get("mode", "constant")
    if isinstance(mode, RawAttribute) or mode != "constant":
        return None
    return _floats(node, site, "value")


def _dft(rw: Rewriter, node: Node, site: Site) -> None:
    axis = int(node.attrs.get("axis", 1))
    rw.set_input(node, 2, integers(rw, node, "axis", axis))
    if "axis" in node.attrs:
        rw.set_attr(node, "axis", None)


OPERANDS: dict[tuple[str, int], Change] = {
    ("Slice", 10): Change(_slice),
    ("TopK", 10): Change(_top_k),
    ("Clip", 11): Change(_clip, lambda node, site: _floats(node, site, "min", "max")),
    ("Pad", 11): Change(_pad, _pad_refused),
    ("Squeeze", 13): Change(_integer_inputs("axes")),
    ("Unsqueeze", 13): Change(_integer_inputs("axes")),
    ("Split", 13): Change(_integer_inputs("split")),
    ("Split", 18): Change(_split_evenly),
    ("ReduceSum", 13): Change(_reduction),
    ("DFT", 20): Change(_dft),
    **{
        (f"Reduce{kind}", 18): Change(_reduction)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    },
}
"""Operator and opset to the change; further operators of the kind are found in no opset up to 26."""
