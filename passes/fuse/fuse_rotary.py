"""The pass ``fuse-rotary``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.fuse.attention.angles import Angles
from graphopt.passes.fuse.attention.halves import Half, half_of, has_equal_halves
from graphopt.passes.fuse.attention.heads import split_heads
from graphopt.passes.fuse.matching import FLOAT, above, are_private, vector
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

OPSET = 23
"""The first opset with RotaryEmbedding."""

_LARGEST_SIGNS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseRotary(RulePass):
    """Make one RotaryEmbedding of its steps.

    Matches:   x cos + turned(x) sin, where turned(x) is the negated second half of the last axis before the first (or
               the sign is in sin), and both halves of cos and sin are equal; and (a cos - b sin, a sin + b cos) joined
               again, where a and b are the halves of the last axis, or its even and odd elements. The axes are (batch,
               heads, length, size), or (batch, length, heads, size).
    Produces:  One RotaryEmbedding, in the second case of axes with a Reshape behind it and perhaps before; cosines and
               sines are cut to half and given a batch once for all that share them (at most 8 nodes). Saves 6 nodes
               each in the first form, 7 to 11 in the second. Measured with ONNX Runtime 1.31 on one thread: 0.35 to
               0.71 of the time.
    Requires:  Opset 23; float32; an even size; sizes proved, cos and sin one for all heads; the steps read by each
               other alone; fewer nodes, all that share the cosines counted.
    Preserves: Names, types and shapes; values up to rounding.
    Source:    Su et al. 2021, RoFormer, arXiv:2104.09864; ONNX RotaryEmbedding-23.
    """

    name: ClassVar[str] = "fuse-rotary"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return one rule per form."""
        types, values = facts.get(Types), facts.get(ShapeValues)
        angles = Angles(types)
        return (
            Rule(("Add",), lambda root: _fused(_turned(root, types, values), types, angles), depth=5),
            Rule(("Concat", "Reshape"), lambda root: _fused(_joined(root, types, values), types, angles), depth=8),
        )


@dataclass(frozen=True, slots=True)
class _Rotation:
    """A rotation that was found.

    Attributes:
        root: The node that gives it.
        nodes: The nodes that go.
        source: What is rotated: (batch, heads, length, size) or (batch, length, heads, size), or pairs of such.
        cos: Cosines.
        sin: Sines.
        is_interleaved: Whether even and odd elements are rotated.
        are_doubled: Whether cosines and sines are given for both halves.
        readers: How many nodes read the cosines, and the sines.
    """

    root: Node
    nodes: tuple[Node, ...]
    source: Tensor
    cos: Tensor
    sin: Tensor
    is_interleaved: bool
    are_doubled: bool
    readers: tuple[int, int]


def _turned(root: Node, types: Types, values: ShapeValues) -> _Rotation | None:
    """Match x cos + concat(-x2, x1) sin."""
    assert root.graph is not None
    if root.graph.opset < OPSET:
        return None
    first, second = (above(tensor, "Mul") for tensor in root.inputs)
    if first is None or second is None or first is second:
        return None
    for straight, crossed in ((first, second), (second, first)):
        for index in (0, 1):
            joined = above(crossed.inputs[index], "Concat")
            found = None if joined is None else _turn(joined, types, values)
            if joined is None or found is None:
                continue
            source, nodes = found
            sin = crossed.inputs[1 - index]
            readers = len(sin.outputs)
            if not nodes or nodes[0].op != "Neg":  # the sign is in the sines
                signed = _without_signs(sin, types)
                if signed is None:
                    continue
                sin = signed
            cos = [tensor for tensor in straight.inputs if tensor is not source]
            if len(cos) != 1:
                return None
            if not has_equal_halves(cos[0], types, values) or not has_equal_halves(sin, types, values):
                return None
            return _Rotation(
                root,
                (root, straight, crossed, joined, *nodes),
                source,
                cos[0],
                sin,
                False,
                True,
                (len(cos[0].outputs), readers),
            )
    return None


