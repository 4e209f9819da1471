"""Operators that compute on integers (QLinearConv and its like), as float operators between conversions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.tensor_grid import MICROSOFT, STANDARD, TensorGrid
from graphopt.passes.quantize.restoring.conversions import erase_idle, restore, round_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphopt.graph import Node, Rewriter, Tensor, Variable

RUN_TIME = "its scales are computed at run time"


@dataclass(frozen=True, slots=True)
class Parts:
    """What an integer operator reads and writes.

    Attributes:
        op: The float operator that computes the same on real values.
        inputs: Each input with its grid; a tensor without a grid is passed on as it is, None is an omitted input.
        output: Grid of the output; None where it is float already.
        attrs: Attributes of the float operator.
        factor: Number that the float operator's result is multiplied with.
        domain: Of the float operator.
    """

    op: str
    inputs: tuple[tuple[Tensor, TensorGrid | None] | None, ...]
    output: TensorGrid | None
    attrs: dict[str, Any]
    domain: str | None = None


def _given(node: Node, place: int) -> Tensor | None:
    return node.inputs[place] if place < len(node.inputs) and not node.inputs[place].is_empty() else None


def _grid(node: Node, place: int, axis: int = 1) -> TensorGrid | None:
    """Return the grid whose scale stands at a place, the zero point behind it."""
    scale = _given(node, place)
    return None if scale is None else TensorGrid(scale, _given(node, place + 1), axis)


def _data(node: Node, place: int, axis: int = 1) -> tuple[Tensor, TensorGrid | None]:
    return node.inputs[place], _grid(node, place + 1, axis)


def _attrs(node: Node, *without: str) -> dict[str, Any]:
    return {name: value for name, value in node.attrs.items() if name not in without}


def _conv(node: Node) -> Parts:
    bias = _given(node, 8)
    inputs = (_data(node, 0), _data(node, 3, 0), None if bias is None else (bias, None))
    return Parts("Conv", inputs, _grid(node, 6), _attrs(node, "channels_last"))


def _matmul(node: Node) -> Parts:
    return Parts("MatMul", (_data(node, 0), _data(node, 3, -1)), _grid(node, 6), {})


def _gemm(node: Node) -> Parts:
    axis = 0 if node.attrs.get("transB", 0) else 1
    bias = _given(node, 6)
    inputs = (_data(node, 0), _data(node, 3, axis), None if bias is None else (bias, None))
    return Parts("Gemm", inputs, _grid(node, 7), _attrs(node))


def _binary(op: str) -> Callable[[Node], Parts]:
    return lambda node: Parts(op, (_data(node, 0), _data(node, 3)), _grid(node, 6), {})


def _unary(op: str, *without: str) -> Callable[[Node], Parts]:
    return lambda node: Parts(op, (_data(node, 0),), _grid(node, 3), _attrs(node, "channels_last", *without))


def _concat(node: Node) -> Parts:
    places = range(2, len(node.inputs), 3)
    return Parts("Concat", tuple(_data(node, place) for place in places), _grid(node, 0), _attrs(node))


def _where(node: Node) -> Parts:
    return Parts("Where", ((node.inputs[0], None), _data(node, 1), _data(node, 4)), _grid(node, 7), {})


def _to_float(node: Node) -> Parts:
    """MatMulIntegerToFloat: both factors, both scales, both zero points, a float bias."""
    a = TensorGrid(node.inputs[2], _given(node, 4))
    b = TensorGrid(node.inputs[3], _given(node, 5), -1)
    return Parts("MatMul", ((node.inputs[0], a), (node.inputs[1], b)), None, {})


FORMS: dict[str, Callable[[Node], Parts]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearMul": _binary("Mul"),
    "QLinearConcat": _concat,
    "QLinearAveragePool": _unary("AveragePool"),
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearLeakyRelu": _unary("LeakyRelu"),
    "QLinearSoftmax": _unary("Softmax", "opset"),
    "QLinearReduceMean": _unary("ReduceMean"),
    "QLinearWhere": _where,
    "MatMulIntegerToFloat": _to_float,
}
"""Operator to what it consists of; all but QLinearConv and QLinearMatMul are of the domain com.microsoft."""


def is_qlinear(node: Node) -> bool:
    """Tell whether a node is one of the operators of `FORMS`."""
    return node.op in FORMS and (node.domain == MICROSOFT or node.domain in STANDARD)


def refusal(node: Node, opset: int) -> str | None:
    """Return why an integer operator cannot be written as a float one, or None."""
    parts = FORMS[node.op](node)
    for entry in (*parts.inputs, (node.outputs[0], parts.output)):
        if entry is not None and entry[1] is not None and entry[1].values is None and node.op != "MatMulIntegerToFloat":
            return RUN_TIME
    if node.op == "QLinearSoftmax" and opset < 13 and int(node.attrs.get("opset", 13)) >= 13:
        return "it follows the Softmax of opset 13, which this model does not import"
    if node.op == "QLinearReduceMean" and opset >= 18 and "axes" in node.attrs:
        return "its axes are an attribute, which ReduceMean has no more from opset 18 on"
    if node.attrs.get("channels_last", 0) and node.inputs[0].shape is None:
        return "its channels come last and the number of its axes is unknown"
    if node.op == "QGemm" and float(node.attrs.get("alpha", 1.0)) != 1.0 and _given(node, 6) is not None:
        return "alpha is not 1 and it has a bias"
    return None


def expand(rw: Rewriter, node: Node, opset: int) -> None:
    """Replace an integer operator by DequantizeLinear, the float operator and QuantizeLinear.

    Args:
        rw: The rewriter.
        node: An operator of `FORMS` that `refusal` does not refuse.
        opset: Of the model.
    """
    parts = FORMS[node.op](node)
    inputs = [_real(rw, node, entry, opset) for entry in parts.inputs]
    if parts.op in {"Conv", "Gemm"} and len(inputs) > 2 and inputs[2] is not None:
        inputs[2] = _bias(rw, node, parts, opset)
    last = int(node.attrs.get("channels_last", 0)) == 1
    if last:
        inputs[0] = _transposed(rw, node, inputs[0], first=True)
    real: Variable = rw.op(parts.op, inputs, attrs=parts.attrs, domain=parts.domain, near=node, origin=(node,))
    shape = None if last else node.outputs[0].shape
    rw.set_type(real, _float_type(parts), shape)
    if last:
        real = _transposed(rw, node, real, first=False)
        rw.set_type(real, _float_type(parts), node.outputs[0].shape)
    bias = _given(node, 6) if node.op == "MatMulIntegerToFloat" else None
    if bias is not None:
        real = rw.op("Add", [real, bias], like=node.outputs[0], near=node)
    old = [tensor for tensor in node.inputs if not tensor.is_empty()]
    made = real if parts.output is None else round_to(rw, node, real, parts.output, node.outputs[0])
    rw.replace_tensor(node.outputs[0], made)
    rw.erase([node])
    erase_idle(rw, old, frozenset(("Constant",)))


def _float_type(parts: Parts) -> Any:
    grid = next(entry[1] for entry in parts.inputs if entry is not None and entry[1] is not None)
    return grid.scale.dtype or np.dtype(np.float32)


def _real(rw: Rewriter, node: Node, entry: tuple[Tensor, TensorGrid | None] | None, opset: int) -> Tensor | None:
    if entry is None:
        return None
    tensor, grid = entry
    if grid is None:
        return tensor
    axis = grid.axis % len(tensor.shape) if grid.axis < 0 and tensor.shape else grid.axis
    return restore(rw, node, tensor, TensorGrid(grid.scale, grid.zero, axis), opset=opset)


def _bias(rw: Rewriter, node: Node, parts: Parts, opset: int) -> Tensor:
    """Return the int32 bias, which lies on the product of the scales of the two factors, as real numbers."""
    assert parts.inputs[2] is not None
    product = np.ones(1, np.float32)
    for entry in parts.inputs[:2]:
        values = None if entry is None or entry[1] is None else entry[1].values
        assert values is not None
        product = product * np.asarray(values[0], np.float32).reshape(-1)
    step = product.reshape(()) if product.size == 1 else product
    bias = parts.inputs[2][0]
    grid = TensorGrid(rw.constant(step.astype(_float_type(parts)), name=f"{bias.name}_scale", near=node), None, 0)
    return restore(rw, node, bias, grid, opset=opset)


def _transposed(rw: Rewriter, node: Node, tensor: Tensor | None, *, first: bool) -> Variable:
    """Return a tensor with its channels brought to the front, or back to the end."""
    assert tensor is not None
    rank = len(node.inputs[0].shape)
    order = [0, rank - 1, *range(1, rank - 1)] if first else [0, *range(2, rank), 1]
    made: Variable = rw.op("Transpose", [tensor], attrs={"perm": order}, near=node)
    rw.set_type(made, tensor.dtype, None)
    return made
