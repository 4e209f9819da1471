"""Which layers of 8-bit integers go to the sparse kernel, and how they are replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import is_graph_output, uses
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
class Choice:
    """How a layer is lowered.

    Attributes:
        unit: Outputs that share their blocks: 1 or 4.
        zeros: Share of blocks that are zero.
        faster: How many times faster than the 8-bit operator of ONNX Runtime, by the cost table.
    """

    unit: int
    zeros: float
    faster: float


def choose(matrix: NDArray[np.int8], rows: int | None, table: CostTable, isa: str, kind: str) -> Choice | str:
    """Return the fastest form of the sparse kernel, or why the layer stays as it is.

    Args:
        matrix: The weight of a layer as [K, N].
        rows: Rows of activations or positions of the output; None where unknown.
        table: What is faster.
        isa: The instruction set that counts, or ``any``.
        kind: ``matmul`` or ``conv``.
    """
    k, n = matrix.shape
    choices = []
    for unit in UNITS:
        zeros = 1 - stored_share(matrix, unit)
        name = f"sparse-int8-{kind}-{unit}x4"
        over = table.gain(name, zeros, f"dense-int8-{kind}", _BITS, rows, k * n, isa)
        # Where the dense 8-bit operator is slower than the dense float one, the float one is to be beaten.
        choices.append(Choice(unit, zeros, min(over, table.predicted(name, rows, k * n, zeros, isa))))
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


def why_weight_stays(layer: Int8Layer, found: Mapping[Node, tuple[Int8Layer, Choice] | str]) -> str:
    """Return the reader of the weight that needs it dense, as a reason; nothing if there is none."""
    stored = layer.stored
    if is_graph_output(stored):
        return f"its weight '{stored.name}' is an output of the graph, so that the file would grow"
    for node in _readers(stored):
        known = found.get(node)
        lowered = not isinstance(known, str | None) and known[0].stored is stored and node.graph is layer.node.graph
        if not lowered:
            return f"its weight '{stored.name}' is also read by '{node_label(node)}', so that the file would grow"
    return ""


def _readers(tensor: Tensor) -> list[Node]:
    """Who reads a weight, through what restores or turns it."""
    found: list[Node] = []
    for use in uses(tensor):
        through = use.index == 0 and use.node.op in {"DequantizeLinear", "Transpose"}
        output = use.node.outputs[0]
        found += _readers(output) if through and not is_graph_output(output) else [use.node]
    return found


def patch(
    layer: Int8Layer,
    pack: Callable[[int], NDArray[np.uint8]],
    choice: Choice,
    op: str,
    attributes: Mapping[str, Any],
    packed: dict[Any, Any],
) -> Patch:
    """Return the patch that puts one of our operators in the place of a layer.

    Args:
        layer: The layer.
        pack: Packs its weight in units of so many outputs.
        choice: How it is packed.
        op: The operator.
        attributes: Its attributes beside those of grids and activation.
        packed: Weights packed so far, by what they hold.
    """
    label = node_label(layer.node)
    extras = "".join(f" and {node.op} '{node_label(node)}'" for node in layer.nodes[1:])

    def apply(rewriter: Rewriter) -> None:
        fixes = layer.fixes
        to_bytes = layer.y_grid is not None
        key = (layer.stored, choice.unit, None if fixes is None else fixes.tobytes(), layer.scales.tobytes(), to_bytes)
        if key not in packed:
            blob = pack(choice.unit)
            # The type of the weight tells ONNX Runtime before 1.20 that the output is uint8.
            packed[key] = rewriter.constant(
                blob.view(np.int8) if to_bytes else blob, name=f"{layer.stored.name}_packed", near=layer.node
            )
        inputs: list[Tensor] = [layer.x, packed[key]]
        if layer.bias is not None:
            inputs.append(rewriter.constant(layer.bias, name=f"{label}_bias", near=layer.node))
        result: Variable = rewriter.op(
            op,
            inputs,
            attrs={**attributes, **layer.attributes()},
            domain=DOMAIN,
            like=layer.output,
            near=layer.nodes[-1],
            origin=(layer.node,),
            name=layer.node.name or layer.node.op,
        )
        if layer.y_grid is not None and layer.output.dtype is None:
            rewriter.set_type(result, np.dtype(np.uint8), layer.node.outputs[0].shape)
        rewriter.replace_tensor(layer.output, result)
        rewriter.erase(layer.nodes)
        for node in _no_longer_read(layer.operands):
            rewriter.erase(node)

    what = f"{op}, {choice.zeros:.1%} zeros in blocks of {choice.unit} x 4"
    reason = f"at least {choice.faster:.1f} times as fast as the dense 8-bit operator by the cost table"
    record = LayerRecord(label, layer.node.op, what, reason=reason)
    nodes = (*layer.nodes, *layer.operands)
    return Patch(f"run {layer.node.op} '{label}'{extras} on the sparse int8 kernel", nodes, apply, (record,))


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
