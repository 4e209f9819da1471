"""Softmax, LogSoftmax and Hardmax: below opset 13 they see a matrix, split at their axis; from then on one axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.passes.convert.change import Change, Site

if TYPE_CHECKING:
    from graphopt.graph import Node, Rewriter


def _axis(node: Node) -> int:
    return int(node.attrs.get("axis", 1))


def _one_axis(node: Node, site: Site) -> int | None:
    """Return the axis of the newer form: the only one from the old axis on that is not known to have size 1.

    None where there are several.
    """
    shape = site.types.shape(node.inputs[0])
    if shape is None:
        return -1 if _axis(node) == -1 else None
    rank = len(shape)
    first = _axis(node) % rank if rank else 0
    wide = [place for place in range(first, rank) if shape[place] != 1]
    if len(wide) > 1:
        return None
    return (wide[0] if wide else rank - 1) - rank


def _refuse(node: Node, site: Site) -> str | None:
    if _one_axis(node, site) is not None:
        return None
    rank = site.types.rank(node.inputs[0])
    if rank is None:
        return f"{node.op} flattens its input below opset 13, and the rank of the input is unknown"
    if _static_target(node, site) is None and site.target < 14:
        return (
            f"{node.op} flattens its input below opset 13, and only from opset 14 on can a Reshape give an input of "
            "unknown size its shape back"
        )
    return None


def _static_target(node: Node, site: Site) -> list[int] | None:
    """Return the shape as the constant target of a Reshape: at most one size is unknown, and none is 0."""
    shape = site.types.shape(node.inputs[0])
    if shape is None or any(size == 0 for size in shape):
        return None
    known = [size if isinstance(size, int) else -1 for size in shape]
    return known if known.count(-1) <= 1 else None


def _apply(rw: Rewriter, node: Node, site: Site) -> None:
    axis = _one_axis(node, site)
    if axis is not None:
        rw.set_attr(node, "axis", axis)
        return
    rank = site.types.rank(node.inputs[0])
    assert rank is not None
    source, output = node.inputs[0], node.outputs[0]
    matrix = rw.op("Flatten", [source], attrs={"axis": _axis(node) % rank}, near=node)
    flat = rw.op(str(node.op), [matrix], attrs={"axis": -1}, near=node, origin=[node])
    target = _static_target(node, site)
    if target is not None:
        shape = rw.constant(np.asarray(target, np.int64), name=f"{node.name or node.op}_shape", near=node)
        attrs = {}
    else:
        shape, attrs = rw.op("Shape", [source], near=node), {"allowzero": 1}
    restored = rw.op("Reshape", [flat, shape], attrs=attrs, like=output, near=node, origin=[node])
    rw.replace_tensor(output, restored)
    rw.erase(node)


FLATTENED: dict[tuple[str, int], Change] = {
    (op, 13): Change(_apply, _refuse) for op in ("Softmax", "LogSoftmax", "Hardmax")
}
"""Operator and opset to the change."""
