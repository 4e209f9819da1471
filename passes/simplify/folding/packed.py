"""Tells what unpacks weights that are stored small: runtimes do it when they load, the file stays small."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from graphopt.graph import Constant, producer
from graphopt.graph.dtypes import is_sub_byte
from graphopt.passes.simplify.purity import is_op

if TYPE_CHECKING:
    from graphopt.graph import Node

REASON = "it unpacks weights that are stored small; whoever loads the model does that"
BITS_OF_A_BYTE = 8
NODE_BYTES = 256
"""A result of no more bytes is about as large as the node that would make it, so it may be stored instead."""


def unpacks(node: Node, size: int) -> bool:
    """Tell whether a node that reads constants is the first step out of a packed form.

    That is a Cast of a type of less than a byte, a Cast of places in a code book that a Gather looks up, a BitShift of
    bytes to each of their bits, or the zeros among which ScatterElements puts the values of a sparse weight.

    Args:
        node: The node.
        size: Bytes of its result.
    """
    source = node.inputs[0] if node.inputs else None
    if not isinstance(source, Constant) or size <= NODE_BYTES:
        return False
    if is_op(node, "ConstantOfShape"):
        return _is_canvas(node)
    if is_op(node, "Cast"):
        return is_sub_byte(source.onnx_dtype) or _is_places(node, source)
    return is_op(node, "BitShift") and source.onnx_dtype == TensorProto.UINT8 and size == BITS_OF_A_BYTE * source.nbytes


def _is_places(node: Node, source: Constant) -> bool:
    readers = [reader for tensor in node.outputs for reader in tensor.outputs]
    if source.onnx_dtype != TensorProto.UINT8 or len(readers) != 1 or not is_op(readers[0], "Gather"):
        return False
    book = readers[0].inputs[0]
    return isinstance(book, Constant) and len(book.shape) == 1 and book.nbytes < source.nbytes


def _is_canvas(node: Node) -> bool:
    readers = list(node.outputs[0].outputs)
    return bool(readers) and all(is_op(each, "ScatterElements") and _is_from_bits(each) for each in readers)


def _is_from_bits(scatter: Node) -> bool:
    """Tell whether a ScatterElements takes its places from those of the bits that are set."""
    tensor = scatter.inputs[1]
    for op in ("Reshape", "NonZero", "Reshape", "BitShift"):
        node = producer(tensor)
        if node is None or not is_op(node, op):
            return False
        tensor = node.inputs[0]
    return True
