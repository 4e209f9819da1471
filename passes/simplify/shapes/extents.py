"""Small integer tensors of sizes, stated as cheaply as possible from the shapes of the inputs of the model.

A tensor such as ``[b, 4, l, 16]`` may be computed in many ways, each from the shape of another tensor. All of them have
the same symbolic elements, so one statement can serve all: it is made of shapes of inputs of the model and of constants
alone, and can therefore stand before everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from graphopt.analysis.dims import Expr
from graphopt.graph import Constant, is_graph_input, producer
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, is_constant, is_op, refers_to_function

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.analysis.types import Types
    from graphopt.graph import Model, Node, Rewriter, Tensor

LONGEST = 16
"""Elements of the longest tensor that is looked at."""

# fmt: off
SIZE_OPS: frozenset[str] = frozenset({
    "Abs", "Add", "And", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Flatten", "Gather", "Greater",
    "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range",
    "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterElements", "ScatterND", "Shape", "Size",
    "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
})
# fmt: on
"""Operators that computations of sizes are made of; each has one output, and all are cheap."""

_DEEPEST = 24
_MOST_PLACES = 8
_INT64 = 7
_WHOLE_NUMBERS_AND_BOOL = frozenset({2, 3, 4, 5, 6, 7, 9, 12, 13})

Key: TypeAlias = "tuple[int, int, tuple[Dim, ...]]"
"""Element type, rank (0 or 1) and elements of a tensor: tensors with the same key are equal in every run."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to state a tensor.

    Attributes:
        make: Makes its nodes and returns the tensor.
        new: What the nodes hold that are to be made, each counted once.
        reads: Tensors of the model that they read.
    """

    make: Callable[[Rewriter, Node], Tensor]
    new: frozenset[Key] = frozenset()
    reads: frozenset[Tensor] = frozenset()

    @property
    def cost(self) -> int:
        """Number of nodes that are to be made."""
        return len(self.new)


class SizeForms:
    """The tensors of sizes of one model, by what they hold.

    Args:
        model: The model.
        types: Types of its tensors.
        values: Values of its computations of sizes.
    """

    def __init__(self, model: Model, types: Types, values: ShapeValues) -> None:
        self._model = model
        self._types = types
        self._values = values
        self._opset = model.graph.opset
        self._table: dict[Key, Tensor] = {}
        self._made: dict[Key, Tensor] = {}
        self._front: Node | None = None
        self._places: dict[Dim, list[tuple[Tensor, int]]] = {}
        # what the model asks already comes first: that survives even feeds that are not as the model declares them
        asked = {tensor: any(is_op(user, "Shape") for user in tensor.outputs) for tensor in model.graph.inputs}
        for tensor in sorted(asked, key=lambda tensor: not asked[tensor]):
            for axis, size in enumerate(types.shape(tensor) or ()):
                if isinstance(size, Expr):
                    self._places.setdefault(size, []).append((tensor, axis))

    # ------------------------------------------------------------------------------------------------ what is known

    def key(self, tensor: Tensor) -> Key | None:
        """Return what a small integer tensor holds, None where that is not known or it is no such tensor."""
        dtype = self._types.dtype(tensor)
        rank = self._types.rank(tensor)
        if rank not in {0, 1} or dtype not in _WHOLE_NUMBERS_AND_BOOL:
            return None
        entries = self._asked(tensor) or self._values.value(tensor)
        if entries is None or len(entries) > LONGEST:
            return None
        return dtype, rank, entries

    def _asked(self, tensor: Tensor) -> tuple[Dim, ...] | None:
        """Return the shape that a Shape gives out: since its input was stated anew more may be known of it."""
        node = producer(tensor)
        shape = self._types.shape(node.inputs[0]) if node is not None and is_op(node, "Shape") else None
        if node is None or shape is None or refers_to_function(node):
            return None
        end = node.attrs.get("end")
        return shape[int(node.attrs.get("start", 0)) : None if end is None else int(end)]

    def known(self, key: Key) -> Tensor | None:
        """Return the tensor of the main graph that holds this and depends on shapes of inputs alone."""
        found = self._table.get(key)
        if found is not None:
            made = producer(found)
            if made is not None and made.graph is self._model.graph:
                return found
            del self._table[key]
        return None

    def register(self, key: Key, tensor: Tensor) -> None:
        """Let a tensor that `is_grounded`, of the main graph, stand for all that hold the same."""
        self._table[key] = tensor

    def is_grounded(self, tensor: Tensor) -> bool:
        """Whether a tensor is computed in whole numbers from shapes of inputs of the model and constants alone."""
        return self._cone(tensor) is not None

    def depends_on(self, tensor: Tensor, node: Node) -> bool:
        """Whether a node has a part in computing a tensor that is grounded."""
        cone = self._cone(tensor)
        return cone is None or node in cone

    def _cone(self, tensor: Tensor) -> set[Node] | None:
        seen: set[Node] = set()
        stack = [tensor]
        while stack:
            current = stack.pop()
            if is_constant(current):
                continue
            node = producer(current)
            if node is None or node.graph is not self._model.graph:
                return None
            if node in seen:
                continue
            seen.add(node)
            if len(seen) > _DEEPEST or not _is_size_op(node):
                return None
            if node.op in {"Shape", "Size"}:
                source = node.inputs[0]
                if not is_graph_input(source) or isinstance(source, Constant) or producer(source) is not None:
                    return None
            elif self._types.dtype(current) not in _WHOLE_NUMBERS_AND_BOOL:
                return None
            else:
                stack.extend(node.inputs)
        return seen

    def is_whole(self, tensor: Tensor) -> bool:
        """Whether a tensor is computed in whole numbers from shapes and constants: what floats round is not known."""
        seen: set[Node] = set()
        stack = [tensor]
        while stack:
            current = stack.pop()
            node = producer(current)
            if is_constant(current) or (node is not None and (node in seen or node.op in {"Shape", "Size"})):
                continue
            if node is None or len(seen) > _DEEPEST or not _is_size_op(node):
                return False
            if self._types.dtype(current) not in _WHOLE_NUMBERS_AND_BOOL:
                return False
            seen.add(node)
            stack.extend(node.inputs)
        return True

    # ------------------------------------------------------------------------------------------------------- plans

    def plans(self, key: Key, *, instead_of: Tensor | None = None) -> list[Plan]:
        """Return ways to have a tensor that holds this, none where there is none.

        Args:
            key: What it holds.
            instead_of: A tensor that is not to be used as it stands.
        """
        known = self._reuse(key, instead_of)
        if known is not None:
            return [known]
        dtype, rank, entries = key
        if dtype != _INT64 or all(isinstance(entry, int) for entry in entries):
            return []
        return list(self._vectors(entries) if rank else self._scalars(entries[0]))

    def _cheapest(self, entries: tuple[Dim, ...]) -> Plan | None:
        return min(self.plans((_INT64, 1, entries)), key=lambda plan: plan.cost, default=None)

    def apply(self, plan: Plan, rewriter: Rewriter) -> Tensor:
        """Make what a plan needs, before all other nodes of the main graph, and return the tensor."""
        self._made.clear()
        if self._front is None or self._front.graph is not self._model.graph:
            self._front = next(iter(self._model.graph.nodes))  # takes time in the number of nodes
        return plan.make(rewriter, self._front)

    def _reuse(self, key: Key, instead_of: Tensor | None = None) -> Plan | None:
        known = self.known(key)
        if known is None or known is instead_of:
            return None
        return Plan(lambda _rewriter, _near: known, reads=frozenset({known}))

    def _stated(
        self,
        key: Key,
        op: str,
        inputs: Callable[[Rewriter, Node], tuple[list[Tensor], dict[str, Any]]],
        before: Sequence[Plan] = (),
    ) -> Plan:
        """Return the plan of one more node, made once however many read it."""

        def make(rewriter: Rewriter, near: Node) -> Tensor:
            tensor = self._made.get(key)
            if tensor is None:
                read, attrs = inputs(rewriter, near)
                tensor = rewriter.op(op, read, attrs=attrs, name=f"sizes_{op}", near=near)
                self._made[key] = self._table[key] = tensor
            return tensor

        new = frozenset({key}).union(*[plan.new for plan in before])
        return Plan(make, new, frozenset().union(*[plan.reads for plan in before]))

    def _vectors(self, entries: tuple[Dim, ...]) -> Iterator[Plan]:
        key: Key = (_INT64, 1, entries)
        run = self._run(entries)
        if run is not None:
            source, start, stop = run
            if start == 0 and stop == self._types.rank(source):
                yield self._whole(source)
            elif self._opset >= 15:
                yield self._part(key, *run)
        for source, _ in self._places.get(entries[0], ())[:_MOST_PLACES]:
            shape = self._types.shape(source) or ()
            if all(isinstance(entry, Expr) and entry in shape for entry in entries):
                yield self._gathered(key, source, np.array([shape.index(entry) for entry in entries], np.int64))
        if len(entries) == 1:
            scalar = self._reuse((_INT64, 0, entries))
            if scalar is not None:
                yield self._viewed(key, "Unsqueeze", scalar)
        else:
            joined = self._joined(key)
            if joined is not None:
                yield joined

    def _scalars(self, entry: Dim) -> Iterator[Plan]:
        key: Key = (_INT64, 0, (entry,))
        for source, axis in self._places.get(entry, ())[:_MOST_PLACES]:
            yield self._gathered(key, source, np.array(axis, np.int64))
        vector = self._reuse((_INT64, 1, (entry,)))
        if vector is not None:
            yield self._viewed(key, "Squeeze", vector)

    def _run(self, entries: tuple[Dim, ...]) -> tuple[Tensor, int, int] | None:
        """Return an input of the model whose shape holds these sizes one behind the other, and where."""
        first = next((index for index, entry in enumerate(entries) if isinstance(entry, Expr)), 0)
        for source, axis in self._places.get(entries[first], ()):
            start, stop = axis - first, axis - first + len(entries)
            if start >= 0 and (self._types.shape(source) or ())[start:stop] == entries:
                return source, start, stop
        return None

    def _whole(self, source: Tensor) -> Plan:
        key: Key = (_INT64, 1, self._types.shape(source) or ())
        return self._stated(key, "Shape", lambda _rewriter, _near: ([source], {}))

    def _part(self, key: Key, source: Tensor, start: int, stop: int) -> Plan:
        return self._stated(key, "Shape", lambda _rewriter, _near: ([source], {"start": start, "end": stop}))

    def _gathered(self, key: Key, source: Tensor, indices: np.ndarray[Any, Any]) -> Plan:
        shape = self._reuse((_INT64, 1, self._types.shape(source) or ())) or self._whole(source)

        def inputs(rewriter: Rewriter, near: Node) -> tuple[list[Tensor], dict[str, Any]]:
            return [shape.make(rewriter, near), rewriter.constant(indices, near=near)], {"axis": 0}

        return self._stated(key, "Gather", inputs, [shape])

    def _viewed(self, key: Key, op: str, source: Plan) -> Plan:
        def inputs(rewriter: Rewriter, near: Node) -> tuple[list[Tensor], dict[str, Any]]:
            axes, attrs = axes_operands(rewriter, near, [0], self._opset)
            return [source.make(rewriter, near), *axes], attrs

        return self._stated(key, op, inputs, [source])

    def _joined(self, key: Key) -> Plan | None:
        pieces = list(self._pieces(key[2]))
        if len(pieces) < 2:
            return None
        plans = {piece: self._cheapest(piece) for piece in pieces if not isinstance(piece[0], int)}
        found = {piece: plan for piece, plan in plans.items() if plan is not None}
        if len(found) < len(plans):
            return None

        def inputs(rewriter: Rewriter, near: Node) -> tuple[list[Tensor], dict[str, Any]]:
            parts = [
                found[piece].make(rewriter, near)
                if piece in found
                else rewriter.constant(np.array(piece, np.int64), near=near)
                for piece in pieces
            ]
            return parts, {"axis": 0}

        return self._stated(key, "Concat", inputs, list(found.values()))

    def _pieces(self, entries: tuple[Dim, ...]) -> Iterator[tuple[Dim, ...]]:
        """Cut sizes into runs of numbers and runs that the shape of one input of the model holds."""
        start = 0
        while start < len(entries):
            stop = start + 1
            if isinstance(entries[start], int):
                while stop < len(entries) and isinstance(entries[stop], int):
                    stop += 1
            else:
                while stop < len(entries) and isinstance(entries[stop], Expr) and self._run(entries[start : stop + 1]):
                    stop += 1
            yield entries[start:stop]
            start = stop


def axes_operands(
    rewriter: Rewriter, near: Node, axes: Sequence[int], opset: int
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the further inputs and the attributes of a Squeeze or an Unsqueeze.

    Args:
        rewriter: The rewriter of the patch.
        near: A node of the graph of the new node.
        axes: The axes.
        opset: Version of the ONNX domain; from 13 on the axes are an input.
    """
    if opset < 13:
        return [], {"axes": list(axes)}
    return [rewriter.constant(np.array(axes, np.int64), near=near)], {}


def _is_size_op(node: Node) -> bool:
    return node.op in SIZE_OPS and node.domain in DEFAULT_DOMAINS and not refers_to_function(node)
