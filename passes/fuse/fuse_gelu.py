"""The pass ``fuse-gelu``."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.types import Types
from graphopt.passes.fuse.matching import (
    FLOAT,
    FLOAT16,
    above,
    are_private,
    below,
    is_about,
    other,
    same_shape,
    scalar,
)
from graphopt.passes.fuse.polynomials import Coefficients, Polynomial
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

OPSET = 20
"""The first opset with Gelu."""

ERF: Coefficients = (0.0, sqrt(0.5))
TANH: Coefficients = (0.0, sqrt(2 / pi), 0.0, sqrt(2 / pi) * 0.044715)

_KERNELS = {("Erf", FLOAT), ("Erf", FLOAT16), ("Tanh", FLOAT), ("Tanh", FLOAT16)}
_NUMPY = {FLOAT: np.float32, FLOAT16: np.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseGelu(RulePass):
    """Make one Gelu of its steps.

    Matches:   x * 0.5 * (1 + erf(x / sqrt(2))) and x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), with their
               constants in any place and order.
    Produces:  Gelu, with approximate = "tanh" for the second form; behind it a Mul where the constant factor is another
               than 0.5. Saves 4 nodes for the first and 7 for the second form, and as many passes over x. ONNX Runtime
               computes both in one pass over x; the second form it does not fuse by itself everywhere.
    Requires:  Opset 20; float32 or float16 (for float64 ONNX Runtime has no Erf, and a Gelu with float32 constants);
               constants that are right up to the rounding of their type; the steps read by each other alone.
    Preserves: Names, types and shapes; values up to rounding.
    Source:    Hendrycks, Gimpel 2016, arXiv:1606.08415; ONNX Gelu-20.
    """

    name: ClassVar[str] = "fuse-gelu"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return one rule, rooted at the Erf or Tanh."""
        types = facts.get(Types)
        return (Rule(("Erf", "Tanh"), lambda root: _gelu(root, types), depth=8, below=6),)


def _gelu(curve: Node, types: Types) -> Patch | Skip | None:
    assert curve.graph is not None
    if curve.graph.opset < OPSET:
        return None
    down = _Descent(types.dtype(curve.outputs[0]))
    partner = down.to_product(curve.outputs[0])
    if partner is None:
        return None
    for source, factor, between in _sources(partner):
        argument = Polynomial(source)
        found = argument.read(curve.inputs[0])
        if found is not None and _is_close(found, ERF if curve.op == "Erf" else TANH, down.dtype):
            return _fused(curve, down, source, factor, [*between, *argument.nodes], types)
    return None


def _fused(
    curve: Node, down: _Descent, source: Tensor, factor: float, above_curve: list[Node], types: Types
) -> Patch | Skip | None:
    scale = 2.0 * factor * down.factor
    if not is_about(scale, 1.0, down.dtype) and down.take_scale(1 / scale):
        scale = 1.0
    root = down.nodes[-1]
    gone = [*dict.fromkeys((*above_curve, curve, *down.nodes))]
    if not are_private(gone, root) or not same_shape(types, source, root.outputs[0]):
        return None
    if (curve.op, down.dtype) not in _KERNELS:
        return Skip(root, "ONNX Runtime has no Gelu that is right for the element type")
    attrs = {"approximate": "tanh"} if curve.op == "Tanh" else {}
    needs_scale = not is_about(scale, 1.0, down.dtype)

    def apply(rewriter: Rewriter) -> None:
        output = root.outputs[0]
        new = rewriter.op("Gelu", [source], attrs=attrs, like=output, near=root, origin=gone)
        if needs_scale:
            constant = rewriter.constant(np.asarray(scale, _NUMPY[down.dtype]), near=root)
            new = rewriter.op("Mul", [new, constant], like=output, near=root, origin=[root])
        rewriter.replace_tensor(output, new)
        rewriter.erase(gone)

    return Patch(f"{len(gone)} nodes that give '{root.outputs[0].name}' are a Gelu of '{source.name}'", (*gone,), apply)


class _Descent:
    """The way from f(x) down to c * p * (1 + f(x)).

    Attributes:
        dtype: Element type as the ONNX enum.
        factor: The constant c.
        partner: The tensor p.
        nodes: The nodes of the way.
    """

    def __init__(self, dtype: int) -> None:
        self.dtype = dtype
        self.factor = 1.0
        self.partner: Tensor | None = None
        self.nodes: list[Node] = []

    def to_product(self, curve: Tensor) -> Tensor | None:
        """Walk down and return p; None where the nodes are others."""
        tensor, slope, shift = curve, 1.0, 0.0
        while True:
            node = below(tensor, "Add", "Mul", "Div", "Sub")
            operand = None if node is None else other(node, tensor)
            if node is None or operand is None:
                return None
            value = scalar(operand)
            if value is None:
                break
            if node.op == "Add":
                shift += value
            elif node.op == "Mul":
                slope, shift = slope * value, shift * value
            elif node.op == "Div" and node.inputs[0] is tensor and value:
                slope, shift = slope / value, shift / value
            else:
                return None
            self.nodes.append(node)
            tensor = node.outputs[0]
        if node.op != "Mul" or not slope or not is_about(shift / slope, 1.0, self.dtype):
            return None
        self.factor = slope
        self.nodes.append(node)
        return operand

    def take_scale(self, missing: float) -> bool:
        """Take the constant factor behind the product too if it is the one that is missing.

        Args:
            missing: The factor.
        """
        before = self.nodes[-1].outputs[0]
        after = below(before, "Mul", "Div")
        operand = None if after is None else other(after, before)
        value = None if operand is None else scalar(operand)
        if after is None or not value or (after.op == "Div" and after.inputs[1] is not operand):
            return False
        if not is_about(value if after.op == "Mul" else 1 / value, missing, self.dtype):
            return False
        self.nodes.append(after)
        return True


def _sources(partner: Tensor) -> Sequence[tuple[Tensor, float, list[Node]]]:
    """Return what x may be where the product has c * x as its other factor: (x, c, nodes between)."""
    found: list[tuple[Tensor, float, list[Node]]] = []
    node = above(partner, "Mul", "Div")
    if node is not None:
        for index in (1, 0) if node.op == "Mul" else (1,):
            value = scalar(node.inputs[index])
            if value:
                found.append((node.inputs[1 - index], value if node.op == "Mul" else 1 / value, [node]))
                break
    found.append((partner, 1.0, []))
    return found


def _is_close(found: Coefficients, wanted: Coefficients, dtype: int) -> bool:
    if len(found) != len(wanted):
        return False
    return all(is_about(a, b, dtype) if b else a == 0 for a, b in zip(found, wanted, strict=True))
