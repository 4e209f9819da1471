"""Replace loops that run a known number of times by their iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.bodies import Bodies
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Node, Tensor, captures, dtypes, producer, subgraphs
from graphopt.graph.moving import copy_nodes, move_initializer, move_nodes
from graphopt.passes.simplify.control.bodies import behind_identities, body_batch, truth
from graphopt.passes.simplify.control.loops import LoopForm, Scanned, Stack
from graphopt.passes.simplify.control.stacking import stacked, taken, without_axis
from graphopt.passes.simplify.inline_if import clash, replace_result
from graphopt.rewrite.driver import Batch, Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Rewriter
    from graphopt.rewrite.pass_ import Steps

_MOST_COPIES = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class UnrollLoops(RulePass):
    """Replace loops that run a known number of times by their iterations.

    Matches:   Loop whose limit is known and whose condition is constant, or that never runs; Scan over an axis of known
               length.
    Produces:  The nodes of the body, once per iteration, in the graph around it; stacks by Unsqueeze and Concat, slices
               of scanned tensors by Gather; the initial values where no iteration runs. A loop costs more than a node:
               it enters a subgraph in every iteration, and nothing is optimized across its border.
    Requires:  One iteration, or none; more only where the nodes of the model grow by no more than ``max_growth``. A
               stack of no iterations needs the shape of its parts. Inner bodies are copied with new names.
    Preserves: Every output bitwise; public names, types and shapes; metadata, in every copy.
    Source:    ONNX operators Loop, Scan; loop unrolling, Muchnick, Advanced Compiler Design and Implementation, 1997,
               17.4.3.

    Options:
        max_growth: How many nodes unrolling one loop may add.
    """

    name: ClassVar[str] = "unroll-loops"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    max_growth: int = 0

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule | Batch]:
        """Return the rule that looks at loops and their bodies."""
        if not facts.get(Bodies):
            return []
        types, values = facts.get(Types), facts.get(ShapeValues)

        def rewrite(node: Node) -> Steps:
            form = LoopForm.of(node)
            count = None if form is None else _iterations(form, types, values)
            if form is None or count is None:
                return
            proposal = _Unrolling(form, count, types).proposal(self.max_growth)
            if proposal is not None:
                yield proposal

        return [body_batch(rewrite, "Loop", "Scan")]


def _iterations(form: LoopForm, types: Types, values: ShapeValues) -> int | None:
    """Return how often a loop runs, None where that is not known."""
    node = form.node
    if node.op == "Scan":
        return _scanned_length(form, types)
    limit, start = node.inputs[0], node.inputs[1]
    most: int | None = None
    if limit.name:
        known = values.constant(limit)
        if known is not None and len(known) == 1:
            most = max(known[0], 0)
    first = truth(start, values) if start.name else True
    if first is False or most == 0:
        return 0
    if first is None:
        return None
    condition = behind_identities(form.body.outputs[0])
    if condition is form.body.inputs[1]:
        return most
    goes_on = truth(condition, values)
    if goes_on is None:
        return 1 if most == 1 else None
    if goes_on:
        return most
    return 1 if most is not None or not limit.name else None


def _scanned_length(form: LoopForm, types: Types) -> int | None:
    axes = form.node.attrs.get("scan_input_axes") or [0] * len(form.scanned)
    for entry, axis in zip(form.scanned, axes, strict=False):
        shape = types.shape(form.node.inputs[entry.start])
        if shape is not None and -len(shape) <= axis < len(shape):
            size = shape[axis]
            if isinstance(size, int):
                return size or None
    return None


class _Unrolling:
    """One loop with the number of its iterations."""

    def __init__(self, form: LoopForm, count: int, types: Types) -> None:
        self.form = form
        self.node = form.node
        self.body = form.body
        self.count = count
        self.types = types
        self.stacks = [stack for stack in form.stacks if form.is_read(stack)]

    def proposal(self, max_growth: int) -> Patch | Skip | None:
        if self.count > 1:
            growth = self._growth()
            if growth > max_growth or self.count * len(self.body.nodes) > _MOST_COPIES:
                reason = f"unrolling its {self.count} iterations adds {growth} nodes, and {max_growth} may be added"
                return Skip(self.node, reason)
        if self.count == 0:
            return self._skipping()
        vague = self._vague()
        if vague:
            return Skip(self.node, vague)
        for state in self.form.states:
            given = self.body.outputs[state.result]
            reason = clash(self.node.outputs[state.output], given, self.body)
            if reason:
                return Skip(self.node, reason)
        times = "once" if self.count == 1 else f"{self.count} times"
        return Patch(f"{self.node.op} '{self.node.name}' runs {times}: inline its body", (self.node,), self._apply)

    def _vague(self) -> str:
        """Return why the inputs of a Loop's body cannot be stated; runtimes disagree where they declare no shape."""
        if self.node.op != "Loop":
            return ""
        needed, given = set(self._needed()), set(self.body.outputs[1:])
        for tensor in self.body.inputs[:2]:
            read = any(reader in needed or reader.graph is not self.body for reader in tensor.outputs)
            if tensor.shape is None and (tensor in given or read):
                return f"its body does not say whether '{tensor.name}' is a scalar"
        return ""

    def _growth(self) -> int:
        """Return by how much the nodes grow, those that nobody needs afterwards left out."""
        inside = sum(_count(node) for node in self._needed())
        before = 1 + sum(_count(node) for node in self.body.nodes)
        around = sum(self.count + (self.count > 1) for _ in self.stacks)
        used = [e for e in self.form.scanned if self.body.inputs[e.inside].outputs]
        return self.count * (inside + len(used)) + around - before

    def _needed(self) -> list[Node]:
        """Return the nodes of the body that its results depend on, in order; the condition of a Loop is none."""
        first = 1 if self.node.op == "Loop" else 0
        found: set[Node] = set()
        stack: list[Tensor] = list(self.body.outputs[first:])
        while stack:
            made = producer(stack.pop())
            if made is None or made in found or made.graph is not self.body:
                continue
            found.add(made)
            stack.extend(made.inputs)
            for _, inner in subgraphs(made):
                stack.extend(captures(inner))
        return [node for node in self.body.nodes if node in found]

    # ------------------------------------------------------------------------------------------------- no iterations

    def _skipping(self) -> Patch | Skip:
        empty = []
        for stack in self.stacks:
            part = self.body.outputs[stack.result]
            shape, dtype = self.types.static_shape(part), dtypes.numpy_dtype(self.types.dtype(part))
            if shape is None or dtype is None or self.node.op == "Scan":
                return Skip(
                    self.node, f"it never runs, but the shape of '{part.name}', of which it stacks none, is not known"
                )
            empty.append(np.zeros((0, *shape), dtype))
        pairs = [(self.node.outputs[s.output], self.node.inputs[s.start]) for s in self.form.states]
        for output, source in pairs:
            reason = clash(output, source)
            if reason:
                return Skip(self.node, reason)

        def apply(rewriter: Rewriter) -> None:
            for output, source in pairs:
                replace_result(rewriter, output, source, self.types)
            for stack, value in zip(self.stacks, empty, strict=True):
                output = self.node.outputs[stack.output]
                replace_result(rewriter, output, rewriter.constant(value, near=self.node), self.types)
            rewriter.erase(self.node)

        return Patch(f"Loop '{self.node.name}' never runs", (self.node,), apply)

    # --------------------------------------------------------------------------------------------------- iterations

    def _apply(self, rewriter: Rewriter) -> None:
        node, body, form = self.node, self.body, self.form
        needed = self._needed()
        results = list(body.outputs)
        states = [node.inputs[state.start] for state in form.states]
        body.outputs.clear()
        for constant in list(body.initializers):
            if constant.outputs or constant in results:
                move_initializer(rewriter, constant, node)
        parts: dict[Stack, list[Tensor]] = {stack: [] for stack in self.stacks}
        for number in range(self.count):
            twins = self._given(rewriter, number, states, results)
            if number < self.count - 1:
                copy_nodes(rewriter, needed, twins, node)
            else:
                self._settle(rewriter, twins)
                move_nodes(rewriter, needed, node)
            states = [twins.get(results[state.result], results[state.result]) for state in form.states]
            for stack, found in parts.items():
                found.append(twins.get(results[stack.result], results[stack.result]))
        for state, tensor in zip(form.states, states, strict=True):
            if node.outputs[state.output].name:
                replace_result(rewriter, node.outputs[state.output], tensor, self.types)
        for stack, found in parts.items():
            output = node.outputs[stack.output]
            axis, backwards = self._stacking(stack)
            replace_result(
                rewriter, output, stacked(rewriter, found[::-1] if backwards else found, axis, node), self.types
            )
        rewriter.erase(node)

    def _given(
        self, rewriter: Rewriter, number: int, states: Sequence[Tensor], results: Sequence[Tensor]
    ) -> dict[Tensor, Tensor]:
        """Return what the inputs of the body are in one iteration, as far as anybody needs them."""
        inputs = self.body.inputs
        given = {inputs[s.inside]: tensor for s, tensor in zip(self.form.states, states, strict=True)}
        if self.node.op == "Loop":
            for tensor, value in ((inputs[0], np.array(number, np.int64)), (inputs[1], np.array(True))):
                if tensor.outputs or tensor in results:
                    if tensor.shape:  # a vector of one element is let pass by runtimes
                        value = value.reshape([1] * len(tensor.shape))
                    given[tensor] = rewriter.constant(value, near=self.node)
        for entry in self.form.scanned:
            tensor = inputs[entry.inside]
            if tensor.outputs or tensor in results:
                given[tensor] = self._slice(rewriter, entry, number)
        return given

    def _slice(self, rewriter: Rewriter, entry: Scanned, number: int) -> Tensor:
        attrs, index = self.node.attrs, self.form.scanned.index(entry)
        axis = int((attrs.get("scan_input_axes") or [0] * (index + 1))[index])
        backwards = bool((attrs.get("scan_input_directions") or [0] * (index + 1))[index])
        source = self.node.inputs[entry.start]
        if self.count == 1:
            return without_axis(rewriter, source, axis, self.node)
        return taken(rewriter, source, self.count - 1 - number if backwards else number, axis, self.node)

    def _stacking(self, stack: Stack) -> tuple[int, bool]:
        attrs, index = self.node.attrs, self.form.stacks.index(stack)
        if self.node.op == "Loop":
            return 0, False
        axis = int((attrs.get("scan_output_axes") or [0] * (index + 1))[index])
        return axis, bool((attrs.get("scan_output_directions") or [0] * (index + 1))[index])

    def _settle(self, rewriter: Rewriter, twins: dict[Tensor, Tensor]) -> None:
        """Let the nodes of the body itself read what its inputs are in the last iteration."""
        for tensor, value in twins.items():
            readers = list(dict.fromkeys(tensor.outputs))
            rewriter.replace_uses(tensor, value)
            for reader in self.types.refine(readers):
                rewriter.mark(reader)


def _count(node: Node) -> int:
    """Return how many nodes a node is with those of its bodies, Constant nodes left out."""
    if node.op == "Constant":
        return 0
    return 1 + sum(_count(inner) for _, body in subgraphs(node) for inner in body.nodes)
