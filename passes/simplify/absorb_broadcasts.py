"""Leave it to operators that broadcast to repeat what they read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.site import ShapeClashError, broadcast
from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, refers_to_function
from graphopt.passes.simplify.removal import erase_unread
from graphopt.passes.simplify.shapes.uniform import COMPARING, PICKING, uniform_value
from graphopt.rewrite.driver import Rule, RulePass, position
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

Shape: TypeAlias = "tuple[Dim, ...]"

_VIEWS = ("Unsqueeze", "Reshape")
_UNIFORM = ("ConstantOfShape", *PICKING, *COMPARING)
_ROOTS = ("Expand", "Tile", *_UNIFORM, *_VIEWS)
_DEEPEST = 6
_MOST_NODES = 16

# fmt: off
_BROADCASTING = frozenset({
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Mod", "Mul", "Or", "Sub", "Where", "Xor",
})
_EXACT = frozenset({"Abs", "BitwiseNot", "Cast", "Ceil", "Floor", "Identity", "IsInf", "IsNaN", "Neg", "Not", "Relu"})
_APPROXIMATE = frozenset({"Cos", "Erf", "Exp", "Log", "Reciprocal", "Sigmoid", "Sin", "Sqrt", "Tanh"})
# fmt: on
# The last bit of an approximated function may depend on where in its buffer an element stands, so those may only stand
# on the way where no element moves.


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsorbBroadcasts(RulePass):
    """Remove nodes that repeat a tensor, or add axes of size 1 in front, for operators that broadcast it anyway.

    Matches:   Expand, Tile along axes of size 1, ConstantOfShape, Gather and the like of a constant whose elements are
               all the same whole number, comparisons of a Range that hold for all of it, and Unsqueeze or Reshape that
               only add axes of size 1 in front, whose readers all broadcast: Add, Mul, Where, comparisons and the like,
               also behind nodes that work element by element and behind Gather that takes the tensor as its indices.
    Produces:  The readers read the tensor as it was before, or the number; nodes on the way are made anew for the
               smaller tensor. One node less, with what computed its shape; nothing is repeated in memory, and the nodes
               on the way compute each element once.
    Requires:  Every reader that broadcasts has another operand that is proved to have each repeated size, so that its
               output has the same shape as before. Pow is left alone: ONNX Runtime computes it in another way where the
               exponent is one number. No output of a graph lies on the way.
    Preserves: Every output bitwise; names, types and shapes.
    Source:    ONNX, Broadcasting in ONNX: multidirectional broadcasting.
    """

    name: ClassVar[str] = "absorb-broadcasts"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule for nodes that repeat."""
        types, values = facts.get(Types), facts.get(ShapeValues)

        def absorbed(node: Node) -> Patch | None:
            output = node.outputs[0]
            if not output.outputs or is_graph_output(output) or refers_to_function(node):
                return None
            shape = types.shape(output)
            smaller = None if shape is None else _smaller(node, shape, types, values)
            if smaller is None or smaller == shape:
                return None
            way = _Way(types, same_count=node.op in _VIEWS)
            return _patch(node, way, values) if way.exists(output, smaller) and way.ends else None

        return [Rule(_ROOTS, absorbed, below=_DEEPEST)]


def _smaller(node: Node, shape: Shape, types: Types, values: ShapeValues) -> Shape | None:
    """Return the shape of what the node repeats, None where it does something else."""
    if node.op in _UNIFORM:
        return None if uniform_value(node, values) is None else ()
    source = types.shape(node.inputs[0])
    if source is None or len(source) > len(shape):
        return None
    if node.op in _VIEWS:
        added = len(shape) - len(source)
        return source if added and shape[added:] == source and all(size == 1 for size in shape[:added]) else None
    if node.op == "Tile":
        counts = values.value(node.inputs[1]) if len(node.inputs) == 2 else None
        if counts is None or any(count != 1 and size != 1 for size, count in zip(source, counts, strict=True)):
            return None
    return source


