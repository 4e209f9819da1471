"""Which operations done to two tensors are one operation on both side by side, and along which axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.passes.simplify.look import small_constant
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, is_constant, refers_to_function

if TYPE_CHECKING:
    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor

# fmt: off
UNARY = frozenset({
    "Abs", "Cast", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log",
    "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt",
    "Tanh",
})
# fmt: on
BINARY = frozenset({"Add", "Sub", "Mul", "Div"})
_ROWWISE = frozenset({"LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax"})
_TWIN_OPS = (
    UNARY | BINARY | _ROWWISE | {"Slice", "Split", "Concat", "Transpose", "Reshape", "Gather", "Unsqueeze", "Squeeze"}
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tensors that may lie side by side.

    Attributes:
        first: The one.
        second: The other.
        axis: The axis along which they are put together.
        sizes: Their sizes along it; all others agree.
    """

    first: Tensor
    second: Tensor
    axis: int
    sizes: tuple[int, int]


def pairs_after(one: Node, other: Node, known: dict[Tensor, Pair], types: Types) -> list[Pair] | None:
    """Return the outputs of two nodes as pairs where one node can compute them side by side, else None.

    Args:
        one: The node that reads the first of the pairs.
        other: The node that reads the second.
        known: The pairs so far, by their first tensor.
        types: The types of the model.
    """
    if (
        one.op != other.op
        or one.op not in _TWIN_OPS
        or one.domain not in DEFAULT_DOMAINS
        or one.graph is not other.graph
    ):
        return None
    if len(one.inputs) != len(other.inputs) or len(one.outputs) != len(other.outputs) or other.domain != one.domain:
        return None
    if refers_to_function(one) or refers_to_function(other) or dict(one.attrs) != dict(other.attrs):
        return None
    read: list[Pair | None] = []
    for index, (left, right) in enumerate(zip(one.inputs, other.inputs, strict=True)):
        pair = known.get(left)
        if pair is not None and pair.second is right:
            read.append(pair)
        elif (one.op == "Reshape" and index == 1) or _is_same(left, right):
            read.append(None)
        else:
            return None
    paired = [pair for pair in read if pair is not None]
    if not paired or any((pair.axis, pair.sizes) != (paired[0].axis, paired[0].sizes) for pair in paired):
        return None
    axis = _axis_after(one, other, read, paired[0], types)
    if axis is None:
        return None
    pairs = []
    for left, right in zip(one.outputs, other.outputs, strict=True):
        if not left.name or not right.name:
            return None
        pair = _pair(left, right, axis, types)
        if pair is None:
            return None
        pairs.append(pair)
    return pairs


def _is_same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are one, small constants of the same bits, or both omitted."""
    if not left.name and not right.name:
        return True
    if left is right or not (is_constant(left) and is_constant(right)):
        return left is right
    first, second = small_constant(left), small_constant(right)
    if first is None or second is None or first.dtype != second.dtype or first.dtype.kind == "O":
        return False
    return first.shape == second.shape and first.tobytes() == second.tobytes()


def _pair(left: Tensor, right: Tensor, axis: int, types: Types) -> Pair | None:
    """Return two tensors as a pair where all their sizes but those along the axis are proved equal."""
    shape, twin = types.shape(left), types.shape(right)
    if shape is None or twin is None or len(shape) != len(twin) or types.dtype(left) != types.dtype(right):
        return None
    if shape[:axis] != twin[:axis] or shape[axis + 1 :] != twin[axis + 1 :]:
        return None
    sizes = shape[axis], twin[axis]
    if not isinstance(sizes[0], int) or not isinstance(sizes[1], int):
        return None
    return Pair(left, right, axis, (sizes[0], sizes[1]))


def _axis_after(one: Node, other: Node, read: list[Pair | None], pair: Pair, types: Types) -> int | None:
    op, axis = str(one.op), pair.axis
    shape = types.shape(pair.first)
    assert shape is not None
    rank = len(shape)
    if op in UNARY:
        return axis
    if op in BINARY:
        return axis if _spreads(one, read, axis, rank, types) else None
    if op == "Concat":
        return axis if None not in read and _attribute(one, "axis", None, rank) not in {axis, None} else None
    if read[0] is None or any(entry is not None for entry in read[1:]):
        return None
    if op in _ROWWISE:
        opset = 0 if one.graph is None else one.graph.opset
        own = _attribute(one, "axis", -1, rank)
        return axis if own == rank - 1 and axis < rank - 1 and (opset >= 13 or "Norm" in op) else None
    if op == "Split":
        return axis if _attribute(one, "axis", 0, rank) != axis else None
    if op == "Transpose":
        perm = [int(place) for place in one.attrs.get("perm", range(rank - 1, -1, -1))]
        return perm.index(axis)
    if op == "Reshape":
        return _axis_of_reshape(one, other, pair, types)
    return _axis_of_selection(one, axis, rank, types)


def _spreads(one: Node, read: list[Pair | None], axis: int, rank: int, types: Types) -> bool:
    """Whether the operand that is the same for both has one element along the axis."""
    for tensor, pair in zip(one.inputs, read, strict=True):
        shape = types.shape(tensor)
        if shape is None or len(shape) > rank or (pair is not None and len(shape) != rank):
            return False
        along = axis - rank + len(shape)
        if pair is None and along >= 0 and shape[along] != 1:
            return False
    return True


def _axis_of_reshape(one: Node, other: Node, pair: Pair, types: Types) -> int | None:
    """Return the axis where both keep the axes before it, and what lies behind is of one shape for both."""
    source, axis = types.shape(pair.first), pair.axis
    shapes = [types.shape(node.outputs[0]) for node in (one, other)]
    if source is None or shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
        return None
    if len(shapes[0]) <= axis or any(shape is None or shape[:axis] != source[:axis] for shape in shapes):
        return None
    behind = shapes[0][axis + 1 :], shapes[1][axis + 1 :], source[axis + 1 :]
    if behind[0] != behind[1] or not all(isinstance(size, int) and size > 0 for part in behind for size in part):
        return None
    return axis


def _axis_of_selection(one: Node, axis: int, rank: int, types: Types) -> int | None:
    """Return the axis behind Slice, Gather, Unsqueeze or Squeeze of other axes."""
    op, opset = one.op, 0 if one.graph is None else one.graph.opset
    if op == "Gather":
        own, indices = _attribute(one, "axis", 0, rank), types.rank(one.inputs[1])
        if own is None or indices is None or own == axis:
            return None
        return axis if own > axis else axis + indices - 1
    place = {"Slice": 3, "Unsqueeze": 1, "Squeeze": 1}[str(op)]
    given = small_constant(one.inputs[place]) if len(one.inputs) > place and one.inputs[place].name else None
    if given is None or (op == "Slice" and opset < 10) or (op != "Slice" and opset < 13):
        return None
    count = rank + (given.size if op == "Unsqueeze" else 0)
    axes = sorted(int(entry) % count for entry in given.reshape(-1))
    if op == "Slice":
        return None if axis in axes else axis
    if op == "Squeeze":
        return None if axis in axes else axis - sum(entry < axis for entry in axes)
    for entry in axes:
        axis += entry <= axis
    return axis


def _attribute(node: Node, name: str, default: int | None, rank: int) -> int | None:
    given = node.attrs.get(name, default)
    return None if given is None else int(given) % rank
