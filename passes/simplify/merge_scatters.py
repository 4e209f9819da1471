"""Replace scatters that overwrite whole regions by a Concat of the regions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.types import Types
from graphopt.graph import Node, is_graph_output, producer
from graphopt.passes.simplify.control.regions import SCATTERS, Region, Regions
from graphopt.passes.simplify.purity import is_op
from graphopt.passes.simplify.removal import bypass, erase_unread
from graphopt.rewrite.driver import Rule, RulePass
from graphopt.rewrite.patch import Patch, Skip
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Rewriter, Tensor

_LONGEST = 64
_MOST_READERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeScatters(RulePass):
    """Replace scatters that overwrite whole regions by a Concat of the regions.

    Matches:   Chains of ScatterND and ScatterElements without reduction whose constant indices (stored or computed
               from constants) enumerate a range of one axis and all of the others: the way exporters write
               ``cache[:, :, 2:6] = x``. What is read in between is a Slice or a Gather of a part that was not yet, or
               exactly, overwritten.
    Produces:  A Concat of the updates and of the slices that remain of the data; the updates alone where they are
               everything. Those in between read the data, or the updates, themselves. At least one node less; the
               indices, eight bytes per element and axis, go too, and nothing is copied that is overwritten later.
    Requires:  Static shapes. The nodes that become superfluous outnumber the new ones.
    Preserves: Every output bitwise; public names, types and shapes.
    Source:    ONNX operators ScatterND, ScatterElements; store-to-load forwarding, Muchnick, Advanced Compiler Design
               and Implementation, 1997, 20.4.
    """

    name: ClassVar[str] = "merge-scatters"
    contract: ClassVar[Contract] = Contract.EXACT
    requires: ClassVar[tuple[type[Any], ...]] = (Types, ShapeValues)

    def rules(self, model: Model, facts: Facts) -> Sequence[Rule]:
        """Return the one rule."""
        regions = Regions(facts.get(Types), facts.get(ShapeValues))
        return [Rule(SCATTERS, lambda node: _merged(node, regions), depth=2, below=2)]


def _merged(node: Node, regions: Regions) -> Patch | Skip | None:
    region = regions.written(node)
    if region is None:
        return None
    if region.is_whole:
        return bypass(node, node.inputs[2], f"{node.op} overwrites everything by '{node.inputs[2].name}'")
    if _is_continued(node, regions):
        return None
    best: _Chain | None = None
    chain = _Chain(node, regions, region)
    while chain.extend():
        if chain.gain() > (0 if best is None else best.gain()):
            best = chain.copy()
    return None if best is None else best.patch()


def _is_continued(node: Node, regions: Regions) -> bool:
    """Whether a scatter behind takes this one into its own chain."""
    for reader in dict.fromkeys(node.outputs[0].outputs):
        region = regions.written(reader)
        if region is not None and not region.is_whole and reader.inputs[0] is node.outputs[0]:
            chain = _Chain(reader, regions, region)
            if chain.extend() and chain.extend():
                return True
    return False


@dataclass(slots=True)
class _Chain:
    """Scatters in a row along one axis, the last of them first.

    Attributes:
        last: The last scatter, whose output stays.
        members: All scatters.
        parts: Regions that the result takes from updates, with these.
        moved: Readers of results in between: where they read instead, and whether that is all they give out.
    """

    last: Node
    regions: Regions
    region: Region
    members: list[Node] = field(default_factory=list)
    parts: list[tuple[Region, Tensor]] = field(default_factory=list)
    moved: dict[Node, tuple[Tensor, bool]] = field(default_factory=dict)

    def copy(self) -> _Chain:
        return _Chain(self.last, self.regions, self.region, [*self.members], [*self.parts], dict(self.moved))

    @property
    def base(self) -> Tensor:
        """What the first scatter is given."""
        found: Tensor = self.members[-1].inputs[0]
        return found

    def extend(self) -> bool:
        """Take in one more scatter; tell whether there is one, and its readers can read elsewhere."""
        if not self.members:
            node: Node | None = self.last
            region: Region | None = self.region
        else:
            node = producer(self.base)
            region = self.regions.written(node)
            if node is None or region is None or region.axis != self.region.axis or len(self.members) >= _LONGEST:
                return False
            if node.graph is not self.last.graph or not self._release(node):
                return False
        assert node is not None
        assert region is not None
        hidden = [part for part, _ in self.parts if not part.is_apart(region)]
        if any(part.start > region.start or part.stop < region.stop for part in hidden):
            return False
        if not hidden:
            self.parts.append((region, node.inputs[2]))
        self.members.append(node)
        return True

    def _release(self, node: Node) -> bool:
        """Find out where the readers of a result in between read instead."""
        output = node.outputs[0]
        if is_graph_output(output) or len(output.outputs) > _MOST_READERS:
            return False
        for reader in dict.fromkeys(output.outputs):
            if reader is self.members[-1]:
                if sum(1 for tensor in reader.inputs if tensor is output) != 1:
                    return False
                continue
            found = self._elsewhere(reader, output)
            if found is None:
                return False
            self.moved[reader] = found
        return True

    def _elsewhere(self, reader: Node, tensor: Tensor) -> tuple[Tensor, bool] | None:
        """Return an earlier tensor with the elements a node reads, and whether the node gives out all of it."""
        region = self.regions.read(reader)
        if region is None or reader.inputs[0] is not tensor or tensor in list(reader.inputs[1:]):
            return None
        before = tensor
        for _ in range(_LONGEST):
            node = producer(before)
            written = self.regions.written(node)
            if node is None or written is None or written.axis != region.axis:
                return None
            if written.is_apart(region):
                before = node.inputs[0]
                made = producer(before)
                if not is_op(made, *SCATTERS) or self.regions.written(made) is None:
                    return before, False
                continue
            same = (written.start, written.stop) == (region.start, region.stop)
            return (node.inputs[2], True) if same and is_op(reader, "Slice") else None
        return None

    def gain(self) -> int:
        """Return how many nodes go, less the new ones."""
        exact = sum(1 for reader, (_, whole) in self.moved.items() if whole and not is_graph_output(reader.outputs[0]))
        return len(self.members) + exact - (1 + len(self._rest()))

    def _rest(self) -> list[Region]:
        """Return the regions of the base that no update overwrites."""
        found = []
        place = 0
        for part, _ in [*sorted(self.parts, key=_start), (Region(0, self.region.size, self.region.size, 0), None)]:
            if part.start > place:
                found.append(Region(self.region.axis, place, part.start, self.region.size))
            place = part.stop
        return found

    def patch(self) -> Patch:
        reason = f"concatenate what {len(self.members)} scatters up to '{self.last.outputs[0].name}' write"
        return Patch(reason, (*self.members, *self.moved), self._apply)

    def _apply(self, rewriter: Rewriter) -> None:
        last, output = self.last, self.last.outputs[0]
        for reader, (source, whole) in self.moved.items():
            if not whole:
                rewriter.set_input(reader, 0, source)
                continue
            before = list(reader.inputs)
            if is_graph_output(reader.outputs[0]):
                source = rewriter.op("Identity", [source], like=source, near=reader, origin=[reader])
            rewriter.replace_tensor(reader.outputs[0], source)
            rewriter.erase(reader)
            erase_unread(rewriter, before)
        pieces = [*self.parts, *[(region, self._slice(rewriter, region)) for region in self._rest()]]
        inputs = [tensor for _, tensor in sorted(pieces, key=_start)]
        made = inputs[0]
        if len(inputs) > 1:
            attrs = {"axis": self.region.axis}
            made = rewriter.op("Concat", inputs, attrs=attrs, like=output, near=last, origin=self.members)
        before = list(last.inputs)
        rewriter.replace_tensor(output, made)
        rewriter.erase(last)
        erase_unread(rewriter, before)

    def _slice(self, rewriter: Rewriter, region: Region) -> Tensor:
        last, bounds = self.last, (region.start, region.stop, region.axis)
        assert last.graph is not None
        if last.graph.opset < 10:
            attrs = {"starts": [bounds[0]], "ends": [bounds[1]], "axes": [bounds[2]]}
            made = rewriter.op("Slice", [self.base], attrs=attrs, near=last, origin=self.members)
        else:
            constants = [rewriter.constant(np.array([number], np.int64), near=last) for number in bounds]
            made = rewriter.op("Slice", [self.base, *constants], near=last, origin=self.members)
        shape = list(self.regions.types.static_shape(self.base) or ())
        shape[region.axis] = region.stop - region.start
        rewriter.set_type(made, last.outputs[0].dtype, shape)
        found: Tensor = made
        return found


def _start(piece: tuple[Region, Any]) -> int:
    return piece[0].start
