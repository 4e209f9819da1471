"""Which nodes to fold: decided from sizes alone, so that no file grows for it, before anything is computed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Constant, Node, constant_value, dtypes, is_graph_output, producer
from graphopt.passes.simplify.folding import packed
from graphopt.passes.simplify.folding.sizes import output_sizes
from graphopt.passes.simplify.look import INTEGERS
from graphopt.passes.simplify.purity import is_constant, is_constant_node, why_impure
from graphopt.rewrite.driver import in_position

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graphopt.analysis.shape_values import ShapeValues
    from graphopt.analysis.types import Types
    from graphopt.graph import Model, Tensor

Array = np.ndarray[Any, Any]

_STEP_FACTOR = 16
_COMPARED_BYTES = 1024
_DIVISIONS = ("Div", "Mod")
_SHAPE_ELEMENT_TYPES = (6, 7)  # int32, int64


@dataclass(slots=True)
class Candidate:
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
class Plan:
    """The nodes to fold, decided before anything is computed.

    Args:
        model: The model.
        types: Element types and shapes.
        values: Elements of shape computations.
        limit: Largest result that may be bigger than what it replaces, and most that the model may grow.
        grown: Bytes that the model has grown by already.

    Attributes:
        folded: The nodes to fold, each after those it depends on.
        skips: Why others are not, by node.
        exhausted: Whether something was refused because the model had grown enough.
    """

    model: Model
    types: Types
    values: ShapeValues
    limit: int
    grown: float = 0.0
    skips: dict[Node, str] = field(default_factory=dict)
    folded: dict[Node, Candidate] = field(default_factory=dict)
    exhausted: bool = False
    _bytes_of: dict[Tensor, int] = field(default_factory=dict)
    _keys: dict[Node, int] = field(default_factory=dict)
    _known_keys: dict[object, int] = field(default_factory=dict)
    _reweighed: set[Tensor] = field(default_factory=set)

    def decide(self, seeds: Iterable[Node]) -> None:
        """Choose among nodes, and among what depends on those alone.

        Args:
            seeds: Nodes whose inputs are constant or whose value follows from shapes, in topological order.
        """
        seen: set[Node] = set()
        for seed in seeds:
            stack = [seed]
            while stack:
                node = stack.pop()
                if node in seen or node in self.folded:
                    continue
                self._consider(node)
                if node in self.folded:
                    stack.extend(reversed([reader for tensor in node.outputs for reader in tensor.outputs]))
                elif node in self.skips:
                    seen.add(node)
        self.folded = {node: self.folded[node] for node in in_position(self.folded)}
        for index, candidate in enumerate(self.folded.values()):
            candidate.index = index
        queue = deque(candidate for candidate in self.folded.values() if candidate.size > self.limit)
        self._enforce_limit(queue)
        self._enforce_total()

    # --------------------------------------------------------------------------------------------- finding candidates

    def _consider(self, node: Node) -> None:
        outputs = [tensor for tensor in node.outputs if tensor.name]
        if is_constant_node(node) or not outputs or is_sink(node):
            return
        inputs = [tensor for tensor in node.inputs if tensor.name]
        if all(is_constant(tensor) or self._is_folded(tensor) for tensor in inputs):
            self._consider_constant(node, inputs, outputs)
        elif all(isinstance(tensor, Constant) or is_constant(tensor) or self._is_folded(tensor) for tensor in inputs):
            names = ", ".join(f"'{t.name}'" for t in inputs if isinstance(t, Constant) and not is_constant(t))
            self.skips[node] = f"whoever runs the model may override {names}, which is an input too"
        elif len(outputs) == 1 and not why_impure(node):
            value = value_from_shapes(outputs[0], self.types, self.values)
            if value is not None:
                self._accept(node, [(outputs[0], value.nbytes)], value)

    def _consider_constant(self, node: Node, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        reason = why_impure(node)
        if reason:
            self.skips[node] = reason
            return
        sizes = output_sizes(node, self.types)
        if sizes is None:
            if all(is_constant(tensor) for tensor in inputs):
                self.skips[node] = "the size of its result is not known before it is computed"
            return
        if any(self.types.dtype(tensor) == dtypes.STRING for tensor in outputs):
            self.skips[node] = "strings are not evaluated"
            return
        if packed.unpacks(node, sum(sizes)):
            self.skips[node] = packed.REASON
            return
        if node.op in _DIVISIONS and self.types.dtype(outputs[0]) in INTEGERS:
            self._consider_division(node, outputs[0], sizes[0])
            return
        self._accept(node, list(zip(outputs, sizes, strict=True)), None)

    def _consider_division(self, node: Node, output: Tensor, size: int) -> None:
        """Accept a division of integers that is defined: processors stop the program at any other."""
        value = value_from_shapes(output, self.types, self.values)
        if value is not None:
            self._accept(node, [(output, value.nbytes)], value)
            return
        dividend, divisor = (constant_value(tensor) for tensor in node.inputs[:2])
        if dividend is None or divisor is None:
            return  # once the operands are constants themselves it is asked for again
        overflows = bool(np.any(divisor == -1)) and bool(np.any(dividend == np.iinfo(dividend.dtype).min))
        if overflows or bool(np.any(divisor == 0)):
            self.skips[node] = "it divides by 0, or the smallest number by -1, which ends the program"
        else:
            self._accept(node, [(output, size)], None)

    def _accept(self, node: Node, sizes: Sequence[tuple[Tensor, int]], value: Array | None) -> None:
        self.folded[node] = Candidate(node, len(self.folded), sum(size for _, size in sizes), value)
        self._bytes_of.update(sizes)
        form = (node.op, node.domain, attributes_key(node), tuple(map(self._input_key, node.inputs)))
        self._keys[node] = self._known_keys.setdefault(form, len(self._known_keys))

    def _input_key(self, tensor: Tensor) -> object:
        """Return what is equal for inputs that surely hold the same value."""
        made = producer(tensor)
        if made is not None and made in self._keys:
            return self._keys[made], made.outputs.index(tensor)
        return constant_key(tensor) if isinstance(tensor, Constant) else id(tensor)

    def _is_folded(self, tensor: Tensor) -> bool:
        node = producer(tensor)
        return node is not None and node in self.folded

    # ------------------------------------------------------------------------------------------------ limiting growth

    def _enforce_limit(self, queue: deque[Candidate]) -> None:
        """Refuse what is too large for itself, in rounds: a refusal puts those back that are weighed anew."""
        while queue:
            self._reweighed.clear()
            freed = self._freed()
            waiting = [candidate for candidate in queue if candidate.node in self.folded and candidate.given is None]
            queue.clear()
            for candidate in waiting:
                # what is only a step on the way to another value is held for a while, not stored
                most = self.limit if self.is_frontier(candidate.node) else self.limit * _STEP_FACTOR
                gain = int(freed.get(candidate.node, 0))
                if candidate.node in self.folded and candidate.size > max(most, gain):
                    self._refuse(candidate.node, queue, _growth_reason(candidate.size, gain, most))

    def _enforce_total(self) -> None:
        """Refuse the last results that would let the model grow by more than the limit in sum, in rounds."""
        while True:
            freed = self._freed()
            grown = self.grown
            stored: set[int] = set()
            over: list[Node] = []
            for node, candidate in self.folded.items():
                if self._keys[node] in stored or not self.is_frontier(node):
                    continue
                stored.add(self._keys[node])  # equal values are stored once
                growth = max(0.0, candidate.size - freed[node])
                if grown + growth > self.limit:
                    over.append(node)
                else:
                    grown += growth
            if not over:
                self.grown = grown
                return
            self.exhausted = True
            self._reweighed.clear()
            queue: deque[Candidate] = deque()
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
        readers = len({self._keys[reader] for reader in tensor.outputs})
        made = self._maker(tensor)
        if made is not None:
            return freed[made] / readers
        size = tensor.nbytes if isinstance(tensor, Constant) else self._bytes_of.get(tensor, 0)
        return size / readers

    def _refuse(self, node: Node, queue: deque[Candidate], reason: str) -> None:
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
                if tensor in self._reweighed:
                    continue
                self._reweighed.add(tensor)
                made = self._maker(tensor)
                again = [*(tensor.outputs if tensor.name else ()), *([] if made is None else [made])]
                for other in again:
                    candidate = self.folded.get(other)
                    if candidate is not None and candidate.size > self.limit:
                        queue.append(candidate)

    def _stands(self, reader: Node) -> bool:
        return self.folded[reader].given is not None

    def is_frontier(self, node: Node) -> bool:
        """Whether the value of a folded node is read by nodes that stay."""
        return bool(self.needed(node))

    def needed(self, node: Node) -> list[Tensor]:
        """Return the outputs that are read by nodes that stay, or are graph outputs."""
        return [
            tensor
            for tensor in node.outputs
            if tensor.name and (is_graph_output(tensor) or any(reader not in self.folded for reader in tensor.outputs))
        ]


def value_from_shapes(tensor: Tensor, types: Types, shape_values: ShapeValues) -> Array | None:
    """Return the value of an integer tensor that known shapes determine, else None.

    Args:
        tensor: The tensor.
        types: Element types and shapes.
        shape_values: Elements of shape computations.
    """
    element = types.dtype(tensor)
    if element not in _SHAPE_ELEMENT_TYPES:
        return None
    shape, entries = types.shape(tensor), shape_values.value(tensor)
    if shape is None or entries is None or not all(isinstance(size, int) for size in (*shape, *entries)):
        return None
    return np.array(entries, dtypes.numpy_dtype(element)).reshape(shape)


def is_sink(node: Node) -> bool:
    """Whether nobody reads the node: it is eliminate-dead that removes it.

    Args:
        node: The node.
    """
    for tensor in node.outputs:  # noqa: SIM110 - asked of every node, and a generator costs more
        if (tensor.outputs or is_graph_output(tensor)) and tensor.name:
            return False
    return True


def attributes_key(node: Node) -> object:
    """Return what is equal for nodes whose attributes are.

    Args:
        node: The node.
    """
    items = sorted(node.attrs.items())
    return tuple((name, constant_key(value) if isinstance(value, Constant) else repr(value)) for name, value in items)


def constant_key(constant: Constant) -> object:
    """Return what is equal for constants of one value; large ones are not read and equal themselves alone.

    Args:
        constant: The constant.
    """
    if constant.nbytes > _COMPARED_BYTES or constant.onnx_dtype == dtypes.STRING:
        return id(constant)
    value = constant.array()
    return constant.onnx_dtype, value.shape, value.tobytes()


def _growth_reason(size: int, freed: int, limit: int) -> str:
    return f"the result has {size} bytes; its inputs free {freed} and at most {limit} are allowed"
