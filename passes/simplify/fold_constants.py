"""Replace what can be computed in advance by its value."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import (
    Constant,
    Model,
    Node,
    constant_value,
    dtypes,
    is_graph_output,
    producer,
)
from graphopt.passes.simplify.evaluation import evaluate
from graphopt.passes.simplify.placement import Placement, needs_node
from graphopt.passes.simplify.purity import is_constant, is_constant_node, why_impure
from graphopt.passes.simplify.sizes import output_sizes
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Rewriter, Tensor

Array = np.ndarray[Any, Any]

_MOST_ROUNDS = 16
_STEP_FACTOR = 16
_COMPARED_BYTES = 1024
_CHUNK_BYTES = 256 << 20
_SHAPE_ELEMENT_TYPES = (6, 7)  # int32, int64


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldConstants(Pass):
    """Compute in advance what depends on constants or on known shapes alone.

    Matches:   Nodes of the ONNX domain on an allow-list of pure operators, in every scope, whose inputs are all
               constant; and nodes whose integer value follows from known shapes (Shape, Size and what is computed from
               them). An initializer that is a graph input too can be overridden and is not constant.
    Produces:  The value as an initializer of the same name, element type and shape, or as a Constant node where an
               initializer cannot stand (graph outputs, functions, IR version 3). Constant nodes become initializers.
               All values come from ONNX Runtime with its optimizations off, many nodes in one session; onnx.reference
               computes what it has no kernel for.
    Requires:  The size of a result is known before it is computed. It is at most ``limit_bytes``, or the stored bytes
               it frees (a step on the way to another value at most 16 times the limit); all growth together is at most
               ``limit_bytes``. Random and stateful operators, control flow, custom domains, strings, QuantizeLinear
               and DequantizeLinear are never evaluated.
    Preserves: Every output bitwise; names, types and shapes of all tensors that remain.
    Source:    The growth rule weighs results against the inputs that folding frees; see also Muchnick, Advanced
               Compiler Design and Implementation, 1997, section 12.1.

    Options:
        limit_bytes: Largest result that may be bigger than what it replaces, and most that the model may grow.
    """

    name: ClassVar[str] = "fold-constants"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    limit_bytes: int = 1 << 16

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch for every folded node whose value is used by a node that stays."""
        placement = Placement(model)
        yield from _lift_constant_nodes(model, placement)
        skipped: dict[Node, str] = {}
        for _ in range(_MOST_ROUNDS):
            plan = _Plan(model, facts, self.limit_bytes, placement)
            changed = False
            for patch in plan.patches():
                yield patch
                changed = True
            skipped |= plan.skips
            if not (changed and plan.unknown_sizes):
                break
        yield from (Skip(node, reason) for node, reason in skipped.items() if node.graph is not None)


@dataclass(slots=True)
class _Candidate:
    """A node that could be folded.

    Attributes:
        index: Its place in topological order.
        size: Bytes of its outputs.
        given: Its value where known shapes say it; None where it has to be computed.
    """

    node: Node
    index: int
    size: int
    given: Array | None = None


