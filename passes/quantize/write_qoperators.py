"""The pass ``write-qoperators``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.graph import constant_value, is_graph_output, uses
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, LayerRecord, Patch, Skip, node_label
from graphopt.target.operators import activation_bounds
from graphopt.target.reading import is_conversion, restored

if TYPE_CHECKING:
    from collections.abc import Generator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor, Variable
    from graphopt.target.reading import Restored

CONTRIBUTED = "com.microsoft"
STANDARD = (None, "", "ai.onnx")
BYTES = ("uint8", "int8")


@dataclass(frozen=True, slots=True)
class Form:
    """The integer operator that stands for a float one between conversions.

    Attributes:
        op: Its name.
        domain: Its domain.
        attrs: Attributes that it takes over, beside ``extra``.
        extra: Attributes that it has in addition.
        floating: The operator that writes floats; None where there is none.
    """

    op: str
    domain: str | None = CONTRIBUTED
    attrs: tuple[str, ...] = ()
    extra: tuple[tuple[str, Any], ...] = ()
    floating: str | None = None


POOLING = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
CONVOLVING = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
FORMS = {
    "Conv": Form("QLinearConv", None, CONVOLVING),
    "MatMul": Form("QLinearMatMul", None, floating="MatMulIntegerToFloat"),
    "Gemm": Form("QGemm", attrs=("transA", "transB", "alpha"), floating="QGemm"),
    "Add": Form("QLinearAdd"),
    "Mul": Form("QLinearMul"),
    "Concat": Form("QLinearConcat", attrs=("axis",)),
    "AveragePool": Form("QLinearAveragePool", attrs=POOLING, extra=(("channels_last", 0),)),
    "GlobalAveragePool": Form("QLinearGlobalAveragePool", extra=(("channels_last", 0),)),
    "Sigmoid": Form("QLinearSigmoid"),
    "LeakyRelu": Form("QLinearLeakyRelu", attrs=("alpha",)),
    "Softmax": Form("QLinearSoftmax", attrs=("axis",)),
}
"""Float operator to integer operator."""


@dataclass(frozen=True, slots=True)
class Match:
    """A float operator between conversions.

    Attributes:
        form: What it becomes.
        inputs: How its inputs are restored, in order.
        last: The node in front of the rounding: an activation that the grid makes redundant, or the operator itself.
        rounding: The QuantizeLinear behind it; None where it writes floats.
    """

    form: Form
    inputs: tuple[Restored, ...]
    last: Node
    rounding: Node | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteQoperators(Pass):
    """Replace float operators between conversions by the integer operators that ONNX Runtime executes in their place.

    The runtime makes the same operators itself when it loads a model with QuantizeLinear and DequantizeLinear; written
    out they load faster, do not hang on its optimizations, and only ONNX Runtime reads them.

    Matches: Conv, Gemm, MatMul, Add, Mul, Concat, AveragePool, GlobalAveragePool, Sigmoid, LeakyRelu and Softmax whose
        inputs come from DequantizeLinear and whose output goes to one QuantizeLinear, a redundant Relu or Clip between
        them aside; a Gemm or MatMul may write floats.
    Produces: QLinearConv and QLinearMatMul; MatMulIntegerToFloat, QGemm, QLinearAdd and the like of com.microsoft.
    Requires: 8-bit integers, one scale per activation, an int32 bias on the product of the scales, weights with one
        scale or one per output.
    Preserves: names, types and shapes of inputs and outputs. Values up to one step of a grid: LOSSY.
    Source: a product of the operator definitions of ONNX and ONNX Runtime 1.31.
    """

    name: ClassVar[str] = "write-qoperators"
    contract: ClassVar[Contract] = Contract.LOSSY
    uses_data: ClassVar[bool] = False

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per operator, in graph order."""
        for node in [node for _, node in model.walk(functions=False) if node.op in FORMS and node.domain in STANDARD]:
            found = match(node, model.opset)
            if found is None:
                continue
            if isinstance(found, str):
                yield Skip(node, found)
                continue

            def apply(rw: Rewriter, node: Node = node, found: Match = found) -> None:
                write(rw, node, found)

            label, op = node_label(node), found.form.op
            record = LayerRecord(label, node.op, f"written as {op}", reason="format qoperator, as asked")
            yield Patch(f"write {node.op} '{label}' as {op}", (node,), apply, (record,))


