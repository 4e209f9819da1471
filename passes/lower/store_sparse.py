"""The pass ``store-sparse``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnx import TensorProto

from graphopt.graph import uses
from graphopt.graph.dtypes import bits
from graphopt.passes.lower import bitmaps
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, Patch, Skip

if TYPE_CHECKING:
    from collections.abc import Generator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Constant, Model, Node, Rewriter

NODES_BYTES = 1024
"""What the operators that restore a weight take in the file, about."""

STORED = frozenset(
    (
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE),
        *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.INT32),
        *(TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2),
    )
)
"""Element types that ScatterElements of ONNX Runtime puts into place, those of less than a byte as bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSparse(Pass):
    """Store weights with many zeros as a bitmap and the values that are not zero.

    Attributes:
        saving: Least share of a weight's bytes that this has to save, 0..1.

    Matches: Initializers of the main graph that only standard operators read, with so many zeros that bitmap and
        values are smaller.
    Produces: The bitmap, the values and nine operators that restore the weight: BitShift, NonZero, ScatterElements.
        They depend on constants alone, so that a runtime computes them when it loads the model, and what it executes is
        what it was. With optimizations off it restores the weights in every run.
    Requires: opset 11. A runtime that computes constants when it loads; other tools see no initializer any more, so
        this comes last. restore-sparse takes it back.
    Preserves: Every bit of the weights. A product with a weight that is no initializer, where the runtime does not
        compute constants beforehand, may round otherwise: ROUNDING.
    Source: Han et al. 2016, arXiv:1510.00149, section 2 (sparse storage of pruned weights); a bitmap takes less than
        the distances between values from one value in eight on.
    """

    name: ClassVar[str] = "store-sparse"
    contract: ClassVar[Contract] = Contract.ROUNDING

    saving: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.saving < 1:
            raise ValueError(f"saving is {self.saving}, but it is a share of bytes from 0 to below 1")

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per weight."""
        if not model.graph.nodes:
            return
        if model.opset < bitmaps.SINCE:
            yield Skip(model.graph.name or "the model", f"opset {model.opset} has no BitShift: run raise-opset before")
            return
        shared: dict[str, Constant] = {}
        for weight in list(model.graph.initializers):
            before = weight.nbytes
            if before <= NODES_BYTES or not uses(weight):
                continue
            after = _bytes_after(weight)
            if after > (1 - self.saving) * before:
                continue
            refusal = _refusal(model, weight)
            if refusal:
                yield Skip(weight, refusal)
                continue
            yield _patch(weight, before, after, model.graph.nodes[0], shared)


def _bytes_after(weight: Constant) -> int:
    values = weight.array()
    if values.dtype == object:
        return weight.nbytes
    kept = int(bitmaps.nonzero(values).sum())
    return bitmaps.stored_bytes(values.size, kept, bits(weight.onnx_dtype)) + NODES_BYTES


def _refusal(model: Model, weight: Constant) -> str:
    if model.graph.is_overridable(weight):
        return "whoever runs the model may override it, because it is an input too"
    if weight.roles:
        return "it is an output of the graph"
    readers = [use.node for use in uses(weight)]
    other = next((node for node in readers if node.domain not in bitmaps.STANDARD), None)
    if other is not None:
        return f"{other.domain}::{other.op} reads it, which may need it stored"
    return "" if weight.onnx_dtype in STORED else "ScatterElements does not take its type"


def _patch(weight: Constant, before: int, after: int, first: Node, shared: dict[str, Constant]) -> Patch:
    def apply(rw: Rewriter) -> None:
        rw.replace_uses(weight, bitmaps.write(rw, weight, first, shared))

    what = f"store '{weight.name}' as a bitmap and its values: {before} -> {after} bytes"
    return Patch(what, tuple(dict.fromkeys(use.node for use in uses(weight))), apply)
