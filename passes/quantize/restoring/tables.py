"""Tables of integers that are looked up and restored behind the lookup, as tables of real numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from graphopt.analysis.tensor_grid import STANDARD, is_conversion, restored_values, written_grid
from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.passes.quantize.restoring.conversions import erase_idle

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor

FLOAT = int(TensorProto.FLOAT)
CODES = frozenset(("int8", "uint8"))


@dataclass(frozen=True, slots=True)
class Table:
    """A lookup in a table of integers.

    Attributes:
        node: The Gather.
        values: The table in real numbers.
        result: The rows in real numbers.
    """

    node: Node
    values: NDArray[Any]
    result: Tensor


def find_table(node: Node) -> Table | None:
    """Return the lookup of a Gather from constant integers whose rows are restored behind it, or None.

    Rows are restored by a DequantizeLinear, or by a Cast and a Mul with a constant.
    """
    if node.op != "Gather" or node.domain not in STANDARD or int(node.attrs.get("axis", 0)) != 0:
        return None
    codes = constant_value(node.inputs[0])
    if codes is None or codes.ndim != 2 or codes.dtype.name not in CODES or is_graph_output(node.outputs[0]):
        return None
    readers = uses(node.outputs[0])
    if len(readers) != 1:
        return None
    reader = readers[0].node
    if is_conversion(reader, "DequantizeLinear"):
        grid = written_grid(reader)
        if grid.values is None or grid.values[0].size != 1:
            return None
        values = restored_values(codes, grid)
        return None if values is None else Table(node, values, reader.outputs[0])
    if reader.op != "Cast" or int(reader.attrs.get("to", 0)) != FLOAT or is_graph_output(reader.outputs[0]):
        return None
    last = uses(reader.outputs[0])
    if len(last) != 1 or last[0].node.op != "Mul":
        return None
    scale = constant_value(last[0].node.inputs[1 - last[0].index])
    if scale is None or scale.size not in {1, codes.shape[1]} or scale.size != max(scale.shape, default=1):
        return None
    return Table(node, (codes.astype(np.float32) * scale.reshape(-1)).astype(np.float32), last[0].node.outputs[0])


def expand_table(rw: Rewriter, found: Table) -> None:
    """Look real numbers up instead."""
    node = found.node
    table = rw.constant(found.values, name=f"{node.inputs[0].name}_restored", near=node)
    rows = rw.op(
        "Gather", [table, node.inputs[1]], attrs=dict(node.attrs), like=found.result, near=node, origin=(node,)
    )
    rw.replace_tensor(found.result, rows)
    source = producer(found.result)
    assert source is not None
    erase_idle(rw, [found.result])
