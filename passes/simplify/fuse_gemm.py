"""Fuse what stands around a product of two matrices into one Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.types import Types
from graphopt.graph import producer
from graphopt.passes.simplify.linear.affine import Frame, terms_of
from graphopt.passes.simplify.linear.changes import exchange_names, replace
from graphopt.passes.simplify.look import read_once
from graphopt.passes.simplify.purity import is_constant, is_op, refers_to_function
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, node_label
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor

_TYPES = (1, 10, 11)
"""Float, float16 and double: what runtimes have a Gemm of."""

_FREE_OPSET, _BIAS_OPSET = 11, 7  # the bias may be omitted since 11, is broadcast by itself since 7
_LARGEST = 2.0**24


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseGemm(RulePass):
    """Fuse MatMul of matrices with Add, Transpose and a factor around it into Gemm.

    Matches:   MatMul of two matrices, or Gemm without a bias, behind which alone stands an Add; MatMul of matrices or
               Gemm, an operand of which is a Transpose that nothing else reads; such a product that only a Transpose
               or a Mul or Div by one constant number reads.
    Produces:  One Gemm with bias, transA, transB or alpha and beta. One node less each; the transposed copy or the
               product before the addition is not written. Never more nodes: products of batches stay MatMul and Add.
    Requires:  Both operands are proved to be matrices of one type of float, float16, double; the addend is broadcast to
               the product and does not enlarge it; a Gemm without a bias needs opset 11. The factor is between 2^-24
               and 2^24, for float16 not above 1.
    Preserves: Names, types and shapes of all outputs; values up to rounding.
    Source:    ONNX operator specification of Gemm: alpha A' B' + beta C. (A B)^T = B^T A^T.
    """

    name: ClassVar[str] = "fuse-gemm"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the rules: an addition, a transposition, a factor."""
        fusion = _Fusion(facts.get(Types))
        return [
            Rule(("Add",), fusion.add, depth=1),
            Rule(("MatMul", "Gemm"), fusion.transposed_operand, depth=1),
            Rule(("Transpose",), fusion.transposed_result, depth=1),
            Rule(("Mul", "Div"), fusion.factor, depth=1),
        ]


@dataclass(frozen=True, slots=True)
class _Product:
    """alpha A' B' + beta C, as a MatMul or a Gemm computes it."""

    node: Node
    operands: tuple[Tensor, Tensor]
    bias: Tensor | None
    alpha: float
    beta: float
    flips: tuple[bool, bool]