def _turn(joined: Node, types: Types, values: ShapeValues) -> tuple[Tensor, tuple[Node, ...]] | None:
    rank = types.rank(joined.outputs[0])
    if rank is None or len(joined.inputs) != 2 or int(joined.attrs["axis"]) % rank != rank - 1:
        return None
    negated = above(joined.inputs[0], "Neg")
    second = half_of(joined.inputs[0] if negated is None else negated.inputs[0], types, values)
    first = half_of(joined.inputs[1], types, values)
    if first is None or second is None or first.source is not second.source:
        return None
    if (first.index, second.index) != (0, 1) or first.is_interleaved or second.is_interleaved:
        return None
    return first.source, (*([] if negated is None else [negated]), *first.nodes, *second.nodes)


def _without_signs(tensor: Tensor, types: Types) -> Tensor | None:
    """Return s where a tensor is s times -1 in the first half of the last axis and times 1 in the second."""
    node = above(tensor, "Mul")
    shape = types.shape(tensor)
    for index in (0, 1) if node is not None and shape else ():
        assert node is not None
        assert shape is not None
        signs = vector(node.inputs[index], _LARGEST_SIGNS)
        if signs is None or signs.size != shape[-1] or signs.size % 2 or signs.shape[-1:] != (signs.size,):
            continue
        wanted = np.repeat([-1.0, 1.0], signs.size // 2)
        rest: Tensor = node.inputs[1 - index]
        if bool((signs.reshape(-1) == wanted).all()) and types.shape(rest) == shape:
            return rest
    return None


def _joined(root: Node, types: Types, values: ShapeValues) -> _Rotation | None:
    """Match the real and imaginary parts of a product of complex numbers, joined in halves or in pairs."""
    assert root.graph is not None
    if root.graph.opset < OPSET:
        return None
    joined = root if root.op == "Concat" else above(root.inputs[0], "Concat")
    if joined is None or len(joined.inputs) != 2:
        return None
    shape = types.shape(joined.outputs[0])
    if not shape or int(joined.attrs["axis"]) % len(shape) != len(shape) - 1:
        return None
    nodes = [root, joined]
    parts = list(joined.inputs)
    if root.op == "Reshape":
        views = [above(tensor, "Unsqueeze", "Reshape") for tensor in parts]
        merged = types.shape(root.outputs[0])
        if any(view is None for view in views) or merged is None or shape[-1] != 2 or not isinstance(shape[-2], int):
            return None
        if merged != (*shape[:-2], 2 * shape[-2]):
            return None
        nodes += [view for view in views if view is not None]
        parts = [view.inputs[0] for view in views if view is not None]
        if any(types.shape(part) != shape[:-1] for part in parts):
            return None
    found = _product(parts[0], parts[1], types, values)
    if found is None or found[0][0].is_interleaved != (root.op == "Reshape"):
        return None
    (first, second), cos, sin, inner = found
    gone = (*nodes, *inner, *first.nodes, *second.nodes)
    readers = (len(cos.outputs) // 2, len(sin.outputs) // 2)
    return _Rotation(root, gone, first.source, cos, sin, first.is_interleaved, False, readers)


def _product(
    real: Tensor, imaginary: Tensor, types: Types, values: ShapeValues
) -> tuple[tuple[Half, Half], Tensor, Tensor, list[Node]] | None:
    """Match a cos - b sin and a sin + b cos."""
    difference, total = above(real, "Sub"), above(imaginary, "Add")
    if difference is None or total is None:
        return None
    products = [above(tensor, "Mul") for tensor in (*difference.inputs, *total.inputs)]
    if any(product is None for product in products):
        return None
    a_cos, b_sin, third, fourth = (product for product in products if product is not None)
    for index in (0, 1):
        first, cos = half_of(a_cos.inputs[index], types, values), a_cos.inputs[1 - index]
        for place in (0, 1):
            second, sin = half_of(b_sin.inputs[place], types, values), b_sin.inputs[1 - place]
            if first is None or second is None or first.source is not second.source:
                continue
            if (first.index, second.index) != (0, 1) or first.is_interleaved != second.is_interleaved:
                continue
            a, b = a_cos.inputs[index], b_sin.inputs[place]
            wanted = [{a, sin}, {b, cos}]
            if [set(third.inputs), set(fourth.inputs)] in (wanted, wanted[::-1]):
                return (first, second), cos, sin, [difference, total, a_cos, b_sin, third, fourth]
    return None


# ---------------------------------------------------------------------------------------------------------- the patch


def _fused(found: _Rotation | None, types: Types, angles: Angles) -> Patch | None:
    if found is None or not are_private(found.nodes, found.root) or types.dtype(found.root.outputs[0]) != FLOAT:
        return None
    output = found.root.outputs[0]
    shape = types.shape(output)
    size = None if shape is None or len(shape) != 4 else shape[3]
    if shape is None or not isinstance(size, int) or size % 2 or not size:
        return None
    read = _read(found, shape, types)
    if read is None:
        return None
    source, is_heads_first, views, nodes = read
    batch, length, heads = (shape[0], shape[2], shape[1]) if is_heads_first else (shape[0], shape[1], shape[2])
    cos, sin = (
        angles.kind(each, is_heads_first, batch, length, size, found.are_doubled) for each in (found.cos, found.sin)
    )
    if cos is None or sin is None or not isinstance(heads, int):
        return None
    gone = (*dict.fromkeys((*found.nodes, *nodes)),)
    shared = min(found.readers)
    made = 1 + views
    graph = found.root.graph
    assert graph is not None
    cost = angles.nodes_for(cos, sin, graph)
    if len(gone) <= made or (len(gone) - made) * shared <= cost:
        return None

    def apply(rw: Rewriter) -> None:
        root = found.root
        tensor = source
        if not is_heads_first and types.rank(source) != 3:
            tensor = rw.op("Reshape", [source, _target(rw, [0, 0, heads * size], root)], near=root)
        caches = [angles.made(rw, kind, source, root) for kind in (cos, sin)]
        attrs: dict[str, Any] = {"interleaved": int(found.is_interleaved)}
        if is_heads_first:
            new = rw.op("RotaryEmbedding", [tensor, *caches], attrs=attrs, like=output, near=root, origin=gone)
        else:
            attrs["num_heads"] = heads
            flat = rw.op("RotaryEmbedding", [tensor, *caches], attrs=attrs, near=root, origin=gone)
            target = _target(rw, [0, 0, heads, size], root)
            new = rw.op("Reshape", [flat, target], like=output, near=root, origin=[root])
        rw.replace_tensor(output, new)
        rw.erase(gone)

    return Patch(f"{len(gone)} nodes that give '{output.name}' are a RotaryEmbedding", gone, apply)


def _target(rw: Rewriter, sizes: list[int], near: Node) -> Tensor:
    made: Tensor = rw.constant(np.asarray(sizes, np.int64), near=near)
    return made


def _read(found: _Rotation, shape: tuple[Dim, ...], types: Types) -> tuple[Tensor, bool, int, list[Node]] | None:
    """Return what RotaryEmbedding reads, whether heads come first, the Reshapes it needs, and further nodes that go."""
    cos = types.shape(found.cos)
    if cos is None or not 2 <= len(cos) <= 4:
        return None
    padded = [1] * (4 - len(cos)) + list(cos)
    if (padded[1] == 1) == (padded[2] == 1):
        return None
    is_heads_first = padded[1] == 1
    source, nodes = found.source, list[Any]()
    if found.is_interleaved and types.rank(source) == 5:  # pairs: what they were made of is read
        view = above(source, "Reshape")
        if view is None:
            return None
        source, nodes = view.inputs[0], [view]
        wide = types.shape(source)
        flat = (shape[0], shape[1], None if is_heads_first else _product_of(shape[2], shape[3]))
        if not is_heads_first and wide == flat:
            return (source, False, 1, nodes) if _only_pairs(view, found) else (source, False, 1, [])
        if wide != shape:
            return None
        if not _only_pairs(view, found):
            nodes = []
    if types.shape(source) != shape:
        return None
    if is_heads_first:
        return source, True, 0, nodes
    split = split_heads(source, types)
    return (source, False, 2, nodes) if split is None else (split[0], False, 1, nodes)


def _only_pairs(view: Node, found: _Rotation) -> bool:
    return are_private([view, *found.nodes], found.root)


def _product_of(first: Dim, second: Dim) -> Dim | None:
    return first * second if isinstance(first, int) and isinstance(second, int) else None
