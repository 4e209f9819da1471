"""Take away outputs that nobody reads, with the work behind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx.defs

from graphopt.analysis.bodies import Bodies
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Node, captures, is_graph_output, producer, subgraphs
from graphopt.passes.simplify.control.bodies import CONTROL_FLOW, body_batch, branches, drop_results
from graphopt.passes.simplify.control.loops import LoopForm, State, remove_from_loop
from graphopt.passes.simplify.look import Look
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, refers_to_function
from graphopt.rewrite.driver import EVERY, Batch, Rule, RulePass
from graphopt.rewrite.patch import Patch
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.dims import Dim
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Rewriter, Tensor
    from graphopt.rewrite.pass_ import Steps

_COUNTED = ("BatchNormalization",)  # before opset 14 the number of outputs chooses the mode


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveUnusedOutputs(RulePass):
    """Take away outputs that nobody reads, with the work behind them.

    Matches:   Optional outputs, by the schema of the operator, that nobody reads (the mask of Dropout, the indices of
               MaxPool, the sequence or the states of LSTM and GRU, the inverse of Unique, the statistics of
               LayerNormalization); outputs of If; stacked outputs of Loop and Scan; carried values of which neither
               the result nor any iteration needs anything; tensors that a Scan slices and its body does not read;
               Split of which one output is read.
    Produces:  The node without the output; bodies without what computed it, and loops without the carried value; a
               Slice in place of the Split, which moves only the bytes that are read.
    Requires:  Outputs of BatchNormalization stay, because before opset 14 their number chooses its mode. A Scan keeps
               one scanned tensor, which says how often it runs. Sizes of the parts of a Split are known up to the one
               that is read.
    Preserves: Every output bitwise; all names, types and shapes that remain.
    Source:    Dead-code elimination of multi-result operations; ONNX operators If, Loop, Scan.
    """

    name: ClassVar[str] = "remove-unused-outputs"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule | Batch]:
        """Return the rule for optional outputs, that for Split and, where the model has bodies, one for them."""
        types, values = facts.get(Types), facts.get(ShapeValues)
        found: list[Rule | Batch] = [
            Rule((EVERY,), _optional_outputs, domain=EVERY),
            Rule(("Split",), lambda node: _single_part(node, types, values)),
        ]
        if facts.get(Bodies):
            found += [Rule(("If",), _branch_results), body_batch(_loop_results, *CONTROL_FLOW)]
        return found


def _is_read(tensor: Tensor) -> bool:
    return bool(tensor.name) and (bool(tensor.outputs) or is_graph_output(tensor))


def _optional_outputs(node: Node) -> Patch | None:
    outputs = node.outputs
    if len(outputs) < 2 or node.op in _COUNTED:
        return None
    unread = [index for index, tensor in enumerate(outputs) if tensor.name and not _is_read(tensor)]
    if not unread or len(unread) == len(outputs):
        return None
    assert node.graph is not None
    domain = "" if node.domain in DEFAULT_DOMAINS else str(node.domain)
    version = node.graph.opset if not domain else node.graph.imports.get(domain, 0)
    dropped = [index for index in unread if index in _optional(node.op, domain, version)]
    if not dropped:
        return None

    def apply(rewriter: Rewriter) -> None:
        for index in dropped:
            if index < len(node.outputs):
                rewriter.drop_output(node, index)

    names = ", ".join(f"'{outputs[index].name}'" for index in dropped)
    return Patch(f"nobody reads {names} of {node.op}", (node,), apply)


@cache
def _optional(op: str, domain: str, version: int) -> frozenset[int]:
    """Return the positions of the outputs of an operator that may be omitted."""
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return frozenset()
    option = onnx.defs.OpSchema.FormalParameterOption.Optional
    return frozenset(index for index, formal in enumerate(schema.outputs) if formal.option == option)


# ---------------------------------------------------------------------------------------------------------------- Split


def _single_part(node: Node, types: Types, values: ShapeValues) -> Patch | None:
    outputs = list(node.outputs)
    read = [index for index, tensor in enumerate(outputs) if _is_read(tensor)]
    if len(outputs) < 2 or len(read) != 1 or refers_to_function(node):
        return None
    look = Look(node, types, values)
    wanted = outputs[read[0]]
    rank = types.rank(node.inputs[0])
    axis = look.axis("axis", 0, rank)
    if axis is None or axis < 0:
        return None
    sizes: Sequence[int | None] = look.ints(1, "split") or [_size(types.shape(tensor), axis) for tensor in outputs]
    before = [size for size in sizes[: read[0] + 1] if size is not None]
    if len(before) <= read[0]:
        return None
    start, end = sum(before[:-1]), sum(before)

    def apply(rewriter: Rewriter) -> None:
        source = node.inputs[0]
        if look.opset < 10:
            attrs = {"starts": [start], "ends": [end], "axes": [axis]}
            part = rewriter.op("Slice", [source], attrs=attrs, like=wanted, near=node, origin=[node])
        else:
            bounds = [
                rewriter.constant(np.array([number], np.int64), near=node, name=f"{wanted.name}_{what}")
                for what, number in (("start", start), ("end", end), ("axis", axis))
            ]
            part = rewriter.op("Slice", [source, *bounds], like=wanted, near=node, origin=[node])
        rewriter.replace_tensor(wanted, part)
        rewriter.erase(node)

    return Patch(f"slice the one part of {node.op} that is read, '{wanted.name}'", (node,), apply)


def _size(shape: tuple[Dim, ...] | None, axis: int) -> int | None:
    size = None if shape is None or axis >= len(shape) else shape[axis]
    return size if isinstance(size, int) else None


# --------------------------------------------------------------------------------------------------------------- bodies


def _branch_results(node: Node) -> Patch | None:
    pair = branches(node)
    unread = [index for index, tensor in enumerate(node.outputs) if not _is_read(tensor)]
    if pair is None or not unread or len(unread) == len(node.outputs):
        return None

    def apply(rewriter: Rewriter) -> None:
        drop_results(rewriter, node, [(index, [(body, index) for body in pair]) for index in unread])

    return Patch(f"nobody reads {len(unread)} outputs of If '{node.name}'", (node,), apply)


def _loop_results(node: Node) -> Steps:
    form = LoopForm.of(node)
    if form is None:
        return
    stacks = [stack for stack in form.stacks if not form.is_read(stack)]
    needed = {stack.result for stack in form.stacks if form.is_read(stack)}
    needed |= {state.result for state in form.states if form.is_read(state)}
    if not needed:
        return
    if form.condition() is not None:
        needed.add(0)
    live = form.behind(needed)
    idle: list[State] = []
    while True:
        idle = [s for s in form.states if s.result not in needed and form.body.inputs[s.inside] not in live]
        waking = {s.result for s in form.states} - {s.result for s in idle} - needed
        if not waking:
            break
        needed |= waking
        live = form.behind(needed)
    if form.needs_a_state() and len(idle) == len(form.states):
        idle = []
        live = form.behind([*needed, *[state.result for state in form.states]])
    scanned = [entry for entry in form.scanned if form.body.inputs[entry.inside] not in live]
    if len(scanned) == len(form.scanned):
        scanned = scanned[1:]
    if not stacks and not idle and not scanned:
        return

    def apply(rewriter: Rewriter) -> None:
        _erase_behind(rewriter, form, needed | {s.result for s in form.states if s not in idle})
        remove_from_loop(rewriter, form, states=idle, stacks=stacks, scanned=scanned)

    counts = ((len(stacks), "stacked outputs"), (len(idle), "carried values"), (len(scanned), "scanned tensors"))
    what = ", ".join(f"{count} {kind}" for count, kind in counts if count)
    yield Patch(f"nobody needs {what} of {node.op} '{node.name}'", (node,), apply)


def _erase_behind(rewriter: Rewriter, form: LoopForm, needed: set[int]) -> None:
    """Erase the nodes of the body that compute nothing but what goes."""
    kept: set[Node] = set()
    stack: list[Tensor] = [form.body.outputs[index] for index in needed]
    while stack:
        made = producer(stack.pop())
        if made is None or made in kept or made.graph is not form.body:
            continue
        kept.add(made)
        stack.extend(made.inputs)
        for _, inner in subgraphs(made):
            stack.extend(captures(inner))
    rewriter.erase([node for node in form.body.nodes if node not in kept])