@dataclass(slots=True)
class _Plan:
    """One round: the nodes to fold, decided before anything is computed."""

    model: Model
    facts: Facts
    limit: int
    placement: Placement
    skips: dict[Node, str] = field(default_factory=dict)
    unknown_sizes: int = 0
    folded: dict[Node, _Candidate] = field(default_factory=dict)
    types: Types = field(init=False)
    bytes_of: dict[Tensor, int] = field(default_factory=dict)
    keys: dict[Node, int] = field(default_factory=dict)
    known_keys: dict[object, int] = field(default_factory=dict)
    reweighed: set[Tensor] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.types = self.facts.get(Types)  # kept: the patches of this round make the facts stale, not wrong
        shape_values = self.facts.get(ShapeValues)
        for _, node in self.model.walk():
            self._consider(node, shape_values)
        queue = deque(candidate for candidate in self.folded.values() if candidate.size > self.limit)
        self._enforce_limit(queue)
        self._enforce_total()

    # --------------------------------------------------------------------------------------------- finding candidates

    def _consider(self, node: Node, shape_values: ShapeValues) -> None:
        outputs = [tensor for tensor in node.outputs if tensor.name]
        if is_constant_node(node) or not outputs or _is_sink(node):
            return
        inputs = [tensor for tensor in node.inputs if tensor.name]
        if all(is_constant(tensor) or self._is_folded(tensor) for tensor in inputs):
            self._consider_constant(node, inputs, outputs)
        elif all(isinstance(tensor, Constant) or is_constant(tensor) or self._is_folded(tensor) for tensor in inputs):
            names = ", ".join(f"'{t.name}'" for t in inputs if isinstance(t, Constant) and not is_constant(t))
            self.skips[node] = f"whoever runs the model may override {names}, which is an input too"
        elif len(outputs) == 1 and not why_impure(node):
            value = _value_from_shapes(outputs[0], self.types, shape_values)
            if value is not None:
                self._accept(node, [(outputs[0], value.nbytes)], value)

    def _consider_constant(self, node: Node, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        reason = why_impure(node)
        if reason:
            self.skips[node] = reason
            return
        sizes = output_sizes(node, self.types)
        if sizes is None:
            self.unknown_sizes += 1
            if all(is_constant(tensor) for tensor in inputs):
                self.skips[node] = "the size of its result is not known before it is computed"
            return
        if any(self.types.dtype(tensor) == dtypes.STRING for tensor in outputs):
            self.skips[node] = "strings are not evaluated"
            return
        self._accept(node, list(zip(outputs, sizes, strict=True)), None)

    def _accept(self, node: Node, sizes: Sequence[tuple[Tensor, int]], value: Array | None) -> None:
        self.folded[node] = _Candidate(node, len(self.folded), sum(size for _, size in sizes), value)
        self.bytes_of.update(sizes)
        form = (node.op, node.domain, _attributes_key(node), tuple(map(self._input_key, node.inputs)))
        self.keys[node] = self.known_keys.setdefault(form, len(self.known_keys))

    def _input_key(self, tensor: Tensor) -> object:
        """Return what is equal for inputs that surely hold the same value."""
        made = producer(tensor)
        if made is not None and made in self.keys:
            return self.keys[made], made.outputs.index(tensor)
        return _constant_key(tensor) if isinstance(tensor, Constant) else id(tensor)

    def _is_folded(self, tensor: Tensor) -> bool:
        node = producer(tensor)
        return node is not None and node in self.folded

    # ------------------------------------------------------------------------------------------------ limiting growth

    def _enforce_limit(self, queue: deque[_Candidate]) -> None:
        """Refuse what is too large for itself, in rounds: a refusal puts those back that are weighed anew."""
        while queue:
            self.reweighed.clear()
            freed = self._freed()
            waiting = [candidate for candidate in queue if candidate.node in self.folded and candidate.given is None]
            queue.clear()
            for candidate in waiting:
                # what is only a step on the way to another value is held for a while, not stored
                most = self.limit if self._is_frontier(candidate.node) else self.limit * _STEP_FACTOR
                gain = int(freed.get(candidate.node, 0))
                if candidate.node in self.folded and candidate.size > max(most, gain):
                    self._refuse(candidate.node, queue, _growth_reason(candidate.size, gain, most))

    def _enforce_total(self) -> None:
        """Refuse the last results that would let the model grow by more than the limit in sum, in rounds."""
        while True:
            freed = self._freed()
            grown = 0.0
            stored: set[int] = set()
            over: list[Node] = []
            for node, candidate in self.folded.items():
                if self.keys[node] in stored or not self._is_frontier(node):
                    continue
                stored.add(self.keys[node])  # equal values are stored once
                growth = max(0.0, candidate.size - freed[node])
                if grown + growth > self.limit:
                    over.append(node)
                else:
                    grown += growth
            if not over:
                return
            self.reweighed.clear()
            queue: deque[_Candidate] = deque()
            for node in over:
                if node in self.folded:
                    self._refuse(node, queue, f"the model would grow by more than {self.limit} bytes in sum")
            self._enforce_limit(queue)

    def _freed(self) -> dict[Node, float]:
        """Return, per node, the stored bytes that folding it frees, shared equally among the values computed from them.

        Only what the file holds counts: initializers, also those behind inputs that are folded themselves. A value that
        was computed on the way frees nothing.
        """
        freed: dict[Node, float] = {}
        shares: dict[Tensor, float] = {}
        for node in self.folded:  # in topological order
            inputs = dict.fromkeys(node.inputs)
            for tensor in inputs:
                if tensor not in shares:
                    shares[tensor] = self._freed_by(tensor, freed)
            freed[node] = sum(shares[tensor] for tensor in inputs)
        return freed

    def _maker(self, tensor: Tensor) -> Node | None:
        """Return the node that computes a tensor if it is folded, and is no Constant node that holds it."""
        made = None if isinstance(tensor, Constant) else producer(tensor)
        if made is None or made not in self.folded or self.folded[made].given is not None:
            return None
        return made

    def _freed_by(self, tensor: Tensor, freed: dict[Node, float]) -> float:
        if not tensor.name or is_graph_output(tensor):
            return 0.0
        if not all(reader in self.folded for reader in tensor.outputs):
            return 0.0
        readers = len({self.keys[reader] for reader in tensor.outputs})
        made = self._maker(tensor)
        if made is not None:
            return freed[made] / readers
        size = tensor.nbytes if isinstance(tensor, Constant) else self.bytes_of.get(tensor, 0)
        return size / readers

    def _refuse(self, node: Node, queue: deque[_Candidate], reason: str) -> None:
        """Take a node out, with all that needs its value; what shares its inputs is weighed again."""
        self.skips[node] = reason
        stack = [node]
        while stack:
            gone = stack.pop()
            if self.folded.pop(gone, None) is None:
                continue
            for tensor in gone.outputs:
                stack.extend(reader for reader in tensor.outputs if reader in self.folded and not self._stands(reader))
            for tensor in gone.inputs:
                if tensor in self.reweighed:
                    continue
                self.reweighed.add(tensor)
                made = self._maker(tensor)
                again = [*(tensor.outputs if tensor.name else ()), *([] if made is None else [made])]
                for other in again:
                    candidate = self.folded.get(other)
                    if candidate is not None and candidate.size > self.limit:
                        queue.append(candidate)

    def _stands(self, reader: Node) -> bool:
        return self.folded[reader].given is not None

    def _is_frontier(self, node: Node) -> bool:
        return bool(self._needed(node))

    def _needed(self, node: Node) -> list[Tensor]:
        """Return the outputs that are read by nodes that stay, or are graph outputs."""
        return [
            tensor
            for tensor in node.outputs
            if tensor.name and (is_graph_output(tensor) or any(reader not in self.folded for reader in tensor.outputs))
        ]

    # -------------------------------------------------------------------------------------------------------- patches

    def patches(self) -> Iterator[Patch]:
        """Yield a patch for each folded node with a needed value, in topological order."""
        remaining = {
            tensor: len(tensor.outputs)
            for node in self.folded
            for tensor in (*node.inputs, *node.outputs)
            if tensor.name and tensor.inputs
        }
        for group in self._groups():
            values = self._computed(group)
            for candidate in group:
                node = candidate.node
                wanted = self._needed(node)
                if all(tensor in values for tensor in wanted):
                    dead = self._dead_with(node, remaining)
                    yield self._patch(node, {tensor: values[tensor] for tensor in wanted}, dead)

    def _groups(self) -> Iterator[list[_Candidate]]:
        """Yield the nodes with needed values, divided by opset and into portions that fit memory."""
        by_opset: dict[int, list[_Candidate]] = {}
        for candidate in self.folded.values():
            if self._is_frontier(candidate.node):
                by_opset.setdefault(_opset(candidate.node), []).append(candidate)
        for candidates in by_opset.values():
            group: list[_Candidate] = []
            size = 0
            for candidate in candidates:
                if group and size + candidate.size > _CHUNK_BYTES:
                    yield group
                    group, size = [], 0
                group.append(candidate)
                size += candidate.size
            yield group

    def _computed(self, group: list[_Candidate]) -> dict[Tensor, Array]:
        """Return the needed values of the nodes; those that cannot be computed are skipped with the reason."""
        values = {c.node.outputs[0]: c.given for c in group if c.given is not None}
        wanted = [tensor for c in group if c.given is None for tensor in self._needed(c.node)]
        if not wanted:
            return values
        needed, given = self._behind(wanted)
        elements = {tensor: self.types.dtype(tensor) for node in needed for tensor in node.outputs if tensor.name}
        result = evaluate(
            needed, wanted, elements, given, opset=_opset(group[0].node), ir_version=self.model.ir_version
        )
        self.skips |= result.failures
        return values | result.values

    def _behind(self, wanted: list[Tensor]) -> tuple[list[Node], dict[Tensor, Array]]:
        """Return the nodes that compute the tensors, in topological order, and the values known from shapes."""
        given: dict[Tensor, Array] = {}
        found: dict[Node, int] = {}
        stack = list(wanted)
        while stack:
            node = producer(stack.pop())
            if node is None or node in found or node not in self.folded:
                continue
            candidate = self.folded[node]
            if candidate.given is not None:
                given[node.outputs[0]] = candidate.given
                continue
            found[node] = candidate.index
            stack.extend(tensor for tensor in node.inputs if tensor.name)
        return sorted(found, key=found.__getitem__), given

    def _dead_with(self, node: Node, remaining: dict[Tensor, int]) -> list[Node]:
        """Return the node and the folded and Constant nodes before it that nobody reads once it is gone."""
        dead, stack = [], [node]
        while stack:
            gone = stack.pop()
            dead.append(gone)
            for tensor in gone.inputs:
                before = producer(tensor) if tensor in remaining else None  # a patch may have made it
                if before is None or not (before in self.folded or is_constant_node(before)):
                    continue
                remaining[tensor] -= 1
                if not any(remaining[t] for t in before.outputs if t.name) and not self._needed(before):
                    stack.append(before)
        return dead

    def _patch(self, node: Node, values: dict[Tensor, Array], dead: list[Node]) -> Patch:
        def apply(rewriter: Rewriter) -> None:
            for tensor, value in values.items():
                self.placement.put(rewriter, node, tensor, value)
            rewriter.erase(dead)

        names = ", ".join(f"'{tensor.name}'" for tensor in values)
        behind = f" and {len(dead) - 1} nodes before it" if len(dead) > 1 else ""
        return Patch(f"fold {node.op}{behind} into the constant {names}", tuple(dead), apply)


def _lift_constant_nodes(model: Model, placement: Placement) -> Iterator[Patch]:
    """Yield a patch for each graph that makes initializers of its Constant nodes."""
    for graph in list(model.graphs()):
        if needs_node(graph, model):
            continue
        found = [
            (node, value)
            for node in graph.nodes
            if is_constant_node(node)
            and "sparse_value" not in node.attrs
            and not is_graph_output(node.outputs[0])
            and (value := constant_value(node.outputs[0])) is not None
            and value.dtype != dtypes.OBJECT
        ]
        if not found:
            continue

        def apply(rewriter: Rewriter, found: list[tuple[Node, Array]] = found) -> None:
            for node, value in found:
                placement.put(rewriter, node, node.outputs[0], value)
            rewriter.erase([node for node, _ in found])

        reason = f"make initializers of {len(found)} Constant nodes of graph '{graph.name}'"
        yield Patch(reason, tuple(node for node, _ in found), apply)


def _value_from_shapes(tensor: Tensor, types: Types, shape_values: ShapeValues) -> Array | None:
    """Return the value of an integer tensor that known shapes determine, else None."""
    element, shape, entries = types.dtype(tensor), types.shape(tensor), shape_values.value(tensor)
    if element not in _SHAPE_ELEMENT_TYPES or shape is None or entries is None:
        return None
    if not all(isinstance(size, int) for size in (*shape, *entries)):
        return None
    return np.array(entries, dtypes.numpy_dtype(element)).reshape(shape)


def _is_sink(node: Node) -> bool:
    """Whether nobody reads the node: it is eliminate-dead that removes it."""
    return not any(tensor.outputs or is_graph_output(tensor) for tensor in node.outputs if tensor.name)


def _opset(node: Node) -> int:
    graph = node.graph
    assert graph is not None
    return graph.opset


def _attributes_key(node: Node) -> object:
    """Return what is equal for nodes whose attributes are."""
    items = sorted(node.attrs.items())
    return tuple((name, _constant_key(value) if isinstance(value, Constant) else repr(value)) for name, value in items)


def _constant_key(constant: Constant) -> object:
    """Return what is equal for constants of one value; large ones are not read and equal themselves alone."""
    if constant.nbytes > _COMPARED_BYTES or constant.onnx_dtype == dtypes.STRING:
        return id(constant)
    value = constant.array()
    return value.dtype.str, value.shape, value.tobytes()


def _growth_reason(size: int, freed: int, limit: int) -> str:
    return f"the result has {size} bytes; its inputs free {freed} and at most {limit} are allowed"
