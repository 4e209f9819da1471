"""The patches of insert-qdq for targets that compile quantized models themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.passes.quantize.pairing.form import PairForm
from graphopt.passes.quantize.pairing.weights import PairWeights
from graphopt.passes.quantize.pairing.writing import PairWriter
from graphopt.rewrite.patch import LayerRecord, Patch, Skip, node_label
from graphopt.target.pairs import place_pairs
from graphopt.target.rules import Pairs, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from graphopt.analysis.activation_ranges import Ranges
    from graphopt.analysis.types import Types
    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.passes.quantize.grids import GridOf
    from graphopt.target.rules import OpRule, Target

FLOAT32 = 1


def declare_pairs(
    model: Model,
    types: Types,
    target: Target,
    ranges: Ranges,
    grids: GridOf,
    leave: Mapping[Node, str],
    only: Callable[[Node], str | None],
    *,
    per_channel: bool,
    correct_bias: bool,
    weigh: bool,
) -> Generator[Patch | Skip, frozenset[Node], None]:
    """Yield one patch per operator that is declared quantized, in graph order.

    Args:
        model: The model.
        types: Its types.
        target: The rules; its ``pairs`` are not `Pairs.KERNELS`.
        ranges: What was seen of its activations.
        grids: The grid of a group of tensors.
        leave: Nodes that must stay float, with the reason.
        only: Returns why a weighted node must stay float, else None.
        per_channel: One weight scale per output channel where the target takes it.
        correct_bias: Let biases make up for what rounding the weights adds to the mean of each output.
        weigh: Give weights the scales of least error, channels of their input weighed by their mean square.
    """
    placement = place_pairs(model, types, target, leave=leave, only=only, sizes=ranges.sizes())
    for node, why in placement.refused.items():
        yield Skip(node, why)
    if target.pairs is Pairs.EVERYTHING:
        for node in model.graph.nodes:
            if node not in placement.nodes and node not in placement.refused:
                yield from _left_out(node, types, target)

    def means_of(tensor: Tensor) -> NDArray[np.float64] | None:
        seen = ranges.get(tensor.name) if correct_bias else None
        return None if seen is None else seen.channel_means()

    def powers_of(tensor: Tensor) -> NDArray[np.float64] | None:
        seen = ranges.get(tensor.name)
        return None if seen is None else seen.channel_powers()

    writer, number = PairWriter(model.opset), grids.kind.number
    powers = powers_of if weigh else None
    weights = PairWeights(target, writer, number, means_of, powers, per_channel=per_channel)
    form = PairForm(target, placement, grids, writer, weights)
    for node, rule in placement.nodes.items():
        yield _patch(form, weights, node, rule)


def _patch(form: PairForm, weights: PairWeights, node: Node, rule: OpRule) -> Patch:
    label = node_label(node)

    def apply(rw: Rewriter) -> None:
        form.declare(rw, node, rule)

    if rule.role is not Role.WEIGHTED:
        return Patch(f"declare {node.op} '{label}' quantized", (node,), apply)
    what = weights.describe(rule)
    record = LayerRecord(label, node.op, what, reason=f"declared for {rule.kernel}")
    return Patch(f"quantize {node.op} '{label}' to {what}", (node,), apply, (record,))


def _left_out(node: Node, types: Types, target: Target) -> Generator[Skip, None, None]:
    """Yield why an operator that computes real numbers is not quantized on a target that wants everything to be."""
    if any(types.dtype(tensor) == FLOAT32 for tensor in (*node.inputs, *node.outputs) if tensor.name):
        yield Skip(node, target.float_reason.get(node.op, "an input or output is not float32, or has no known range"))
