"""Do once to two parts of a Split what is done to each of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.types import Types
from graphopt.graph import is_graph_output
from graphopt.passes.simplify.linear.changes import replace
from graphopt.passes.simplify.linear.twins import Pair, pairs_after
from graphopt.passes.simplify.purity import refers_to_function
from graphopt.rewrite.driver import Batch, RulePass
from graphopt.rewrite.patch import Patch, node_label
from graphopt.verify.contract import Contract
from graphopt.verify.legality import in_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.rewrite.pass_ import Steps

_MOST_NODES = 32
_MOST_READERS = 16
_SPLIT_OPSET = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeTwinBranches(RulePass):
    """Compute two neighbouring parts of a Split together, where the same is done to both.

    Matches:   Two parts of a Split that follow each other, and the nodes behind them that are alike in pairs: the same
               operator and attributes on corresponding tensors, with the same other operands, which do not vary along
               the axis of the Split; such as the rotary embedding of the queries and of the keys.
    Produces:  One branch in place of two on both parts side by side, and a Split of each result that is read by
               something else. n pairs of nodes with e such results save n - e nodes; only where that is positive. Of
               the activations that are split again one copy more is made, the shared operands are read once.
    Requires:  Elementwise operators, Slice, Split, Concat, Gather, Transpose, Reshape, Squeeze, Unsqueeze and
               normalizations along other axes than that of the parts, whose sizes are known. Nothing on the way is an
               output of a graph, except as a result. Runs when no rule applies any more.
    Preserves: Names, types and shapes of all outputs; values up to rounding, since vector units compute exp and the
               like otherwise at the end of a tensor.
    Source:    Batching of isomorphic subgraphs: an operation that treats the parts alike commutes with putting them
               side by side.
    """

    name: ClassVar[str] = "merge-twin-branches"
    contract: ClassVar[Contract] = Contract.ROUNDING
    requires: ClassVar[tuple[type[Any], ...]] = (Types,)

    def rules(self, model: Model, facts: Facts) -> Sequence[Batch]:
        """Return one batch: branches are merged when nothing in them changes any more."""
        types = facts.get(Types)
        return [Batch(("Split",), lambda node: len(node.outputs) > 1, lambda nodes: _merge_all(nodes, types), below=2)]


def _merge_all(nodes: Sequence[Node], types: Types) -> Steps:
    for node in nodes:
        patch = _merge(node, types) if in_model(node) else None
        if patch is not None:
            yield patch


def _merge(split: Node, types: Types) -> Patch | None:
    graph = split.graph
    if graph is None or graph.opset < _SPLIT_OPSET or refers_to_function(split):
        return None
    shape = types.shape(split.inputs[0])
    if shape is None:
        return None
    axis = int(split.attrs.get("axis", 0)) % len(shape)
    parts = [types.shape(output) for output in split.outputs]
    sizes = [0 if part is None else part[axis] for part in parts]
    if not all(isinstance(size, int) and size for size in sizes):
        return None
    numbers = [int(size) for size in sizes if isinstance(size, int)]
    for place in range(len(numbers) - 1):
        first, second = split.outputs[place], split.outputs[place + 1]
        if {node.op for node in first.outputs}.isdisjoint(node.op for node in second.outputs):
            continue
        region = _Region(types, Pair(first, second, axis, (numbers[place], numbers[place + 1])))
        region.grow()
        if region.gain(alone=len(numbers) == 2) > 0:
            return _patch(split, place, axis, numbers, region)
    return None


@dataclass(slots=True)
class _Region:
    """Pairs of tensors and of the nodes that compute them, from one pair on."""

    types: Types
    entry: Pair
    pairs: dict[Tensor, Pair] = field(default_factory=dict)
    nodes: dict[Node, Node] = field(default_factory=dict)

    def grow(self) -> None:
        """Add the pairs of nodes that read pairs, until there are none left."""
        self.pairs[self.entry.first] = self.entry
        waiting = [self.entry]
        taken: set[Node] = set()
        while waiting and len(self.nodes) < _MOST_NODES:
            pair = waiting.pop(0)
            readers = list(dict.fromkeys(pair.first.outputs)), list(dict.fromkeys(pair.second.outputs))
            if max(map(len, readers)) > _MOST_READERS:
                continue
            for one in readers[0]:
                if one in self.nodes or one in taken:
                    continue
                for other in readers[1]:
                    if other in taken or other is one or other in self.nodes:
                        continue
                    made = pairs_after(one, other, self.pairs, self.types)
                    if made is not None:
                        self.nodes[one] = other
                        taken.add(other)
                        self.pairs.update({new.first: new for new in made})
                        waiting.extend(made)
                        break

    def results(self) -> list[Pair]:
        """Return the pairs that something outside reads, in order."""
        inside = {*self.nodes, *self.nodes.values()}
        return [
            pair
            for pair in self.pairs.values()
            if any(is_graph_output(side) or any(user not in inside for user in side.outputs) for side in _sides(pair))
        ]

    def gain(self, *, alone: bool) -> int:
        """Return how many nodes merging saves; the Split itself goes where it has no other parts."""
        return len(self.nodes) - len(self.results()) + alone


def _sides(pair: Pair) -> tuple[Tensor, Tensor]:
    return pair.first, pair.second


def _patch(split: Node, place: int, axis: int, sizes: list[int], region: _Region) -> Patch | None:
    graph = split.graph
    assert graph is not None
    results = region.results()
    if any(len(pair.first.roles) + len(pair.second.roles) and pair is region.entry for pair in results):
        return None
    order = sorted(region.nodes, key=graph.nodes.label)
    nodes = (split, *order, *region.nodes.values())

    def apply(rewriter: Rewriter) -> None:
        joint: dict[Tensor, Any] = {region.entry.first: _regroup(rewriter, split, place, axis, sizes)}
        for node in order:
            _build(rewriter, node, region, joint)
        for pair in results:
            values = np.array(pair.sizes, np.int64)
            parts = rewriter.constant(values, name=f"{pair.first.name}__sizes", near=split)
            near = split if pair is region.entry else next(iter(joint[pair.first].inputs))
            made = rewriter.op(
                "Split",
                [joint[pair.first], parts],
                attrs={"axis": pair.axis},
                outputs=2,
                like=list(_sides(pair)),
                near=near,
                origin=[near],
            )
            for old, new in zip(_sides(pair), made, strict=True):
                replace(rewriter, old, new)
        rewriter.erase(nodes)

    return Patch(f"merge what is done to two parts of '{node_label(split)}'", nodes, apply)


def _regroup(rewriter: Rewriter, split: Node, place: int, axis: int, sizes: list[int]) -> Any:
    """Return both parts as one tensor: of a Split into fewer parts, or what was split."""
    if len(sizes) == 2:
        return split.inputs[0]
    fewer = [*sizes[:place], sizes[place] + sizes[place + 1], *sizes[place + 2 :]]
    parts = rewriter.constant(np.array(fewer, np.int64), name=f"{split.outputs[0].name}__sizes", near=split)
    likes = [*split.outputs[:place], None, *split.outputs[place + 2 :]]
    made = rewriter.op(
        "Split",
        [split.inputs[0], parts],
        attrs={"axis": axis},
        outputs=len(fewer),
        like=likes,
        near=split,
        origin=[split],
    )
    for index, new in enumerate(made):
        if index != place:
            replace(rewriter, split.outputs[index if index < place else index + 1], new)
    return made[place]


def _build(rewriter: Rewriter, node: Node, region: _Region, joint: dict[Tensor, Any]) -> None:
    """Make the node that works on both sides."""
    inputs = [joint.get(tensor, tensor) if tensor.name else None for tensor in node.inputs]
    twin = region.nodes[node]
    attrs = dict(node.attrs)
    if node.op == "Reshape":
        pair = region.pairs[node.outputs[0]]
        shape = region.types.shape(node.outputs[0])
        assert shape is not None
        target = [
            *[0] * pair.axis,
            sum(pair.sizes),
            *[int(size) for size in shape[pair.axis + 1 :] if isinstance(size, int)],
        ]
        inputs[1] = rewriter.constant(np.array(target, np.int64), name=f"{node.outputs[0].name}__target", near=node)
        attrs = {}
    made = rewriter.op(
        str(node.op), inputs, attrs=attrs, domain=node.domain, outputs=len(node.outputs), near=node, origin=[node, twin]
    )
    outputs = made if isinstance(made, tuple) else (made,)
    joint.update(zip(node.outputs, outputs, strict=True))