@dataclass(frozen=True, slots=True)
class _Fusion:
    types: Types

    def add(self, node: Node) -> Patch | None:
        """Return the fusion of an Add into the product before it."""
        if len(node.inputs) != 2:
            return None
        for index in (0, 1):
            if not is_op(producer(node.inputs[index]), "MatMul", "Gemm"):
                continue
            product = self._product_before(node.inputs[index], node, _BIAS_OPSET)
            addend = node.inputs[1 - index]
            if product is None or product.bias is not None or addend is node.inputs[index]:
                continue
            shape, target = self.types.shape(addend), self.types.shape(node.inputs[index])
            if shape is None or target is None or len(shape) > 2 or self.types.dtype(addend) not in _TYPES:
                continue
            if all(size in {1, whole} for size, whole in zip(shape[::-1], target[::-1], strict=False)):
                fused = _Product(product.node, product.operands, addend, product.alpha, 1.0, product.flips)
                return _patch(fused, [node], f"fold '{node_label(node)}' into {_label(product.node)}")
        return None

    def transposed_operand(self, node: Node) -> Patch | None:
        """Return the fusion of Transposes of the operands of a product."""
        product = None
        for index, tensor in enumerate(node.inputs[:2]):
            before = producer(tensor)
            if not is_op(before, "Transpose") or before is None or not self._is_flip(before, node):
                continue
            product = product or self._product(node, _FREE_OPSET)
            if product is None:
                return None
            operands, flips = list(product.operands), list(product.flips)
            operands[index], flips[index] = before.inputs[0], not flips[index]
            made = _Product(
                node, (operands[0], operands[1]), product.bias, product.alpha, product.beta, (flips[0], flips[1])
            )
            return _patch(made, [before], f"fold '{node_label(before)}' into {_label(node)}", result=node.outputs[0])
        return None

    def transposed_result(self, node: Node) -> Patch | None:
        """Return the fusion of the Transpose of a product, whose bias is a number or is not there."""
        if not is_op(producer(node.inputs[0]), "MatMul", "Gemm") or refers_to_function(node):
            return None
        product = self._product_before(node.inputs[0], node, _FREE_OPSET)
        if product is None or [int(axis) for axis in node.attrs.get("perm", (1, 0))] != [1, 0]:
            return None
        if product.bias is not None and self.types.elements(product.bias) != 1:
            return None
        (first, second), (flip_first, flip_second) = product.operands, product.flips
        made = _Product(
            product.node, (second, first), product.bias, product.alpha, product.beta, (not flip_second, not flip_first)
        )
        return _patch(made, [node], f"fold '{node_label(node)}' into {_label(product.node)}")

    def factor(self, node: Node) -> Patch | None:
        """Return the fusion of a constant factor of a product into its alpha and beta."""
        terms = terms_of(node)
        if terms is None or not is_op(producer(terms.data), "MatMul", "Gemm"):
            return None
        product = self._product_before(terms.data, node, _FREE_OPSET)
        affine = None if product is None else terms.affine(Frame(2, 0, 1))
        if product is None or affine is None:
            return None
        scale = float(affine.scale)
        half = self.types.dtype(node.outputs[0]) == _TYPES[1]
        alpha, beta = (float(np.float32(number * scale)) for number in (product.alpha, product.beta))
        if not 1 / _LARGEST <= abs(scale) <= (1 if half else _LARGEST):
            return None
        made = _Product(product.node, product.operands, product.bias, alpha, beta, product.flips)
        if self.types.dtype(node.outputs[0]) == _TYPES[2] and (alpha, beta) != (
            product.alpha * scale,
            product.beta * scale,
        ):
            return None  # an attribute has the precision of a float
        return _patch(made, [node], f"fold '{node_label(node)}' into {_label(product.node)}")

    def _is_flip(self, transpose: Node, reader: Node) -> bool:
        """Whether a node does nothing but transpose a matrix for one reader."""
        if transpose.graph is not reader.graph or refers_to_function(transpose) or is_constant(transpose.inputs[0]):
            return False
        perm = [int(axis) for axis in transpose.attrs.get("perm", (1, 0))]
        return perm == [1, 0] and read_once(transpose.outputs[0]) and self.types.rank(transpose.inputs[0]) == 2

    def _product_before(self, tensor: Tensor, reader: Node, opset: int) -> _Product | None:
        node = producer(tensor)
        if node is None or node.graph is not reader.graph or not read_once(tensor):
            return None
        return self._product(node, opset)

    def _product(self, node: Node, opset: int) -> _Product | None:
        """Return a product of two matrices that can be a Gemm of the opset of its graph."""
        graph = node.graph
        if graph is None or graph.opset < opset or refers_to_function(node) or len(node.inputs) < 2:
            return None
        first, second = node.inputs[0], node.inputs[1]
        if self.types.dtype(first) not in _TYPES or self.types.rank(first) != 2 or self.types.rank(second) != 2:
            return None
        if node.op == "MatMul":
            return _Product(node, (first, second), None, 1.0, 1.0, (False, False))
        attrs = node.attrs
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        return _Product(
            node,
            (first, second),
            bias,
            float(attrs.get("alpha", 1.0)),
            float(attrs.get("beta", 1.0)),
            (bool(int(attrs.get("transA", 0))), bool(int(attrs.get("transB", 0)))),
        )


def _patch(product: _Product, others: Sequence[Node], reason: str, *, result: Tensor | None = None) -> Patch:
    node = product.node
    nodes = (node, *others)
    last = node if result is not None else others[-1]
    output = last.outputs[0]
    attrs: dict[str, Any] = {}
    if product.alpha != 1.0:
        attrs["alpha"] = product.alpha
    if product.bias is not None and product.beta != 1.0:
        attrs["beta"] = product.beta
    attrs |= {name: 1 for name, flip in zip(("transA", "transB"), product.flips, strict=True) if flip}
    inputs = [*product.operands, *([] if product.bias is None else [product.bias])]

    def apply(rewriter: Rewriter) -> None:
        made = rewriter.op("Gemm", inputs, attrs=attrs, like=output, near=last, origin=nodes)
        exchange_names(made.inputs[0], node)
        replace(rewriter, output, made)
        rewriter.erase(nodes)

    return Patch(reason, nodes, apply)


def _label(node: Node) -> str:
    return f"{node.op} '{node_label(node)}'"
