"""Loop and Scan taken apart: what is carried, what is stacked, what is scanned, and how each of these goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.graph import Graph, Node, captures, is_graph_output, producer, subgraphs
from graphopt.passes.simplify.purity import is_op, refers_to_function

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphopt.graph import Rewriter, Tensor


@dataclass(frozen=True, slots=True)
class State:
    """A value carried from one iteration to the next, as positions.

    Attributes:
        start: Input of the node: the value before the first iteration.
        inside: Input of the body: the value before this iteration.
        result: Output of the body: the value after this iteration.
        output: Output of the node: the value after the last iteration.
    """

    start: int
    inside: int
    result: int
    output: int


@dataclass(frozen=True, slots=True)
class Stack:
    """A value of every iteration, stacked.

    Attributes:
        result: Output of the body.
        output: Output of the node.
    """

    result: int
    output: int


@dataclass(frozen=True, slots=True)
class Scanned:
    """A tensor of which every iteration of a Scan is given a slice.

    Attributes:
        start: Input of the node.
        inside: Input of the body.
    """

    start: int
    inside: int


@dataclass(frozen=True, slots=True)
class LoopForm:
    """A Loop, or a Scan of opset 9 or newer.

    Attributes:
        node: The node.
        body: Its body.
        states: What is carried, in order.
        stacks: What is stacked, in order.
        scanned: What is scanned, in order; of a Loop nothing.
    """

    node: Node
    body: Graph
    states: tuple[State, ...]
    stacks: tuple[Stack, ...]
    scanned: tuple[Scanned, ...]

    @classmethod
    def of(cls, node: Node) -> LoopForm | None:
        """Return the form of a node; None where it is no loop or its numbers of inputs and outputs do not fit."""
        if not is_op(node, "Loop", "Scan") or node.graph is None or refers_to_function(node):
            return None
        body = dict(subgraphs(node)).get("body")
        if body is None or (node.op == "Scan" and node.graph.opset < 9):
            return None
        ahead = 2 if node.op == "Loop" else 0  # inputs: limit and condition outside, number and condition inside
        extra = 1 if node.op == "Loop" else 0  # outputs of the body: the condition
        scans = int(node.attrs.get("num_scan_inputs", 0)) if node.op == "Scan" else 0
        count = len(node.inputs) - ahead - scans
        if count < 0 or len(body.inputs) != ahead + count + scans or len(body.outputs) != extra + len(node.outputs):
            return None
        if len(node.outputs) < count or not all(tensor.name for tensor in node.inputs[ahead:]):
            return None
        states = tuple(State(ahead + i, ahead + i, extra + i, i) for i in range(count))
        stacks = tuple(Stack(extra + i, i) for i in range(count, len(node.outputs)))
        scanned = tuple(Scanned(count + i, count + i) for i in range(scans))
        return cls(node, body, states, stacks, scanned)

    def condition(self) -> Tensor | None:
        """Return the output of the body that says whether a Loop goes on; None of a Scan."""
        return self.body.outputs[0] if self.node.op == "Loop" else None

    def needs_a_state(self) -> bool:
        """Whether the operator takes no loop that carries nothing: a Loop before opset 11."""
        return self.node.op == "Loop" and self.node.graph is not None and self.node.graph.opset < 11

    def is_read(self, item: State | Stack) -> bool:
        """Whether anybody reads an output of the node."""
        tensor = self.node.outputs[item.output]
        return bool(tensor.name) and (bool(tensor.outputs) or is_graph_output(tensor))

    def behind(self, results: Iterable[int]) -> set[Tensor]:
        """Return the inputs of the body that outputs of the body depend on.

        Args:
            results: Positions of the outputs.
        """
        inputs = set(self.body.inputs)
        found: set[Tensor] = set()
        seen: set[Node] = set()
        stack: list[Tensor] = [self.body.outputs[index] for index in results]
        while stack:
            tensor = stack.pop()
            if tensor in inputs:
                found.add(tensor)
                continue
            node = producer(tensor)
            if node is None or node in seen:
                continue
            seen.add(node)
            stack.extend(node.inputs)
            for _, inner in subgraphs(node):
                stack.extend(captures(inner))
        return found


def remove_from_loop(
    rewriter: Rewriter,
    form: LoopForm,
    *,
    states: Iterable[State] = (),
    stacks: Iterable[Stack] = (),
    scanned: Iterable[Scanned] = (),
) -> None:
    """Take states, stacks and scanned tensors out of a loop; nobody may read what goes.

    Args:
        rewriter: The rewriter of the patch.
        form: The loop, which is out of date afterwards.
        states: States to remove.
        stacks: Stacks to remove.
        scanned: Scanned tensors to remove.
    """
    states, stacks, scanned = list(states), list(stacks), list(scanned)
    node, body = form.node, form.body
    given_out: list[State | Stack] = [*states, *stacks]
    for item in sorted(given_out, key=lambda item: -item.result):
        made = producer(body.outputs[item.result])
        del body.outputs[item.result]
        del node.outputs[item.output]
        if made is not None and made.graph is not None:
            rewriter.mark(made)
    taken_in: list[State | Scanned] = [*states, *scanned]
    for entry in sorted(taken_in, key=lambda entry: -entry.inside):
        del body.inputs[entry.inside]
        rewriter.remove_input(node, entry.start)
    if node.op == "Scan":
        _shorten(rewriter, form, stacks, scanned)
    rewriter.mark(node)


def _shorten(rewriter: Rewriter, form: LoopForm, stacks: list[Stack], scanned: list[Scanned]) -> None:
    """Let the attributes of a Scan list what is left."""
    node = form.node
    gone_outputs = {form.stacks.index(stack) for stack in stacks}
    gone_inputs = {form.scanned.index(entry) for entry in scanned}
    for key, gone in (
        ("scan_output_axes", gone_outputs),
        ("scan_output_directions", gone_outputs),
        ("scan_input_axes", gone_inputs),
        ("scan_input_directions", gone_inputs),
    ):
        given = node.attrs.get(key)
        if given is not None and gone:
            left = [int(value) for index, value in enumerate(given) if index not in gone]
            rewriter.set_attr(node, key, left or None)
    if gone_inputs:
        rewriter.set_attr(node, "num_scan_inputs", len(form.scanned) - len(gone_inputs))
