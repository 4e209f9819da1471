"""What the runtime made of a quantized model: which operators run on integers, and which rule the others broke."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from graphopt.errors import RunError
from graphopt.graph import Model, constant_value, is_graph_output, producer, read_model, uses
from graphopt.rewrite.patch import node_label
from graphopt.runtime import output_names, random_feeds, run, session
from graphopt.target.operators import activation_bounds
from graphopt.target.registry import find_target
from graphopt.target.rules import Role
from graphopt.target.validator import BrokenRule, declared, validate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from graphopt.graph import Node, Tensor
    from graphopt.target.rules import OpRule, Target

FUSED_NAMES = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul", "NhwcMaxPool": "MaxPool"}
"""What the runtime calls operators that it fused in float, by the operator whose rule they answer to."""

COUNTED_FLOAT = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul")
"""Float operators that the account counts, under their own or their fused name."""

QGEMM_OPERANDS = 7
"""Inputs of a QGemm up to its bias; behind them stands the grid of its result, where that is rounded."""

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class FloatNode:
    """A node that reads or makes a quantized tensor and still computes in float.

    Attributes:
        name: Its name in the optimized model.
        op: Its operator there.
        rule: The condition that it breaks, G1 to G5, or ``no kernel``.
        reason: What it is that breaks it.
    """

    name: str
    op: str
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Audit:
    """The account of one model on one target.

    Attributes:
        target: Name of the target.
        integer: Integer operators in the optimized model, by operator.
        floating: Float operators of ``COUNTED_FLOAT``, by the name they have in the optimized model.
        conversions: QuantizeLinear and DequantizeLinear of activations left: each is a pass over memory. Those of
            constant weights are not counted.
        stayed_float: Nodes beside a quantized tensor that compute in float.
        optimization_error: Largest difference, in units of each output's largest magnitude, between the outputs with
            the runtime's optimizations and without; None where it was not compared. Rounding to one neighbouring
            integer is normal; more than a few percent means that a fusion computes something else.
        broken: Rules of the target that the model breaks, found without running it.
        moving: Operators that only move integers in the optimized model, by operator: a Concat of tensors on one grid,
            MaxPool, Reshape. They do no arithmetic on grids, so they are not among ``integer``; a Concat of tensors on
            several grids is (QLinearConcat), since it converts them.
        failure: Why the model does not run without the runtime's optimizations; "" where it does or was not run.
        ran: Whether the counts are of what the runtime made of the model; else they are of what the model declares,
            because the runtime is not installed.
    """

    target: str
    integer: Mapping[str, int]
    floating: Mapping[str, int]
    conversions: int
    stayed_float: tuple[FloatNode, ...]
    optimization_error: float | None = None
    broken: tuple[BrokenRule, ...] = ()
    ran: bool = True
    failure: str = ""
    moving: Mapping[str, int] = field(default_factory=dict)

    @property
    def integer_count(self) -> int:
        """Integer operators in all."""
        return sum(self.integer.values())

    @property
    def floating_count(self) -> int:
        """Float operators in all."""
        return sum(self.floating.values())


WEIGHTS_BESIDE = {
    "session.optimized_model_external_initializers_file_name": "weights.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
"""Settings of ONNX Runtime with which an optimized model does not refer to the data files of its source, which lie in
another folder."""


def audit(
    source: Model | str | Path | bytes,
    target: str = "ort-cpu",
    *,
    feeds: Iterable[Mapping[str, NDArray[np.generic]]] | None = None,
    compare: bool = True,
) -> Audit:
    """Let the runtime optimize a model and count what came of its quantized operators; check it against the rules.

    Where the runtime of the target is not installed, what the model declares is counted instead.

    Args:
        source: A model, a file or serialized bytes.
        target: Name of the target.
        feeds: Samples to compare on with the runtime's optimizations on and off; None takes seeded random inputs that
            fit the declared shapes.
        compare: Whether to compare at all.

    Raises:
        UsageError: The target is unknown; the message lists the valid ones.
        ReadError, UnsupportedError: The runtime does not load the model.
    """
    chosen = find_target(target)
    model = as_model(source)
    broken = validate(model, chosen)
    if chosen.session is None:
        found = declared(model, chosen)
        return Audit(chosen.name, found.integer, found.floating, found.conversions, (), None, broken, ran=False)
    with tempfile.TemporaryDirectory(prefix="graphopt-audit-") as folder:
        path = Path(folder) / "optimized.onnx"
        settings = {**chosen.session, **WEIGHTS_BESIDE}
        session(source, optimize="extended", optimized_path=path, config=settings, kernels=_own_kernels(source))
        optimized = read_model(path)
        result = count(optimized, chosen)
    error, failure = None, ""
    if compare:
        try:
            error = optimization_error(source, feeds, chosen.session)
        except RunError as raised:
            failure = str(raised)
    return replace(result, optimization_error=error, broken=broken, failure=failure)


def as_model(source: Model | str | Path | bytes) -> Model:
    """Return a model that may be one already, a file, a bundle or serialized bytes.

    Raises:
        ReadError: It is none.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, bytes):
        return read_model(source)
    path = Path(source)
    return read_model(path / "model.onnx" if path.is_dir() else path)


