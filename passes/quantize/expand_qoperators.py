"""The pass ``expand-qoperators``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphopt.passes.quantize.restoring.moves import expand_move, moves_codes
from graphopt.passes.quantize.restoring.qlinear import expand, is_qlinear, refusal
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, Patch, Skip, node_label

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
        QLinearReduceMean, QLinearWhere, MatMulIntegerToFloat, channels last included; data movement on integers whose
        grid is known.
    Produces: DequantizeLinear of each input, the float operator, QuantizeLinear of the output, on the scales there
        were. Costs nothing where the runtime fuses them again.
    Requires: constant scales.
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
                why = refusal(node, model.opset)
                if why is not None:
                    yield Skip(node, why)
                    continue

                def apply(rw: Rewriter, node: Node = node) -> None:
                    expand(rw, node, model.opset)

                yield Patch(f"write {node.op} '{node_label(node)}' between conversions", (node,), apply)
            elif self.movement and moves_codes(node):

                def move(rw: Rewriter, node: Node = node) -> None:
                    expand_move(rw, node, model.opset)

                yield Patch(f"move real values through {node.op} '{node_label(node)}'", (node,), move)
