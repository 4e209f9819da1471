"""Seeded random feeds that fit the declared inputs of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import UnsupportedError
from graphopt.runtime.feeds import Feeds
from graphopt.runtime.fit import is_float
from graphopt.runtime.inputs import InputSpec, input_specs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FREE = 16
_FREE_IMAGE = 64
_SMALL_INTEGERS = 8


def random_feeds(inputs: object, *, count: int, seed: int = 0, sizes: Mapping[str, int] | None = None) -> Feeds:
    """Return feeds of random values.

    A free first axis is 1; other free axes are 16 (64 for the two image axes of a four-axis input), and one symbolic
    name has one size. Floats are standard normal, wide integers 0 to 7 (so that they are legal indices), bytes cover
    their range, masks are ones and zeros that start with a one.

    Args:
        inputs: The model, a session of it, or its input specifications.
        count: Number of samples.
        seed: Seed; the same seed gives the same values.
        sizes: Sizes of symbolic dimensions by name.

    Raises:
        UnsupportedError: An input is no tensor.
    """
    specs = tuple(spec for spec in input_specs(inputs) if spec.required)
    shapes = _shapes(specs, dict(sizes or {}))

    def generate() -> Iterator[dict[str, Any]]:
        for number in range(count):
            generator = np.random.default_rng([seed, number])
            # one axis more than the input, so that the values are one complete feed
            yield {spec.name: _values(spec, shapes[spec.name], generator)[None] for spec in specs}

    feeds = Feeds.open(generate, specs) if specs else Feeds.open([{}] * count, specs)
    feeds.__dict__["size"] = count
    return feeds


def _shapes(specs: tuple[InputSpec, ...], sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    firsts = {spec.shape[0] for spec in specs if spec.shape}
    shapes = {}
    for spec in specs:
        declared = spec.shape if spec.shape is not None else (1,)
        found = []
        for axis, size in enumerate(declared):
            if isinstance(size, int):
                found.append(size)
                continue
            free = (
                1
                if axis == 0 or size in firsts - {None}
                else _FREE_IMAGE
                if len(declared) == 4 and axis >= 2
                else _FREE
            )
            found.append(free if size is None else sizes.setdefault(size, free))
        shapes[spec.name] = tuple(found)
    return shapes


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
