"""Gives nodes of a region their new layouts: new nodes, the turns they need, and nothing else changes its value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import Variable, is_graph_output, producer
from graphopt.passes.simplify.layout.permutations import Perm, keeps_order, permuted
from graphopt.passes.simplify.layout.relayout import may_relay, relaid
from graphopt.passes.simplify.layout.views import constant_target
from graphopt.rewrite.patch import Patch, node_label

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graphopt.analysis.types import Types
    from graphopt.graph import Node, Rewriter, Tensor
    from graphopt.passes.simplify.layout.region import Region, Value
    from graphopt.passes.simplify.layout.relayout import Relayout


class LayoutChange:
    """One change of the layouts of a region.

    Args:
        region: The region.
        changes: The movers that change, with their new layouts.
    """

    def __init__(self, region: Region, changes: Mapping[Node, int]) -> None:
        self.region = region
        self.changes = changes
        # decided before anything changes: who reads a constant decides too
        self._relaid = {value for value in region.values if may_relay(value.root, region.types)}
        self._at: dict[tuple[Value, int], Tensor] = {}
        self._kept: set[Node] = set()
        self._replaced: list[tuple[Tensor, Tensor]] = []

    def apply(self, rewriter: Rewriter) -> None:
        """Make the change."""
        region, changes = self.region, self.changes
        for value in region.values:
            root = value.root
            made = producer(root)
            if made not in changes or not region.decides(made, root):
                self._at[value, value.tensors[root]] = root
        graph = region.graph
        assert graph is not None
        for node in sorted(changes, key=graph.nodes.label):
            self._remake(rewriter, node)
        for value in region.values:
            self._serve(rewriter, value)
        for value in region.values:
            self._redirect(rewriter, value)
        gone = [*changes, *(turn for turn in region.turns if turn not in self._kept)]
        rewriter.erase(gone)
        for old, new in self._replaced:
            if is_graph_output(old) and isinstance(new, Variable):
                rewriter.set_type(new, old.dtype, old.shape)  # what it declared may be wrong
            rewriter.replace_tensor(old, new)

    def _remake(self, rewriter: Rewriter, node: Node) -> None:
        """Make the twin of a node in the other layout."""
        other, layout = self.region.movers[node].other, self.changes[node]
        inputs: list[Tensor | None] = []
        for tensor, perm in zip(node.inputs, other.inputs, strict=True):
            value = self.region.value(tensor, perm)
            if value is not None:
                inputs.append(self._get(rewriter, value, layout, node))
            else:
                inputs.append(tensor if tensor.name else None)
        _put_constants(rewriter, node, other, inputs)
        if other.reverse:
            inputs.reverse()
        like = [_permuted_like(out, perm) for out, perm in zip(node.outputs, other.outputs, strict=True)]
        attrs = {**node.attrs, **other.attrs}
        made = rewriter.op(
            other.op or node.op,
            inputs,
            attrs={key: value for key, value in attrs.items() if value is not None},
            domain=node.domain,
            outputs=len(like),
            like=like,
            near=node,
            origin=[node],
        )
        for old, new, perm in zip(node.outputs, made if len(like) > 1 else (made,), other.outputs, strict=True):
            value = self.region.value(old, perm)
            if value is None:
                self._replaced.append((old, new))
            else:
                self._at[value, layout] = new

    def _get(self, rewriter: Rewriter, value: Value, layout: int, near: Node) -> Tensor:
        """Return the tensor that holds a value in a layout; a turn makes it where nothing does."""
        found = self._at.get((value, layout))
        if found is not None:
            return found
        source = self._at[value, 1 - layout]
        # a turn of a constant goes, since the constant is laid out anew
        for turn in () if value in self._relaid else value.turns:
            output: Tensor = turn.outputs[0]
            if turn.inputs[0] is source and value.tensors.get(output) == layout:
                self._kept.add(turn)
                self._at[value, layout] = output
                return output
        like = next((tensor for tensor, held in value.tensors.items() if held == layout), None)
        perm = value.away(1 - layout)
        made = self._turn(rewriter, value, source, layout, like or _permuted_like(source, perm), near)
        self._at[value, layout] = made
        return made

    def _turn(self, rewriter: Rewriter, value: Value, source: Tensor, layout: int, like: Tensor, near: Node) -> Tensor:
        """Turn a value into a layout: a constant is laid out anew, a view does where no element moves."""
        shapes = (value.shape, permuted(value.shape, value.perm))
        target = constant_target(shapes[1 - layout], shapes[layout]) if value.keeps_order else None
        graph = self.region.graph
        made: Tensor
        if value in self._relaid:
            array = relaid(source, value.away(1 - layout), shorten=False)()
            made = rewriter.constant(array, name=f"{source.name}__laid_out", near=near)
        elif target is None or graph is None or graph.opset < 5:
            perm = list(value.away(1 - layout))
            made = rewriter.op("Transpose", [source], attrs={"perm": perm}, like=like, near=near)
        else:
            sizes = rewriter.constant(np.array(target, np.int64), name=f"{source.name}__target", near=near)
            made = rewriter.op("Reshape", [source, sizes], like=like, near=near)
        return made

    def _serve(self, rewriter: Rewriter, value: Value) -> None:
        """Give what stays as it is the tensors it reads."""
        for tensor, layout in value.tensors.items():
            made = producer(tensor)
            if made not in self.changes and made not in value.turns:
                continue
            readers = [reader for reader in dict.fromkeys(tensor.outputs) if not self._leaves(reader, value)]
            if not readers and not is_graph_output(tensor):
                continue
            near = made if made is not None and made.graph is self.region.graph else next(iter(readers))
            held = self._get(rewriter, value, layout, near)
            if held is not tensor:
                self._replaced.append((tensor, held))

    def _leaves(self, reader: Node, value: Value) -> bool:
        return reader in self.changes or reader in value.turns or reader in value.free

    def _redirect(self, rewriter: Rewriter, value: Value) -> None:
        """Let readers that can read either layout read the one that is there."""
        for reader, change in value.free.items():
            layout = value.tensors[reader.inputs[0]]
            held = self._at.get((value, layout))
            if held is not None:
                rewriter.set_input(reader, 0, held)
                continue
            inputs: list[Tensor | None] = [self._at[value, 1 - layout]]
            _put_constants(rewriter, reader, change, inputs)
            if change.op and change.op != reader.op:
                rewriter.set_op(reader, change.op, reader.domain)
            for key, setting in change.attrs.items():
                rewriter.set_attr(reader, key, setting)
            for place, each in enumerate(inputs):
                rewriter.set_input(reader, place, each)


def view_patch(node: Node, perm: Perm, types: Types) -> Patch | None:
    """Return the patch that makes a Reshape of a Transpose which moves no element in memory; None where it moves some.

    Args:
        node: A turn.
        perm: Its permutation.
        types: Types of the tensors.
    """
    shape = types.shape(node.inputs[0])
    if node.op != "Transpose" or shape is None or node.graph is None or node.graph.opset < 5:
        return None
    target = constant_target(shape, permuted(shape, perm)) if keeps_order(shape, perm) else None
    if target is None:
        return None

    def apply(rewriter: Rewriter) -> None:
        sizes = rewriter.constant(np.array(target, np.int64), name=f"{node.outputs[0].name}__target", near=node)
        rewriter.set_op(node, "Reshape", node.domain)
        rewriter.set_attr(node, "perm", None)
        rewriter.set_input(node, 1, sizes)

    return Patch(f"Transpose '{node_label(node)}' only moves axes of size 1", (node,), apply)


def _put_constants(rewriter: Rewriter, node: Node, change: Relayout, inputs: list[Any]) -> None:
    for place, make in sorted(change.constants.items()):
        inputs.extend([None] * (place + 1 - len(inputs)))
        name = node.inputs[place].name if place < len(node.inputs) and node.inputs[place].name else node.name
        inputs[place] = rewriter.constant(make(), name=f"{name or node.op}__laid_out", near=node)


def _permuted_like(tensor: Tensor, perm: Perm | None) -> Variable:
    shape = tensor.shape
    if perm is not None and shape is not None and len(shape) == len(perm):
        shape = [shape[axis] for axis in perm]
    return Variable(tensor.name, tensor.dtype, shape)
