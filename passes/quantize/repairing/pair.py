"""Reads and changes pairs of QuantizeLinear and DequantizeLinear around activations, whoever wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.analysis.tensor_grid import restored_values, written_grid
from graphopt.graph import constant_value, is_graph_output, producer, uses
from graphopt.passes.quantize.pairing.writing import PairWriter
from graphopt.passes.quantize.restoring.conversions import erase_idle
from graphopt.passes.quantize.restoring.pairs import known_bounds
from graphopt.passes.quantize.writing import short_name
from graphopt.rewrite.patch import LayerRecord, Patch, node_label
from graphopt.target.grid import Grid, activation_grid
from graphopt.target.numbers import NUMBERS, UINT8
from graphopt.target.operators import activation_bounds
from graphopt.target.reading import is_conversion, restored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.target.numbers import Number

Span = tuple[float, float]
"""Smallest and largest value, in real units."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A rounded activation with everything that restores it.

    Attributes:
        rounding: The QuantizeLinear.
        restores: The DequantizeLinear nodes that read it, at least one; nothing else does.
        number: Type of the integers.
        scale: float32, one element or one per channel.
        zero: Zero points, as many.
        is_written: Whether all of them name their zero point.
    """

    rounding: Node
    restores: tuple[Node, ...]
    number: Number
    scale: NDArray[np.float32]
    zero: NDArray[np.int64]
    is_written: bool

    @property
    def is_plain(self) -> bool:
        """Whether there is one scale."""
        return bool(self.scale.size == 1)

    @property
    def span(self) -> Span:
        """The real values at both ends of the grid; of several, the outermost."""
        scale, zero = self.scale.astype(np.float64).reshape(-1), self.zero.reshape(-1)
        return float((scale * (self.number.bottom - zero)).min()), float((scale * (self.number.top - zero)).max())

    def grid(self) -> Grid:
        """Return the grid of a plain pair."""
        return Grid(
            np.float32(self.scale.reshape(-1)[0]),
            int(self.zero.reshape(-1)[0]),
            self.number.top,
            self.number.bottom,
            self.number,
        )


def read_pair(node: Node) -> Pair | None:
    """Return the pair that a QuantizeLinear of an activation begins, or None where anything else reads its integers."""
    if not is_conversion(node, "QuantizeLinear") or node.attrs.get("block_size") or is_graph_output(node.outputs[0]):
        return None
    if constant_value(node.inputs[0]) is not None:
        return None
    grid, readers = written_grid(node), uses(node.outputs[0])
    if not readers or grid.values is None or grid.values[0].dtype != np.float32:
        return None
    restores = [use.node for use in readers if use.index == 0 and is_conversion(use.node, "DequantizeLinear")]
    if len(restores) != len(readers) or not all(grid.is_same_as(written_grid(each)) for each in restores):
        return None
    found = restored(restores[0].outputs[0])
    kind = found.number if found is not None and found.number else "uint8"
    if kind not in NUMBERS or NUMBERS[kind].real:
        return None
    scale, zero = grid.values
    ends = tuple(dict.fromkeys(restores))
    written = all(len(each.inputs) > 2 and not each.inputs[2].is_empty() for each in (node, *ends))
    zeros = np.broadcast_to(np.asarray(zero, np.int64).reshape(-1), scale.size)
    return Pair(node, ends, NUMBERS[kind], np.asarray(scale, np.float32), zeros, written)


def pairs_of(model: Model) -> Iterator[Pair]:
    """Yield the pairs of the main graph, in graph order."""
    for node in list(model.graph.nodes):
        found = read_pair(node)
        if found is not None:
            yield found


def pair_before(tensor: Tensor) -> Pair | None:
    """Return the pair that a tensor is restored by."""
    found = restored(tensor)
    return None if found is None or found.rounding is None else read_pair(found.rounding)


def grid_before(tensor: Tensor) -> Grid | None:
    """Return the uint8 grid with one scale that a tensor is restored from, moved integers included."""
    found = restored(tensor)
    if found is None or found.is_constant or found.number != UINT8.name or found.scale is None or found.scale.size != 1:
        return None
    if found.scale.dtype != np.float32:
        return None
    zero = 0 if found.zero is None else int(found.zero.reshape(-1)[0])
    return Grid(np.float32(found.scale.reshape(-1)[0]), zero)


def stored_values(tensor: Tensor) -> NDArray[Any] | None:
    """Return the real values of a constant that is stored as integers, or None where it is none."""
    found = restored(tensor)
    return None if found is None or found.values is None else restored_values(found.values, written_grid(found.node))


def roundings_of(tensor: Tensor) -> list[Pair]:
    """Return the pairs that begin at a tensor."""
    found = [read_pair(use.node) for use in uses(tensor) if use.index == 0]
    return list({id(each.rounding): each for each in found if each is not None}.values())


def set_grid(rw: Rewriter, pair: Pair, grid: Grid) -> None:
    """Put a pair on a grid with one scale, and write the zero point out."""
    node, name = pair.rounding, short_name(pair.rounding.inputs[0])
    scale = rw.constant(np.asarray(grid.scale, np.float32), name=f"{name}_scale", near=node)
    zero = rw.constant(np.asarray(grid.zero_point, grid.number.dtype), name=f"{name}_zero_point", near=node)
    for each in (node, *pair.restores):
        rw.set_input(each, 1, scale)
        rw.set_input(each, 2, zero)
        for attribute in ("axis", "output_dtype"):
            if attribute in each.attrs:
                rw.set_attr(each, attribute, None)
    integers = node.outputs[0]
    rw.set_type(integers, grid.number.dtype, integers.shape)


def cover(rw: Rewriter, tensor: Tensor, grid: Grid, opset: int) -> None:
    """Round a tensor and let all its readers read what is restored; pairs behind it become that one.

    Args:
        rw: The rewriter.
        tensor: The result of a node, no output of a graph.
        grid: The grid to round to.
        opset: Of the model.
    """
    source = producer(tensor)
    assert source is not None
    before = roundings_of(tensor)
    made = PairWriter(opset).pair(rw, source, tensor, grid)
    rw.replace_uses(tensor, made, where=lambda use: not is_conversion(use.node, "QuantizeLinear"))
    for pair in before:
        drop(rw, pair, made)


def drop(rw: Rewriter, pair: Pair, real: Tensor) -> None:
    """Let what reads the restored form of a tensor read another, and remove the pair."""
    for each in pair.restores:
        rw.replace_tensor(each.outputs[0], real)
        rw.erase([each])
    erase_idle(rw, [pair.rounding.outputs[0]], frozenset(("QuantizeLinear",)))


def behind(node: Node) -> Tensor:
    """Return the first result of a node, or what the one Relu or Clip makes of it that alone reads it."""
    tensor: Tensor = node.outputs[0]
    readers = uses(tensor)
    if len(readers) != 1 or is_graph_output(tensor):
        return tensor
    activation = readers[0].node
    found: Tensor = activation.outputs[0] if activation_bounds(activation) is not None else tensor
    return found


def grid_over(low: float, high: float) -> Grid:
    """Return the uint8 grid over a range."""
    return activation_grid(low, high)


def stands_for_relu(pair: Pair) -> bool:
    """Tell whether a pair may cut off what is below 0: tools take a Relu out whose grid begins there."""
    return pair.span[0] >= 0.0 and known_bounds(pair.rounding.inputs[0])[0] < 0.0


def is_byte(pair: Pair) -> bool:
    """Tell whether a pair has one scale and is uint8, as kernels want it."""
    return pair.is_plain and pair.number == UINT8


def mended(rule: str, node: Node, what: str, apply: Callable[[Rewriter], None]) -> Patch:
    """Return the patch of one repair, with its row for the report."""
    label = node_label(node)
    return Patch(f"{rule}: {what} at '{label}'", (node,), apply, (LayerRecord(label, node.op, what, reason=rule),))
