"""What a target's rule table consists of: one rule per operator, and how the integer form of each takes part."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from graphopt.graph import Node


class Role(Enum):
    """How an operator takes part in an integer region."""

    WEIGHTED = "weighted"
    """Has a constant weight and does the arithmetic: Conv, Gemm, MatMul. The reason to quantize."""
    JOIN = "join"
    """Computes on integers between weighted operators, each tensor on its own grid: Add, Concat, AveragePool."""
    MOVE = "move"
    """Only moves data: runs on the integers themselves, input and output share one grid: Reshape, MaxPool, Pad."""
    ABSORBED = "absorbed"
    """Disappears into the rounding of the tensor before it, whose grid cannot express what it cuts off: Relu, Clip."""


@dataclass(frozen=True, slots=True)
class OpRule:
    """How one operator quantizes on a target.

    Attributes:
        op: Operator of the default domain.
        role: How it takes part in an integer region.
        kernel: What the runtime executes in its place, for the audit.
        since: First opset whose operator, as the specification types it, can be used so.
        data: Positions of the inputs that carry activations; None for all inputs (Concat).
        constant_operand: Whether one of the data inputs may be a constant (Add, Mul).
        needs_output_grid: Whether the integer kernel writes only integers, so that an output must be rounded.
        fixed_range: Range of the output, in real units, known without data (Sigmoid, Softmax).
        weight: Position of the weight.
        bias: Position of the bias.
        refuse: Returns why a node cannot take its integer form, or None where it can.
    """

    op: str
    role: Role
    kernel: str
    since: int = 10
    data: tuple[int, ...] | None = (0,)
    constant_operand: bool = False
    needs_output_grid: bool = True
    fixed_range: tuple[float, float] | None = None
    weight: int | None = None
    bias: int | None = None
    refuse: Callable[[Node], str | None] = field(default=lambda _node: None)

    def data_positions(self, node: Node) -> tuple[int, ...]:
        """Return the positions of the inputs of a node that carry activations."""
        return tuple(range(len(node.inputs))) if self.data is None else self.data


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime that integer models are placed for.

    Attributes:
        name: What ``--target`` takes.
        rules: Operator to rule; an operator without one stays float.
        float_reason: Operator to the reason it has no rule, for operators that users ask about.
        integer_kernels: Operators that are integer arithmetic in an optimized graph.
        activation_type: Integer type of activations, as numpy names it.
        per_channel_since: First opset with a scale per channel.
    """

    name: str
    rules: Mapping[str, OpRule]
    float_reason: Mapping[str, str]
    integer_kernels: frozenset[str]
    activation_type: str
    per_channel_since: int

    def rule(self, node: Node) -> OpRule | None:
        """Return the rule for a node, or None where its operator stays float."""
        return self.rules.get(node.op) if node.domain in {None, "", "ai.onnx"} else None
