"""Attention as exporters write it: projections, heads, scaled scores, masks of all kinds, Softmax, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from random_models.builder import F32, I64, Builder, Refused
from random_models.movement import listed, size_of
from random_models.values import Value, runs

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADS = 2
FAR_BELOW = (-100.0, -100.0, -1e9, float(np.finfo(np.float32).min), -np.inf)
"""What closes a key to a row. Not -1e4: beside it a score keeps no more than 3 digits, and no two models agree."""


def attention(b: Builder) -> Value:
    """Projections, heads split and merged, scaled scores, a mask, Softmax."""
    x = b.pick((F32,), (3,), lambda value: (value.shape[2] or 0) in {4, 6, 8})
    width = int(x.shape[2] or 0)
    head = width // HEADS
    q, k, v = _heads(b, x, width)
    scale = b.constant(head**-0.5 if b.ask.chance(80) else head**-0.25, F32)
    place = b.ask.integer(0, 3)
    if place == 0:
        q = _either(b, "Mul", q, scale)
    turned = b.transpose(k, 0, 1, 3, 2)
    if place == 1:
        q, turned = b.node("Mul", [q, scale]), b.node("Mul", [turned, scale])
    scores = b.node("MatMul", [q, turned])
    if place == 2:
        scores = b.node("Div", [scores, b.constant(head**0.5, F32)])
    if place == 3:
        scores = _either(b, "Mul", scores, scale)
    if b.ask.chance(55):
        scores = _masked(b, x, scores)
    weights = b.node("Softmax", [scores], axis=3 if b.ask.chance(50) or b.opset < 11 else -1)
    mixed = b.node("MatMul", [weights, v])
    back = b.transpose(mixed, 0, 2, 1, 3) if b.ask.chance(92) else b.transpose(mixed, 0, 2, 3, 1)
    if b.ask.chance(60):
        y = b.reshape(back, 0, 0, width) if b.ask.chance(70) else b.reshape(back, 0, -1, width)
    else:
        y = b.node("Reshape", [back, listed(b, [size_of(b, x, 0), size_of(b, x, 1), b.ints(width)])])
    if b.ask.chance(60):
        y = b.node("Add", [b.node("MatMul", [y, b.weight(width, width, scale=0.5)]), x])
    return y


def _either(b: Builder, op: str, x: Value, y: Value) -> Value:
    return b.node(op, [x, y] if b.ask.chance(65) else [y, x])


def _heads(b: Builder, x: Value, width: int) -> list[Value]:
    """Return q, k and v by heads; keys and values of one head are repeated for all."""
    head = width // HEADS
    shared = b.ask.chance(20)
    if b.ask.chance(25) and not shared:
        joint = b.node("Add", [b.node("MatMul", [x, b.weight(width, 3 * width, scale=0.5)]), b.weight(3 * width)])
        parts = b.split(joint, 2, [width] * 3)
    else:
        source = x if b.ask.chance(90) else b.pick((F32,), (3,), lambda value: value.shape[2] == width)
        sizes = (width, head, head) if shared else (width,) * 3
        parts = [
            b.node("MatMul", [each, b.weight(width, size, scale=0.5)])
            for each, size in zip((x, source, x), sizes, strict=True)
        ]
        if b.ask.chance(70):
            parts = [_either(b, "Add", part, b.weight(size)) for part, size in zip(parts, sizes, strict=True)]
    counts = (HEADS, 1, 1) if shared else (HEADS,) * 3
    found = [_split(b, part, count, head) for part, count in zip(parts, counts, strict=True)]
    return [found[0], *(_repeated(b, each, head) for each in found[1:])] if shared else found


def _split(b: Builder, part: Value, heads: int, head: int) -> Value:
    if b.ask.chance(50):
        shaped = b.reshape(part, 0, 0, heads, head) if b.ask.chance(60) else b.reshape(part, 0, -1, heads, head)
    else:
        sizes = [size_of(b, part, 0), size_of(b, part, 1), b.ints(heads), b.ints(head)]
        shaped = b.node("Reshape", [part, listed(b, sizes)])
    return b.transpose(shaped, 0, 2, 1, 3)


def _repeated(b: Builder, x: Value, head: int) -> Value:
    """Repeat the one head of keys or values."""
    kind = b.ask.integer(0, 2)
    if kind == 0:
        return x  # MatMul repeats it
    if kind == 1:
        return b.node("Gather", [x, b.ints(*[0] * HEADS)], axis=1)
    wide = b.node("Expand", [b.with_axes("Unsqueeze", x, [2]), b.ints(1, 1, HEADS, 1, 1)])
    return b.reshape(wide, 0, HEADS, -1, head)


def _masked(b: Builder, x: Value, scores: Value) -> Value:
    """Add a summand, or close keys to rows: those that follow, or those that an input says."""
    if b.ask.chance(35):
        return _either(b, "Add", scores, b.weight(1, 1, 1, 1))
    if b.ask.chance(50):
        length = size_of(b, x, 1)
        row = b.node("Range", [b.constant(0, I64), b.node("Squeeze", [length]), b.constant(1, I64)])
        closed = b.node("Greater", [b.with_axes("Unsqueeze", row, [0]), b.with_axes("Unsqueeze", row, [1])])
    else:
        first = b.slice(x, 2, 0, 1)
        opened = b.node("Greater", [first, b.constant(b.ask.pick((-9.0, 0.1)), F32)])
        closed = b.node("Not", [b.with_axes("Unsqueeze", b.transpose(opened, 0, 2, 1), [1])])
    below = b.constant(b.ask.pick(FAR_BELOW), F32)
    if b.ask.chance(40):
        return _unread(b, "Where", [closed, below, scores])
    mask = _unread(b, "Where", [closed, below, b.constant(0.0, F32)])
    return _unread(b, "Add", [scores, mask] if b.ask.chance(65) else [mask, scores])


def _unread(b: Builder, op: str, inputs: Sequence[Value], **attributes: Any) -> Value:
    """Add a node whose result may be far below all other numbers, as masks are; only what comes next reads it."""
    arrays = runs(op, inputs, 1, b.opset, attributes)
    if arrays is None or any(np.isnan(array).any() for array in arrays[0]):
        raise Refused
    name = b.fresh()
    b.nodes.append(helper.make_node(op, [value.name for value in inputs], [name], **attributes))
    return Value(name, arrays[0], exact=all(value.exact for value in inputs))
