"""Where a factor of a tensor can come from: the nodes above it through which a number passes unchanged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, constant_value, is_graph_output, producer, uses
from graphopt.passes.simplify.linear.affine import FLOATS, Affine
from graphopt.passes.simplify.linear.changes import COPY_BYTES, exchange_names, followed, users
from graphopt.passes.simplify.linear.layers import LAYERS, layer_of
from graphopt.passes.simplify.linear.norms import NORMS, norm_of
from graphopt.passes.simplify.linear.scaling import product_of
from graphopt.passes.simplify.look import SMALL_CONSTANT
from graphopt.passes.simplify.purity import is_constant, is_op, refers_to_function

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter, Tensor, Weight

Array = np.ndarray[Any, Any]

_LINEAR = (
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand", "Tile", "Gather", "Identity"),
    *("Neg", "ReduceSum", "ReduceMean", "GlobalAveragePool", "AveragePool", "DepthToSpace", "SpaceToDepth", "Trilu"),
    *("Split", "Div"),
)  # in their first input
_POSITIVE = ("Relu", "LeakyRelu", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Abs")
_SUMS = ("Add", "Sub", "Sum", "Concat", "Where")
_PRODUCTS = ("Mul", "MatMul")
PASSING = frozenset((*_LINEAR, *_POSITIVE, *_SUMS, *_PRODUCTS))
"""Operators that a factor may come through."""

_READABLE = PASSING | frozenset((*LAYERS, *NORMS))
_MOST_NODES = 24
_MOST_STEPS = 120


@dataclass(frozen=True, slots=True)
class Origin:
    """How a factor of a tensor comes about: the nodes above, with what changes in them.

    Attributes:
        slots: Of each node the inputs that have the factor already.
        constants: New constants by node and input.
        dropped: Attributes that a node loses.
    """

    slots: dict[Node, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[tuple[Node, int], Any] = field(default_factory=dict)
    dropped: dict[Node, str] = field(default_factory=dict)

    def with_node(self, node: Node, slots: Sequence[int], constants: dict[int, Any], dropped: str = "") -> Origin:
        """Return the origin with one more node."""
        added = {(node, index): value for index, value in constants.items()}
        lost = {**self.dropped, node: dropped} if dropped else self.dropped
        return Origin({**self.slots, node: tuple(slots)}, {**self.constants, **added}, lost)

    def build(self, rewriter: Rewriter, old: Tensor, near: Node) -> Tensor:
        """Make the nodes again with the factor in them and return the tensor that has it."""
        graph = near.graph
        assert graph is not None
        made: dict[Tensor, Tensor] = {}
        for node in sorted(self.slots, key=graph.nodes.label):
            inputs: list[Tensor] = list(node.inputs)
            for index in self.slots[node]:
                inputs[index] = made[inputs[index]]
            for (owner, index), value in self.constants.items():
                if owner is node:
                    name = f"{inputs[index].name if index < len(inputs) else node.outputs[0].name}__scaled"
                    before = inputs[index] if index < len(inputs) else None
                    inputs[index : index + 1] = [rewriter.constant(value, name=name, near=near)]
                    if isinstance(before, Constant) and users(before) == 1 and isinstance(inputs[index], Constant):
                        before.name, inputs[index].name = inputs[index].name, before.name
            attrs = {key: value for key, value in node.attrs.items() if key != self.dropped.get(node)}
            outputs = rewriter.op(
                str(node.op),
                inputs,
                attrs=attrs,
                domain=node.domain,
                outputs=len(node.outputs),
                like=list(node.outputs),
                near=near,
                origin=[node],
            )
            new = outputs if isinstance(outputs, tuple) else (outputs,)
            made.update(zip(node.outputs, new, strict=True))
            exchange_names(new[0].inputs[0], node)
        return made[old]


class Search:
    """Finds where one factor of one tensor may come from.

    Args:
        factor: The factor.
        reader: The node that multiplies by it.
        types: The types of the model.
    """

    def __init__(self, factor: float, reader: Node, types: Types) -> None:
        self.factor = factor
        self.reader = reader
        self.types = types
        self.steps = 0

    def find(self, tensor: Tensor) -> Origin | None:
        """Return the first origin found, None where there is none near by."""
        return next(self._extend((tensor,), Origin()), None)

    def _extend(self, pending: tuple[Tensor, ...], origin: Origin) -> Iterator[Origin]:
        self.steps += 1
        if self.steps > _MOST_STEPS or len(origin.slots) > _MOST_NODES:
            return
        if not pending:
            if self._is_closed(origin):
                yield origin
            return
        tensor, rest = pending[0], pending[1:]
        node = producer(tensor)
        if node in origin.slots:
            yield from self._extend(rest, origin)
            return
        if node is None or not self._may_change(node):
            return
        for slots, constants, dropped in self._ways(node):
            more = tuple(node.inputs[index] for index in slots)
            yield from self._extend((*more, *rest), origin.with_node(node, slots, constants, dropped))

    def _may_change(self, node: Node) -> bool:
        if node.graph is not self.reader.graph or refers_to_function(node) or not is_op(node, *_READABLE):
            return False
        readers = [reader for tensor in node.outputs for reader in tensor.outputs]
        return len(readers) <= _MOST_NODES and not any(is_graph_output(tensor) for tensor in node.outputs)

    def _is_closed(self, origin: Origin) -> bool:
        """Whether all that read what changes are in the region, and read it there as what has the factor."""
        for node in origin.slots:
            for tensor in node.outputs:
                for use in uses(tensor):
                    if use.node is not self.reader and use.index not in origin.slots.get(use.node, ()):
                        return False
        return True

    def _ways(self, node: Node) -> Iterator[tuple[Sequence[int], dict[int, Any], str]]:
        """Yield the ways in which the output of a node gets the factor: from inputs, and from constants."""
        if is_op(node, *LAYERS) and len(node.inputs) > 1 and is_constant(node.inputs[1]):
            yield from self._layer(node)
        elif is_op(node, *NORMS):
            yield from self._norm(node)
        elif is_op(node, *_SUMS):
            first = 1 if node.op == "Where" else 0
            yield from self._all(node, range(first, len(node.inputs)))
        elif is_op(node, *_PRODUCTS):
            for index in sorted(range(len(node.inputs)), key=lambda place: not is_constant(node.inputs[place])):
                yield from self._all(node, [index])
        elif is_op(node, *_LINEAR) or (is_op(node, *_POSITIVE) and self.factor > 0 and len(node.outputs) == 1):
            yield from self._all(node, [0])

    def _all(self, node: Node, indices: Sequence[int]) -> Iterator[tuple[Sequence[int], dict[int, Any], str]]:
        constants: dict[int, Any] = {}
        for index in indices:
            if is_constant(node.inputs[index]):
                value = self._scaled(node.inputs[index])
                if value is None:
                    return
                constants[index] = value
        yield [index for index in indices if index not in constants], constants, ""

    def _scaled(self, constant: Tensor) -> Array | Weight | None:
        """Return a constant times the factor, None where a copy would be large or leave its type."""
        if isinstance(constant, Constant):
            if users(constant) > 1 and constant.nbytes > COPY_BYTES:
                return None
            if constant.shape and int(np.prod(constant.shape, dtype=np.int64)) > SMALL_CONSTANT:
                made = product_of(constant, np.asarray(self.factor, np.float64))
                return None if isinstance(made, str) else made
        value = constant_value(constant)
        if value is None or value.dtype.name not in FLOATS:
            return None
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            scaled: Array = np.asarray((value.astype(np.float64) * self.factor).astype(value.dtype))
        wide, before = scaled.astype(np.float64), value.astype(np.float64)
        lost = (np.isfinite(before) != np.isfinite(wide)) | ((before != 0) & (wide == 0)) | np.isnan(wide)
        return None if lost.any() else scaled

    def _layer(self, node: Node) -> Iterator[tuple[Sequence[int], dict[int, Any], str]]:
        layer = layer_of(node, self.types)
        change = layer if isinstance(layer, str) else followed(layer, Affine(np.float64(self.factor)))
        if not isinstance(change, str):
            bias = {} if change.bias is None else {2: change.bias}
            yield (), {1: change.weight, **bias}, "beta" if bias else ""

    def _norm(self, node: Node) -> Iterator[tuple[Sequence[int], dict[int, Any], str]]:
        norm = norm_of(node, self.types)
        values = norm if isinstance(norm, str) else norm.followed(Affine(np.float64(self.factor)))
        if not isinstance(values, str):
            bias = {2: values[1]} if len(node.inputs) > 2 and node.inputs[2].name else {}
            yield (), {1: values[0], **bias}, ""