def match(node: Node, opset: int) -> Match | str | None:
    """Return the integer form of an operator, why it has none, or None where nothing beside it is quantized."""
    form = FORMS[node.op]
    inputs = [restored(tensor) for tensor in node.inputs]
    if not any(each is not None and not each.is_constant for each in inputs):
        return None
    known = [each for each in inputs if each is not None]
    if len(known) < len(inputs):
        return "one of its inputs is float"
    for place, each in enumerate(known):
        why = _unsuitable(each, weight=place > 0 and node.op in {"Conv", "Gemm", "MatMul"})
        if why:
            return why
    if node.op == "Softmax" and opset < 13:
        return f"opset {opset}: Softmax flattens its input"
    if node.op == "Gemm" and float(node.attrs.get("beta", 1.0)) != 1.0:
        return "beta is not 1"
    if node.op in {"Conv", "Gemm"} and not known[1].is_constant:
        return "its weight is no constant"
    last, rounding = _behind(node)
    if rounding is None:
        if form.floating is None:
            return "its output is not rounded"
        plain = replace(form, op=form.floating, domain=CONTRIBUTED)
        return Match(plain, tuple(known), node, None)
    return Match(form, tuple(known), last, rounding)


def _unsuitable(found: Restored, *, weight: bool) -> str:
    """Return why an input cannot be read as integers, or nothing."""
    if found.number != "int32" and found.zero is None:
        return f"'{found.integers.name}' has no written zero point"
    if found.number not in BYTES and not (weight and found.number == "int32"):
        return f"'{found.integers.name}' is {found.number or 'of unknown type'}"
    if found.scale is None or found.block:
        return f"'{found.integers.name}' has scales per block, or none that is constant"
    if not weight and found.scale.size != 1:
        return f"'{found.integers.name}' has several scales"
    return ""


def _behind(node: Node) -> tuple[Node, Node | None]:
    """Return the node in front of the QuantizeLinear that alone reads a result, and that; None where there is none."""
    last = node
    for _ in range(2):
        tensor = last.outputs[0]
        readers = uses(tensor)
        if len(readers) != 1 or is_graph_output(tensor):
            return node, None
        reader = readers[0].node
        if is_conversion(reader, "QuantizeLinear") and readers[0].index == 0:
            return (last, reader) if last is node or _is_redundant(last, reader) else (node, None)
        if activation_bounds(reader) is None:
            return node, None
        last = reader
    return node, None


def _is_redundant(activation: Node, rounding: Node) -> bool:
    """Tell whether a grid ends where an activation cuts off."""
    bounds = activation_bounds(activation)
    scale, zero = constant_value(rounding.inputs[1]), None
    if len(rounding.inputs) > 2 and not rounding.inputs[2].is_empty():
        zero = constant_value(rounding.inputs[2])
    if bounds is None or scale is None or zero is None or scale.size != 1 or zero.dtype.name not in BYTES:
        return False
    ends, step = np.iinfo(zero.dtype), np.float32(scale.reshape(-1)[0])
    shift = int(zero.reshape(-1)[0])
    begins = bounds[0] == -np.inf or np.rint(np.float32(bounds[0]) / step) + shift <= ends.min
    finishes = bounds[1] == np.inf or np.rint(np.float32(bounds[1]) / step) + shift >= ends.max
    return bool(begins and finishes)


def write(rw: Rewriter, node: Node, found: Match) -> None:
    """Write the integer operator and take out what it replaces."""
    form = found.form
    grid: list[Tensor | None] = [] if found.rounding is None else [*found.rounding.inputs[1:3]]
    triples = [[each.integers, *each.node.inputs[1:3]] for each in found.inputs]
    inputs: list[Tensor | None]
    if node.op == "Conv":
        inputs = [*triples[0], *triples[1], *grid, *(each[0] for each in triples[2:])]
    elif node.op == "Gemm":
        bias = triples[2][0] if len(triples) > 2 else None
        inputs = [*triples[0], *triples[1], bias, *grid]
    elif form.op == "MatMulIntegerToFloat":
        inputs = [triples[0][0], triples[1][0], triples[0][1], triples[1][1], triples[0][2], triples[1][2]]
    elif node.op == "Concat":
        inputs = [*grid, *(tensor for triple in triples for tensor in triple)]
    else:
        inputs = [*(tensor for triple in triples for tensor in triple), *grid]
    while inputs and inputs[-1] is None:
        inputs.pop()
    attrs: dict[str, Any] = {name: node.attrs[name] for name in form.attrs if name in node.attrs} | dict(form.extra)
    if node.op == "Softmax":
        attrs = {"axis": -1, **attrs, "opset": 13}
    last = node if found.rounding is None else found.rounding
    like = last.outputs[0]
    made: Variable = rw.op(
        form.op,
        inputs,
        attrs=attrs,
        domain=form.domain,
        near=last,
        like=like,
        name=node.name or node.op,
        origin=(node,),
    )
    if found.rounding is not None:
        zero = constant_value(found.rounding.inputs[2])
        assert zero is not None
        rw.set_type(made, zero.dtype, node.outputs[0].shape)
    restores = [each.node for each in found.inputs]
    rw.replace_tensor(like, made)
    gone = (
        [node] if found.rounding is None else [found.rounding, *([found.last] if found.last is not node else []), node]
    )
    for each in gone:
        rw.erase([each])
    for each in dict.fromkeys(restores):
        if not uses(each.outputs[0]) and not is_graph_output(each.outputs[0]):
            rw.erase([each])
