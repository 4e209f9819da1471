"""The pass ``fuse-layer-norm``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.passes.fuse.matching import (
    BFLOAT16,
    DOUBLE,
    FLOAT,
    FLOAT16,
    Array,
    above,
    are_private,
    only_first_output,
    other,
    replacement,
    same_shape,
    vector,
)
from graphopt.passes.fuse.normalization import Steps
from graphopt.passes.fuse.scales import combined, shaped, spread
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Tensor

OPSET = 17
"""The first opset with LayerNormalization."""

_LARGEST_SCALE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseLayerNorm(RulePass):
    """Make one LayerNormalization of its steps.

    Matches:   (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) with the means over the last axes, in its forms:
               Pow or Mul for the square; Div, Reciprocal or Pow for the inverse root; the scale multiplied into the
               inverse root before x is (tf.nn.batch_normalization). LayerNormalization with a Mul or an Add behind it.
               A LayerNormalization in float32 between two Casts from and to float16.
    Produces:  One LayerNormalization; with ones as the scale where nothing is multiplied, else with the factor as
               scale and the summand as bias. Saves 7 nodes and as many passes over x per normalization, 1 node per Mul
               or Add. ONNX Runtime fuses the unscaled form too when it loads a model, so run time stays the same.
    Requires:  Opset 17; float32 or float64; sizes of the normalized axes known (for the ones); dimensions kept; an
               exponent of exactly 2; an epsilon that is a float32; the steps read by each other alone. A factor or
               summand has the normalized shape, or is a constant that broadcasts to it and gives finite products.
               float16 sums stay as they are, since LayerNormalization would give finite values where they overflow.
    Preserves: Names, types and shapes; values up to rounding.
    Source:    Ba, Kiros, Hinton 2016, arXiv:1607.06450; ONNX LayerNormalization-17.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return one rule for the steps, one for what is multiplied or added behind, one for Casts around."""
        types, values = facts.get(Types), facts.get(ShapeValues)
        return (
            Rule(("Div", "Mul"), lambda root: _steps(root, types, values), depth=7),
            Rule(("Add", "Sub"), lambda root: _moments(root, types, values), depth=8),
            Rule(("Mul", "Add"), lambda root: _affine(root, types), depth=2),
            Rule(("Cast",), lambda root: _casts(root, types), depth=3),
        )


def _steps(root: Node, types: Types, values: ShapeValues) -> Patch | Skip | None:
    read = Steps(types, values)
    found = read.normalized(root)
    return None if found is None else _normalized(root, read, *found)


def _moments(root: Node, types: Types, values: ShapeValues) -> Patch | Skip | None:
    """Match x * r + (b - mean * r), or x * r - mean * r, where r is the inverse root, times a scale or not."""
    operands: list[Tensor] = list(root.inputs)
    for index in (0, 1) if root.op == "Add" else (1,):
        behind, front = operands[index], above(operands[1 - index], "Mul")
        bias: Tensor | None = None
        if front is None:
            continue
        read = Steps(types, values, [front])
        if root.op == "Add":
            shift = above(behind, "Sub")
            if shift is None:
                continue
            read.passed(shift)
            bias, behind = shift.inputs
        product = above(behind, "Mul")
        shared = None if product is None else next((t for t in product.inputs if t in list(front.inputs)), None)
        if product is None or shared is None:
            continue
        read.passed(product)
        source, mean = other(front, shared), other(product, shared)
        if source is None or mean is None:
            continue
        scaled, scale = above(shared, "Mul"), None
        inside = None
        if scaled is not None:
            for place in (0, 1):
                inside = read.inverse_root_of(scaled.inputs[place])
                if inside is not None:
                    scale = scaled.inputs[1 - place]
                    read.passed(scaled)
                    break
        else:
            inside = read.inverse_root_of(shared)
        found = None if inside is None else read.variance(inside)
        if found is None:
            continue
        centred = above(found[0], "Sub")
        if centred is None or centred.inputs[0] is not source or read.mean(mean) != (source, found[1]):
            continue
        if centred.inputs[1] is not mean and read.mean(centred.inputs[1]) != (source, found[1]):
            continue
        read.passed(centred)
        return _normalized(root, read, source, found[1], found[2], scale, bias)
    return None


def _normalized(
    root: Node,
    read: Steps,
    source: Tensor,
    last: int,
    epsilon: float,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Patch | Skip | None:
    """Return the patch for a match, or the condition it fails."""
    types = read.types
    assert root.graph is not None
    if root.graph.opset < OPSET or not are_private(read.nodes, root):
        return None
    dtype = types.dtype(source)
    if dtype in (FLOAT16, BFLOAT16):
        return Skip(root, "its steps are in 16 bits, where they may overflow; LayerNormalization sums in float32")
    if dtype not in (FLOAT, DOUBLE) or not same_shape(types, source, root.outputs[0]):
        return None
    shape = types.shape(source)
    assert shape is not None
    sizes = [size for size in shape[len(shape) - last :] if isinstance(size, int)]
    if len(sizes) < last or int(np.prod(sizes)) > _LARGEST_SCALE:
        return Skip(root, f"LayerNormalization needs the sizes of the last {last} axes for its scale, not {shape}")
    kind = np.float64 if dtype == DOUBLE else np.float32
    factor: Tensor | Array | None = np.ones(sizes, kind)
    summand: Tensor | Array | None = None
    if scale is not None:
        factor = shaped(scale, tuple(sizes), len(shape), types)
    if bias is not None:
        summand = shaped(bias, tuple(sizes), len(shape), types)
    if factor is None or (bias is not None and summand is None):
        return Skip(root, f"its scale or bias has not the shape {sizes} of the normalized axes")
    attrs: dict[str, Any] = {"axis": -last, "epsilon": epsilon}
    if dtype == DOUBLE:
        attrs["stash_type"] = DOUBLE
    operands = [source, factor] if summand is None else [source, factor, summand]
    reason = f"{len(set(read.nodes) | {root})} nodes that give '{root.outputs[0].name}' are a LayerNormalization"
    return replacement(root, read.nodes, "LayerNormalization", operands, attrs, reason=reason)


# --------------------------------------------------------------------------------------------------- scale and bias


def _affine(root: Node, types: Types) -> Patch | Skip | None:
    """Match a Mul or an Add behind a LayerNormalization that nothing else reads."""
    for index in (0, 1):
        norm = above(root.inputs[index], "LayerNormalization")
        if norm is None or not only_first_output(norm) or not are_private([norm], root):
            continue
        return _merged(root, norm, root.inputs[1 - index], types)
    return None


def _merged(root: Node, norm: Node, operand: Tensor, types: Types) -> Patch | Skip | None:
    source, scale = norm.inputs[0], norm.inputs[1]
    bias = norm.inputs[2] if len(norm.inputs) > 2 else None
    shape = types.shape(source)
    if shape is None or not same_shape(types, source, root.outputs[0]):
        return None
    axis = int(norm.attrs.get("axis", -1)) % len(shape)
    sizes = types.static_shape(scale)
    if sizes is None or sizes != shape[axis:]:
        return None
    given = vector(operand)
    constant = None if given is None else spread(given, sizes, len(shape))
    where = f"the {root.op} of '{operand.name}' becomes part of LayerNormalization '{node_label(norm)}'"
    inputs: list[Tensor | Array | None]
    if root.op == "Add":
        if bias is None and types.static_shape(operand) == sizes:
            inputs = [source, scale, operand]
        else:
            total = constant if bias is None else combined(np.add, bias, constant)
            if total is None:
                return None
            inputs = [source, scale, total]
    else:
        ones = vector(scale)
        if bias is None and types.static_shape(operand) == sizes and ones is not None and bool((ones == 1).all()):
            inputs = [source, operand]
        else:
            product = combined(np.multiply, scale, constant)
            shifted = None if bias is None else combined(np.multiply, bias, constant)
            if product is None or (bias is not None and shifted is None):
                return None
            inputs = [source, product] if bias is None else [source, product, shifted]
    return replacement(root, [norm], "LayerNormalization", inputs, norm.attrs, reason=where)


# ------------------------------------------------------------------------------------------------------------ casts


def _casts(root: Node, types: Types) -> Patch | Skip | None:
    """Match float16 -> float32 -> LayerNormalization without effect of scale and bias -> float16."""
    norm = above(root.inputs[0], "LayerNormalization")
    if norm is None or root.attrs.get("to") != FLOAT16:
        return None
    widened = above(norm.inputs[0], "Cast")
    if widened is None or types.dtype(widened.inputs[0]) != FLOAT16 or types.dtype(norm.inputs[0]) != FLOAT:
        return None
    ones = vector(norm.inputs[1])
    if len(norm.inputs) > 2 or ones is None or not bool((ones == 1).all()) or not only_first_output(norm):
        return None
    if int(norm.attrs.get("stash_type", 1)) != FLOAT or not are_private([norm, widened], root):
        return None
    reason = f"LayerNormalization '{node_label(norm)}' reads and gives float16 itself and sums in float32"
    inputs = [widened.inputs[0], np.ones(ones.shape, np.float16)]
    return replacement(root, [norm, widened], "LayerNormalization", inputs, norm.attrs, reason=reason)
