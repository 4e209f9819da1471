"""Store equal weights once."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Constant, Model, dtypes, enclosing
from graphopt.graph.weights import LazyWeight, SparseWeight, Weight
from graphopt.rewrite.driver import EVERY, Batch, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        """Return the batch that looks at every initializer once, also at those that other passes make."""
        pool = _Pool(self.least_bytes)
        return [Batch((EVERY,), pool.wants, pool.merge, domain=EVERY, first=True)]


class _Pool:
    """The initializers seen so far, by content."""

    def __init__(self, least_bytes: int) -> None:
        self._least_bytes = least_bytes
        self._seen: set[Constant] = set()
        self._alike: dict[object, list[Constant]] = {}
        self._keys: dict[Constant, tuple[Weight, object]] = {}
        self._digests: dict[Constant, tuple[Weight, bytes]] = {}

    def wants(self, node: Node) -> bool:
        """Whether a node reads an initializer that was not looked at yet."""
        for tensor in node.inputs:  # noqa: SIM110 - asked at every visit, and a generator costs more than its work
            if isinstance(tensor, Constant) and tensor not in self._seen:
                return True
        return False

    def merge(self, nodes: Sequence[Node]) -> Steps:
        """Yield a patch for the new initializers that are there already, or take the place of those that are."""
        pairs: list[tuple[Constant, Constant]] = []
        for node in nodes:
            for tensor in node.inputs:
                if isinstance(tensor, Constant) and tensor not in self._seen:
                    self._seen.add(tensor)
                    if tensor.nbytes >= self._least_bytes and _is_replaceable(tensor):
                        pairs += self._pair(tensor)
        if pairs:
            yield _merger(pairs)

    def _pair(self, constant: Constant) -> list[tuple[Constant, Constant]]:
        """Return the initializer that stays and the one that goes, where two hold the same."""
        key = self._key(constant)
        alike = self._alike.setdefault(key, [])
        for other in alike:
            if not _is_replaceable(other) or self._key(other) != key:
                continue
            # of small ones the key holds every byte
            if constant.nbytes > _PREFIX_BYTES and self._digest(other) != self._digest(constant):
                continue
            if _sees(constant, other):
                return [(other, constant)]
            if _sees(other, constant):
                alike[alike.index(other)] = constant
                return [(constant, other)]
        alike.append(constant)
        return []

    def _key(self, constant: Constant) -> object:
        weight = constant.weight
        found = self._keys.get(constant)
        if found is None or found[0] is not weight:
            form = (weight.onnx_dtype, tuple(weight.shape), weight.head(_PREFIX_BYTES))
            found = self._keys[constant] = (weight, form)
        return found[1]

    def _digest(self, constant: Constant) -> bytes:
        found = self._digests.get(constant)
        if found is None or found[0] is not constant.weight:
            digest = blake2b(digest_size=16)
            for chunk in constant.weight.chunks():
                digest.update(chunk)
            found = self._digests[constant] = (constant.weight, digest.digest())
        return found[1]


def _is_replaceable(constant: Constant) -> bool:
    home = constant.home
    if home is None or constant.roles or constant not in home.initializers or constant in home.initializer_inputs:
        return False
    return constant.onnx_dtype != dtypes.STRING and not isinstance(constant.weight, LazyWeight | SparseWeight)


def _sees(inner: Constant, outer: Constant) -> bool:
    """Whether what reads the first may read the second."""
    return inner.home is not None and any(scope is outer.home for scope in enclosing(inner.home))


def _merger(pairs: list[tuple[Constant, Constant]]) -> Patch:
    readers = tuple(dict.fromkeys(reader for _, gone in pairs for reader in gone.outputs))
    size = sum(gone.nbytes for _, gone in pairs)

    def apply(rewriter: Rewriter) -> None:
        for kept, gone in pairs:
            rewriter.replace_uses(gone, kept)
            rewriter.drop_initializer(gone)

    kept, gone = pairs[0]
    more = f", and {len(pairs) - 1} more" if len(pairs) > 1 else ""
    return Patch(f"'{kept.name}' holds the same as '{gone.name}'{more}: {size} bytes", readers, apply)