@dataclass(slots=True)
class _Way:
    """The nodes between a node that repeats and those that broadcast, each with the shape it gets.

    Attributes:
        types: Types of the tensors as they are.
        same_count: Whether the smaller tensors have as many elements, in the same order.
        shapes: The shapes of the tensors that become smaller.
        passed: Nodes to make anew.
        ends: Nodes that read smaller tensors and give the same as before.
    """

    types: Types
    same_count: bool
    shapes: dict[Tensor, Shape] = field(default_factory=dict)
    passed: dict[Node, Shape] = field(default_factory=dict)
    ends: dict[Node, None] = field(default_factory=dict)

    def exists(self, tensor: Tensor, smaller: Shape) -> bool:
        """Return whether all readers of a tensor can read one of a smaller shape, which broadcasts to its shape."""
        if not self._follow(tensor, smaller, _DEEPEST):
            return False
        # what was found first may read what was found later
        return all(self._result(node) == self.types.shape(node.outputs[0]) for node in self.ends) and all(
            self._result(node) == result for node, result in self.passed.items()
        )

    def _follow(self, tensor: Tensor, smaller: Shape, depth: int) -> bool:
        self.shapes[tensor] = smaller
        for node in dict.fromkeys(tensor.outputs):
            if node in self.passed or node in self.ends:
                continue
            if depth == 0 or len(self.passed) + len(self.ends) >= _MOST_NODES:
                return False
            result = self._result(node)
            if result is None:
                return False
            output = node.outputs[0]
            if result == self.types.shape(output):
                self.ends[node] = None
                continue
            if is_graph_output(output) or not output.outputs:
                return False
            self.passed[node] = result
            if not self._follow(output, result, depth - 1):
                return False
        return True

    def _result(self, node: Node) -> Shape | None:
        """Return the shape of the output where the smaller tensors are read, None for nodes that need the whole."""
        if node.domain not in DEFAULT_DOMAINS or len(node.outputs) != 1 or refers_to_function(node):
            return None
        assert node.graph is not None
        if node.op in _EXACT or (self.same_count and node.op in _APPROXIMATE):
            return self.shapes[node.inputs[0]]
        operands = [
            self.shapes[tensor] if tensor in self.shapes else self.types.shape(tensor) for tensor in node.inputs
        ]
        if node.op in _BROADCASTING and node.graph.opset >= 7:
            try:
                result = broadcast(*operands)
            except ShapeClashError:
                return None
            known = tuple(size for size in result or () if size is not None)
            return known if result is not None and len(known) == len(result) else None
        if node.op == "Gather" and node.inputs[0] not in self.shapes:
            return self._gathered(node, *operands)
        return None

    def _gathered(self, node: Node, data: Shape | None, indices: Shape | None) -> Shape | None:
        """Return the shape of what Gather gives for smaller indices; the axes before them must not move."""
        axis = int(node.attrs.get("axis", 0))
        if data is None or indices is None or not data:
            return None
        axis %= len(data)
        if axis and len(indices) != self.types.rank(node.inputs[1]):
            return None
        return (*data[:axis], *indices, *data[axis + 1 :])


def _patch(node: Node, way: _Way, values: ShapeValues) -> Patch:
    output = node.outputs[0]

    def apply(rewriter: Rewriter) -> None:
        made: dict[Tensor, Tensor] = {output: _source(rewriter, node, values)}
        for passed in sorted(way.passed, key=position):
            inputs = [made.get(tensor, tensor) for tensor in passed.inputs]
            again = rewriter.op(passed.op, inputs, attrs=dict(passed.attrs), near=passed, origin=[passed])
            made[passed.outputs[0]] = again
        for end in way.ends:
            for index, tensor in enumerate(list(end.inputs)):
                if tensor in made:
                    rewriter.set_input(end, index, made[tensor])
        erase_unread(rewriter, list(made))

    what = f"leave {node.op} to {', '.join(sorted({end.op for end in way.ends}))}, which broadcasts"
    return Patch(what, (node, *way.passed, *way.ends), apply)


def _source(rewriter: Rewriter, node: Node, values: ShapeValues) -> Tensor:
    """Return what a node repeats."""
    source: Tensor = node.inputs[0]
    if node.op not in _UNIFORM:
        return source
    value = uniform_value(node, values)
    assert value is not None
    fill = node.attrs.get("value") if node.op == "ConstantOfShape" else None
    constant: Tensor = rewriter.constant(
        value, name=node.outputs[0].name, near=node, onnx_dtype=None if fill is None else fill.onnx_dtype
    )
    return constant
