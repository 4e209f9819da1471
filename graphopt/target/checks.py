"""What a validator looks for in a quantized model: one check per rule, each named, with what to do about it.

A check sees one node at a time and returns why the node breaks its rule. Targets list the checks that hold on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.target.numbers import NUMBERS
from graphopt.target.operators import output_axis
from graphopt.target.reading import Restored, is_conversion, restored
from graphopt.target.rules import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor
    from graphopt.target.rules import OpRule, Target

FLOAT32 = 1
SAME_SCALE = 1e-4
"""Relative difference up to which two scales are the same number, computed in another order."""

READ_SIZES = frozenset(("Shape", "Size"))
"""Operators that read no values."""

INTEGER_OPERATORS = frozenset(
    (
        *("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool", "QGemm"),
        *("QLinearGlobalAveragePool", "QLinearSigmoid", "QLinearSoftmax", "QLinearLeakyRelu", "QLinearWhere"),
        *("MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
        *("MatMulNBits", "DynamicQuantizeLSTM", "QLinearReduceMean"),
    )
)


@dataclass(frozen=True, slots=True)
class View:
    """What checks know beside the node.

    Attributes:
        target: The rules.
        types: Types and shapes of the model.
    """

    target: Target
    types: Types

    def is_float(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is float32."""
        return bool(tensor.name) and self.types.dtype(tensor) == FLOAT32


@dataclass(frozen=True, slots=True)
class Check:
    """One rule of a target.

    Attributes:
        name: What messages call it.
        serious: Whether breaking it gives wrong numbers or a model that is refused; else it costs time.
        remedy: What to do about it.
        find: Returns why a node breaks it, once per reason.
    """

    name: str
    serious: bool
    remedy: str
    find: Callable[[Node, View], Iterator[str]]


def activation(node: Node) -> Restored | None:
    """Return what a DequantizeLinear restores, where that is no constant."""
    if not is_conversion(node, "DequantizeLinear"):
        return None
    found = restored(node.outputs[0])
    return None if found is None or found.is_constant else found


def weighted(node: Node, view: View) -> tuple[OpRule, Restored | None, Restored | None] | None:
    """Return the rule of a weighted operator, how its data and how its weight is restored; None for anything else."""
    rule = view.target.rules.get(node.op) if node.domain in {None, "", "ai.onnx"} else None
    if rule is None or rule.role is not Role.WEIGHTED or rule.weight is None or len(node.inputs) < 2:
        return None
    return rule, restored(node.inputs[0]), restored(node.inputs[rule.weight])


def name_of(dtype: str) -> str:
    """Return the name of a number type, by the name numpy has for it."""
    return next((number.name for number in NUMBERS.values() if number.dtype.name == dtype), dtype)


def _operators(node: Node, view: View) -> Iterator[str]:
    if node.op in INTEGER_OPERATORS:
        yield f"{view.target.runtime} reads QuantizeLinear and DequantizeLinear, not {node.op}"


def _types(node: Node, view: View) -> Iterator[str]:
    found = activation(node)
    allowed = [number.name for number in view.target.activations]
    if found is not None and found.number and name_of(found.number) not in allowed:
        yield f"'{found.integers.name}' is {name_of(found.number)}; activations are {' or '.join(allowed)}"


def _symmetric(node: Node, _view: View) -> Iterator[str]:
    found = restored(node.outputs[0]) if is_conversion(node, "DequantizeLinear") else None
    if found is not None and found.zero is not None and np.asarray(found.zero, np.float64).any():
        yield f"'{found.integers.name}' has a zero point other than 0"


def _one_scale(node: Node, _view: View) -> Iterator[str]:
    found = activation(node)
    if found is not None and (found.scale is None or found.scale.size != 1):
        yield f"the activation '{found.integers.name}' has several scales, or one that is no constant"


def _all_inputs(node: Node, view: View) -> Iterator[str]:
    rule = view.target.rule(node)
    if rule is None or rule.role not in {Role.WEIGHTED, Role.JOIN} or rule.skip_only or is_conversion(node):
        return
    places = [place for place in rule.data_positions(node) if place < len(node.inputs)]
    moving = [node.inputs[place] for place in places if not _is_constant(node.inputs[place])]
    done = [tensor for tensor in moving if restored(tensor) is not None]
    rounded = [tensor for tensor in done if (found := restored(tensor)) is not None and found.rounding is not None]
    if rounded and len(done) < len(moving):  # integers that nothing rounded were looked up in a table
        left = next(tensor for tensor in moving if tensor not in done)
        yield f"'{done[0].name}' is quantized, its other input '{left.name}' is not: {node.op} computes in float"


def _is_constant(tensor: Tensor) -> bool:
    """Tell whether a tensor is a constant, restored from one or left out."""
    if not tensor.name or constant_value(tensor) is not None:
        return True
    found = restored(tensor)
    return found is not None and found.is_constant


