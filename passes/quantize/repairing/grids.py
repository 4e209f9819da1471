"""Repairs of grids: pairs that stand in the right place, on a grid that keeps the runtime from fusing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.graph import is_graph_output, producer, uses
from graphopt.passes.quantize.pairing.writing import PairWriter
from graphopt.passes.quantize.repairing.pair import (
    Pair,
    drop,
    grid_over,
    is_byte,
    mended,
    pair_before,
    pairs_of,
    read_pair,
    roundings_of,
    set_grid,
    stands_for_relu,
    stored_values,
)
from graphopt.passes.quantize.restoring.conversions import erase_idle
from graphopt.passes.quantize.writing import short_name
from graphopt.target.grid import Grid
from graphopt.target.numbers import INT8, UINT8
from graphopt.target.operators import activation_bounds
from graphopt.target.reading import is_conversion, restored
from graphopt.target.rules import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from graphopt.graph import Model, Node, Rewriter, Tensor
    from graphopt.rewrite.patch import Patch
    from graphopt.target.reading import Restored
    from graphopt.target.rules import Target

PARAMETERS = frozenset(("BatchNormalization",))
"""Operators without a rule whose parameters are wanted as constants."""

MOST_PARAMETERS = 4096
SIGNED_OFFSET = 128
"""What lies between the int8 and the uint8 that stand for the same number."""


def plain_constants(model: Model, target: Target) -> Iterator[Patch]:
    """Write bounds, padding values and parameters of normalizations as constants where they are stored as integers."""
    for node in list(model.graph.nodes):
        rule = target.rule(node)
        used = set() if rule is None else {*rule.data_positions(node), rule.weight, rule.bias}
        if is_conversion(node) or (rule is None and node.op not in PARAMETERS):
            continue
        for place, tensor in enumerate(node.inputs):
            skipped = place in used or (rule is None and place == 0)
            values = None if skipped else stored_values(tensor)
            if values is None or values.size > MOST_PARAMETERS:
                continue

            def apply(rw: Rewriter, node: Node = node, place: int = place, values: NDArray[Any] = values) -> None:
                old = node.inputs[place]
                rw.set_input(node, place, rw.constant(values, name=f"{short_name(old)}_restored", near=node))
                erase_idle(rw, [old])

            yield mended("plain-constant", node, f"input {place} as a constant", apply)


def write_zeros(model: Model, _target: Target) -> Iterator[Patch]:
    """Write zero points out."""
    for pair in pairs_of(model):
        if not pair.is_written and pair.is_plain:

            def apply(rw: Rewriter, pair: Pair = pair) -> None:
                set_grid(rw, pair, pair.grid())

            yield mended("written-zero", pair.rounding, "zero point written out", apply)


def make_unsigned(model: Model, target: Target) -> Iterator[Patch]:
    """Turn int8 activations into the uint8 that stand for the same numbers, and constants that meet them."""
    for pair in pairs_of(model):
        if pair.number == INT8 and pair.is_plain:
            was = pair.grid()
            grid = Grid(was.scale, was.zero_point + SIGNED_OFFSET, UINT8.top, UINT8.bottom, UINT8)

            def apply(rw: Rewriter, pair: Pair = pair, grid: Grid = grid) -> None:
                set_grid(rw, pair, grid)

            yield mended("shared-signed", pair.rounding, "int8 to uint8, same numbers", apply)
    for node in list(model.graph.nodes):
        rule = target.rule(node)
        if rule is None or rule.role is not Role.JOIN:
            continue
        for place, tensor in enumerate(node.inputs):
            found = restored(tensor)
            if found is None or found.values is None or found.values.dtype != np.int8 or found.grid() is None:
                continue
            if found.scale is None or found.scale.dtype != np.float32:
                continue
            if any(pair_before(other) for other in node.inputs):
                yield _unsigned_constant(model, node, place)


def _unsigned_constant(model: Model, node: Node, place: int) -> Patch:
    tensor = node.inputs[place]
    found = restored(tensor)
    assert found is not None
    assert found.values is not None
    assert found.scale is not None
    codes = (found.values.astype(np.int64) + SIGNED_OFFSET).astype(np.uint8)
    zero = SIGNED_OFFSET + (0 if found.zero is None else int(found.zero.reshape(-1)[0]))
    scale = np.asarray(found.scale, np.float32).reshape(())

    def apply(rw: Rewriter) -> None:
        made = PairWriter(model.opset).integers(rw, node, tensor, codes, UINT8, scale, zero)
        rw.set_input(node, place, made)
        erase_idle(rw, [tensor])

    return mended("shared-signed", node, "int8 constant to uint8, same numbers", apply)


def give_one_scale(model: Model, _target: Target) -> Iterator[Patch]:
    """Give activations that have a scale per channel the one that reaches as far."""
    for pair in pairs_of(model):
        if not pair.is_plain and pair.number in {UINT8, INT8}:

            def apply(rw: Rewriter, pair: Pair = pair) -> None:
                set_grid(rw, pair, grid_over(*pair.span))

            yield mended("one-scale", pair.rounding, f"{pair.scale.size} scales to one", apply)


def free_activations(model: Model, target: Target) -> Iterator[Patch]:
    """Remove pairs between an operator with a kernel and the Relu or Clip behind it, whose result is rounded anyway."""
    for pair in pairs_of(model):
        source, tensor = producer(pair.rounding.inputs[0]), pair.rounding.inputs[0]
        rule = None if source is None else target.rule(source)
        if rule is None or rule.role not in {Role.WEIGHTED, Role.JOIN} or len(uses(tensor)) != 1:
            continue
        activation = _sole_reader(pair)
        bounds = None if activation is None else activation_bounds(activation)
        if activation is None or bounds is None or is_graph_output(tensor) or (bounds[0] < 0 and stands_for_relu(pair)):
            continue
        after = uses(activation.outputs[0])
        if len(after) != 1 or is_graph_output(activation.outputs[0]) or read_pair(after[0].node) is None:
            continue

        def apply(rw: Rewriter, pair: Pair = pair) -> None:
            drop(rw, pair, pair.rounding.inputs[0])

        yield mended("pair-before-activation", pair.rounding, f"removed before {activation.op}", apply)


def _sole_reader(pair: Pair) -> Node | None:
    if len(pair.restores) != 1 or is_graph_output(pair.restores[0].outputs[0]):
        return None
    readers = uses(pair.restores[0].outputs[0])
    return readers[0].node if len(readers) == 1 else None


def end_with_activations(model: Model, target: Target) -> Iterator[Patch]:
    """End grids where the Relu or Clip before them does."""
    for node in list(model.graph.nodes):
        bounds = activation_bounds(node)
        source = producer(node.inputs[0]) if bounds is not None else None
        rule = None if source is None else target.rule(source)
        if bounds is None or rule is None or rule.role not in {Role.WEIGHTED, Role.JOIN}:
            continue
        readers = uses(node.outputs[0])
        pair = read_pair(readers[0].node) if len(readers) == 1 and len(uses(node.inputs[0])) == 1 else None
        if pair is None or not is_byte(pair) or pair.grid().makes_clip_redundant(*bounds):
            continue
        grid = grid_over(max(pair.span[0], bounds[0]), min(pair.span[1], bounds[1]))
        if not grid.makes_clip_redundant(*bounds):
            continue

        def apply(rw: Rewriter, pair: Pair = pair, grid: Grid = grid) -> None:
            set_grid(rw, pair, grid)

        yield mended("cut-off", node, f"grid behind {node.op} ends with it: {grid.low:.4g} to {grid.high:.4g}", apply)


def even_grids(model: Model, target: Target) -> Iterator[Patch]:
    """Put both sides of data movement on one grid: the one before it, which its numbers lie on already.

    Where the one behind begins at zero alone, it stands for an activation function; then the one before begins there
    too if nothing else reads it.
    """
    for node in list(model.graph.nodes):
        rule = target.rule(node)
        if rule is None or rule.role is not Role.MOVE or rule.refuse(node) is not None:
            continue
        before = pair_before(node.inputs[rule.data_positions(node)[0]])
        if before is None or not is_byte(before):
            continue
        for tensor in node.outputs:
            for after in _alone(tensor):
                changed, grid = after, before.grid()
                if not is_byte(after) or after.grid() == before.grid():
                    continue
                if after.span[0] == 0.0 and before.span[0] < 0.0:
                    if len(node.outputs) != 1 or _sole_reader(before) is not node:
                        continue
                    changed, grid = before, after.grid()

                def apply(rw: Rewriter, pair: Pair = changed, grid: Grid = grid) -> None:
                    set_grid(rw, pair, grid)

                yield mended("equal-grids", node, "one grid before and behind it", apply)


def _alone(tensor: Tensor) -> list[Pair]:
    """Return the pair behind a tensor that nothing else reads."""
    return roundings_of(tensor) if len(uses(tensor)) == 1 and not is_graph_output(tensor) else []


def move_integers(model: Model, target: Target) -> Iterator[Patch]:
    """Let data movement between two pairs on one grid move the integers themselves; Pad pads with the zero point."""
    for node in list(model.graph.nodes):
        rule = target.rule(node)
        if rule is None or rule.role is not Role.MOVE or len(node.outputs) != 1 or rule.data_positions(node) != (0,):
            continue
        if model.opset < rule.since:
            continue
        before, after = restored(node.inputs[0]), _alone(node.outputs[0])
        if before is None or before.is_constant or before.number != UINT8.name or len(after) != 1:
            continue
        if rule.refuse(node) is not None or before.grid() is None or not is_byte(after[0]):
            continue
        grid = after[0].grid()
        if before.grid() != (np.asarray(grid.scale, np.float32).tobytes(), grid.zero_point):
            continue

        def apply(rw: Rewriter, node: Node = node, before: Restored = before, after: Pair = after[0]) -> None:
            inputs = [before.integers, *node.inputs[1:]]
            if node.op == "Pad":
                zero = np.asarray(after.grid().zero_point, np.uint8)
                inputs[2:3] = [rw.constant(zero, name=f"{short_name(node.outputs[0])}_zero_point", near=node)]
            rounded = after.rounding.outputs[0]
            made = rw.op(node.op, inputs, attrs=dict(node.attrs), like=rounded, near=node, origin=(node,))
            rw.replace_tensor(rounded, made)
            restores = node.inputs[0]
            rw.erase([after.rounding, node])
            erase_idle(rw, [restores], frozenset(("DequantizeLinear",)))

        yield mended("integer-movement", node, "moves the integers themselves", apply)


def look_integers_up(model: Model, _target: Target) -> Iterator[Patch]:
    """Let a Gather look integers up in a table that would be restored whole in every run."""
    for node in list(model.graph.nodes):
        found = restored(node.inputs[0]) if node.op == "Gather" else None
        if found is None or found.values is None or found.scale is None or found.scale.size != 1:
            continue
        if found.rounding is not None:
            continue

        def apply(rw: Rewriter, node: Node = node, found: Restored = found) -> None:
            old, output = node.inputs[0], node.outputs[0]
            codes = rw.op("Gather", [found.integers, node.inputs[1]], attrs=dict(node.attrs), near=node, origin=(node,))
            rw.set_type(codes, found.integers.dtype, output.shape)
            inputs = [codes, *found.node.inputs[1:]]
            made = rw.op("DequantizeLinear", inputs, domain=found.node.domain, like=output, near=node)
            rw.replace_tensor(output, made)
            rw.erase([node])
            erase_idle(rw, [old])

        yield mended("whole-table", node, "looks integers up, restores what it found", apply)
