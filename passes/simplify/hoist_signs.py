"""Move the minus signs of rotary embeddings into the factor that all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.types import Types
from graphopt.graph import producer
from graphopt.passes.simplify.look import read_once
from graphopt.passes.simplify.purity import is_op, refers_to_function
from graphopt.rewrite.driver import Rule, RulePass, position
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_NUMPY_TYPES: dict[int, Any] = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16, 11: np.float64}
_LONGEST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class HoistSigns(RulePass):
    """Negate a shared factor once, where parts of what it multiplies are negated each time.

    Matches:   At least two Mul of one factor and of a Concat of the same axis and the same sizes, in which the same
               parts are Neg: ``rotate_half(x) * sin`` of rotary position embeddings.
    Produces:  One Mul of the factor with a constant of 1 and -1, and the same nodes without Neg: one node and one pass
               over the data less for every use but the first.
    Requires:  The negated parts and the Concat are read by nothing else. The sizes along the axis are numbers, and the
               factor has that axis in full or size 1 there.
    Preserves: Every output bitwise, the sign of a NaN aside: -a * s and a * -s round alike. Names, types and shapes.
    Source:    Su et al. 2021, RoFormer, arXiv:2104.09864, equation 34.
    """

    name: ClassVar[str] = "hoist-signs"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rule for Mul."""
        types = facts.get(Types)

        def hoisted(node: Node) -> Patch | None:
            for index in (0, 1):
                found = _Use.of(node, index, types)
                if found is None:
                    continue
                others = (_Use.of(user, index, types) for user in _readers(found.factor, node) for index in (0, 1))
                alike = {other.node: other for other in others if other is not None and other.is_like(found)}
                if len(alike) > 1:
                    return _patch([alike[user] for user in sorted(alike, key=position)], types)
            return None

        return [Rule(("Mul",), hoisted, depth=2)]


def _readers(factor: Tensor, node: Node) -> list[Node]:
    return [user for user in dict.fromkeys(factor.outputs) if is_op(user, "Mul") and user.graph is node.graph]


@dataclass(frozen=True, slots=True)
class _Use:
    """One product of the factor and a Concat with negated parts.

    Attributes:
        node: The Mul.
        concat: The Concat.
        factor: The factor.
        back: The axis of the Concat, counted from behind as a negative number.
        signs: One number per index of the axis.
    """

    node: Node
    concat: Node
    factor: Tensor
    back: int
    signs: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, index: int, types: Types) -> _Use | None:
        """Return the use that a Mul makes of its input at this index as the factor, None where it is another."""
        assert node.graph is not None
        concat = producer(node.inputs[1 - index]) if node.graph.opset >= 7 else None
        if concat is None or not is_op(concat, "Concat") or refers_to_function(concat):
            return None
        if not any(map(_is_negated, concat.inputs)) or not read_once(concat.outputs[0]):
            return None
        factor = node.inputs[index]
        rank, shape = types.rank(concat.outputs[0]), types.shape(factor)
        if rank is None or shape is None or types.dtype(factor) not in _NUMPY_TYPES:
            return None
        axis = int(concat.attrs["axis"]) % rank
        signs = _signs(concat, axis, types)
        back = axis - rank
        size = shape[back] if -back <= len(shape) else 1
        if signs is None or size not in {1, len(signs)} or concat.graph is not node.graph:
            return None
        return cls(node, concat, factor, back, signs)

    def is_like(self, other: _Use) -> bool:
        """Whether the same factor, negated in the same places, serves both."""
        return self.factor is other.factor and self.back == other.back and self.signs == other.signs


def _signs(concat: Node, axis: int, types: Types) -> tuple[int, ...] | None:
    signs: list[int] = []
    for part in concat.inputs:
        shape = types.shape(part)
        size = None if shape is None else shape[axis]
        if not isinstance(size, int) or len(signs) + size > _LONGEST:
            return None
        signs += [-1 if _is_negated(part) else 1] * size
    return tuple(signs)


def _is_negated(tensor: Tensor) -> bool:
    node = producer(tensor)
    return node is not None and is_op(node, "Neg") and read_once(tensor)


def _patch(uses: Sequence[_Use], types: Types) -> Patch:
    first = uses[0]

    def apply(rewriter: Rewriter) -> None:
        element = _NUMPY_TYPES[types.dtype(first.factor)]
        signs = np.array(first.signs, element).reshape(-1, *[1] * (-first.back - 1))
        constant = rewriter.constant(signs, name="signs", near=first.node)
        factor = rewriter.op("Mul", [first.factor, constant], near=first.node)
        for use in uses:
            negated = [producer(part) if _is_negated(part) else None for part in use.concat.inputs]
            parts = [
                part if node is None else node.inputs[0] for part, node in zip(use.concat.inputs, negated, strict=True)
            ]
            whole = rewriter.op("Concat", parts, attrs=dict(use.concat.attrs), near=use.concat, origin=[use.concat])
            for index, tensor in enumerate(list(use.node.inputs)):
                rewriter.set_input(use.node, index, factor if tensor is use.factor else whole)
            rewriter.erase([use.concat, *(node for node in negated if node is not None)])

    return Patch(f"negate '{first.factor.name}' once for {len(uses)} products", tuple(u.node for u in uses), apply)