def count(optimized: Model, target: Target) -> Audit:
    """Return the account of a model as the runtime optimized it."""
    integer: Counter[str] = Counter()
    floating: Counter[str] = Counter()
    conversions = 0
    stayed: list[FloatNode] = []
    for _, node in optimized.walk(functions=False):
        if node.op in target.integer_kernels:
            integer[node.op] += 1
        elif node.op in CONVERSIONS:
            conversions += constant_value(node.inputs[0]) is None
        else:
            if FUSED_NAMES.get(node.op, node.op) in COUNTED_FLOAT and is_real(node):
                floating[node.op] += 1
            broken = broken_rule(node, target)
            if broken is not None:
                stayed.append(broken)
    return Audit(
        target.name,
        dict(sorted(integer.items())),
        dict(sorted(floating.items())),
        conversions,
        tuple(stayed),
        moving=_moving(optimized, target),
    )


def _moving(optimized: Model, target: Target) -> dict[str, int]:
    """Count the operators of an optimized model that move integers."""
    moves = {op for op, rule in target.rules.items() if rule.role is Role.MOVE} | {"Concat", "NhwcMaxPool"}
    held = {tensor for tensor in optimized.graph.inputs if tensor.dtype in {np.uint8, np.int8}}
    found: Counter[str] = Counter()
    for node in optimized.graph.nodes:
        rounds = node.op == "QGemm" and len(node.inputs) > QGEMM_OPERANDS
        if node.op == "QuantizeLinear" or node.op.startswith("QLinear") or rounds:
            held.add(node.outputs[0])
        elif node.op in moves:
            read = node.inputs if node.op == "Concat" else node.inputs[:1]
            if all(tensor in held for tensor in read):
                found[node.op] += 1
                held.update(node.outputs)
    return dict(sorted(found.items()))


def is_real(node: Node) -> bool:
    """Tell whether a node works on float tensors, not on sizes and positions."""
    found = [
        np.dtype(tensor.dtype) for tensor in (*node.inputs, *node.outputs) if isinstance(tensor.dtype, type | np.dtype)
    ]
    return not found or any(dtype.kind == "f" for dtype in found)


def broken_rule(node: Node, target: Target) -> FloatNode | None:
    """Return which condition a float node beside a quantized tensor breaks, or None where none is beside it."""
    restored = [index for index, tensor in enumerate(node.inputs) if _made_by(tensor, "DequantizeLinear")]
    rounded = [use for tensor in node.outputs for use in uses(tensor) if use.node.op == "QuantizeLinear"]
    if not restored and not rounded:
        return None
    op = FUSED_NAMES.get(node.op, node.op)
    rule = target.rules.get(op)
    if rule is None:
        return FloatNode(
            node_label(node), node.op, "no kernel", target.float_reason.get(op, "the target has no integer kernel")
        )
    for check in (
        _inputs_restored,
        _restored_is_output,
        _one_reader_rounds,
        _activation_is_redundant,
        _plain_parameters,
    ):
        broken = check(node, rule)
        if broken is not None:
            return FloatNode(node_label(node), node.op, broken[:2], broken[4:])
    refusal = rule.refuse(node)
    return FloatNode(
        node_label(node), node.op, "no kernel", refusal or "the runtime did not fuse it although every condition holds"
    )


