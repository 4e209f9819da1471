"""The pass ``dequantize-model``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.analysis.layer_statistics import stream
from graphopt.analysis.tensor_grid import MICROSOFT, STANDARD, is_conversion, restored_values, written_grid
from graphopt.graph import constant_value, uses
from graphopt.passes.quantize.expand_qoperators import ExpandQoperators, restored_record
from graphopt.passes.quantize.restoring import pairs
from graphopt.passes.quantize.restoring.conversions import FLOATS, erase_idle
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, Patch, Skip
from graphopt.target.stored import restores_constant

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

LEFT = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"),
        *("QAttention", "QEmbedLayerNormalization", "QLinearConv", "QLinearMatMul", "GatherBlockQuantized", "QMoE"),
        *("NhwcMaxPool", "MatMulBnb4"),
    )
)
"""Operators that a dequantized model should not have; each that is left is reported."""

Steps = "Generator[Patch | Skip, frozenset[Node], None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class DequantizeModel(Pass):
    """Take a quantized model back to float: weights restored, rounding of activations removed.

    Attributes:
        saturation: What becomes of the ends of a grid. ``keep`` cuts values off there, as the quantized model does, in
            a Relu or Clip where operators before it do not do so already; ``activations`` keeps only what stands for an
            activation function: a lower end at 0, and beside it an upper one at 6.

    Matches: QuantizeLinear and DequantizeLinear on activations and weights; operators on integers (see
        expand-qoperators); DynamicQuantizeLinear with MatMulInteger or ConvInteger, cast and scaled; of the domain
        com.microsoft DynamicQuantizeMatMul, MatMulNBits and DynamicQuantizeLSTM; tables of integers; weights that are
        computed from constants, code books for example.
    Produces: the float operators on the real values of the weights, Clip or Relu where a grid cut values off.
        Weights that are kept in float before a pair are taken as they are. Integers that callers give or get are
        converted by arithmetic. The file grows by what the integers saved.
    Requires: scales and weights that are constants; what is computed at run time stays and is reported.
    Preserves: names, types and shapes of inputs and outputs. Values up to what rounding removed, less than one step of
        the grid of each tensor: LOSSY.
    Source: Jacob et al. 2018, arXiv:1712.05877, section 2.1, read backwards.
    """

    name: ClassVar[str] = "dequantize-model"
    contract: ClassVar[Contract] = Contract.LOSSY
    uses_data: ClassVar[bool] = False

    saturation: Literal["keep", "activations"] = "keep"

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield patches in rounds: operators on integers, weights, pairs, what comes in and goes out."""
        yield from ExpandQoperators().run(model, facts)
        yield from _weights(model)
        yield from self._pairs(model)
        for node in [node for _, node in model.walk(functions=False)]:
            if node.op in LEFT and (node.domain in STANDARD or node.domain == MICROSOFT):
                yield Skip(
                    node,
                    f"{node.op} stays: its scales or weights are computed at run time, or it has no form in float here",
                )

    def _pairs(self, model: Model) -> Iterator[Patch]:
        opset, saturation = model.opset, self.saturation
        for node in [node for _, node in model.walk(functions=False)]:
            if is_conversion(node, "QuantizeLinear") and pairs.readers_of(node):

                def drop(rw: Rewriter, node: Node = node) -> None:
                    pairs.drop_pair(rw, node, opset, saturation=saturation)

                yield Patch(f"keep '{node.inputs[0].name}' in float", (node,), drop)
            elif node.op == "DynamicQuantizeLinear" and (found := _run_time_pairs(node)):

                def unrounded(rw: Rewriter, node: Node = node, found: list[Node] = found) -> None:
                    for reader in found:
                        rw.replace_tensor(reader.outputs[0], node.inputs[0])
                        rw.erase([reader])
                    erase_idle(rw, [node.outputs[0]], frozenset(("DynamicQuantizeLinear",)))

                yield Patch(f"keep '{node.inputs[0].name}' in float", (node,), unrounded)
        for node in [node for _, node in model.walk(functions=False)]:
            if is_conversion(node, "DequantizeLinear") and pairs.is_plain_restoring(node):

                def restore(rw: Rewriter, node: Node = node) -> None:
                    pairs.restore_plainly(rw, node)

                yield Patch(f"restore '{node.inputs[0].name}' by arithmetic", (node,), restore)
            elif opset >= pairs.ROUND_SINCE and is_conversion(node, "QuantizeLinear") and pairs.is_border_output(node):

                def rounded(rw: Rewriter, node: Node = node) -> None:
                    pairs.round_border(rw, node)

                yield Patch(f"round output '{node.outputs[0].name}' by arithmetic", (node,), rounded)


def _weights(model: Model) -> Iterator[Patch | Skip]:
    """Yield one patch per weight that is computed from constants."""
    made: list[Node] = []
    for graph, node in list(model.walk(functions=False)):
        if not is_conversion(node, "DequantizeLinear"):
            if graph is model.graph and is_code_book(node):
                made.append(node)
            continue
        codes = constant_value(node.inputs[0])
        if codes is None:
            if graph is model.graph and restores_constant(node):
                made.append(node)
            continue
        values = restored_values(codes, written_grid(node))
        if values is None:
            yield Skip(node, "its scale or zero point is computed at run time")
            continue
        yield _constant_patch(node, values)
    names = [node.outputs[0].name for node in made]
    computed = next(stream(model, names, [{}])) if names else {}
    for node in made:
        yield _constant_patch(node, computed[node.outputs[0].name])


def is_code_book(node: Node) -> bool:
    """Tell whether a node looks a weight up in a code book: the places are stored in few bits, so they are computed."""
    found = node.op == "Gather" and constant_value(node.inputs[1]) is None and restores_constant(node)
    return found and _is_float(node.outputs[0])


def _constant_patch(node: Node, values: NDArray[np.generic]) -> Patch:
    source = node.inputs[0]
    record = restored_record(node, str(source.dtype))

    def apply(rw: Rewriter) -> None:
        old = list(node.inputs)
        constant = rw.constant(values, name=f"{source.name}_restored", near=node)
        rw.replace_tensor(node.outputs[0], constant)
        rw.erase([node])
        erase_idle(rw, old)

    return Patch(f"restore the constant '{node.outputs[0].name}'", (node,), apply, (record,))


def _is_float(tensor: Tensor) -> bool:
    dtype: Any = tensor.dtype
    return dtype in FLOATS


def _run_time_pairs(node: Node) -> list[Node]:
    """Return what restores the integers of a DynamicQuantizeLinear with the scale it found."""
    return [
        use.node
        for use in uses(node.outputs[0])
        if is_conversion(use.node, "DequantizeLinear") and use.index == 0 and use.node.inputs[1] is node.outputs[1]
    ]
