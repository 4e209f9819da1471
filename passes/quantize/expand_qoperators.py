"""The pass ``expand-qoperators``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphopt.analysis.tensor_grid import STANDARD
from graphopt.passes.quantize.restoring.moves import expand_move, moves_codes
from graphopt.passes.quantize.restoring.products import (
    expand_fused,
    expand_product,
    find_product,
    fused_refusal,
    is_fused,
)
from graphopt.passes.quantize.restoring.qlinear import expand, is_qlinear, refusal
from graphopt.passes.quantize.restoring.tables import Table, expand_table, find_table
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, LayerRecord, Patch, Skip, node_label

if TYPE_CHECKING:
    from collections.abc import Generator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandQoperators(Pass):
    """Write operators that compute on integers as float operators between conversions (the QDQ form).

    Attributes:
        movement: Also data movement on integers, Reshape of uint8 for example.

    Matches: QLinearConv and QLinearMatMul; of the domain com.microsoft QGemm, QLinearAdd, QLinearMul, QLinearConcat,
        QLinearAveragePool, QLinearGlobalAveragePool, QLinearSigmoid, QLinearLeakyRelu, QLinearSoftmax,
        QLinearReduceMean, QLinearWhere, MatMulIntegerToFloat, channels last included; MatMulInteger and ConvInteger,
        cast and scaled; DynamicQuantizeMatMul, MatMulNBits and DynamicQuantizeLSTM; tables of integers whose rows are
        restored; data movement on integers whose grid is known.
    Produces: DequantizeLinear of each input, the float operator, QuantizeLinear of the output, on the scales there
        were; DynamicQuantizeLinear and DequantizeLinear where scales are found at run time (not for recurrent layers,
        which round inside). Weights of integer products and tables become float constants. Static forms cost nothing
        where the runtime fuses them again; run-time forms become slower.
    Requires: constant scales and weights.
    Preserves: names, types and shapes of inputs and outputs; values up to one step of the grid each operator rounds
        to, whose sums may be computed in another order: LOSSY.
    Source: definitions of the operators by ONNX and by ONNX Runtime's contrib operators.
    """

    name: ClassVar[str] = "expand-qoperators"
    contract: ClassVar[Contract] = Contract.LOSSY
    uses_data: ClassVar[bool] = False

    movement: bool = True

    def run(self, model: Model, _facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per operator, in graph order: each finds what reaches it expanded already."""
        for node in [node for _, node in model.walk(functions=False)]:
            if is_qlinear(node):
                yield _qlinear(node, model.opset)
            elif self.movement and moves_codes(node):

                def move(rw: Rewriter, node: Node = node) -> None:
                    expand_move(rw, node, model.opset)

                yield Patch(f"move real values through {node.op} '{node_label(node)}'", (node,), move)
            elif node.op in {"MatMulInteger", "ConvInteger"} and node.domain in STANDARD:
                yield _product(node, model.opset)
            elif is_fused(node):
                yield _fused(node)
            elif (table := find_table(node)) is not None:

                def look_up(rw: Rewriter, table: Table = table) -> None:
                    expand_table(rw, table)

                record = restored_record(node, str(node.inputs[0].dtype))
                yield Patch(f"look real numbers up in Gather '{node_label(node)}'", (node,), look_up, (record,))


def _qlinear(node: Node, opset: int) -> Patch | Skip:
    why = refusal(node, opset)
    if why is not None:
        return Skip(node, why)

    def apply(rw: Rewriter) -> None:
        expand(rw, node, opset)

    return Patch(f"write {node.op} '{node_label(node)}' between conversions", (node,), apply)


def _product(node: Node, opset: int) -> Patch | Skip:
    found = find_product(node)
    if isinstance(found, str):
        return Skip(node, found)

    def apply(rw: Rewriter) -> None:
        expand_product(rw, found, opset)

    record = restored_record(node, str(node.inputs[1].dtype))
    return Patch(f"multiply real numbers in {node.op} '{node_label(node)}'", (node,), apply, (record,))


def _fused(node: Node) -> Patch | Skip:
    why = fused_refusal(node)
    if why is not None:
        return Skip(node, why)

    def apply(rw: Rewriter) -> None:
        expand_fused(rw, node)

    record = restored_record(node, f"{node.attrs.get('bits', 8)} bits")
    return Patch(f"multiply real numbers in {node.op} '{node_label(node)}'", (node,), apply, (record,))


def restored_record(node: Node, stored: str) -> LayerRecord:
    """Return the row of the per-layer table for a weight that is float again."""
    return LayerRecord(node_label(node), node.op, f"float, restored from {stored}")
