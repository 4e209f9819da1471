"""Writes linear layers whose inputs are rounded at run time, and embedding tables of integers; neither needs data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value
from graphopt.passes.quantize.integers import IntegerWeight, integer_weight
from graphopt.passes.quantize.writing import drop_unused, short_name
from graphopt.target.grid import WEIGHT_LIMIT, quantize_weight, weight_scales
from graphopt.target.stored import weight_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.graph import Node, Rewriter, Tensor, Variable

FLOAT32 = 1
SMALLEST_TABLE = 4096
"""Entries below which an embedding table stays float: its integers would save less than the nodes they need."""

TABLE_SQNR_DB = 25.0
"""Rounded tables below this ratio of signal to rounding error stay float."""


def make_dynamic(rw: Rewriter, node: Node, *, per_channel: bool, limit: int = WEIGHT_LIMIT) -> None:
    """Replace a MatMul or Gemm by DynamicQuantizeLinear, MatMulInteger and the product of the scales.

    Every layer gets a DynamicQuantizeLinear of its own: ONNX Runtime fuses none that several layers read.
    """
    weight = integer_weight(node, per_channel=per_channel, limit=limit)
    base = short_name(node.inputs[1])
    one = weight.axis is None
    scales = weight.scales
    values = weight.write(rw, node, base)
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        values = _turned(rw, node, weight, values, base)
    steps = rw.constant(scales.reshape(()) if one else scales, name=f"{base}_scale", near=node)
    zeros = rw.constant(np.zeros(() if one else scales.shape, np.int8), name=f"{base}_zero_point", near=node)
    x, step, zero_point = _tuple(rw.op("DynamicQuantizeLinear", [node.inputs[0]], outputs=3, near=node))
    rw.set_type(x, np.dtype(np.uint8), node.inputs[0].shape)
    rw.set_type(step, np.dtype(np.float32), [])
    rw.set_type(zero_point, np.dtype(np.uint8), [])
    output = node.outputs[0]
    total = _one(rw.op("MatMulInteger", [x, values, zero_point, zeros], near=node))
    rw.set_type(total, np.dtype(np.int32), output.shape)
    real = _one(rw.op("Cast", [total], attrs={"to": FLOAT32}, like=output, near=node))
    factor = _one(rw.op("Mul", [step, steps], near=node))
    rw.set_type(factor, np.dtype(np.float32), [] if one else [scales.size])
    result = _one(rw.op("Mul", [real, factor], like=output, near=node))
    bias = _gemm_bias(node)
    if bias is not None:
        constant = rw.constant(bias, name=f"{base}_bias", near=node)
        result = _one(rw.op("Add", [result, constant], like=output, near=node))
    old = list(node.inputs[1:])
    rw.replace_tensor(output, result)
    rw.erase([node])
    drop_unused(rw, old)


def _turned(rw: Rewriter, node: Node, weight: IntegerWeight, values: Tensor, base: str) -> Tensor:
    """Return the integers of a Gemm that reads its weight transposed as inputs by outputs."""
    if weight.integers is None:
        turned: Tensor = rw.constant(np.ascontiguousarray(weight.codes.T), name=f"{base}_quantized", near=node)
        return turned
    made = _one(rw.op("Transpose", [values], attrs={"perm": [1, 0]}, near=node, name=f"{base}_turned"))
    rw.set_type(made, np.dtype(np.int8), list(weight.codes.shape[::-1]))
    return made


def matrix(node: Node) -> NDArray[np.float32] | None:
    """Return the constant weight of a MatMul or Gemm as inputs by outputs, alpha multiplied in, or None."""
    value = weight_value(node.inputs[1])
    if value is None or value.ndim != 2 or value.dtype != np.float32:
        return None
    weight = np.asarray(value, np.float32)
    if node.op == "Gemm":
        weight = weight.T if node.attrs.get("transB", 0) else weight
        weight = weight * np.float32(node.attrs.get("alpha", 1.0))
    return np.ascontiguousarray(weight, np.float32)


def _gemm_bias(node: Node) -> NDArray[np.float32] | None:
    if node.op != "Gemm" or len(node.inputs) < 3 or node.inputs[2].is_empty():
        return None
    value = constant_value(node.inputs[2])
    assert value is not None
    return np.asarray(value, np.float32) * np.float32(node.attrs.get("beta", 1.0))


def table_refusal(node: Node) -> str | None:
    """Return why a Gather from a constant table keeps its floats, "" where it is no embedding, or None."""
    if node.op != "Gather" or int(node.attrs.get("axis", 0)) != 0:
        return ""
    table = constant_value(node.inputs[0])
    if table is None or table.dtype != np.float32 or table.ndim != 2 or table.size < SMALLEST_TABLE:
        return ""
    if not np.isfinite(table).all():
        return "its table holds NaN or infinite values"
    best = max(_table_sqnr_db(np.asarray(table, np.float32), axis) for axis in (None, 1))
    if best < TABLE_SQNR_DB:
        return f"rounding the table to int8 leaves {best:.1f} dB, less than {TABLE_SQNR_DB:g}"
    return None


def _table_sqnr_db(values: NDArray[np.float32], axis: int | None) -> float:
    error = quantize_weight(values, axis, weight_scales(values, axis)).restore() - values
    noise = float(np.square(error).sum(dtype=np.float64))
    power = float(np.square(values).sum(dtype=np.float64))
    return float(10 * np.log10(power / noise)) if noise > 0 and power > 0 else float("inf")


def make_integer_table(rw: Rewriter, node: Node) -> None:
    """Look integers up and restore only the rows found: one scale for the table, or one per column where needed.

    A DequantizeLinear before the Gather would restore the whole table in every run; one behind it would be repeated by
    ONNX Runtime for each of its readers. Cast and Mul are neither.
    """
    table, indices = node.inputs[0], node.inputs[1]
    value = constant_value(table)
    assert value is not None
    values = np.asarray(value, np.float32)
    axis = None if _table_sqnr_db(values, None) >= TABLE_SQNR_DB else 1
    scales = weight_scales(values, axis)
    base = short_name(table)
    rounded = rw.constant(quantize_weight(values, axis, scales).values, name=f"{base}_quantized", near=node)
    step = rw.constant(scales.reshape(()) if axis is None else scales, name=f"{base}_scale", near=node)
    output = node.outputs[0]
    rows = _one(rw.op("Gather", [rounded, indices], attrs=dict(node.attrs), near=node, origin=(node,)))
    rw.set_type(rows, np.dtype(np.int8), output.shape)
    real = _one(rw.op("Cast", [rows], attrs={"to": FLOAT32}, like=output, near=node))
    restored = _one(rw.op("Mul", [real, step], like=output, near=node))
    rw.replace_tensor(output, restored)
    rw.erase([node])
    drop_unused(rw, [table])


def _one(made: Variable | tuple[Variable, ...]) -> Variable:
    assert not isinstance(made, tuple)
    return made


def _tuple(made: Variable | tuple[Variable, ...]) -> tuple[Variable, ...]:
    assert isinstance(made, tuple)
    return made
