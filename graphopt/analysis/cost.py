"""Cost: arithmetic, bytes moved and kernel launches of every node, as expressions over the model's dimensions.

The figures are counts of work, not times: a rewrite must lower one of them. The formulas, with ``|t|`` the elements of
a tensor and one multiply-add counted as two operations:

    MatMul, QLinearMatMul, MatMulInteger     2 * |y| * K
    Gemm                                     2 * M * N * K, and M * N for C
    LowBitMatMul                             2 * |y| * K
    SparseMatMul                             2 * rows * weights that the packed form stores
    SparseInt8MatMul, SparseInt8Conv         2 * rows or output positions * weights; four from six packed bytes
    SparseConv                               2 * output positions * entries * channels of an entry
    Conv, ConvInteger, QLinearConv           2 * |y| * (C / group) * kernel, and |y| for the bias
    ConvTranspose                            2 * |x| * (outputs / group) * kernel, and |y| for the bias
    AveragePool, MaxPool, LpPool             |y| * kernel
    GlobalAveragePool, Reduce*, ArgMax ...   |x|
    RNN, GRU, LSTM                           2 * steps * batch * directions * gates * H * (I + H), gates 1, 3, 4
    Einsum                                   2 * the product of the sizes of all letters
    Attention                                2 * |scores| * (size + value size)
    Softmax, LogSoftmax                      12 * |y|      exponential counted as 8
    LayerNormalization and other norms       8 * |y|;  BatchNormalization 2 * |y|
    exp, log, tanh, erf, pow, sigmoid ...    8 * |y|
    QuantizeLinear 4 * |y|;  DequantizeLinear 2 * |y|;  DynamicQuantizeLinear 6 * |y|
    every other operator that computes       |y|;  one that only moves elements 0

Bytes read are those of the inputs, but what an operator that selects reads is what it writes, and what only renames
(Reshape, Squeeze, Identity ...) or looks at a shape moves nothing. Bytes written are those of the outputs. Every node
is one launch, except Constant; a node with bodies or a call of a function is the sum of what it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from graphopt.analysis.base import Analysis
from graphopt.analysis.cost_formulas import operations
from graphopt.analysis.dim_values import evaluate
from graphopt.analysis.dims import Expr, mul, product
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph.dtypes import bits
from graphopt.graph.objects import Graph, node_subgraphs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph.model import Model
    from graphopt.graph.objects import Function, Node, Tensor

RENAMING = frozenset({"Identity", "Flatten", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"})
"""Operators that move no elements: they give the same ones another shape, or look at a shape."""

SELECTING = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Split", "Compress", "TopK"})
"""Operators that read of their first input only what they write."""


@dataclass(frozen=True, slots=True)
class NodeCost:
    """What one run of a node costs, without the bodies it holds.

    Attributes:
        flops: Arithmetic operations; None where a shape they depend on is unknown.
        read_bytes: Bytes of the inputs; None likewise.
        written_bytes: Bytes of the outputs; None likewise.
        dispatches: Kernel launches.
    """

    flops: Dim | None
    read_bytes: Dim | None
    written_bytes: Dim | None
    dispatches: int


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What symbolic dimensions are: by name, and the rest."""

    named: Mapping[str, int]
    default: int | None

    def of(self, dim: Dim | None) -> int | None:
        return None if dim is None else evaluate(dim, self.named, self.default)


@dataclass(frozen=True, slots=True)
class Total:
    """What a run of a graph costs.

    Attributes:
        flops: Arithmetic operations.
        read_bytes: Bytes read by all nodes.
        written_bytes: Bytes written by all nodes.
        dispatches: Kernel launches.
        unknown: Nodes of which a figure is unknown under the given sizes; it counts 0.
    """

    flops: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    dispatches: int = 0
    unknown: int = 0

    def plus(self, other: Total, times: int = 1) -> Total:
        """Return the sum, the other one counted so many times."""
        return Total(
            self.flops + times * other.flops,
            self.read_bytes + times * other.read_bytes,
            self.written_bytes + times * other.written_bytes,
            self.dispatches + times * other.dispatches,
            self.unknown + other.unknown,
        )


