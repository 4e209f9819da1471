"""Products of integers whose result is scaled at run time (MatMulInteger and its like), as products of real numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from graphopt.analysis.tensor_grid import MICROSOFT, STANDARD, TensorGrid, is_conversion, restored_values, written_grid
from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.passes.quantize.restoring.conversions import erase_idle, restore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor, Use, Variable

FLOAT = int(TensorProto.FLOAT)
MAKERS = frozenset(("DynamicQuantizeLinear", "Mul", "Constant", "Reshape", "Transpose", "Cast", "DequantizeLinear"))
"""What may be removed with an integer product: what made its scales and its integers."""

MOST_FACTORS = 4
"""Multiplications between an integer product and its real value at most, in all forms that are written."""


@dataclass(frozen=True, slots=True)
class Product:
    """An integer product with everything that makes its result real.

    Attributes:
        node: MatMulInteger or ConvInteger.
        data: The real values of the first factor: what was rounded.
        grid: Grid of the first factor where it was rounded to a known one; None where the grid is found at run time.
        weight: The real weight.
        result: The real result, which the float operator takes over.
    """

    node: Node
    data: Tensor
    grid: TensorGrid | None
    weight: NDArray[Any]
    result: Tensor


def find_product(node: Node) -> Product | str:
    """Return what a MatMulInteger or ConvInteger computes in real numbers, or why that is not known.

    Args:
        node: The product, whose result is cast to float and multiplied with scales, in any order.
    """
    codes = constant_value(node.inputs[1])
    if codes is None:
        codes = _transposed_constant(node.inputs[1])
    if codes is None:
        return "its second factor is computed at run time"
    zero = constant_value(node.inputs[3]) if len(node.inputs) > 3 and not node.inputs[3].is_empty() else np.zeros(())
    if zero is None:
        return "its weight's zero point is computed at run time"
    source = producer(node.inputs[0])
    if source is None or not (is_conversion(source, "QuantizeLinear") or source.op == "DynamicQuantizeLinear"):
        return "where its first factor was rounded is unknown"
    fixed = is_conversion(source, "QuantizeLinear")
    if (found := _scaled(node, None if fixed else source.outputs[1])) is None:
        return "what it is multiplied with afterwards is not its two scales"
    factor, result = found
    grid = None
    if fixed:
        grid = written_grid(source)
        if grid.values is None or grid.values[0].size != 1:
            return "the grid of its first factor is computed at run time"
        factor = factor / np.float32(grid.values[0].reshape(-1)[0])
    axis = 0 if node.op == "ConvInteger" else codes.ndim - 1
    count = codes.shape[axis]
    if factor.size not in {1, count} or zero.size not in {1, count}:
        return "its scales are not one per output"
    shape = [-1 if place == axis else 1 for place in range(codes.ndim)]
    steps, zeros = (each.reshape(()) if each.size == 1 else each.reshape(shape) for each in (factor, zero))
    weight = ((codes.astype(np.int64) - zeros.astype(np.int64)).astype(np.float32) * steps).astype(np.float32)
    return Product(node, source.inputs[0], grid, weight, result)


def _transposed_constant(tensor: Tensor) -> NDArray[Any] | None:
    source = producer(tensor)
    if source is None or source.op not in {"Transpose", "Cast"} or source.domain not in STANDARD:
        return None
    value = constant_value(source.inputs[0])
    if value is None or source.op == "Cast":
        return value
    moved: NDArray[Any] = np.transpose(value, source.attrs.get("perm"))
    return moved


def _scaled(node: Node, step: Tensor | None) -> tuple[NDArray[np.float32], Tensor] | None:
    """Return the constant part of what a product is multiplied with and the tensor that holds the real result.

    Args:
        node: The product.
        step: The scale found at run time, which has to be among the factors; None where all factors are constants.
    """
    at = _only_use(node.outputs[0])
    if at is None or at.node.op != "Cast" or int(at.node.attrs.get("to", 0)) != FLOAT:
        return None
    tensor, factor, missing = at.node.outputs[0], np.ones((), np.float32), step
    seen = False
    for _ in range(MOST_FACTORS):
        at = _only_use(tensor)
        if at is None or at.node.op != "Mul":
            break
        found = _constant_part(at.node.inputs[1 - at.index], missing)
        if found is None:
            break
        part, used = found
        factor, missing = factor * part, None if used else missing
        tensor, seen = at.node.outputs[0], True
        if step is not None and missing is None and factor.size > 1:
            break
        if missing is None and step is not None and used:
            continue
    return (np.asarray(factor, np.float32), tensor) if seen and missing is None else None


def _constant_part(tensor: Tensor, step: Tensor | None) -> tuple[NDArray[np.float32], bool] | None:
    """Return the constants in a product of scales, and whether the one found at run time is in it."""
    if step is not None and tensor is step:
        return np.ones((), np.float32), True
    value = constant_value(tensor)
    if value is not None:
        return (np.asarray(value, np.float32), False) if value.size == max(value.shape, default=1) else None
    source = producer(tensor)
    if source is None or source.op not in {"Mul", "Reshape"} or source.domain not in STANDARD:
        return None
    if source.op == "Reshape":
        return _constant_part(source.inputs[0], step)
    parts = [_constant_part(each, step) for each in source.inputs]
    if parts[0] is None or parts[1] is None:
        return None
    return parts[0][0].reshape(-1) * parts[1][0].reshape(-1), parts[0][1] or parts[1][1]


def _only_use(tensor: Tensor) -> Use | None:
    found = uses(tensor)
    return found[0] if len(found) == 1 and not is_graph_output(tensor) else None


def expand_product(rw: Rewriter, found: Product, opset: int) -> None:
    """Replace an integer product and its scaling by the product of what its factors stand for."""
    node = found.node
    if found.grid is not None:
        x = restore(rw, node, node.inputs[0], found.grid, opset=opset)
    else:
        source = producer(node.inputs[0])
        assert source is not None
        x = _unrounded(rw, node, found.data, source)
    weight = rw.constant(found.weight, name=f"{node.inputs[1].name}_restored", near=node)
    op = "MatMul" if node.op == "MatMulInteger" else "Conv"
    real = rw.op(op, [x, weight], attrs=dict(node.attrs), like=found.result, near=node, origin=(node,))
    rw.replace_tensor(found.result, real)
    erase_idle(rw, [found.result], None)


def _unrounded(rw: Rewriter, node: Node, data: Tensor, source: Node) -> Variable:
    """Return the real values of what a DynamicQuantizeLinear rounded."""
    x: Variable = rw.op("DequantizeLinear", list(source.outputs), like=data, near=node)
    return x


# ------------------------------------------------------------------------------------------------ ONNX Runtime's own


def fused_refusal(node: Node) -> str | None:
    """Return why a DynamicQuantizeMatMul, MatMulNBits or DynamicQuantizeLSTM cannot be taken back, or None."""
    weights = {
        "DynamicQuantizeMatMul": (1, 2, 3),
        "MatMulNBits": (1, 2, 3),
        "DynamicQuantizeLSTM": (1, 2, 8, 9, 10, 11),
    }
    for place in weights[node.op]:
        if (
            place < len(node.inputs)
            and not node.inputs[place].is_empty()
            and constant_value(node.inputs[place]) is None
        ):
            return f"its input {place} is computed at run time"
    if node.op == "MatMulNBits":
        if len(node.inputs) > 4 and not node.inputs[4].is_empty():
            return "its inputs are reordered by g_idx"
        if int(node.attrs.get("bits", 4)) not in {2, 4, 8}:
            return f"weights of {node.attrs.get('bits')} bits"
    return None


def is_fused(node: Node) -> bool:
    """Tell whether a node is an operator of ONNX Runtime that holds integer weights beside float data."""
    return node.domain == MICROSOFT and node.op in {"DynamicQuantizeMatMul", "MatMulNBits", "DynamicQuantizeLSTM"}


def expand_fused(rw: Rewriter, node: Node) -> None:
    """Replace an operator that `is_fused` by its float operator, what it rounds at run time rounded before it."""
    {"DynamicQuantizeMatMul": _dynamic, "MatMulNBits": _blocks, "DynamicQuantizeLSTM": _lstm}[node.op](rw, node)
    rw.erase([node])


def _dynamic(rw: Rewriter, node: Node) -> None:
    grid = TensorGrid(node.inputs[2], _given(node, 3), -1)
    codes = constant_value(node.inputs[1])
    assert codes is not None
    weight = restored_values(codes, grid)
    assert weight is not None
    made = rw.op("DynamicQuantizeLinear", [node.inputs[0]], outputs=3, near=node)
    for tensor, dtype, shape in zip(
        made, (np.uint8, np.float32, np.uint8), (node.inputs[0].shape, [], []), strict=True
    ):
        rw.set_type(tensor, np.dtype(dtype), shape)
    source = producer(made[0])
    assert source is not None
    _linear(rw, node, _unrounded(rw, node, node.inputs[0], source), weight, _given(node, 4))


def _blocks(rw: Rewriter, node: Node) -> None:
    columns, rows = int(node.attrs["N"]), int(node.attrs["K"])
    bits, block = int(node.attrs.get("bits", 4)), int(node.attrs["block_size"])
    packed, scales = constant_value(node.inputs[1]), constant_value(node.inputs[2])
    assert packed is not None
    assert scales is not None
    count = -(-rows // block)
    codes = unpack(packed.reshape(columns, count, -1), bits)[..., :block].astype(np.float32)
    steps = scales.reshape(columns, count, 1).astype(np.float32)
    stored = _given(node, 3)
    if stored is None:
        zeros: NDArray[Any] = np.float32(1 << bits - 1)  # type: ignore[assignment]
    else:
        value = constant_value(stored)
        assert value is not None
        if value.dtype == np.uint8:
            value = unpack(value.reshape(columns, -1), bits)[:, :count]
        zeros = value.reshape(columns, count, 1).astype(np.float32)
    real = ((codes - zeros) * steps).reshape(columns, -1)[:, :rows]
    _linear(rw, node, node.inputs[0], np.ascontiguousarray(real.T, scales.dtype), _given(node, 5))


def unpack(packed: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return the values of few bits that bytes hold along the last axis, the lowest bits first."""
    if bits == 8:
        return packed.astype(np.uint8)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (packed.astype(np.uint8)[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return parts.reshape(*packed.shape[:-1], -1).astype(np.uint8)


def _linear(rw: Rewriter, node: Node, x: Tensor, weight: NDArray[Any], bias: Tensor | None) -> None:
    constant = rw.constant(weight, name=f"{node.inputs[1].name}_restored", near=node)
    real = rw.op("MatMul", [x, constant], like=node.outputs[0], near=node, origin=(node,))
    if bias is not None:
        real = rw.op("Add", [real, bias], like=node.outputs[0], near=node)
    rw.replace_tensor(node.outputs[0], real)


def _lstm(rw: Rewriter, node: Node) -> None:
    inputs: list[Tensor | None] = [None if each.is_empty() else each for each in node.inputs[:8]]
    for place, first in ((1, 8), (2, 10)):
        codes = constant_value(node.inputs[place])
        scale, zero = constant_value(node.inputs[first]), constant_value(node.inputs[first + 1])
        assert codes is not None
        assert scale is not None
        assert zero is not None
        # directions, inputs, four gates: the operator of the standard has the last two the other way round
        wide = (each.reshape(each.shape[0], 1, -1) for each in (scale.astype(np.float32), zero.astype(np.float32)))
        step, start = wide
        real = np.ascontiguousarray(((codes.astype(np.float32) - start) * step).transpose(0, 2, 1), np.float32)
        inputs[place] = rw.constant(real, name=f"{node.inputs[place].name}_restored", near=node)
    old = list(node.outputs)
    made = rw.op("LSTM", inputs, attrs=dict(node.attrs), outputs=len(old), like=old, near=node, origin=(node,))
    for before, after in zip(old, made if isinstance(made, tuple) else (made,), strict=True):
        if not before.is_empty():
            rw.replace_tensor(before, after)


def _given(node: Node, place: int) -> Tensor | None:
    return node.inputs[place] if place < len(node.inputs) and not node.inputs[place].is_empty() else None
