"""How layers of 8-bit integers go to the sparse kernel, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import is_graph_output, uses
from graphopt.passes.lower.epilogue import added_inputs
from graphopt.passes.lower.height import flat, flattening, tall, tall_shape
from graphopt.rewrite.patch import LayerRecord, Patch, node_label
from graphopt.solve.pack_sparse_int8 import UNITS, packed_bytes, stored_share

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis.cost_table import CostTable
    from graphopt.graph import Node, Rewriter, Tensor, Variable
    from graphopt.passes.lower.integers import Int8Layer

DOMAIN = "ai.graphopt"
_HEADERS_BYTES = 4096  # what the packed form of a tiny weight may have beside its blocks
_BITS = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layer that the kernel can compute.

    Attributes:
        layer: The layer.
        op: The operator.
        attributes: Its attributes beside those of grids and activation.
        matrix: The weight as [K, N].
        pack: Packs it in units of so many outputs.
    """

    layer: Int8Layer
    op: str
    attributes: Mapping[str, Any]
    matrix: NDArray[np.int8]
    pack: Callable[[int], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Choice:
    """How a layer is lowered.

    Attributes:
        candidate: The layer.
        unit: Outputs that share their blocks: 1 or 4.
        zeros: Share of blocks that are zero.
        faster: How many times faster than the 8-bit operator of ONNX Runtime, by the cost table.
    """

    candidate: Candidate
    unit: int
    zeros: float
    faster: float

    @property
    def layer(self) -> Int8Layer:
        """The layer."""
        return self.candidate.layer


def choose(candidate: Candidate, rows: int | None, table: CostTable, isa: str, kind: str) -> Choice | str:
    """Return the fastest form of the sparse kernel, or why the layer stays as it is.

    Args:
        candidate: The layer.
        rows: Rows of activations or positions of the output; None where unknown.
        table: What is faster.
        isa: The instruction set that counts, or ``any``.
        kind: ``matmul`` or ``conv``.
    """
    matrix = candidate.matrix
    k, n = matrix.shape
    choices = []
    for unit in UNITS:
        zeros = 1 - stored_share(matrix, unit)
        name = f"sparse-int8-{kind}-{unit}x4"
        over = table.gain(name, zeros, f"dense-int8-{kind}", _BITS, rows, k * n, isa)
        # Where the dense 8-bit operator is slower than the dense float one, the float one is to be beaten.
        choices.append(Choice(candidate, unit, zeros, min(over, table.predicted(name, rows, k * n, zeros, isa))))
    best = max(choices, key=lambda choice: choice.faster)
    if best.faster < 1 + table.margin:
        places = "an unknown number of" if rows is None else str(rows)
        what = "rows of activations" if kind == "matmul" else "positions"
        share = f"its weight has {choices[0].zeros:.1%} zeros in blocks of 1 x 4 and {choices[1].zeros:.1%} in 4 x 4"
        known = f"only {best.faster:.2f} times as fast" if best.faster else "not known to be faster"
        return f"{share}; for {places} {what} and a weight of {k} x {n} the sparse kernel is {known}"
    after = packed_bytes(matrix, best.unit)
    if after > matrix.nbytes + _HEADERS_BYTES + 16 * n:
        return f"its weight of {matrix.nbytes} bytes would take {after} bytes, so that the file would grow"
    return best


def patch(choice: Choice, packed: dict[Any, Any]) -> Patch:
    """Return the patch that puts one of our operators in the place of a layer.

    Args:
        choice: The layer and how it is lowered.
        packed: Weights packed so far, by what they hold.
    """
    layer, candidate = choice.layer, choice.candidate
    label, last = node_label(layer.node), layer.nodes[-1]
    extras = "".join(f" and {node.op} '{node_label(node)}'" for node in layer.nodes[1:])
    read = (layer.x, layer.epilogue.residual) if layer.one_axis else ()
    views = [view for tensor in read if tensor is not None and (view := flattening(tensor)) is not None]

    def apply(rewriter: Rewriter) -> None:
        x, residual = layer.x, layer.epilogue.residual
        if layer.one_axis:
            x = tall(rewriter, x, layer.node)
            residual = None if residual is None else tall(rewriter, residual, layer.node)
        added = added_inputs(rewriter, layer.epilogue.bias, residual, layer.scales.size, label=label, near=layer.node)
        result: Variable = rewriter.op(
            candidate.op,
            [x, _weight(rewriter, choice, packed), *added],
            attrs={**candidate.attributes, **layer.attributes()},
            domain=DOMAIN,
            like=None if layer.one_axis else layer.output,
            near=last,
            origin=(layer.node,),
            name=layer.node.name or layer.node.op,
        )
        dtype = np.dtype(np.float32 if layer.y_grid is None else np.uint8)
        shape = layer.node.outputs[0].shape if layer.output.shape is None else layer.output.shape
        if layer.one_axis:
            rewriter.set_type(result, dtype, tall_shape(shape))
            result = flat(rewriter, result, layer.output, layer.node)
        if layer.y_grid is not None and layer.output.dtype is None:
            rewriter.set_type(result, dtype, shape)
        rewriter.replace_tensor(layer.output, result)
        rewriter.erase(layer.nodes)
        for node in _no_longer_read((*layer.operands, *views)):
            rewriter.erase(node)

    what = f"{candidate.op}, {choice.zeros:.1%} zeros in blocks of {choice.unit} x 4"
    reason = f"at least {choice.faster:.1f} times as fast as the dense 8-bit operator by the cost table"
    record = LayerRecord(label, layer.node.op, what, reason=reason)
    nodes = (*layer.nodes, *layer.operands, *views)
    return Patch(f"run {layer.node.op} '{label}'{extras} on the sparse int8 kernel", nodes, apply, (record,))


def _weight(rewriter: Rewriter, choice: Choice, packed: dict[Any, Any]) -> Tensor:
    """The packed weight; layers whose weights hold the same share it."""
    layer, to_bytes = choice.layer, choice.layer.y_grid is not None
    numbers = (layer.scales.tobytes(), None if layer.fixes is None else layer.fixes.tobytes())
    form = (choice.unit, choice.candidate.attributes.get("group", 1), to_bytes)
    key = (layer.stored_weight, *form, *numbers)
    if key not in packed:
        blob = choice.candidate.pack(choice.unit)
        # The type of the weight tells ONNX Runtime before 1.20 that the output is uint8.
        packed[key] = rewriter.constant(
            blob.view(np.int8) if to_bytes else blob, name=f"{layer.stored_weight.name}_packed", near=layer.node
        )
    weight: Tensor = packed[key]
    return weight


def _no_longer_read(nodes: Sequence[Node]) -> Sequence[Node]:
    """Those of some nodes whose results nothing reads, once those before them are gone."""
    gone: list[Node] = []
    waiting = list(dict.fromkeys(nodes))
    while True:
        idle = [
            node
            for node in waiting
            if not any(is_graph_output(out) or any(use.node not in gone for use in uses(out)) for out in node.outputs)
        ]
        if not idle:
            return gone
        gone += idle
        waiting = [node for node in waiting if node not in idle]
