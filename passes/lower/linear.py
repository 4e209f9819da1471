"""Matrix products with a constant weight, and what may be folded into the operator that replaces them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.graph import Constant, Function, constant_value, producer
from graphopt.passes.lower.epilogue import Following, as_bias, read_epilogue

if TYPE_CHECKING:
    from collections.abc import Container

    import numpy as np
    from numpy.typing import NDArray

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor
    from graphopt.passes.lower.rows import RowCounts

STANDARD_DOMAINS = (None, "", "ai.onnx")
_FLOAT32 = 1


@dataclass(frozen=True, slots=True)
class Linear:
    """Y = act(X W + b + R) as it stands in the graph.

    Attributes:
        node: The MatMul or Gemm.
        transposed: Whether the stored weight is W^T, shape [N, K].
        rows: Rows of X over all leading axes; None where unknown.
        k: Rows of W.
        n: Columns of W.
        epilogue: What follows the product and goes with it, the bias of a Gemm included.
    """

    node: Node
    transposed: bool
    rows: int | None
    k: int
    n: int
    epilogue: Following

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The node and those that go with it, in order."""
        return (self.node, *self.epilogue.nodes)

    @property
    def stored_weight(self) -> Tensor:
        """The tensor that holds the weight."""
        weight: Tensor = self.node.inputs[1]
        return weight

    def weight(self) -> NDArray[np.float32]:
        """Return W, shape [K, N]."""
        value = constant_value(self.stored_weight)
        assert value is not None
        return value.T if self.transposed else value


def is_linear(node: Node) -> bool:
    """Return whether the node is a MatMul or Gemm of the standard domain."""
    return node.op in {"MatMul", "Gemm"} and node.domain in STANDARD_DOMAINS


def match_linear(node: Node, types: Types, rows: RowCounts, taken: Container[Node] = ()) -> Linear | str:
    """Return the matrix product at a node with what follows it, or the reason why it is left alone.

    Args:
        node: A MatMul or Gemm.
        types: Shapes of the activations.
        rows: Counts the rows of X.
        taken: Nodes that go with another product.
    """
    reason = _why_no_weight(node) or (why_other_gemm(node) if node.op == "Gemm" else "")
    if reason:
        return reason
    transposed = node.op == "Gemm" and bool(node.attrs.get("transB", 0))
    shape = node.inputs[1].shape
    assert shape is not None
    k, n = (int(size) for size in (reversed(shape) if transposed else shape))
    bias: NDArray[np.float32] | None = None
    if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2].name:
        bias = as_bias(node.inputs[2], n, rank=2)
        if bias is None:
            return f"its input C '{node.inputs[2].name}' is not a constant that adds one number per column"
    epilogue = read_epilogue(node.outputs[0], n, types, bias=bias, taken=taken)
    return Linear(node, transposed, rows.of(node.inputs[0]), k, n, epilogue)


def _why_no_weight(node: Node) -> str:
    if isinstance(node.graph, Function):
        return "it is in the body of a function, which has no initializers; inline the function first"
    if len(node.inputs) < 2 or not node.inputs[0].name:
        return "it has no second input"
    x, weight = node.inputs[:2]
    if constant_value(weight) is None:
        made = producer(weight)
        if isinstance(weight, Constant):
            return f"its weight '{weight.name}' is an input of the graph as well, so that a caller may replace it"
        if constant_value(x) is not None:
            return "its weight is the first input; only X W with a constant W is lowered"
        source = f"computed by {made.op} '{made.name}'" if made is not None else "fed from outside"
        return f"its second input '{weight.name}' is not constant but {source}"
    if constant_value(x) is not None:
        return "both inputs are constant; fold-constants removes it"
    if weight.shape is None or len(weight.shape) != 2 or 0 in weight.shape:
        return f"its weight has the shape {weight.shape}, not [K, N]"
    if weight.onnx_dtype != _FLOAT32:
        return f"its weight is {weight.dtype}; the kernel has float32 only"
    return ""


def why_other_gemm(node: Node) -> str:
    """Return why a Gemm is no plain product with a bias; nothing if it is one."""
    if node.attrs.get("transA", 0):
        return "it has transA = 1"
    for name in ("alpha", "beta"):
        factor = node.attrs.get(name, 1.0)
        if factor != 1.0 and (name == "alpha" or len(node.inputs) > 2):
            return f"it has {name} = {factor:g}, not 1"
    return ""
