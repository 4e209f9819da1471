"""Do once before a Split what is done to each part behind it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output
from graphopt.passes.simplify.linear.changes import replace
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

# fmt: off
_UNARY = frozenset({
    "Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
    "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh",
})
# fmt: on
_BINARY = ("Add", "Sub", "Mul", "Div")
_SPLIT_OPSET = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkSplits(RulePass):
    """Compute on the whole what each part of a Split computes by the same operation.

    Matches:   Split whose outputs are each read by one node alone, all of the same kind: Reshape of the split axis
               (the last) into heads of one size, Transpose, an elementwise operator of one input, or Add, Sub, Mul, Div
               with the same other operand, which is constant along the split axis.
    Produces:  One such node, then the Split. k nodes become one; of Transposes that do not all permute alike the most
               frequent one comes before the Split and the others are corrected behind it, where that saves a node.
    Requires:  All outputs are read, none is an output of a graph; Reshape keeps the axes before the split one, and the
               sizes are known.
    Preserves: Names, types and shapes of all outputs; values up to rounding, since vector units compute exp and the
               like otherwise at the end of a tensor.
    Source:    Naturality of splitting: an operation that treats the parts alike commutes with it.
    """

    name: ClassVar[str] = "sink-splits"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the one rule."""
        types = facts.get(Types)
        return [Rule(("Split",), lambda node: _sink(node, types), depth=1, below=1)]


def _sink(node: Node, types: Types) -> Patch | None:
    outputs = node.outputs
    graph = node.graph
    if len(outputs) < 2 or graph is None or graph.opset < _SPLIT_OPSET or refers_to_function(node):
        return None
    first = outputs[0].outputs[0] if outputs[0].outputs else None
    if first is None or not (is_op(first, "Reshape", "Transpose", *_BINARY) or is_op(first, *_UNARY)):
        return None
    readers: list[Node] = []
    for output in outputs:
        if len(output.outputs) != 1 or is_graph_output(output):
            return None
        reader = output.outputs[0]
        if reader.op != first.op or reader.domain != first.domain or reader.graph is not graph:
            return None
        if refers_to_function(reader) or (reader.inputs[0] is not output and not is_op(first, *_BINARY)):
            return None
        readers.append(reader)
    shape = types.shape(node.inputs[0])
    sizes = [types.shape(output) for output in outputs]
    if shape is None or any(size is None for size in sizes):
        return None
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    parts = [size[axis] for size in sizes if size is not None]
    if not all(isinstance(part, int) for part in parts):
        return None
    whole = _Whole(node, readers, axis, [int(part) for part in parts if isinstance(part, int)], types)
    if first.op == "Reshape":
        return whole.reshape()
    if first.op == "Transpose":
        return whole.transpose()
    return whole.binary() if is_op(first, *_BINARY) else whole.elementwise()


@dataclass(frozen=True, slots=True)
class _Whole:
    """A Split and the nodes that read its parts."""

    node: Node
    readers: list[Node]
    axis: int
    parts: list[int]
    types: Types

    def elementwise(self) -> Patch | None:
        """Return the move of an elementwise operator."""
        first = self.readers[0]
        if any(len(reader.inputs) != 1 or dict(reader.attrs) != dict(first.attrs) for reader in self.readers):
            return None
        return self._patch([None], dict(first.attrs), self.axis, self.parts)

    def binary(self) -> Patch | None:
        """Return the move of an operator whose other operand is the same for all parts."""
        first = self.readers[0]
        place = 0 if first.inputs[0] is self.node.outputs[0] else 1
        other, rank = first.inputs[1 - place], len(self.types.shape(self.node.inputs[0]) or ())
        shape = self.types.shape(other)
        for reader, output in zip(self.readers, self.node.outputs, strict=True):
            if len(reader.inputs) != 2 or reader.inputs[place] is not output or reader.inputs[1 - place] is not other:
                return None
            if dict(reader.attrs) != dict(first.attrs):
                return None
        if shape is None or len(shape) > rank:
            return None
        along = self.axis - rank + len(shape)
        if along >= 0 and shape[along] != 1:
            return None
        return self._patch([None, other] if place == 0 else [other, None], dict(first.attrs), self.axis, self.parts)

    def reshape(self) -> Patch | None:
        """Return the move of a Reshape of the last axis into heads."""
        source = self.types.shape(self.node.inputs[0])
        assert source is not None
        if self.axis != len(source) - 1:
            return None
        heads: list[int] = []
        width: object = None
        for reader, part in zip(self.readers, self.parts, strict=True):
            shape = self.types.shape(reader.outputs[0])
            if shape is None or len(shape) != len(source) + 1 or shape[: self.axis] != source[: self.axis]:
                return None
            if not isinstance(shape[-1], int) or not isinstance(shape[-2], int) or shape[-1] * shape[-2] != part:
                return None
            if width not in {None, shape[-1]} or not part:
                return None
            width = shape[-1]
            heads.append(shape[-2])
        target = np.array([*[0] * self.axis, sum(heads), width], np.int64)
        return self._patch([None, target], {}, self.axis, heads)

    def transpose(self) -> Patch | None:
        """Return the move of a Transpose; those that permute otherwise are corrected behind the Split."""
        perms = [tuple(int(axis) for axis in reader.attrs.get("perm", ())) for reader in self.readers]
        (common, count), *_ = Counter(perms).most_common()
        if not common or any(len(perm) != len(common) for perm in perms) or count < 2:
            return None
        corrections = [None if perm == common else [common.index(place) for place in perm] for perm in perms]
        return self._patch([None], {"perm": list(common)}, common.index(self.axis), self.parts, corrections)

    def _patch(
        self,
        operands: list[Any],
        attrs: dict[str, Any],
        axis: int,
        parts: list[int],
        corrections: Sequence[list[int] | None] = (),
    ) -> Patch:
        node, readers = self.node, self.readers
        op, origin = str(readers[0].op), [*readers]
        results: list[Tensor] = [reader.outputs[0] for reader in readers]

        def apply(rewriter: Rewriter) -> None:
            inputs = [
                rewriter.constant(given, name=f"{results[0].name}__target", near=node)
                if isinstance(given, np.ndarray)
                else given or node.inputs[0]
                for given in operands
            ]
            whole = rewriter.op(op, inputs, attrs=attrs, near=node, origin=origin)
            sizes = rewriter.constant(np.array(parts, np.int64), name=f"{node.outputs[0].name}__sizes", near=node)
            likes = [None if corrections and corrections[place] else result for place, result in enumerate(results)]
            split = rewriter.op(
                "Split",
                [whole, sizes],
                attrs={"axis": axis},
                outputs=len(results),
                like=likes,
                near=node,
                origin=[node],
            )
            for place, result in enumerate(results):
                made = split[place]
                correction = corrections[place] if corrections else None
                if correction:
                    made = rewriter.op(
                        op, [made], attrs={"perm": correction}, like=result, near=node, origin=[readers[place]]
                    )
                replace(rewriter, result, made)
            rewriter.erase([*readers, node])

        return Patch(f"{op} before the Split '{node_label(node)}' instead of behind each part", (node, *readers), apply)
