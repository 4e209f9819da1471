"""What a target's rule table consists of: one rule per operator, and how the integer form of each takes part."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from graphopt.graph import constant_value, producer
from graphopt.target.grid import GridKind
from graphopt.target.numbers import INT8, UINT8, Number
from graphopt.target.stored import restores_constant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from graphopt.graph import Model, Node
    from graphopt.target.checks import Check


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


class Pairs(Enum):
    """Where a runtime wants QuantizeLinear and DequantizeLinear."""

    KERNELS = "kernels"
    """Before and behind every operator that has an integer kernel, in regions that pay for their conversions."""
    INPUTS = "inputs"
    """Before the inputs of operators that are to compute on integers, nowhere else; the runtime moves them."""
    EVERYTHING = "everything"
    """On every tensor: what has none runs somewhere else."""


class WeightForm(Enum):
    """How a quantized weight is written."""

    INTEGERS = "integers"
    """Integers behind a DequantizeLinear."""
    PAIRS = "pairs"
    """Float values behind a QuantizeLinear and a DequantizeLinear."""


class BiasForm(Enum):
    """How the bias of a quantized operator is written."""

    INT32 = "int32"
    """Integers on the product of the scales of input and weight, behind a DequantizeLinear."""
    FLOAT = "float"
    """As it was."""


@dataclass(frozen=True, slots=True)
class WeightKind:
    """What grids a target takes for weights.

    Attributes:
        number: Type of the integers.
        symmetric: Whether the zero point is 0.
        channels: Whether there may be one scale per output channel.
        limit: Largest magnitude in use, where symmetric.
    """

    number: Number = INT8
    symmetric: bool = True
    channels: bool = True
    limit: int = 127


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
        exact: Scale and zero point that the output must have, by number type.
        one_grid: Whether inputs and output should share one grid although it computes (Concat).
        skip_only: Whether only that input is rounded that no weighted operator makes for it alone (residual Add).
        weight: Position of the weight.
        bias: Position of the bias.
        weights: Grids of the weight, where they differ from those of the target.
        refuse: Returns why a node cannot take its integer form, or None where it can.
        unprofitable: Returns why the integer form of a node, though possible, costs more than it saves, or None.
        otherwise: The rule where the weight is no constant; None where it then stays float.
    """

    op: str
    role: Role
    kernel: str
    since: int = 10
    data: tuple[int, ...] | None = (0,)
    constant_operand: bool = False
    needs_output_grid: bool = True
    fixed_range: tuple[float, float] | None = None
    exact: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    one_grid: bool = False
    skip_only: bool = False
    weight: int | None = None
    bias: int | None = None
    weights: WeightKind | None = None
    refuse: Callable[[Node], str | None] = field(default=lambda _node: None)
    unprofitable: Callable[[Node], str | None] = field(default=lambda _node: None)
    otherwise: OpRule | None = None

    def data_positions(self, node: Node) -> tuple[int, ...]:
        """Return the positions of the inputs of a node that carry activations."""
        return tuple(range(len(node.inputs))) if self.data is None else self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A runtime that integer models are placed for.

    Attributes:
        name: What ``--target`` takes.
        runtime: What the runtime is called.
        rules: Operator to rule; an operator without one stays float.
        float_reason: Operator to the reason it has no rule, for operators that users ask about.
        default_rule: Makes the rule of an operator that is in neither table, or None where it stays float.
        transparent: Operators that the runtime moves pairs through, or fuses into the operator before them, by itself.
        integer_kernels: Operators that are integer arithmetic in an optimized graph.
        activations: Types of activations; the first is the default.
        wide: Type of activations where nobody chose one and the model has one of ``wide_operators``; None: the default.
        wide_operators: Operators whose results need it.
        symmetric: Whether activations have zero point 0 (128 for unsigned types).
        least_range: Smallest range of an activation, in real units.
        mask: What stands in for the huge negative numbers of attention masks where every tensor is quantized.
        weights: Grids of weights.
        pairs: Where QuantizeLinear and DequantizeLinear go.
        weight_form: How weights are written.
        bias_form: How biases are written.
        dynamic: Whether inputs may be rounded at run time.
        integer_tables: Whether a Gather may look up integers that a Cast and a Mul restore.
        absorbs: Whether a Relu or Clip that a grid makes redundant is taken out.
        session: Settings with which the installed ONNX Runtime follows the same rules; None where it cannot.
        checks: What the validator looks for.
        per_channel_since: First opset with a scale per channel.
    """

    name: str
    runtime: str
    rules: Mapping[str, OpRule]
    float_reason: Mapping[str, str] = field(default_factory=dict)
    default_rule: Callable[[str], OpRule] | None = None
    transparent: frozenset[str] = frozenset()
    integer_kernels: frozenset[str] = frozenset()
    activations: tuple[Number, ...] = (UINT8,)
    wide: Number | None = None
    wide_operators: frozenset[str] = frozenset()
    symmetric: bool = False
    least_range: float = 0.0
    mask: float | None = None
    weights: WeightKind = WeightKind()
    pairs: Pairs = Pairs.KERNELS
    weight_form: WeightForm = WeightForm.INTEGERS
    bias_form: BiasForm = BiasForm.INT32
    dynamic: bool = False
    integer_tables: bool = False
    absorbs: bool = False
    session: Mapping[str, str] | None = None
    checks: tuple[Check, ...] = ()
    per_channel_since: int = 13

    def rule(self, node: Node) -> OpRule | None:
        """Return the rule for a node, or None where its operator stays float."""
        if node.domain not in {None, "", "ai.onnx"}:
            return None
        rule = self.rules.get(node.op)
        if rule is None:
            listed = node.op in self.float_reason or self.default_rule is None
            return None if listed or self.default_rule is None else self.default_rule(node.op)
        if rule.otherwise is not None and rule.weight is not None and not _is_weight(node, rule.weight):
            return rule.otherwise
        return rule

    def weight_kind(self, rule: OpRule) -> WeightKind:
        """Return the grids of the weight of an operator."""
        return rule.weights or self.weights

    def default_number(self, model: Model) -> Number:
        """Return the type of activations that suits a model where nobody chose one."""
        if self.wide is not None and any(node.op in self.wide_operators for node in model.graph.nodes):
            return self.wide
        return self.activations[0]

    def grid_kind(self, number: Number | None = None, *, symmetric: bool | None = None) -> GridKind:
        """Return the grids of activations.

        Args:
            number: Their type; None for the default.
            symmetric: What the user asked for; None for what the target prefers.
        """
        wanted = self.symmetric if symmetric is None else symmetric or self.symmetric
        return GridKind(number or self.activations[0], wanted, self.least_range, self.mask)


def _is_weight(node: Node, place: int) -> bool:
    """Tell whether an input is a constant, or restored from one."""
    source = producer(node.inputs[place])
    return constant_value(node.inputs[place]) is not None or (source is not None and restores_constant(source))
