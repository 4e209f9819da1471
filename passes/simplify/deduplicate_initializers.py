"""Store equal weights once."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Constant, Graph, Model, dtypes, enclosing
from graphopt.graph.weights import LazyWeight, SparseWeight
from graphopt.rewrite.driver import EVERY, Batch, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Node, Rewriter
    from graphopt.rewrite.pass_ import Steps

_PREFIX_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class DeduplicateInitializers(RulePass):
    """Keep one of the initializers that hold the same bytes.

    Matches:   Initializers of the same element type, shape and bytes, in one graph or in one around the other.
    Produces:  The readers of the others read the first one; the file shrinks by the bytes of the others.
    Requires:  Neither is an input that a caller may override, nor an output of a graph. Strings, sparse tensors and
               values that are not computed yet stay. Zeros of different sign are different bytes, and so differ.
    Preserves: Every output bitwise; the names, types and shapes of all tensors that remain.
    Source:    Equality of BLAKE2b digests (RFC 7693) of 16 bytes; whole weights are read only where the first
               4 096 bytes agree.

    Options:
        least_bytes: Smaller initializers stay; what merges them gains nothing but fewer names.
    """

    name: ClassVar[str] = "deduplicate-initializers"
    contract: ClassVar[Contract] = Contract.EXACT
    preserves: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    least_bytes: int = 1

    def rules(self, model: Model, facts: Facts) -> Sequence[Batch]:
        """Return the batch that looks at all initializers once, before anything else."""
        done: list[bool] = []

        def merge(_: Sequence[Node]) -> Steps:
            done.append(True)
            yield from self._mergers(model)

        return [Batch((EVERY,), lambda _: not done, merge, domain=EVERY, first=True)]

    def _mergers(self, model: Model) -> Iterator[Patch]:
        """Yield one patch for each initializer that stays in the place of others."""
        candidates = [
            constant
            for graph in model.graphs()
            for constant in graph.initializers
            if constant.nbytes >= self.least_bytes and _is_replaceable(constant, graph)
        ]
        for group in _equal(candidates):
            yield from _merged(group)


def _is_replaceable(constant: Constant, graph: Graph) -> bool:
    if constant.roles or graph.is_overridable(constant) or constant in graph.initializer_inputs:
        return False
    return constant.onnx_dtype != dtypes.STRING and not isinstance(constant.weight, LazyWeight | SparseWeight)


def _equal(constants: Iterable[Constant]) -> Iterator[list[Constant]]:
    """Yield groups of at least two constants of equal content."""
    for alike in _grouped(constants, lambda c: (c.onnx_dtype, c.shape)):
        for begun in _grouped(alike, _prefix):
            yield from _grouped(begun, _digest)


def _grouped(constants: Iterable[Constant], key: Any) -> Iterator[list[Constant]]:
    groups: dict[object, list[Constant]] = {}
    for constant in constants:
        groups.setdefault(key(constant), []).append(constant)
    yield from (group for group in groups.values() if len(group) > 1)


def _prefix(constant: Constant) -> bytes:
    return bytes(next(iter(constant.weight.chunks()), b"")[:_PREFIX_BYTES])


def _digest(constant: Constant) -> bytes:
    digest = blake2b(digest_size=16)
    for chunk in constant.weight.chunks():
        digest.update(chunk)
    return digest.digest()


def _merged(group: list[Constant]) -> Iterator[Patch]:
    """Yield a patch for each constant that others, in its graph or in graphs inside, can be replaced by."""
    left = group
    while left:
        kept, *others = left
        same = [c for c in others if any(scope is kept.home for scope in enclosing(c.home))]
        left = [c for c in others if c not in same]
        if not same:
            continue

        def apply(rewriter: Rewriter, kept: Constant = kept, same: list[Constant] = same) -> None:
            for constant in same:
                rewriter.replace_uses(constant, kept)
                rewriter.drop_initializer(constant)

        names = ", ".join(f"'{constant.name}'" for constant in same[:4]) + (", ..." if len(same) > 4 else "")
        size = sum(constant.nbytes for constant in same)
        yield Patch(f"'{kept.name}' holds the same as {names}: {size} bytes", (), apply)
