"""Let sparse products of 8-bit integers run on the sparse kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.passes.lower.costed import Known, LayerLowering
from graphopt.passes.lower.integers import STANDARD_DOMAINS, Int8Layer, match_dynamic, match_static
from graphopt.passes.lower.replacing import Candidate, Choice, choose, patch
from graphopt.solve.pack_sparse_int8 import pack_sparse_int8
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Container

    import numpy as np
    from numpy.typing import NDArray

    from graphopt.analysis.types import Types
    from graphopt.graph import Node
    from graphopt.rewrite.patch import Patch


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSparseInt8Matmul(LayerLowering[Choice]):
    """Replace sparse products of 8-bit integers by ai.graphopt::SparseInt8MatMul where that is faster.

    Matches:   MatMul and Gemm whose input and constant weight come from DequantizeLinear, uint8 and int8, the weight
               with the zero point 0 and one scale or one per output; MatMulInteger behind DynamicQuantizeLinear with
               the Cast and the products of scales that follow. An Add of a constant bias, an Add of floats of the same
               shape, a Relu, Clip, Gelu, Swish, x * Sigmoid(x) or Gelu spelled out by Erf or Tanh and a QuantizeLinear
               to uint8, each the only reader of what is before it, go with them, and so does a QuantizeLinear whose
               result nothing else reads.
    Produces:  SparseInt8MatMul with the weight packed in blocks of 1 x 4 or 4 x 4. It reads uint8 between integer
               layers and floats elsewhere, and writes uint8 where the result is rounded. Pairs of conversions to bytes
               between these steps go too, unless they cut like a Relu; in front of an Add of bytes they stay with it,
               since the runtime is faster there.
    Requires:  The kernel is faster than the 8-bit product of ONNX Runtime and the dense float32 one by the margin of
               the cost table, for the share of blocks that are zero, the rows of activations and the size; every
               reader of the weight is lowered, so that the file does not grow.
    Preserves: Names, types and shapes of all outputs. Values: LOSSY in name, since results rounded to uint8 may differ
               from those of float arithmetic by one step, as they do in ONNX Runtime's own integer operators, with
               which they agree to the bit, and by half a step of each pair that goes, more where it cut values; of
               products whose input is rounded in every run those of the standard operators, to the bit but for Gelu
               and the like.
    Source:    Jacob et al. 2018, arXiv:1712.05877, section 2.2; layout in kernels/sparse_int8/contract.h.
    """

    name: ClassVar[str] = "lower-sparse-int8-matmul"
    contract: ClassVar[Contract] = Contract.LOSSY

    def judge(self, node: Node, known: Known, taken: set[Node]) -> Choice | str | None:
        """Return the faster form of a product's weight, why it stays, or None for other nodes."""
        layer = _match(node, known.types, taken)
        if layer is None or isinstance(layer, str):
            return layer
        return choose(_candidate(layer), known.counts.of(node.inputs[0]), known.table, self.isa, "matmul")

    def lowered(self, chosen: Choice, packed: dict[Any, Any]) -> Patch:
        """Return the patch that puts SparseInt8MatMul in the place of a product."""
        return patch(chosen, packed)


def _candidate(layer: Int8Layer) -> Candidate:
    def pack(unit: int) -> NDArray[np.uint8]:
        return pack_sparse_int8(layer.values, layer.scales, layer.fixes, unit=unit)

    k, n = layer.values.shape
    return Candidate(layer, "SparseInt8MatMul", {"K": k, "N": n}, layer.values, pack)


def _match(node: Node, types: Types, taken: Container[Node]) -> Int8Layer | str | None:
    if node.domain not in STANDARD_DOMAINS:
        return None
    if node.op in {"MatMul", "Gemm"}:
        return match_static(node, types, taken)
    return match_dynamic(node, types, taken) if node.op == "MatMulInteger" else None
