"""Replace sequences and optionals whose elements are known by the elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Node, Tensor, is_graph_output, producer
from graphopt.passes.simplify.control.stacking import with_axis
from graphopt.passes.simplify.look import Look
from graphopt.passes.simplify.purity import DEFAULT_DOMAINS, is_op, refers_to_function
from graphopt.passes.simplify.removal import bypass, erase_unread
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Rewriter

_LONGEST = 4096
_DEEPEST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveSequences(RulePass):
    """Replace sequences and optionals whose elements are known by the elements.

    Matches:   SequenceAt, SequenceLength and ConcatFromSequence of sequences that SequenceConstruct, SequenceEmpty,
               SequenceInsert and SequenceErase make at constant positions; SplitToSequence into known parts of which
               SequenceAt takes some, or that are joined again; OptionalGetElement and OptionalHasElement of Optional
               and of what is no optional.
    Produces:  The element itself; a constant; a Concat; one Split, or Gather where the parts have no axis of their own.
               At least one node less, and no copy of tensors into a sequence and out of it.
    Requires:  Constant positions inside the sequence. A split by given sizes that asks to drop the axis stays, since
               ONNX says it does not and ONNX Runtime does. Sequences that are outputs of a graph, or that bodies
               change in each iteration, stay.
    Preserves: Every output bitwise; public names, types and shapes.
    Source:    ONNX operators on sequences and optionals; scalar replacement of aggregates, Muchnick, Advanced Compiler
               Design and Implementation, 1997, 12.2.
    """

    name: ClassVar[str] = "resolve-sequences"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return one rule per operator that takes a sequence or an optional apart."""
        known = _Elements(facts.get(Types), facts.get(ShapeValues))
        return [
            Rule(("SequenceAt",), lambda node: _element(node, known), depth=2),
            Rule(("SequenceLength",), lambda node: _length(node, known), depth=2),
            Rule(("ConcatFromSequence",), lambda node: _joined(node, known), depth=2),
            Rule(("SplitToSequence",), lambda node: _split(node, known), depth=1, below=1),
            Rule(("OptionalGetElement", "OptionalHasElement"), lambda node: _optional(node, known), depth=2),
        ]


@dataclass(frozen=True, slots=True)
class _Part:
    """One element of what a SplitToSequence gives.

    Attributes:
        node: The SplitToSequence.
        index: Which element.
    """

    node: Node
    index: int


_Element: TypeAlias = "Tensor | _Part"


