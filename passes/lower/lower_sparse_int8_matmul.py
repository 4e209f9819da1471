"""Let sparse products of 8-bit integers run on the sparse kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.cost_table import CostTable
from graphopt.passes.lower.costed import CostedLowering
from graphopt.passes.lower.integers import STANDARD_DOMAINS, Int8Layer, match_dynamic, match_static
from graphopt.passes.lower.replacing import Choice, choose, patch, why_weight_stays
from graphopt.rewrite.patch import Patch, Skip
from graphopt.solve.pack_sparse_int8 import pack_sparse_int8
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np
    from numpy.typing import NDArray

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSparseInt8Matmul(CostedLowering):
    """Replace sparse products of 8-bit integers by ai.graphopt::SparseInt8MatMul where that is faster.

    Matches:   MatMul and Gemm whose input and constant weight come from DequantizeLinear, uint8 and int8, the weight
               with the zero point 0 and one scale or one per output; MatMulInteger behind DynamicQuantizeLinear with
               the Cast and the products of scales that follow. A constant bias, a Relu, Clip or Gelu and a
               QuantizeLinear to uint8 that alone read the result go with them, and so does a QuantizeLinear whose
               result nothing else reads.
    Produces:  SparseInt8MatMul with the weight packed in blocks of 1 x 4 or 4 x 4. It reads uint8 between integer
               layers and floats elsewhere, and writes uint8 where the result is rounded.
    Requires:  The kernel is faster than the 8-bit product of ONNX Runtime and the dense float32 one by the margin of
               the cost table, for the share of blocks that are zero, the rows of activations and the size; every
               reader of the weight is lowered, so that the file does not grow.
    Preserves: Names, types and shapes of all outputs. Values: LOSSY in name, since results rounded to uint8 may differ
               from those of float arithmetic by one step, as they do in ONNX Runtime's own integer operators, with
               which they agree to the bit; of products whose input is rounded in every run those of the standard
               operators, to the bit.
    Source:    Jacob et al. 2018, arXiv:1712.05877, section 2.2; layout in kernels/sparse_int8/contract.h.
    """

    name: ClassVar[str] = "lower-sparse-int8-matmul"
    contract: ClassVar[Contract] = Contract.LOSSY

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per lowered node, in topological order.

        Raises:
            RecipeError: The cost table cannot be read, or does not have the instruction set.
        """
        table = CostTable.find(self.cost_table)
        counts = self.counts(model, facts)
        found: dict[Node, tuple[Int8Layer, Choice] | str] = {}
        for _, node in model.walk():
            layer = _match(node)
            if layer is None:
                continue
            if isinstance(layer, str):
                found[node] = layer
                continue
            choice = choose(layer.values, counts.of(layer.node.inputs[0]), table, self.isa, "matmul")
            found[node] = choice if isinstance(choice, str) else (layer, choice)
        packed: dict[Any, Any] = {}
        for node, known in found.items():
            reason = known if isinstance(known, str) else why_weight_stays(known[0], found)
            if reason or isinstance(known, str):
                yield Skip(node, reason)
                continue
            layer, choice = known
            k, n = layer.values.shape
            yield patch(layer, partial(_pack, layer), choice, "SparseInt8MatMul", {"K": k, "N": n}, packed)


def _pack(layer: Int8Layer, unit: int) -> NDArray[np.uint8]:
    return pack_sparse_int8(layer.values, layer.scales, layer.fixes, unit=unit)


def _match(node: Node) -> Int8Layer | str | None:
    if node.domain not in STANDARD_DOMAINS:
        return None
    if node.op in {"MatMul", "Gemm"}:
        return match_static(node)
    return match_dynamic(node) if node.op == "MatMulInteger" else None