def _made_by(tensor: Tensor, op: str) -> bool:
    source = producer(tensor)
    return source is not None and source.op == op


def _inputs_restored(node: Node, rule: OpRule) -> str | None:
    for index, tensor in enumerate(node.inputs):
        if rule.role is Role.MOVE and index > 0:
            break
        if tensor.name and not _made_by(tensor, "DequantizeLinear"):
            return f"G1: input {index} ('{tensor.name}') does not come from a DequantizeLinear"
    return None


def _restored_is_output(node: Node, _rule: OpRule) -> str | None:
    for tensor in node.inputs:
        if tensor.name and is_graph_output(tensor):
            return f"G3: its dequantized input '{tensor.name}' is also an output of the graph"
    return None


def _one_reader_rounds(node: Node, rule: OpRule) -> str | None:
    if rule.role is Role.WEIGHTED and not rule.needs_output_grid:
        return None
    tensor = _behind_activation(node)
    if is_graph_output(tensor):
        return f"G2: its output '{tensor.name}' is an output of the graph"
    readers = uses(tensor)
    if len(readers) != 1 or readers[0].node.op != "QuantizeLinear":
        names = ", ".join(sorted({use.node.op for use in readers})) or "nothing"
        return f"G2: its output '{tensor.name}' goes to {names}, not to one QuantizeLinear alone"
    return None


def _behind_activation(node: Node) -> Tensor:
    tensor: Tensor = node.outputs[0]
    readers = uses(tensor)
    if len(readers) == 1 and readers[0].node.op in {"Relu", "Clip"} and activation_bounds(readers[0].node) is not None:
        tensor = readers[0].node.outputs[0]
    return tensor


def _activation_is_redundant(node: Node, rule: OpRule) -> str | None:
    tensor = _behind_activation(node)
    if tensor is node.outputs[0] and not node.attrs.get("activation"):
        return None
    if rule.role is Role.WEIGHTED and not rule.needs_output_grid and not uses(tensor):
        return None
    return f"G4: the activation behind it cuts off values that the grid of '{tensor.name}' expresses"


def _plain_parameters(node: Node, rule: OpRule) -> str | None:
    for index, tensor in enumerate(node.inputs):
        source = producer(tensor)
        if source is None or source.op != "DequantizeLinear" or index in {rule.weight, rule.bias}:
            continue
        scale = constant_value(source.inputs[1])
        if scale is None or scale.size != 1:
            return f"G5: the scale of '{tensor.name}' is not one constant"
        if len(source.inputs) < 3 or source.inputs[2].is_empty():
            return f"G5: the zero point of '{tensor.name}' is not written out"
    return None


def _own_kernels(source: Model | str | Path | bytes) -> bool | Literal["auto"]:
    """What runs a lowered model in memory, which no bundle carries: the library of this installation."""
    return True if isinstance(source, Model) and "ai.graphopt" in source.opset_imports else "auto"


def optimization_error(
    source: Model | str | Path | bytes,
    feeds: Iterable[Mapping[str, NDArray[np.generic]]] | None = None,
    config: Mapping[str, str] | None = None,
) -> float:
    """Return the largest relative difference that the runtime's optimizations make to any output.

    Args:
        source: A model, a file or serialized bytes.
        feeds: Samples; None takes seeded random inputs that fit the declared shapes.
        config: Session configuration entries of ONNX Runtime.
    """
    own = _own_kernels(source)
    plain = session(source, optimize="off", config=config, kernels=own)
    fused = session(source, config=config, kernels=own)
    samples = random_feeds(plain, count=2, seed=0) if feeds is None else feeds
    worst = 0.0
    for feed in samples:
        left, right = run(plain, dict(feed)), run(fused, dict(feed))
        for name in output_names(plain):
            one, other = np.asarray(left[name]), np.asarray(right[name])
            if one.dtype.kind != "f" or not one.size:
                continue
            top = float(np.abs(one).max()) or 1.0
            worst = max(worst, float(np.abs(one.astype(np.float64) - other).max()) / top)
    return worst
