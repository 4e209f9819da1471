"""Writes pairs of QuantizeLinear and DequantizeLinear for targets that compile quantized models themselves.

Operators stay as they are; what they read and make is declared to lie on grids. Each method is the body of one patch;
the model computes legally after each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.passes.quantize.writing import drop_unused
from graphopt.target.grid import Grid
from graphopt.target.operators import activation_bounds
from graphopt.target.rules import Pairs, Role

if TYPE_CHECKING:
    from graphopt.graph import Node, Rewriter, Tensor, Variable
    from graphopt.passes.quantize.grids import GridOf
    from graphopt.passes.quantize.pairing.weights import PairWeights
    from graphopt.passes.quantize.pairing.writing import PairWriter
    from graphopt.target.pairs import PairPlacement
    from graphopt.target.placement import Group
    from graphopt.target.rules import OpRule, Target


class PairForm:
    """Turns the operators of a placement into their declared form, one after the other, in graph order.

    Args:
        target: The rules.
        placement: Which tensors carry pairs.
        grid_of: The grid of a group of tensors.
        writer: What writes the conversions.
        weights: What declares the weights.
    """

    def __init__(
        self, target: Target, placement: PairPlacement, grid_of: GridOf, writer: PairWriter, weights: PairWeights
    ) -> None:
        self._target = target
        self._placement = placement
        self._grid_of = grid_of
        self._writer = writer
        self._weights = weights
        self._everywhere = target.pairs is Pairs.EVERYTHING
        self._grids: dict[int, Grid] = {}
        self._restored: dict[Tensor, Variable] = {}
        self._origins: dict[Tensor, Tensor] = {}

    # ------------------------------------------------------------------------------------------------- operators

    def declare(self, rw: Rewriter, node: Node, rule: OpRule) -> None:
        """Give a node the pairs that the placement says."""
        if rule.role is Role.ABSORBED and self._is_redundant(node):
            self._take_out(rw, node)
            return
        for place in self._placement.edges[node]:
            self._read(rw, node, place)
        if rule.role is Role.WEIGHTED:
            data = self._original(node.inputs[0])
            self._weights.declare(rw, node, rule, data, self.grid(self._placement.groups[data]).scale)
        elif self._everywhere:
            self._declare_constants(rw, node, rule)
        if self._everywhere:
            for tensor in list(node.outputs):
                self._declare_output(rw, node, tensor)

    def grid(self, group: Group) -> Grid:
        """Return the grid of a group; equal on every call."""
        if id(group) not in self._grids:
            number = self._grid_of.kind.number
            exact = group.exact.get(number.name)
            if exact is None:
                self._grids[id(group)] = self._grid_of(group)
            else:
                self._grids[id(group)] = Grid(np.float32(exact[0]), exact[1], number.top, number.bottom, number)
        return self._grids[id(group)]

    # ----------------------------------------------------------------------------------------------- activations

    def _original(self, tensor: Tensor) -> Tensor:
        return self._origins.get(tensor, tensor)

    def _group(self, tensor: Tensor) -> Group:
        return self._placement.groups[self._original(tensor)]

    def _read(self, rw: Rewriter, node: Node, place: int) -> None:
        """Let an input read the restored form of its tensor."""
        tensor = self._original(node.inputs[place])
        if tensor not in self._restored:
            restored = self._writer.pair(rw, node, tensor, self.grid(self._placement.groups[tensor]))
            self._remember(tensor, restored)
            if self._everywhere:
                rounding = self._rounding(restored)
                rw.replace_uses(tensor, restored, where=lambda use: use.node is not rounding)
        rw.set_input(node, place, self._restored[tensor])

    def _declare_output(self, rw: Rewriter, node: Node, tensor: Tensor) -> None:
        """Round what a node makes, and let everything read the restored form, callers too."""
        if tensor in self._restored or tensor not in self._placement.groups:
            return
        readers = uses(tensor)
        if not readers and not is_graph_output(tensor):
            return
        if self._waits(tensor):
            return
        restored = self._writer.pair(rw, node, tensor, self.grid(self._placement.groups[tensor]))
        rounding = self._rounding(restored)
        rw.replace_uses(tensor, restored, where=lambda use: use.node is not rounding)
        self._remember(tensor, restored)
        if is_graph_output(tensor):
            # What an operator reads must not be an output of the model: each gets a restored form of its own.
            answer = self._writer.again(rw, node, restored) if uses(restored) else restored
            rw.replace_tensor(tensor, answer)
            rw.set_input(rounding, 0, tensor)

    def _waits(self, tensor: Tensor) -> bool:
        """Tell whether the one reader of a tensor is an activation that its grid makes redundant."""
        readers = uses(tensor)
        if len(readers) != 1 or is_graph_output(tensor) or not self._target.absorbs:
            return False
        reader = readers[0].node
        rule = self._placement.nodes.get(reader)
        return rule is not None and rule.role is Role.ABSORBED and self._is_redundant(reader)

    def _is_redundant(self, node: Node) -> bool:
        """Tell whether the grid of what an activation makes cuts off all that it cuts off."""
        bounds = activation_bounds(node)
        source = self._group(node.inputs[0])
        behind = self._placement.groups.get(node.outputs[0])
        if bounds is None or not self._target.absorbs or source is not behind:
            return False
        return self.grid(source).makes_clip_redundant(*bounds)

    def _take_out(self, rw: Rewriter, node: Node) -> None:
        """Remove an activation; the pair then stands behind the operator before it."""
        before, after = node.inputs[0], node.outputs[0]
        source = producer(before)
        assert source is not None
        if is_graph_output(after):
            place = next(index for index, tensor in enumerate(source.outputs) if tensor is before)
            rw.replace_tensor(after, before)
            rw.erase([node])
            made = source.outputs[place]
        else:
            rw.replace_uses(after, before)
            rw.erase([node])
            made = before
        self._declare_output(rw, source, made)

    def _remember(self, tensor: Tensor, restored: Variable) -> None:
        self._restored[tensor] = restored
        self._origins[restored] = tensor

    def _rounding(self, restored: Variable) -> Node:
        source = producer(restored)
        assert source is not None
        rounding = producer(source.inputs[0])
        assert rounding is not None
        return rounding

    def _declare_constants(self, rw: Rewriter, node: Node, rule: OpRule) -> None:
        for place in rule.data_positions(node):
            if place >= len(node.inputs) or constant_value(node.inputs[place]) is None:
                continue
            tensor = node.inputs[place]
            if np.dtype(tensor.dtype) == np.float32:
                rw.set_input(node, place, self._writer.restored_constant(rw, node, tensor, self._grid_of.kind))
                drop_unused(rw, [tensor])
