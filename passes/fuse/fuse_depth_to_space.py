"""Make DepthToSpace or SpaceToDepth of the Reshape, Transpose and Reshape that it is defined by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.dims import mul
from graphopt.analysis.types import Types
from graphopt.graph import Node, is_graph_output, producer
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Rewriter

_FLOATS = (1, 11)  # what ONNX Runtime has both operators for
_MODES_SINCE = 11

_Shape = tuple["Dim", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseDepthToSpace(RulePass):
    """Make one DepthToSpace or SpaceToDepth of three nodes that move blocks of channels into space or back.

    Matches:   Reshape of (n, c, h, w) to six axes, Transpose, Reshape to four axes, in the three orders of axes that
               the two operators are defined by (DepthToSpace in the modes DCR and CRD).
    Produces:  DepthToSpace or SpaceToDepth. Saves two nodes; the elements are moved once before and after.
    Requires:  The sizes are proved to be those of a block of at least 2 by 2; the tensors in between have no other
               reader; float or double, which runtimes have both operators for.
    Preserves: Every output bitwise; names, types and shapes.
    Source:    ONNX operators DepthToSpace and SpaceToDepth, version 13.
    """

    name: ClassVar[str] = "fuse-depth-to-space"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the one rule, anchored at the last Reshape."""
        _ = model
        types = facts.get(Types)
        return (Rule(("Reshape",), lambda node: _rewrite(node, types), depth=2),)


def _rewrite(last: Node, types: Types) -> Patch | None:
    turn = _only(last, "Transpose")
    first = None if turn is None else _only(turn, "Reshape")
    if turn is None or first is None or types.dtype(first.inputs[0]) not in _FLOATS:
        return None
    perm = turn.attrs.get("perm")
    source, middle = types.shape(first.inputs[0]), types.shape(first.outputs[0])
    target = types.shape(last.outputs[0])
    if source is None or middle is None or target is None or not isinstance(perm, list | tuple):
        return None
    if (len(source), len(middle), len(target)) != (4, 6, 4):
        return None
    found = _operator([int(axis) for axis in perm], source, middle, target)
    if found is None:
        return None
    op, attrs = found
    assert last.graph is not None
    if attrs.get("mode") and last.graph.opset < _MODES_SINCE:
        if attrs["mode"] != "DCR":
            return None
        attrs = {"blocksize": attrs["blocksize"]}
    nodes = (first, turn, last)

    def apply(rewriter: Rewriter) -> None:
        output = last.outputs[0]
        made = rewriter.op(op, [first.inputs[0]], attrs=attrs, like=output, near=last, origin=nodes)
        rewriter.replace_tensor(output, made)
        rewriter.erase(nodes[::-1])

    return Patch(f"{op} from Transpose '{node_label(turn)}'", nodes, apply)


def _only(node: Node, op: str) -> Node | None:
    """Return the producer of the first input if it is of a type, and nothing else reads what it gives."""
    tensor = node.inputs[0]
    made = producer(tensor)
    if made is None or made.op != op or made.domain not in {None, "", "ai.onnx"} or made.graph is not node.graph:
        return None
    return made if len(tensor.outputs) == 1 and not is_graph_output(tensor) else None


def _operator(
    perm: list[int], source: _Shape, middle: _Shape, target: _Shape
) -> tuple[str, dict[str, int | str]] | None:
    """Return the operator and its attributes that a permutation of six axes is."""
    batch, channels, height, width = source
    if perm == [0, 3, 4, 1, 5, 2]:
        block, kept, mode = middle[1], middle[3], "DCR"
        expected: _Shape = (batch, block, block, kept, height, width)
    elif perm == [0, 1, 4, 2, 5, 3]:
        block, kept, mode = middle[2], middle[1], "CRD"
        expected = (batch, kept, block, block, height, width)
    elif perm == [0, 3, 5, 1, 2, 4]:
        return _space_to_depth(source, middle, target)
    else:
        return None
    if not isinstance(block, int) or block < 2 or not isinstance(kept, int) or middle != expected:
        return None
    if channels != block * block * kept or target != (batch, kept, mul(height, block), mul(width, block)):
        return None
    return "DepthToSpace", {"blocksize": block, "mode": mode}


def _space_to_depth(source: _Shape, middle: _Shape, target: _Shape) -> tuple[str, dict[str, int | str]] | None:
    batch, channels, rows, block, columns, _ = middle
    if not isinstance(block, int) or block < 2 or middle != (batch, channels, rows, block, columns, block):
        return None
    if source != (batch, channels, mul(rows, block), mul(columns, block)):
        return None
    if target != (batch, mul(channels, block * block), rows, columns):
        return None
    return "SpaceToDepth", {"blocksize": block}
