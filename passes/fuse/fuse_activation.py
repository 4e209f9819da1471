"""The pass ``fuse-activation``."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from graphopt.analysis.types import Types
from graphopt.passes.fuse.matching import (
    FLOAT,
    above,
    are_private,
    below,
    is_about,
    is_fed_by,
    multiple_of,
    other,
    replacement,
    same_shape,
    scalar,
)
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Tensor
    from graphopt.rewrite.patch import Patch

Found: TypeAlias = "tuple[str, Tensor, dict[str, float], list[Node]]"
"""Operator, what it reads, its attributes, and the nodes besides the root."""

HARD_SWISH, MISH = 14, 18
"""The first opsets with HardSwish and Mish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseActivation(RulePass):
    """Make one activation function of its steps.

    Matches:   clip(a x + b, 0, c) / c as HardSigmoid, x times that with a / c = 1 / 6 and b / c = 1 / 2 as HardSwish;
               1 / (1 + exp(-x)) as Sigmoid; x / (1 + |x|) as Softsign; x tanh(softplus(x)) as Mish; relu(x) -
               a relu(-x) and Where(x > 0, x, a x) with a > 0 as LeakyRelu.
    Produces:  One node for 3 to 5. Measured with ONNX Runtime 1.31 on one thread: 0.46 to 0.81 of the time for
               HardSigmoid, 0.59 to 0.86 for HardSwish, 0.51 to 0.78 for Sigmoid, 0.49 to 0.82 for Softsign, 0.24 to
               0.70 for LeakyRelu, the same for Mish. Not made, because ONNX Runtime is slower with them: Swish (1.2 to
               2.2 times the time), Softplus (2 to 5), PRelu (9), GroupNormalization (2), and ReduceL1, ReduceL2,
               ReduceSumSquare, ReduceLogSumExp (1 to 11).
    Requires:  Opset 14 for HardSwish, 18 for Mish; float32; constants of one number; the steps read by each other
               alone.
    Preserves: Names, types and shapes; values up to rounding.
    Source:    Howard et al. 2019, MobileNetV3, arXiv:1905.02244; Misra 2019, arXiv:1908.08681; ONNX HardSigmoid-6.
    """

    name: ClassVar[str] = "fuse-activation"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rules, each rooted at its last node."""
        types = facts.get(Types)

        def fused(root: Node) -> Patch | None:
            if root.op in _MADE_OF and not is_fed_by(root, _MADE_OF[root.op]):
                return None
            for match in _FORMS[str(root.op)]:
                found = match(root)
                if found is None:
                    continue
                op, source, attrs, nodes = found
                if types.dtype(source) != FLOAT or not same_shape(types, source, root.outputs[0]):
                    return None
                if not are_private(nodes, root):
                    return None
                reason = f"{len({*nodes, root})} nodes that give '{root.outputs[0].name}' are a {op} of '{source.name}'"
                return replacement(root, nodes, op, [source], attrs, reason=reason)
            return None

        return (Rule(tuple(_FORMS), fused, depth=6, below=2),)


def _opset(node: Node) -> int:
    assert node.graph is not None
    return int(node.graph.opset)


# ---------------------------------------------------------------------------------------------------------- hard forms


def _bounds(node: Node) -> tuple[float, float] | None:
    """Return the bounds of a Clip: attributes up to opset 10, inputs since."""
    if _opset(node) < 11:
        return float(node.attrs.get("min", -inf)), float(node.attrs.get("max", inf))
    low, high = (scalar(t) if len(node.inputs) > place and (t := node.inputs[place]).name else None for place in (1, 2))
    return None if low is None or high is None else (low, high)


def _line(tensor: Tensor) -> tuple[Tensor, float, float, list[Node]]:
    """Return (x, a, b, nodes) where a tensor is a x + b with constants; at most one factor and one summand."""
    nodes: list[Node] = []
    shift, slope = 0.0, 1.0
    node = above(tensor, "Add")
    if node is not None:
        for index in (1, 0):
            value = scalar(node.inputs[index])
            if value is not None:
                shift, tensor = value, node.inputs[1 - index]
                nodes.append(node)
                break
    node = above(tensor, "Mul", "Div") if nodes else None
    if node is not None:
        for index in (1, 0) if node.op == "Mul" else (1,):
            value = scalar(node.inputs[index])
            if value:
                slope, tensor = (value if node.op == "Mul" else 1 / value), node.inputs[1 - index]
                nodes.append(node)
                break
    return tensor, slope, shift, nodes


def _clipped(node: Node) -> tuple[Tensor, float, float, float, list[Node]] | None:
    """Return (x, a, b, c, nodes) where a Clip is clip(a x + b, 0, c)."""
    bounds = _bounds(node)
    if bounds is None or bounds[0] != 0 or not 0 < bounds[1] < inf:
        return None
    source, slope, shift, nodes = _line(node.inputs[0])
    return (source, slope, shift, bounds[1], [*nodes, node]) if nodes else None


def _over(node: Node, tensor: Tensor) -> float | None:
    """Return the constant that a Mul or Div multiplies a tensor by."""
    operand = other(node, tensor)
    value = None if operand is None else scalar(operand)
    if not value or (node.op == "Div" and node.inputs[1] is not operand):
        return None
    return value if node.op == "Mul" else 1 / value


def _hard_sigmoid(root: Node) -> Found | None:
    """Match clip(a x + b, 0, 1), or clip(a x + b, 0, c) times 1 / c, unless it becomes part of a HardSwish."""
    clip = root if root.op == "Clip" else next((n for t in root.inputs if (n := above(t, "Clip")) is not None), None)
    found = None if clip is None else _clipped(clip)
    if clip is None or found is None:
        return None
    source, slope, shift, high, nodes = found
    factor = 1.0 if root is clip else _over(root, clip.outputs[0])
    if factor is None or not is_about(factor * high, 1.0, FLOAT) or not slope:
        return None
    attrs = {"alpha": slope * factor, "beta": shift * factor}
    return "HardSigmoid", source, attrs, nodes


def _hard_swish(root: Node) -> Found | None:
    """Match x clip(x + 3, 0, 6) / 6, with the division anywhere, and x times such a HardSigmoid."""
    if _opset(root) < HARD_SWISH:
        return None
    if root.op == "Mul":
        for index in (0, 1):
            found = _gate(root.inputs[index])
            if found is not None and found[0] is root.inputs[1 - index] and is_about(found[1], 1.0, FLOAT):
                return "HardSwish", found[0], {}, found[2]
    for index in (0, 1) if root.op == "Mul" else (0,):
        product = above(root.inputs[index], "Mul")
        factor = None if product is None else _over(root, product.outputs[0])
        if product is None or factor is None:
            continue
        for place in (0, 1):
            found = _gate(product.inputs[place])
            if found is not None and found[0] is product.inputs[1 - place] and is_about(found[1] * factor, 1.0, FLOAT):
                return "HardSwish", found[0], {}, [product, *found[2]]
    return None


def _gate(tensor: Tensor) -> tuple[Tensor, float, list[Node]] | None:
    """Return (x, f, nodes) where a tensor is f clip(x / 6 + 1 / 2, 0, 1)."""
    node = above(tensor, "Clip", "HardSigmoid", "Mul", "Div")
    if node is None:
        return None
    if node.op == "HardSigmoid":
        alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
        is_gate = is_about(alpha, 1 / 6, FLOAT) and is_about(beta, 0.5, FLOAT)
        return (node.inputs[0], 1.0, [node]) if is_gate else None
    clip = node if node.op == "Clip" else next((n for t in node.inputs if (n := above(t, "Clip")) is not None), None)
    found = None if clip is None else _clipped(clip)
    factor = 1.0 if node is clip or clip is None else _over(node, clip.outputs[0])
    if clip is None or found is None or factor is None:
        return None
    source, slope, shift, high, nodes = found
    if not is_about(slope / high, 1 / 6, FLOAT) or not is_about(shift / high, 0.5, FLOAT):
        return None
    return source, factor * high, [*nodes, *([] if node is clip else [node])]


# ---------------------------------------------------------------------------------------------------------- soft forms


def _sigmoid(root: Node) -> Found | None:
    """Match 1 / (1 + exp(-x))."""
    if root.op == "Div" and scalar(root.inputs[0]) != 1:
        return None
    total = above(root.inputs[-1], "Add")
    for index in (0, 1) if total is not None else ():
        assert total is not None
        exponential = above(total.inputs[index], "Exp")
        negated = None if exponential is None else above(exponential.inputs[0], "Neg")
        if exponential is not None and negated is not None and scalar(total.inputs[1 - index]) == 1:
            return "Sigmoid", negated.inputs[0], {}, [total, exponential, negated]
    return None


def _softsign(root: Node) -> Found | None:
    """Match x / (1 + |x|)."""
    total = above(root.inputs[1], "Add")
    for index in (0, 1) if total is not None else ():
        assert total is not None
        size = above(total.inputs[index], "Abs")
        if size is not None and size.inputs[0] is root.inputs[0] and scalar(total.inputs[1 - index]) == 1:
            return "Softsign", root.inputs[0], {}, [total, size]
    return None


def _mish(root: Node) -> Found | None:
    """Match x tanh(softplus(x))."""
    for index in (0, 1) if _opset(root) >= MISH else ():
        curve = above(root.inputs[index], "Tanh")
        soft = None if curve is None else above(curve.inputs[0], "Softplus")
        if curve is not None and soft is not None and soft.inputs[0] is root.inputs[1 - index]:
            return "Mish", soft.inputs[0], {}, [curve, soft]
    return None


def _two_sides(root: Node) -> Found | None:
    """Match relu(x) - a relu(-x), and relu(x) + b relu(-x) with b = -a."""
    for index in (0, 1) if root.op == "Add" else (0,):
        front, back = above(root.inputs[index], "Relu"), above(root.inputs[1 - index], "Mul")
        if front is None or back is None:
            continue
        for place in (0, 1):
            mirrored, factor = above(back.inputs[place], "Relu"), scalar(back.inputs[1 - place])
            negated = None if mirrored is None else above(mirrored.inputs[0], "Neg")
            if mirrored is None or negated is None or factor is None or negated.inputs[0] is not front.inputs[0]:
                continue
            slope = factor if root.op == "Sub" else -factor
            if 0 < slope < inf:
                return "LeakyRelu", front.inputs[0], {"alpha": slope}, [front, back, mirrored, negated]
    return None


def _choice(root: Node) -> Found | None:
    """Match Where that chooses between x and a x by comparing x with 0."""
    test = above(root.inputs[0], "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    if test is None or scalar(test.inputs[1]) != 0:
        return None
    source = test.inputs[0]
    straight, scaled = root.inputs[1:] if str(test.op).startswith("Greater") else root.inputs[:0:-1]
    found = multiple_of(scaled, source)
    if straight is not source or found is None:
        return None
    return "LeakyRelu", source, {"alpha": found[1]}, [test, found[0]]


def _is_part_of_more(root: Node) -> bool:
    """Whether a HardSigmoid's Clip is divided behind it, so that the division is the root."""
    after = below(root.outputs[0], "Mul", "Div")
    return after is not None and _over(after, root.outputs[0]) is not None


def _clip_root(root: Node) -> Found | None:
    return None if _is_part_of_more(root) else _hard_sigmoid(root)


_FORMS = {
    "Mul": (_hard_swish, _hard_sigmoid, _mish),
    "Div": (_hard_swish, _hard_sigmoid, _softsign, _sigmoid),
    "Reciprocal": (_sigmoid,),
    "Clip": (_clip_root,),
    "Add": (_two_sides,),
    "Sub": (_two_sides,),
    "Where": (_choice,),
}

_MADE_OF = {
    "Mul": frozenset(("Clip", "HardSigmoid", "Mul", "Div", "Tanh")),
    "Div": frozenset(("Mul", "Clip", "Add")),
    "Reciprocal": frozenset(("Add",)),
    "Add": frozenset(("Relu",)),
    "Sub": frozenset(("Relu",)),
}
"""What the forms look for right above the root: one of these has to be there."""
