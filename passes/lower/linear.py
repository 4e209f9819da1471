"""Matrix products with a constant weight, and what may be folded into the operator that replaces them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.dim_values import evaluate
from graphopt.analysis.dims import product
from graphopt.graph import Constant, Function, constant_value, is_graph_output, producer, uses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Tensor, Variable

STANDARD_DOMAINS = (None, "", "ai.onnx")
_FLOAT32 = 1
_BROADCASTS_LIKE_NUMPY = 7  # before this opset an attribute says along which axis an operand lies


@dataclass(frozen=True, slots=True)
class Linear:
    """Y = act(X W + b) as it stands in the graph.

    Attributes:
        node: The MatMul or Gemm.
        transposed: Whether the stored weight is W^T, shape [N, K].
        rows: Rows of X over all leading axes; None where unknown.
        k: Rows of W.
        n: Columns of W.
        bias: float32 of shape [N], or None.
        relu: Whether a Relu follows.
        nodes: The node and those folded with it, in order.
    """

    node: Node
    transposed: bool
    rows: int | None
    k: int
    n: int
    bias: NDArray[np.float32] | None
    relu: bool
    nodes: tuple[Node, ...]

    @property
    def stored_weight(self) -> Tensor:
        """The tensor that holds the weight."""
        weight: Tensor = self.node.inputs[1]
        return weight

    @property
    def output(self) -> Variable:
        """The tensor that holds Y."""
        output: Variable = self.nodes[-1].outputs[0]
        return output

    def weight(self) -> NDArray[np.float32]:
        """Return W, shape [K, N]."""
        value = constant_value(self.stored_weight)
        assert value is not None
        return value.T if self.transposed else value


def is_linear(node: Node) -> bool:
    """Return whether the node is a MatMul or Gemm of the standard domain."""
    return node.op in {"MatMul", "Gemm"} and node.domain in STANDARD_DOMAINS


def match_linear(node: Node, types: Types, sizes: Sequence[Mapping[str, int]]) -> Linear | str:
    """Return the matrix product at a node with what follows it, or the reason why it is left alone.

    Args:
        node: A MatMul or Gemm.
        types: Shapes of the activations.
        sizes: For each sample of the data the symbolic dimensions it fixes, by name; the fewest rows count.
    """
    reason = _why_no_weight(node) or (_why_other_gemm(node) if node.op == "Gemm" else "")
    if reason:
        return reason
    transposed = node.op == "Gemm" and bool(node.attrs.get("transB", 0))
    shape = node.inputs[1].shape
    assert shape is not None
    k, n = (int(size) for size in (reversed(shape) if transposed else shape))
    bias: NDArray[np.float32] | None = None
    if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2].name:
        found = _as_bias(node.inputs[2], n, rank=2)
        if found is None:
            return f"its input C '{node.inputs[2].name}' is not a constant that adds one number per column"
        bias = found
    nodes = [node]
    if bias is None:
        add = _only_reader(nodes[-1], "Add")
        bias = None if add is None else _added(add, nodes[-1].outputs[0], n, types.rank(nodes[-1].outputs[0]))
        if add is not None and bias is not None:
            nodes.append(add)
    relu = _only_reader(nodes[-1], "Relu")
    if relu is not None:
        nodes.append(relu)
    return Linear(
        node, transposed, _row_count(node.inputs[0], types, sizes), k, n, bias, relu is not None, tuple(nodes)
    )


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


def _why_other_gemm(node: Node) -> str:
    if node.attrs.get("transA", 0):
        return "it has transA = 1"
    for name in ("alpha", "beta"):
        factor = node.attrs.get(name, 1.0)
        if factor != 1.0 and (name == "alpha" or len(node.inputs) > 2):
            return f"it has {name} = {factor:g}, not 1"
    return ""


def _only_reader(node: Node, op: str) -> Node | None:
    """The node of this operator that alone reads the output of another, in the same graph."""
    output = node.outputs[0]
    readers = uses(output)
    if is_graph_output(output) or len(readers) != 1:
        return None
    reader = readers[0].node
    fits = reader.op == op and reader.domain in STANDARD_DOMAINS and reader.graph is node.graph
    return reader if fits else None


def _added(add: Node, y: Tensor, n: int, rank: int | None) -> NDArray[np.float32] | None:
    assert add.graph is not None
    if add.graph.opset < _BROADCASTS_LIKE_NUMPY:
        return None
    other = add.inputs[1] if add.inputs[0] is y else add.inputs[0]
    return _as_bias(other, n, rank=1 if rank is None else rank)


def _as_bias(tensor: Tensor, n: int, *, rank: int) -> NDArray[np.float32] | None:
    """The [N] vector that a constant adds to a result of at least this rank; None if it adds anything else."""
    value: NDArray[Any] | None = constant_value(tensor)
    if value is None or value.dtype != np.float32 or value.ndim > rank:
        return None
    if value.size != (value.shape[-1] if value.ndim else 1) or value.size not in {1, n}:
        return None
    return np.ascontiguousarray(np.broadcast_to(value.reshape(-1), (n,)))


def _row_count(x: Tensor, types: Types, sizes: Sequence[Mapping[str, int]]) -> int | None:
    shape = types.shape(x)
    if shape is None:
        return None
    rows = product(shape[:-1])
    counts = [evaluate(rows, named) for named in sizes or ({},)]
    known = [count for count in counts if count is not None]
    return min(known) if len(known) == len(counts) else None
