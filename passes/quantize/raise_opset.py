"""The pass ``raise-opset``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphopt.analysis.types import Types
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, Patch, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter

LATEST = 13
"""The opset that models are raised to: the first with one scale per channel. What changed later is not in the table."""

OLDEST = 7
"""Below this opset operators broadcast by attributes."""

UNCHANGED = frozenset(
    (
        *("Abs", "Acos", "Add", "And", "ArgMax", "ArgMin", "Asin", "Atan", "AveragePool", "Cast", "Ceil", "Concat"),
        *("Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "DepthToSpace", "Div", "Elu", "Equal", "Erf"),
        *("Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gemm"),
        *("GlobalAveragePool", "GlobalMaxPool", "Greater", "HardSigmoid", "Identity", "If", "InstanceNormalization"),
        *("IsNaN", "LRN", "LSTM", "LeakyRelu", "Less", "Log", "Loop", "LpNormalization", "MatMul", "Max", "MaxPool"),
        *("Mean", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "PRelu", "Pow", "RNN", "Range"),
        *("Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSumSquare", "Relu", "Reshape", "ScatterElements", "ScatterND", "Selu", "Shape"),
        *("Sigmoid", "Sign", "Sin", "Size", "Softplus", "Softsign", "SpaceToDepth", "Sqrt", "Sub", "Sum", "Tan"),
        *("Tanh", "ThresholdedRelu", "Tile", "Transpose", "Where", "Xor", "QuantizeLinear", "DequantizeLinear"),
    )
)
"""Operators that compute the same under opset 13 with the inputs and attributes they had from opset 7 on."""

FLOAT32 = 1
FLOAT_ATTRIBUTES = {"Clip": ("min", "max"), "Pad": ("value",)}
"""Attributes that became inputs of the element type of the data; they are written as float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseOpset(Pass):
    """Raise a model of an old opset to opset 13, the first that can quantize per channel.

    Matches: models of opset 7 to 12 without functions, all of whose operators have a known equal form in opset 13.
    Produces: the same operators; attributes that became inputs (axes, starts, pads, bounds, split) as constants.
    Requires: no operator whose meaning changed: Softmax over an axis other than the last, Dropout, Resize, Upsample.
    Preserves: values, names, types and shapes, and the version of the file format, which decides whether a caller may
        override initializers: EXACT.
    Source: ONNX operator changelog, versions 7 to 13.
    """

    name: ClassVar[str] = "raise-opset"
    contract: ClassVar[Contract] = Contract.EXACT
    uses_data: ClassVar[bool] = False

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch for the whole model: an opset holds for all nodes at once."""
        where = model.graph.name or "the model"
        if model.opset >= LATEST:
            return
        if model.opset < OLDEST:
            yield Skip(where, f"opset {model.opset}: operators broadcast otherwise below opset {OLDEST}")
            return
        if model.functions:
            yield Skip(where, "functions import opsets of their own")
            return
        types = facts.get(Types)
        nodes = [node for _, node in model.walk() if node.domain in {None, "", "ai.onnx"}]
        refused = [(node, why) for node in nodes if (why := refusal(node, model.opset, types)) is not None]
        for node, why in refused:
            yield Skip(node, f"the model stays at opset {model.opset}: {why}")
        if refused:
            return

        def apply(rw: Rewriter) -> None:
            opset = model.opset
            for node in nodes:
                if node.op in ADAPTERS and opset < ADAPTERS[node.op][0]:
                    ADAPTERS[node.op][1](rw, node)
            model.opset = LATEST

        yield Patch(f"raise opset {model.opset} to {LATEST}", (), apply)


def refusal(node: Node, opset: int, types: Types) -> str | None:
    """Return why a node has no equal form in opset 13, or None."""
    if node.op in {"Softmax", "LogSoftmax"}:
        rank = types.rank(node.inputs[0])
        axis = int(node.attrs.get("axis", 1))
        if rank is None or axis not in {rank - 1, -1}:
            return f"{node.op} flattens its input below opset 13 and its axis is not known to be the last"
        return None
    if node.op == "BatchNormalization":
        if len([tensor for tensor in node.outputs if tensor.name]) > 1 or int(node.attrs.get("spatial", 1)) != 1:
            return "BatchNormalization in training form"
        return None
    if node.op == "TopK" and opset >= 10:
        return None
    if opset < 11 and any(name in node.attrs for name in FLOAT_ATTRIBUTES.get(node.op, ())):
        if types.dtype(node.inputs[0]) != FLOAT32:
            return f"{node.op} of other elements than float32, whose bounds would be inputs of that type"
        return None
    if node.op in UNCHANGED or node.op in ADAPTERS:
        return None
    return f"{node.op} changed its meaning or is not in the table"


def _softmax(rw: Rewriter, node: Node) -> None:
    rw.set_attr(node, "axis", -1)


def _batch_normalization(rw: Rewriter, node: Node) -> None:
    if "spatial" in node.attrs:
        rw.set_attr(node, "spatial", None)


def _to_inputs(*names: tuple[str, type[np.generic], object]) -> Callable[[Rewriter, Node], None]:
    """Return what turns attributes into inputs behind the first one, in order; None is no default."""

    def adapt(rw: Rewriter, node: Node) -> None:
        for place, (name, kind, default) in enumerate(names, start=1):
            value = node.attrs.get(name, default)
            if value is None:
                continue
            constant = rw.constant(np.asarray(value, kind), name=f"{node.name or node.op}_{name}", near=node)
            rw.set_input(node, place, constant)
        for name, _, _ in names:
            if name in node.attrs:
                rw.set_attr(node, name, None)

    return adapt


def _slice(rw: Rewriter, node: Node) -> None:
    starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
    axes = list(node.attrs.get("axes", range(len(starts))))
    for place, (name, value) in enumerate((("starts", starts), ("ends", ends), ("axes", axes)), start=1):
        constant = rw.constant(np.asarray(value, np.int64), name=f"{node.name or node.op}_{name}", near=node)
        rw.set_input(node, place, constant)
    for name in ("starts", "ends", "axes"):
        if name in node.attrs:
            rw.set_attr(node, name, None)


ADAPTERS: dict[str, tuple[int, Callable[[Rewriter, Node], None]]] = {
    "Softmax": (13, _softmax),
    "LogSoftmax": (13, _softmax),
    "BatchNormalization": (9, _batch_normalization),
    "Squeeze": (13, _to_inputs(("axes", np.int64, None))),
    "Unsqueeze": (13, _to_inputs(("axes", np.int64, None))),
    "ReduceSum": (13, _to_inputs(("axes", np.int64, None))),
    "Split": (13, _to_inputs(("split", np.int64, None))),
    "Clip": (11, _to_inputs(("min", np.float32, None), ("max", np.float32, None))),
    "Pad": (11, _to_inputs(("pads", np.int64, None), ("value", np.float32, None))),
    "Slice": (10, _slice),
}
"""Operator to the opset that changed it and what turns the older form into the newer one."""
