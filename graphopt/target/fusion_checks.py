"""What keeps ONNX Runtime from fusing a quantized operator, found in the model before the runtime sees it.

The audit runs the runtime and counts; these checks say why, and find what no count shows: results that are wrong.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.target import checks
from graphopt.target.checks import Check, activation, name_of, weighted
from graphopt.target.operators import activation_bounds
from graphopt.target.reading import is_conversion, restored
from graphopt.target.rules import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphopt.graph import Node, Tensor
    from graphopt.target.checks import View

CONTRIBUTED = "com.microsoft"
SMALLEST_TABLE = 4096
"""Entries below which restoring a whole table costs less than one more operator."""

LARGEST_WEIGHT = 64
"""Twice 255 by this fits 16 bits."""


def _eight_bits(node: Node, _view: View) -> Iterator[str]:
    found = activation(node)
    if found is not None and found.number not in {"", "uint8", "int8"}:
        yield f"'{found.integers.name}' is {name_of(found.number)}: what reads it computes in float"


def _shared_signed(node: Node, _view: View) -> Iterator[str]:
    if not is_conversion(node, "QuantizeLinear") or constant_value(node.inputs[0]) is not None:
        return
    readers = uses(node.outputs[0])
    restores = [use.node for use in readers if is_conversion(use.node, "DequantizeLinear")]
    found = restored(restores[0].outputs[0]) if restores else None
    if found is not None and found.number == "int8" and len(restores) > 0:
        behind = sum(len(uses(each.outputs[0])) for each in restores)
        if max(behind, len(readers)) > 1:
            yield f"'{node.inputs[0].name}' is int8 and has {max(behind, len(readers))} readers: none of them is fused"


def _written_zero(node: Node, _view: View) -> Iterator[str]:
    found = activation(node)
    if found is None:
        return
    for each in (found.node, found.rounding):
        if each is not None and (len(each.inputs) < 3 or each.inputs[2].is_empty()):
            yield f"the zero point of {each.op} '{each.name}' is not written out"
            return


def _weight_zeros(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if found is None or found[1] is None or found[2] is None or found[2].block:
        return
    if found[2].zero is None or not found[2].is_constant:
        return
    if found[2].zero.astype(np.int64).any():
        yield "its weight has zero points other than 0: the direct kernels take none, others need half as long again"


def _number_pair(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if found is None or found[1] is None or found[2] is None:
        return
    if (found[1].number, found[2].number) == ("int8", "uint8"):
        yield "int8 activations by uint8 weights: there is no such kernel"


def _conv_bias(node: Node, view: View) -> Iterator[str]:
    if node.op != "Gemm":
        yield from checks.BIAS_SCALE.find(node, view)


def _gemm_bias(node: Node, view: View) -> Iterator[str]:
    if node.op == "Gemm":
        yield from checks.BIAS_SCALE.find(node, view)


def _weight_limit(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if found is None or found[1] is None or found[2] is None or found[2].values is None:
        return
    if found[1].number == "uint8" and found[2].number == "int8":
        top = int(np.abs(found[2].values.astype(np.int64)).max(initial=0))
        if top > LARGEST_WEIGHT:
            yield f"its weight goes up to {top}: above {LARGEST_WEIGHT} two products do not fit 16 bits"


def _whole_table(node: Node, _view: View) -> Iterator[str]:
    if node.op != "Gather":
        return
    found = restored(node.inputs[0])
    if found is None or found.values is None or found.values.size < SMALLEST_TABLE:
        return
    if not any(is_conversion(use.node, "QuantizeLinear") for use in uses(node.outputs[0])):
        yield f"its table of {found.values.size} entries is restored whole in every run"


def _float_sum(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if node.op != "MatMul" or found is None or found[1] is None or found[2] is None or is_graph_output(node.outputs[0]):
        return
    readers = uses(node.outputs[0])
    if len(readers) != 1 or readers[0].node.op != "Add":
        return
    known = view.types.rank(node.inputs[0]) == 2 or view.types.static_shape(node.inputs[0]) is not None
    addition = readers[0].node
    bias = constant_value(addition.inputs[1 - readers[0].index])
    rounded = [use for use in uses(addition.outputs[0]) if is_conversion(use.node, "QuantizeLinear")]
    if known and bias is not None and not rounded:
        yield f"a float bias is added behind it in '{addition.name}': the runtime makes both a float Gemm first"


def _accuracy_level(node: Node, _view: View) -> Iterator[str]:
    if node.op != "MatMulNBits" or node.domain != CONTRIBUTED:
        return
    bits = int(node.attrs.get("bits", 4))
    if bits == 2 and int(node.attrs.get("accuracy_level", 0)) == 0:
        yield "2-bit weights without accuracy_level: the runtime restores them to float in every run"


def _block_axis(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if found is None or found[2] is None or not found[2].block or node.op != "MatMul":
        return
    if int(found[2].node.attrs.get("axis", 1)) % 2 != 0:
        yield "its weight has blocks along its outputs: only blocks along its inputs run in few bits"


def _turned_weight(node: Node, _view: View) -> Iterator[str]:
    if node.op != "MatMul" or len(node.inputs) < 2:
        return
    source = producer(node.inputs[1])
    if source is not None and source.op == "Transpose":
        found = restored(source.inputs[0])
        if found is not None and found.is_constant:
            yield "its weight is restored, then transposed: both happen in every run"


def _open_gate(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if node.op != "Conv" or found is None or found[1] is None:
        return
    readers = [use.node for use in uses(node.outputs[0])]
    if sorted(reader.op for reader in readers) == ["Mul", "Sigmoid"]:
        yield "SiLU behind it without pairs inside: neither the convolution nor the gate is fused"


def _float_weight(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if found is None or found[1] is None or found[1].is_constant or found[2] is not None:
        return
    if constant_value(node.inputs[found[0].weight or 1]) is not None and _is_rounded(node.outputs[0]):
        yield "its weight is float: the runtime rounds it with one scale for all channels when it loads the model"


def _is_rounded(tensor: Tensor) -> bool:
    readers = uses(tensor)
    return len(readers) == 1 and is_conversion(readers[0].node, "QuantizeLinear")


def _lonely_depthwise(node: Node, view: View) -> Iterator[str]:
    found = weighted(node, view)
    if found is None or found[1] is None or found[2] is None or found[2].values is None or node.op != "Conv":
        return
    if int(node.attrs.get("group", 1)) == 1 or found[2].values.shape[1] != 1:
        return
    rounding = found[1].rounding
    source = None if rounding is None else producer(rounding.inputs[0])
    if source is not None and activation_bounds(source) is not None:
        source = producer(source.inputs[0])
    before = source is not None and any(restored(tensor) is not None for tensor in source.inputs)
    readers = [use.node for use in uses(node.outputs[0])]
    if len(readers) == 1 and activation_bounds(readers[0]) is not None:
        readers = [use.node for use in uses(readers[0].outputs[0])]
    after = [each for reader in readers for each in _behind(reader)]
    if not before and not any(view.target.rule(reader) is not None for reader in after):
        yield "a depthwise convolution between float operators is slower on integers"


def _behind(node: Node) -> list[Node]:
    """Return what reads the restored form of what a QuantizeLinear makes."""
    if not is_conversion(node, "QuantizeLinear"):
        return []
    return [each.node for use in uses(node.outputs[0]) for each in uses(use.node.outputs[0])]


def _cut_off(node: Node, view: View) -> Iterator[str]:
    bounds = activation_bounds(node)
    source = producer(node.inputs[0]) if node.inputs else None
    if bounds is None or source is None or not _is_rounded(node.outputs[0]):
        return
    rule = view.target.rule(source)
    if rule is None or rule.role not in {Role.WEIGHTED, Role.JOIN} or len(uses(node.inputs[0])) != 1:
        return
    if not any(restored(tensor) is not None for tensor in source.inputs):
        return
    rounding = uses(node.outputs[0])[0].node
    after = uses(rounding.outputs[0])
    found = restored(after[0].node.outputs[0]) if after else None
    if found is None or found.scale is None or found.scale.size != 1 or found.number not in {"uint8", "int8"}:
        return
    scale = np.float32(found.scale.reshape(-1)[0])
    zero = 0 if found.zero is None else int(found.zero.reshape(-1)[0])
    bottom, top = (0, 255) if found.number == "uint8" else (-128, 127)
    begins = bounds[0] == -np.inf or np.rint(np.float32(bounds[0]) / scale) + zero <= bottom
    ends = bounds[1] == np.inf or np.rint(np.float32(bounds[1]) / scale) + zero >= top
    if not (begins and ends):
        yield f"the grid behind it expresses values that it cuts off: {source.op} '{source.name}' is not fused"


EIGHT_BITS = Check("eight-bits", serious=False, remedy="Round activations to uint8", find=_eight_bits)
SHARED_SIGNED = Check(
    "shared-signed", serious=False, remedy="Round activations to uint8, as the default does", find=_shared_signed
)
WRITTEN_ZERO = Check(
    "written-zero", serious=False, remedy="Write zero points out, those that are 0 too", find=_written_zero
)
WEIGHT_ZEROS = Check(
    "weight-zeros", serious=False, remedy="Quantize weights symmetrically: every zero point is 0", find=_weight_zeros
)
NUMBER_PAIR = Check("number-pair", serious=False, remedy="Round weights to int8", find=_number_pair)
WEIGHT_LIMIT = Check(
    "weight-limit",
    serious=True,
    remedy="Quantize for ort-cpu-avx2, whose weights go to 64, or set session.x64quantprecision",
    find=_weight_limit,
)
WHOLE_TABLE = Check(
    "whole-table", serious=False, remedy="Look the integers up and restore what was found", find=_whole_table
)
FLOAT_SUM = Check(
    "float-sum", serious=False, remedy="Round the bias to int32, or round behind the Add", find=_float_sum
)
ACCURACY_LEVEL = Check("accuracy-level", serious=False, remedy="Set accuracy_level to 4", find=_accuracy_level)
BLOCK_AXIS = Check("block-axis", serious=False, remedy="Lay the blocks along axis 0 of the weight", find=_block_axis)
TURNED_WEIGHT = Check("turned-weight", serious=False, remedy="Store the weight transposed", find=_turned_weight)
OPEN_GATE = Check(
    "open-gate",
    serious=False,
    remedy="Round behind the convolution, behind the Sigmoid (scale 1/255) and behind the Mul",
    find=_open_gate,
)
FLOAT_WEIGHT = Check(
    "float-weight", serious=False, remedy="Quantize the weight with one scale per channel", find=_float_weight
)
LONELY_DEPTHWISE = Check("lonely-depthwise", serious=False, remedy="Leave it float", find=_lonely_depthwise)
CUT_OFF = Check(
    "cut-off",
    serious=False,
    remedy="End the grid where the activation does: zero point 0 behind Relu for uint8, -128 for int8",
    find=_cut_off,
)

GEMM_BIAS = replace(checks.BIAS_SCALE, name="gemm-bias", serious=True, find=_gemm_bias)
"""The runtime fuses such a Gemm all the same, and adds the integers as if they lay on the product of the scales."""

FUSION = (
    EIGHT_BITS,
    checks.ONE_SCALE,
    checks.ALL_INPUTS,
    checks.WEIGHT_AXIS,
    replace(checks.BIAS_SCALE, serious=False, find=_conv_bias),  # the runtime leaves such an operator float
    GEMM_BIAS,
    checks.EQUAL_GRIDS,
    SHARED_SIGNED,
    WRITTEN_ZERO,
    WEIGHT_ZEROS,
    NUMBER_PAIR,
    WHOLE_TABLE,
    FLOAT_SUM,
    ACCURACY_LEVEL,
    BLOCK_AXIS,
    TURNED_WEIGHT,
    OPEN_GATE,
    FLOAT_WEIGHT,
    LONELY_DEPTHWISE,
    CUT_OFF,
)