class Cost(Analysis):
    """The cost of every node of every scope; see the module for the formulas."""

    depends = frozenset({"structure"})
    may_survive = frozenset({"weights"})

    def __init__(self, model: Model, types: Types, values: ShapeValues) -> None:
        self._types = types
        self._values = values
        self._main = model.graph
        self._functions = {function.unique_id: function for function in model.functions}
        self._costs = {node: self._cost(node) for _, node in model.walk()}

    @classmethod
    def compute(cls, model: Model, facts: Facts) -> Self:  # noqa: D102
        return cls(model, facts.get(Types), facts.get(ShapeValues))

    def of(self, node: Node) -> NodeCost:
        """Return the cost of a node; one that was added later is computed from what its tensors declare."""
        known = self._costs.get(node)
        return self._cost(node) if known is None else known

    def node_total(self, node: Node, sizes: Mapping[str, int] | None = None, *, default: int | None = None) -> Total:
        """Return what a node costs with the bodies it holds and the function it calls.

        Args:
            node: The node.
            sizes: The value of each symbolic dimension, by name.
            default: The value of the dimensions that are not named; None leaves what depends on them unknown.
        """
        return self._with_bodies(node, _Sizes(sizes or {}, default), ())

    def total(
        self, sizes: Mapping[str, int] | None = None, *, default: int | None = None, graph: Graph | None = None
    ) -> Total:
        """Return what one run of a graph costs.

        The costlier branch of an If counts; the body of a Loop counts once per iteration, where their number is known,
        else once.

        Args:
            sizes: The value of each symbolic dimension, by name.
            default: The value of the dimensions that are not named; None leaves what depends on them unknown.
            graph: The graph; the main one if None.
        """
        return self._graph_total(self._main if graph is None else graph, _Sizes(sizes or {}, default), ())

    def _graph_total(self, graph: Graph, sizes: _Sizes, active: tuple[Function, ...]) -> Total:
        total = Total()
        for node in graph.nodes:
            total = total.plus(self._with_bodies(node, sizes, active))
        return total

    def _with_bodies(self, node: Node, sizes: _Sizes, active: tuple[Function, ...]) -> Total:
        own = _evaluated(self.of(node), sizes)
        bodies = [self._graph_total(body, sizes, active) for _, body in node_subgraphs(node)]
        if node.op == "If" and bodies:
            return own.plus(max(bodies, key=lambda body: (body.flops, body.read_bytes + body.written_bytes)))
        for body in bodies:
            own = own.plus(body, self._iterations(node, sizes))
        function = self._functions.get((node.domain or "", node.op, node.overload)) if self._functions else None
        if function is not None and function not in active:
            own = own.plus(self._graph_total(function, sizes, (*active, function)))
        return own

    def _iterations(self, node: Node, sizes: _Sizes) -> int:
        try:
            count = self._iteration_count(node)
        except (LookupError, TypeError, ValueError):
            return 1  # not what the operator takes; Types records it
        number = sizes.of(count)
        return 1 if number is None or number >= _UNBOUNDED else max(number, 0)

    def _iteration_count(self, node: Node) -> Dim | None:
        if node.op == "Loop" and node.inputs[0].name:
            limit = self._values.value(node.inputs[0])
            return limit[0] if limit else None
        if node.op == "Scan":
            scanned = int(node.attrs.get("num_scan_inputs", 0))
            shape = self._types.shape(node.inputs[len(node.inputs) - scanned])
            axes = node.attrs.get("scan_input_axes") or [0]
            return None if shape is None else shape[int(axes[0])]
        return None

    # ---------------------------------------------------------------------------------------------------- one node

    def _cost(self, node: Node) -> NodeCost:
        default_domain = node.domain in {None, "", "ai.onnx"}
        if node.op == "Constant" and default_domain:
            return NodeCost(0, 0, 0, 0)
        bodied = any(True for _ in node_subgraphs(node))
        called = bool(self._functions) and (node.domain or "", node.op, node.overload) in self._functions
        if bodied or called:
            return NodeCost(0, 0, 0, int(bodied))
        flops = operations(node, self._types)
        if node.op in RENAMING and default_domain:
            return NodeCost(flops, 0, 0, 1)
        written = _sum([self._bytes(tensor) for tensor in node.outputs if tensor.name])
        inputs = [tensor for tensor in node.inputs if tensor.name]
        if node.op in SELECTING and default_domain:
            rest = _sum([self._bytes(tensor) for tensor in inputs[1:]])
            return NodeCost(flops, _sum([written, rest]), written, 1)
        return NodeCost(flops, _sum([self._bytes(tensor) for tensor in inputs]), written, 1)

    def _bytes(self, tensor: Tensor) -> Dim | None:
        shape, dtype = self._types.shape(tensor), self._types.dtype(tensor)
        width = bits(dtype) if dtype else 0
        if shape is None or not width:
            return None
        count = mul(product(shape), width)
        return -(-count // 8) if isinstance(count, int | Expr) else None

    def survives(self, model: Model) -> bool:
        """Hold exactly as long as the types the figures come from."""
        return self._types.survives(model)

    def covers(self, fresh: Self) -> bool:
        """True where every node of the present model has the same cost here."""
        return all(self._costs.get(node) == cost for node, cost in fresh._costs.items())

    def same_as(self, other: Self) -> bool:
        """True where both know the same nodes, and the same cost of each."""
        return self._costs == other._costs


_UNBOUNDED = 1 << 31
"""A trip count at or beyond this means "until the condition stops it"."""


def _sum(parts: list[Dim | None]) -> Dim | None:
    total: Dim = 0
    for part in parts:
        if part is None:
            return None
        total = total + part
    return total


def _evaluated(cost: NodeCost, sizes: _Sizes) -> Total:
    numbers = [sizes.of(dim) for dim in (cost.flops, cost.read_bytes, cost.written_bytes)]
    flops, read, written = [0 if number is None else number for number in numbers]
    return Total(flops, read, written, cost.dispatches, int(None in numbers))
