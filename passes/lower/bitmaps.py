"""The form of a weight with many zeros: a bit per element, the values of the others, and operators that restore it.

Runtimes compute what depends on constants alone when they load a model, so the file is small and nothing runs slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from graphopt.graph import Constant, constant_value, producer, uses
from graphopt.graph.dtypes import numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor, Variable

STANDARD = (None, "", "ai.onnx")
BITS_OF_A_BYTE = 8
SINCE = 11
"""The first opset with BitShift and ScatterElements together."""

_WIDE = {
    TensorProto.INT2: TensorProto.INT8,
    TensorProto.UINT2: TensorProto.UINT8,
    TensorProto.INT4: TensorProto.INT8,
    TensorProto.UINT4: TensorProto.UINT8,
}
"""What elements of less than a byte are put into place as."""

_SHARED: dict[str, NDArray[np.generic]] = {
    "bit_shifts": np.arange(BITS_OF_A_BYTE, dtype=np.uint8),
    "last_bit": np.array([BITS_OF_A_BYTE - 1], np.uint8),
    "one_axis": np.array([-1], np.int64),
}

_STEPS = ("BitShift", "BitShift", "Reshape", "NonZero", "Reshape")
"""What makes the places out of the bits, in order."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A weight that a model restores.

    Attributes:
        last: The node whose output is the weight.
        values: The dense values, with the element type that they are stored in.
        onnx_dtype: That type.
        stem: What the names of the parts begin with.
    """

    last: Node
    values: NDArray[np.generic]
    onnx_dtype: int
    stem: str


def nonzero(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return which elements have a bit that is set, flat: minus zero is a value."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return np.asarray(flat.view(f"u{flat.itemsize}") != 0)


def stored_bytes(count: int, kept: int, bits: int) -> int:
    """Return the bytes of bitmap and values.

    Args:
        count: Elements of the weight.
        kept: How many of them are not zero.
        bits: Bits of an element.
    """
    return -(-count // BITS_OF_A_BYTE) + -(-kept * bits // BITS_OF_A_BYTE)


def write(rw: Rewriter, weight: Constant, near: Node, shared: dict[str, Constant]) -> Variable:
    """Make the nodes that restore a weight and return their result.

    Elements of less than a byte are put into place as bytes: ScatterElements takes no smaller ones.

    Args:
        rw: The rewriter.
        weight: The weight, dense.
        near: The node that they come before.
        shared: Operands that are the same for all weights of a graph, by name; those that lack are made and added.
    """
    name = weight.name or "weight"
    dense = weight.array()
    kept = nonzero(dense)
    wide = _WIDE.get(weight.onnx_dtype, 0)
    placed = numpy_dtype(wide or weight.onnx_dtype)

    def constant(array: NDArray[np.generic], what: str, onnx_dtype: int | None = None) -> Constant:
        made: Constant = rw.constant(array, name=f"{name}_{what}", near=near, onnx_dtype=onnx_dtype)
        return made

    def step(op: str, inputs: list[Tensor], what: str, dtype: type, shape: list[int], **attrs: object) -> Variable:
        made: Variable = rw.op(op, inputs, attrs=attrs, near=near, name=f"{name}_{what}")
        rw.set_type(made, np.dtype(dtype), shape)
        return made

    bits = np.packbits(kept, bitorder="big")
    count, found = len(bits) * BITS_OF_A_BYTE, int(kept.sum())
    shifts, seven, flat = (_shared(rw, near, shared, each) for each in _SHARED)
    top = step(
        *("BitShift", [constant(bits[:, None], "bits"), shifts], "top", np.uint8, [len(bits), BITS_OF_A_BYTE]),
        direction="LEFT",
    )
    bit = step("BitShift", [top, seven], "bit", np.uint8, [len(bits), BITS_OF_A_BYTE], direction="RIGHT")
    line = step("Reshape", [bit, flat], "line", np.uint8, [count])
    places = step("NonZero", [line], "places", np.int64, [1, found])
    place = step("Reshape", [places, flat], "place", np.int64, [found])
    values: Tensor = constant(dense.reshape(-1)[kept], "values", weight.onnx_dtype)
    if wide:
        values = rw.op("Cast", [values], attrs={"to": wide}, near=near, name=f"{name}_wide")
        rw.set_type(values, placed, [found])
    zero = Constant("zero", np.zeros(1, placed))
    canvas = rw.op(
        "ConstantOfShape",
        [constant(np.array([dense.size], np.int64), "size")],
        attrs={"value": zero},
        near=near,
        name=f"{name}_zeros",
    )
    filled = rw.op("ScatterElements", [canvas, place, values], near=near, name=f"{name}_filled")
    shaped: Variable = rw.op(
        "Reshape", [filled, constant(np.array(dense.shape, np.int64), "shape")], near=near, name=f"{name}_dense"
    )
    for made, shape in ((canvas, [dense.size]), (filled, [dense.size]), (shaped, list(dense.shape))):
        rw.set_type(made, placed, shape)
    if not wide:
        return shaped
    narrow: Variable = rw.op("Cast", [shaped], attrs={"to": weight.onnx_dtype}, near=near, name=f"{name}_narrow")
    rw.set_type(narrow, dense.dtype, list(dense.shape))
    return narrow


def _shared(rw: Rewriter, near: Node, shared: dict[str, Constant], name: str) -> Constant:
    if name not in shared:
        shared[name] = rw.constant(_SHARED[name], name=name, near=near)
    return shared[name]


def read(node: Node) -> Restored | None:
    """Return the weight that a Reshape is the last step of restoring (but for a Cast to its type), or None.

    Args:
        node: A node.
    """
    if not _is(node, "Reshape"):
        return None
    filled, shape = producer(node.inputs[0]), constant_value(node.inputs[1])
    if shape is None or filled is None or not _is(filled, "ScatterElements") or filled.attrs.get("axis", 0) != 0:
        return None
    if filled.attrs.get("reduction", "none") != "none":
        return None
    canvas, source, last = producer(filled.inputs[0]), filled.inputs[2], node
    widened = producer(source)
    if widened is not None and _is(widened, "Cast"):
        source = widened.inputs[0]
        readers = uses(node.outputs[0])
        if len(readers) != 1 or not _is(readers[0].node, "Cast") or node.outputs[0].roles:
            return None
        last = readers[0].node
        if last.attrs["to"] != source.onnx_dtype or widened.attrs["to"] != _WIDE.get(source.onnx_dtype):
            return None
    bits = _bits(filled.inputs[1])
    if canvas is None or not _is(canvas, "ConstantOfShape") or bits is None or not isinstance(source, Constant):
        return None
    size, fill = constant_value(canvas.inputs[0]), canvas.attrs.get("value")
    if size is None or size.size != 1 or fill is None or nonzero(fill.array()).any():
        return None
    values = source.array()
    kept = np.unpackbits(bits.reshape(-1), bitorder="big").astype(np.bool_)
    count = int(size.reshape(-1)[0])
    if len(kept) < count or kept[count:].any() or int(kept.sum()) != values.size or (shape < 1).any():
        return None
    if int(np.prod(shape.astype(object))) != count:
        return None
    dense = np.zeros(count, values.dtype)
    dense[kept[:count]] = values.reshape(-1)
    stem = source.name.removesuffix("_values")
    return Restored(last, dense.reshape(shape), source.onnx_dtype, stem)


def _bits(places: Tensor) -> NDArray[np.uint8] | None:
    """Return the bitmap that a tensor of places is computed from."""
    tensor = places
    operands = []
    for op in reversed(_STEPS):
        node = producer(tensor)
        if node is None or not _is(node, op):
            return None
        operands.append(constant_value(node.inputs[1]) if len(node.inputs) > 1 else None)
        tensor = node.inputs[0]
    _, _, _, seven, shifts = operands
    stored = constant_value(tensor)
    if stored is None or stored.dtype != np.uint8 or seven is None or shifts is None:
        return None
    if seven.reshape(-1).tolist() != [BITS_OF_A_BYTE - 1] or shifts.tolist() != list(range(BITS_OF_A_BYTE)):
        return None
    return np.asarray(stored, np.uint8) if stored.ndim == 2 and stored.shape[1] == 1 else None


def _is(node: Node, op: str) -> bool:
    return node.op == op and node.domain in STANDARD