def _weight_axis(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if found is None or found[2] is None or found[2].values is None:
        return
    weight, rank = found[2], found[2].values.ndim
    if weight.axis is None or weight.block or weight.scale is None or weight.scale.ndim != 1:
        return
    axis, wanted = weight.axis % rank, output_axis(node, rank)
    if axis != wanted:
        yield f"its weight has scales along axis {axis}; outputs lie on axis {wanted}"


def _weight_rounded(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if found is None or found[1] is None or found[2] is not None or found[1].is_constant:
        return
    weight = node.inputs[found[0].weight or 1]
    if constant_value(weight) is not None:
        yield f"its data is quantized, its weight '{weight.name}' is float"


def _weight_channels(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if found is None or found[2] is None or found[2].scale is None or not found[2].is_constant:
        return
    if found[2].scale.size > 1 and not view.target.weight_kind(found[0]).channels:
        yield f"the weight of {node.op} has {found[2].scale.size} scales; {view.target.runtime} takes one"


def _bias(node: Node, view: View) -> Restored | None:
    found = weighted(node, view)
    if found is None or found[0].bias is None or len(node.inputs) <= found[0].bias:
        return None
    return restored(node.inputs[found[0].bias])


def _float_bias(node: Node, view: View) -> Iterator[str]:
    found = _bias(node, view)
    if found is not None:
        yield f"its bias '{found.integers.name}' is {found.number or 'quantized'}; {view.target.runtime} wants it float"


def _bias_scale(node: Node, view: View) -> Iterator[str]:
    found, bias = weighted(node, view), _bias(node, view)
    if found is None or bias is None or found[1] is None or found[2] is None:
        return
    data, weight = found[1].scale, found[2].scale
    if data is None or weight is None or bias.scale is None or data.size != 1:
        return
    wanted = np.asarray(data, np.float64).reshape(-1) * np.asarray(weight, np.float64).reshape(-1)
    given = np.asarray(bias.scale, np.float64).reshape(-1)
    if given.size not in {1, wanted.size} or not np.allclose(given, wanted, rtol=SAME_SCALE, atol=0.0):
        yield "the scale of its int32 bias is not that of its input times that of its weight"


def _skip_only(node: Node, view: View) -> Iterator[str]:
    rule = view.target.rule(node)
    if rule is None or not rule.skip_only:
        return
    for place, tensor in enumerate(node.inputs):
        found = restored(tensor)
        source = None if found is None or found.rounding is None else producer(found.rounding.inputs[0])
        if source is None or not _computes_quantized(source, view):
            continue
        others = [each for index, each in enumerate(node.inputs) if index != place]
        if not any(_is_computed(each, view) for each in others):
            yield f"a pair stands between {source.op} '{source.name}' and this Add: they are no longer one kernel"


def _is_computed(tensor: Tensor, view: View) -> bool:
    """Tell whether a quantized weighted operator makes a tensor for one reader, without a pair behind it."""
    source = producer(tensor)
    return source is not None and _computes_quantized(source, view) and len(uses(tensor)) == 1


def _computes_quantized(node: Node, view: View) -> bool:
    found = weighted(node, view)
    return found is not None and found[1] is not None


def _no_copies(node: Node, view: View) -> Iterator[str]:
    if node.op not in view.target.float_reason or is_conversion(node):
        return
    for tensor in node.inputs:
        found = restored(tensor)
        if found is not None and not found.is_constant:
            yield f"a pair stands before it: {view.target.float_reason[node.op]}"
            return


def _unprofitable(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if found is None or found[1] is None or found[1].is_constant:
        return
    why = found[0].unprofitable(node)
    if why is not None:
        yield why


def _concat_grid(node: Node, view: View) -> Iterator[str]:
    rule = view.target.rule(node)
    if rule is None or not rule.one_grid:
        return
    grids = {None if (found := restored(tensor)) is None else found.grid() for tensor in node.inputs}
    if len(grids) > 1:
        yield "its inputs lie on different grids, or some on none: each is converted first"


def _equal_grids(node: Node, view: View) -> Iterator[str]:
    rule = view.target.rule(node)
    if rule is None or rule.role is not Role.MOVE:
        return
    before = restored(node.inputs[rule.data_positions(node)[0]])
    for tensor in node.outputs:
        for use in uses(tensor):
            if before is None or not is_conversion(use.node, "QuantizeLinear") or not uses(use.node.outputs[0]):
                continue
            after = restored(uses(use.node.outputs[0])[0].node.outputs[0])
            if after is not None and (before.grid(), before.number) != (after.grid(), after.number):
                yield f"it only moves data, but '{tensor.name}' lies on another grid behind it"


def _covered(node: Node, view: View) -> Iterator[str]:
    if is_conversion(node, "DequantizeLinear") and is_graph_output(node.outputs[0]) and uses(node.outputs[0]):
        yield "what it restores is an output of the model and read as well: neither belongs to an operator"
    if is_conversion(node) or node.op in READ_SIZES:
        return
    rule = view.target.rule(node)
    if rule is None:
        if any(view.is_float(tensor) and restored(tensor) is not None for tensor in node.inputs):
            yield view.target.float_reason.get(node.op, f"{view.target.runtime} has no rule for it")
        return
    places = {*rule.data_positions(node), rule.weight, rule.bias} - {None}
    for place, tensor in enumerate(node.inputs):
        if place in places and view.is_float(tensor) and restored(tensor) is None:
            yield f"input {place} ('{tensor.name}') has no pair"
    for tensor in node.outputs:
        readers = uses(tensor)
        if not view.is_float(tensor) or not (readers or is_graph_output(tensor)):
            continue
        plain = [use.node.op for use in readers if not is_conversion(use.node, "QuantizeLinear")]
        absorbed = len(readers) == 1 and plain and plain[0] in {"Relu", "Clip"}
        if is_graph_output(tensor) or (plain and not absorbed):
            yield f"output '{tensor.name}' has no pair"


def _fixed_grids(node: Node, view: View) -> Iterator[str]:
    rule = view.target.rules.get(node.op)
    if rule is None or not rule.exact:
        return
    for use in uses(node.outputs[0]):
        if not is_conversion(use.node, "QuantizeLinear") or not uses(use.node.outputs[0]):
            continue
        found = restored(uses(use.node.outputs[0])[0].node.outputs[0])
        wanted = rule.exact.get(name_of(found.number)) if found is not None else None
        if found is None or wanted is None:
            continue
        scale = 0.0 if found.scale is None else float(found.scale.reshape(-1)[0])
        zero = 0 if found.zero is None else int(found.zero.reshape(-1)[0])
        if zero != wanted[1] or not np.isclose(scale, wanted[0], rtol=SAME_SCALE, atol=0.0):
            yield f"its output has scale {scale:.6g} and zero point {zero}; it must be {wanted[0]:.6g} and {wanted[1]}"


def _least_range(node: Node, view: View) -> Iterator[str]:
    found = activation(node)
    number = None if found is None else NUMBERS.get(name_of(found.number))
    if found is None or number is None or found.scale is None:
        return
    span = float(found.scale.reshape(-1)[0]) * (number.levels - 1)
    if span < view.target.least_range * (1 - SAME_SCALE):
        yield f"'{found.integers.name}' spans {span:.3g}; {view.target.runtime} wants {view.target.least_range:g}"


OPERATORS = Check(
    "operators",
    serious=False,
    remedy="Write the model with QuantizeLinear and DequantizeLinear around float operators (format qdq)",
    find=_operators,
)
TYPES = Check("types", serious=True, remedy="Quantize with --activations and --target of this runtime", find=_types)
SYMMETRIC = Check("symmetric", serious=True, remedy="Quantize symmetrically: every zero point is 0", find=_symmetric)
ONE_SCALE = Check("one-scale", serious=True, remedy="Give each activation one constant scale", find=_one_scale)
ALL_INPUTS = Check("all-inputs", serious=False, remedy="Round its other inputs too, or none of them", find=_all_inputs)
WEIGHT_AXIS = Check(
    "weight-axis",
    serious=True,
    remedy="Give the weight one scale per output, or one in all; other scales cannot be taken out of the sum",
    find=_weight_axis,
)
WEIGHT_ROUNDED = Check(
    "weight-rounded", serious=False, remedy="Quantize the weight too, one scale per output", find=_weight_rounded
)
WEIGHT_CHANNELS = Check("weight-channels", serious=True, remedy="Give this weight one scale", find=_weight_channels)
FLOAT_BIAS = Check("float-bias", serious=True, remedy="Leave biases float", find=_float_bias)
BIAS_SCALE = Check(
    "bias-scale",
    serious=True,
    remedy="Give each operator a bias of its own, on the product of the scales of its input and its weight",
    find=_bias_scale,
)
SKIP_ONLY = Check(
    "skip-only", serious=False, remedy="Take it out; round only the skip branch of a residual Add", find=_skip_only
)
NO_COPIES = Check(
    "no-copies", serious=False, remedy="Move the pair behind it, to the operator that computes", find=_no_copies
)
UNPROFITABLE = Check("unprofitable", serious=False, remedy="Leave this operator float", find=_unprofitable)
CONCAT_GRID = Check("concat-grid", serious=False, remedy="Give all inputs of the Concat one grid", find=_concat_grid)
EQUAL_GRIDS = Check("equal-grids", serious=False, remedy="Use one grid before and behind it", find=_equal_grids)
COVERED = Check(
    "covered", serious=False, remedy="Put a pair on every float tensor; what has none runs on the CPU", find=_covered
)
FIXED_GRIDS = Check("fixed-grids", serious=True, remedy="Use the scale and zero point given", find=_fixed_grids)
LEAST_RANGE = Check("least-range", serious=False, remedy="Widen the range of this tensor", find=_least_range)