class _Elements:
    """Finds the elements of sequences."""

    def __init__(self, types: Types, values: ShapeValues) -> None:
        self.types = types
        self.values = values

    def of(self, sequence: Tensor) -> list[_Element] | None:
        """Return the elements of a sequence in order, None where they are not known."""
        steps: list[Node] = []
        found: list[_Element] | None = None
        for _ in range(_DEEPEST):
            node = producer(sequence)
            if node is None or node.domain not in DEFAULT_DOMAINS or refers_to_function(node):
                return None
            if node.op in {"SequenceInsert", "SequenceErase", "Identity"}:
                steps.append(node)
                sequence = node.inputs[0]
                continue
            found = self._made(node)
            break
        for node in reversed(steps):
            if found is None or len(found) > _LONGEST:
                return None
            found = self._changed(node, found)
        return found

    def _made(self, node: Node) -> list[_Element] | None:
        if node.op == "SequenceEmpty":
            return []
        if node.op == "SequenceConstruct":
            return list(node.inputs)
        if node.op != "SplitToSequence":
            return None
        sizes = self.sizes(node)
        return None if sizes is None else [_Part(node, index) for index in range(len(sizes))]

    def _changed(self, node: Node, elements: list[_Element]) -> list[_Element] | None:
        """Return the elements after one step; a position outside, at which the node fails, gives None."""
        if node.op == "Identity":
            return elements
        inserts = node.op == "SequenceInsert"
        place = self.position(node, 2 if inserts else 1)
        count = len(elements)
        if place is None:
            given = len(node.inputs) > (2 if inserts else 1) and node.inputs[2 if inserts else 1].name
            if given:
                return None
            place = count if inserts else count - 1
        elif place < 0:
            place += count
        if not 0 <= place < count + inserts:
            return None
        if inserts:
            return [*elements[:place], node.inputs[1], *elements[place:]]
        return [*elements[:place], *elements[place + 1 :]]

    def position(self, node: Node, index: int) -> int | None:
        """Return a constant position that a node is given."""
        found = Look(node, self.types, self.values).ints(index, "")
        return found[0] if found is not None and len(found) == 1 else None

    def sizes(self, node: Node) -> list[int] | None:
        """Return the sizes of the parts of a SplitToSequence, None where they are not known."""
        axis = self.axis(node)
        shape = self.types.shape(node.inputs[0])
        size = shape[axis] if shape is not None and axis is not None and axis < len(shape) else None
        if len(node.inputs) < 2 or not node.inputs[1].name:
            return [1] * size if isinstance(size, int) and size <= _LONGEST else None
        if not _keeps_axis(node):
            return None
        given = Look(node, self.types, self.values).ints(1, "")
        rank = self.types.rank(node.inputs[1])
        if given is None or rank is None or any(part < 0 for part in given):
            return None
        if rank == 1:
            return given
        step = given[0]
        if not isinstance(size, int) or step <= 0 or size // step > _LONGEST:
            return None
        return [step] * (size // step) + [size % step] * (size % step > 0)

    def axis(self, node: Node) -> int | None:
        """Return the axis of a SplitToSequence counted from the front."""
        return Look(node, self.types, self.values).axis("axis", 0, self.types.rank(node.inputs[0]))


def _keeps_axis(node: Node) -> bool:
    """Whether the elements of a SplitToSequence keep the axis along which it splits."""
    return int(node.attrs.get("keepdims", 1)) == 1


# --------------------------------------------------------------------------------------------- taking sequences apart


def _element(node: Node, known: _Elements) -> Patch | Skip | None:
    elements, place = known.of(node.inputs[0]), known.position(node, 1)
    if elements is None or place is None or not -len(elements) <= place < len(elements):
        return None
    found = elements[place]
    if not isinstance(found, _Part):
        return bypass(node, found, f"element {place} of the sequence is '{found.name}'", known.types)
    if found.node.outputs[0] is node.inputs[0] and _keeps_axis(found.node):
        return None  # all elements are taken apart by one Split, if at all
    part = found

    def apply(rewriter: Rewriter) -> None:
        before = list(node.inputs)
        _give(rewriter, node.outputs[0], _taken(rewriter, part, node, known), known)
        rewriter.erase(node)
        erase_unread(rewriter, before)

    return Patch(f"take element {place} of what {found.node.op} splits from its source", (node, found.node), apply)


def _taken(rewriter: Rewriter, part: _Part, node: Node, known: _Elements) -> Tensor:
    """Return one element of a split tensor, taken from the tensor."""
    source, axis, sizes = part.node.inputs[0], known.axis(part.node), known.sizes(part.node)
    assert axis is not None
    assert sizes is not None
    like = node.outputs[0]
    start, end = sum(sizes[: part.index]), sum(sizes[: part.index + 1])
    origin = [part.node, node]
    found: Tensor
    if not _keeps_axis(part.node):
        index = rewriter.constant(np.array(start, np.int64), near=node)
        found = rewriter.op("Gather", [source, index], attrs={"axis": axis}, like=like, near=node, origin=origin)
    else:
        bounds = [rewriter.constant(np.array([number], np.int64), near=node) for number in (start, end, axis)]
        found = rewriter.op("Slice", [source, *bounds], like=like, near=node, origin=origin)
    return found


def _length(node: Node, known: _Elements) -> Patch | None:
    elements = known.of(node.inputs[0])
    if elements is None:
        return None

    def apply(rewriter: Rewriter) -> None:
        before = list(node.inputs)
        _give(rewriter, node.outputs[0], rewriter.constant(np.array(len(elements), np.int64), near=node), known)
        rewriter.erase(node)
        erase_unread(rewriter, before)

    return Patch(f"the sequence has {len(elements)} elements", (node,), apply)


def _joined(node: Node, known: _Elements) -> Patch | Skip | None:
    elements = known.of(node.inputs[0])
    if not elements or refers_to_function(node):
        return None
    axis, stacks = int(node.attrs.get("axis", 0)), bool(node.attrs.get("new_axis", 0))
    first = elements[0]
    if isinstance(first, _Part):
        return _rejoined(node, first.node, elements, axis, known, stacks=stacks)
    tensors = [element for element in elements if not isinstance(element, _Part)]
    if len(tensors) < len(elements):
        return None
    if len(tensors) == 1 and not stacks:
        return bypass(node, tensors[0], f"the sequence is '{tensors[0].name}' alone", known.types)
    if stacks and len(tensors) + (len(tensors) > 1) > 1 + _only_for(node.inputs[0], node):
        return None

    def apply(rewriter: Rewriter) -> None:
        before = list(node.inputs)
        parts = [with_axis(rewriter, tensor, axis, node) for tensor in tensors] if stacks else tensors
        made = parts[0]
        if len(parts) > 1:
            made = rewriter.op("Concat", parts, attrs={"axis": axis}, like=node.outputs[0], near=node, origin=[node])
        _give(rewriter, node.outputs[0], made, known)
        rewriter.erase(node)
        erase_unread(rewriter, before)

    return Patch(f"concatenate the {len(tensors)} elements of the sequence", (node,), apply)


def _only_for(sequence: Tensor, reader: Node) -> int:
    """Return how many nodes make a sequence for one reader alone."""
    count = 0
    while len(sequence.outputs) == 1 and sequence.outputs[0] is reader and not is_graph_output(sequence):
        node = producer(sequence)
        if node is None:
            break
        count += 1
        if not node.inputs or not is_op(node, "SequenceInsert", "SequenceErase", "Identity"):
            break
        sequence, reader = node.inputs[0], node
    return count


def _rejoined(
    node: Node, source: Node, elements: list[_Element], axis: int, known: _Elements, *, stacks: bool
) -> Patch | Skip | None:
    """Return the patch for all parts of a tensor that are joined as they were."""
    rank, along = known.types.rank(source.inputs[0]), known.axis(source)
    if rank is None or along is None or elements != [_Part(source, index) for index in range(len(elements))]:
        return None
    if len(elements) != len(known.sizes(source) or ()) or stacks == _keeps_axis(source):
        return None
    if axis % rank != along:
        return None
    return bypass(node, source.inputs[0], f"join the parts of '{source.inputs[0].name}' as they were", known.types)


def _give(rewriter: Rewriter, output: Tensor, tensor: Tensor, known: _Elements) -> None:
    """Let everybody read a tensor instead of an output, of whose value and shape less may have been known."""
    readers = list(dict.fromkeys(output.outputs))
    rewriter.replace_tensor(output, tensor)
    for reader in known.types.refine(readers):
        rewriter.mark(reader)


# ---------------------------------------------------------------------------------------------------- SplitToSequence


def _split(node: Node, known: _Elements) -> Patch | None:
    """Replace a split of which every reader takes one element, or the number of elements, by one Split."""
    output, sizes, axis = node.outputs[0], known.sizes(node), known.axis(node)
    readers = list(dict.fromkeys(output.outputs))
    if refers_to_function(node) or sizes is None or axis is None or not readers or is_graph_output(output):
        return None
    if not sizes or not _keeps_axis(node) or not all(is_op(r, "SequenceAt", "SequenceLength") for r in readers):
        return None
    places: dict[Node, int] = {}
    for reader in readers:
        if reader.op == "SequenceLength":
            continue
        place = known.position(reader, 1)
        if place is None or not -len(sizes) <= place < len(sizes):
            return None
        places[reader] = place % len(sizes)

    def apply(rewriter: Rewriter) -> None:
        parts = _parts(rewriter, node, sizes, axis, places)
        for reader in readers:
            if reader in places:
                _give(rewriter, reader.outputs[0], parts[places[reader]], known)
            else:
                count = rewriter.constant(np.array(len(sizes), np.int64), near=reader)
                _give(rewriter, reader.outputs[0], count, known)
        rewriter.erase([*readers, node])

    return Patch(
        f"split '{node.inputs[0].name}' into {len(sizes)} tensors, not into a sequence", (node, *readers), apply
    )


def _parts(rewriter: Rewriter, node: Node, sizes: list[int], axis: int, places: dict[Node, int]) -> Sequence[Tensor]:
    """Return the parts; of one part there is nothing to split."""
    source = node.inputs[0]
    if len(sizes) == 1:
        return [source]
    models: list[Tensor | None] = [None] * len(sizes)
    for reader, place in places.items():
        models[place] = reader.outputs[0]
    attrs: dict[str, Any] = {"axis": axis}
    inputs = [source]
    assert node.graph is not None
    if node.graph.opset < 13:
        attrs["split"] = sizes
    else:
        inputs.append(rewriter.constant(np.array(sizes, np.int64), near=node))
    made: Sequence[Tensor] = rewriter.op(
        "Split", inputs, attrs=attrs, outputs=len(sizes), like=models, near=node, origin=[node]
    )
    for part in made:
        if not part.onnx_dtype and source.onnx_dtype:
            rewriter.set_type(part, source.dtype, None)
    return made


# ---------------------------------------------------------------------------------------------------------- optionals


def _optional(node: Node, known: _Elements) -> Patch | Skip | None:
    if not node.inputs or not node.inputs[0].name:
        return _answered(node, known, holds=False) if node.op == "OptionalHasElement" else None
    if known.types.dtype(node.inputs[0]):  # a tensor, which since opset 18 is taken as an optional that holds it
        has = node.op == "OptionalHasElement"
        return _answered(node, known, holds=True) if has else bypass(node, node.inputs[0], types=known.types)
    made = producer(node.inputs[0])
    while is_op(made, "Identity") and made is not None:
        made = producer(made.inputs[0])
    if made is None or made.op != "Optional" or made.domain not in DEFAULT_DOMAINS:
        return None
    given = made.inputs[0] if made.inputs and made.inputs[0].name else None
    if node.op == "OptionalHasElement":
        return _answered(node, known, holds=given is not None)
    return None if given is None else bypass(node, given, f"the optional holds '{given.name}'", known.types)


def _answered(node: Node, known: _Elements, *, holds: bool) -> Patch:
    def apply(rewriter: Rewriter) -> None:
        before = list(node.inputs)
        _give(rewriter, node.outputs[0], rewriter.constant(np.array(holds), near=node), known)
        rewriter.erase(node)
        erase_unread(rewriter, before)

    return Patch(f"the optional holds {'an' if holds else 'no'} element", (node,), apply)
