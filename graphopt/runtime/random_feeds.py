"""Seeded random feeds that fit the declared inputs of a model."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from graphopt.errors import DataError, RunError, UnsupportedError
from graphopt.runtime.feeds import Feeds
from graphopt.runtime.fit import is_float
from graphopt.runtime.inputs import InputSpec, input_specs
from graphopt.runtime.session import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FREE = 16
_LARGER = (16, 64, 256, 1024)
_MOST_ELEMENTS = 1 << 25
"""Elements of a feed beyond which no larger sizes are tried: several axes of 1024 do not fit in memory."""
_FREE_IMAGE = 64
_SMALL_INTEGERS = 8


def random_feeds(inputs: object, *, count: int, seed: int = 0, sizes: Mapping[str, int] | None = None) -> Feeds:
    """Return feeds of random values.

    A free first axis is 1, as is a free second axis behind a fixed first one (the layout of recurrent states). Other
    free axes are 16 (at least 64 for the two image axes of a four-axis input), and one symbolic name has one size.
    Given a session, free sizes grow up to 1024 until it runs. Floats are standard normal, wide integers 0 to 7 (so
    that they are legal indices), bytes cover their range, masks are ones and zeros that start with a one.

    Args:
        inputs: The model, a session of it, or its input specifications.
        count: Number of samples.
        seed: Seed; the same seed gives the same values.
        sizes: Sizes of symbolic dimensions by name.

    Raises:
        UnsupportedError: An input is no tensor.
    """
    specs = tuple(spec for spec in input_specs(inputs) if spec.required)
    shapes = _runnable_shapes(inputs, specs, dict(sizes or {}), seed)

    def generate() -> Iterator[dict[str, Any]]:
        for number in range(count):
            # one axis more than the input, so that the values are one complete feed
            yield {name: value[None] for name, value in _feed(specs, shapes, seed, number).items()}

    return Feeds.open(generate, specs)


def _runnable_shapes(
    inputs: object, specs: tuple[InputSpec, ...], sizes: dict[str, int], seed: int
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input; where a session is at hand, the first shapes that it runs on."""
    smallest = _shapes(specs, dict(sizes), _FREE)
    if not isinstance(inputs, ort.InferenceSession):
        return smallest
    for free in _LARGER:
        shapes = _shapes(specs, dict(sizes), free)
        if sum(map(prod, shapes.values())) > _MOST_ELEMENTS:
            break
        try:
            run(inputs, _feed(specs, shapes, seed, 0))
        except (RunError, DataError):
            continue
        return shapes
    return smallest


def _shapes(specs: tuple[InputSpec, ...], sizes: dict[str, int], free: int) -> dict[str, tuple[int, ...]]:
    batch_names = {spec.shape[0] for spec in specs if spec.shape} - {None}
    shapes = {}
    for spec in specs:
        declared = spec.shape if spec.shape is not None else (1,)
        found = []
        for axis, size in enumerate(declared):
            if isinstance(size, int):
                found.append(size)
                continue
            behind_fixed = axis == 1 and isinstance(declared[0], int) and declared[0] > 1
            is_image = len(declared) == 4 and axis >= 2
            if axis == 0 or size in batch_names or behind_fixed:
                chosen = 1
            else:
                chosen = max(_FREE_IMAGE, free) if is_image else free
            found.append(chosen if size is None else sizes.setdefault(size, chosen))
        shapes[spec.name] = tuple(found)
    return shapes


def _feed(
    specs: tuple[InputSpec, ...], shapes: dict[str, tuple[int, ...]], seed: int, number: int
) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng([seed, number])
    return {spec.name: _values(spec, shapes[spec.name], generator) for spec in specs}


def _values(spec: InputSpec, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray[Any, Any]:
    dtype = spec.dtype
    if dtype is None:
        raise UnsupportedError(
            f"the input '{spec.name}' is no tensor",
            must="Random feeds are made for tensors.",
            do="Give feeds from a function.",
        )
    if dtype.kind == "O":
        return np.full(shape, "a", dtype=object)
    if "mask" in spec.name.lower():
        mask = generator.random(shape) < 0.8
        mask[..., :1] = True
        return mask.astype(dtype)
    if dtype == np.bool_:
        return generator.random(shape) < 0.5
    if dtype.kind == "c":
        return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(dtype)
    if is_float(dtype):
        return generator.standard_normal(shape).astype(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    return generator.integers(0, _SMALL_INTEGERS, shape).astype(dtype)
