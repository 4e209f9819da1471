"""Feeds for small models: sizes of free dimensions are chosen, values are ordinary or as odd as the type allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

SIZES = ((2, 3, 5), (3, 1, 4))
"""Sizes of the free dimensions, in the order in which they occur, for each feed of a model."""

_ODD_FLOATS = (np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, -3e38, 3e38, 1.0, -1.5)
_ODD_HALVES = (np.nan, np.inf, -np.inf, -0.0, 0.0, 6e-8, -65504.0, 65504.0, 1.0, -1.5)


def feeds_of(
    model: onnx.ModelProto,
    sizes: Sequence[Mapping[str, int] | Sequence[int]] = SIZES,
    *,
    odd: bool = False,
    integers: int = 4,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return one feed for each choice of sizes, or as many of odd values.

    Args:
        model: The model; its inputs are tensors.
        sizes: For each feed the sizes of free dimensions: by name, or in order of occurrence.
        odd: NaN, infinities, both zeros, the smallest and largest numbers; extremes of integers.
        integers: Integers of ordinary feeds lie in 0 .. integers - 1, so that they are legal as indices.
        seed: Seed of the values.
    """
    given = {tensor.name for tensor in model.graph.initializer}
    given |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    feeds = []
    for number, choice in enumerate(sizes):
        generator = np.random.default_rng([seed, number])
        known: dict[str, int] = dict(choice) if isinstance(choice, Mapping) else {}
        waiting: list[int] = [] if isinstance(choice, Mapping) else list(choice)
        feed = {}
        for value in model.graph.input:
            if value.name in given or not value.type.HasField("tensor_type"):
                continue
            shape: list[int] = []
            for index, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.HasField("dim_value"):
                    shape.append(dim.dim_value)
                    continue
                name = dim.dim_param or f"{value.name}.{index}"
                if name not in known:
                    known[name] = waiting.pop(0) if waiting else 2
                shape.append(known[name])
            feed[value.name] = values(value.type.tensor_type.elem_type, shape, generator, odd=odd, integers=integers)
        feeds.append(feed)
    return feeds


def values(
    element: int, shape: Sequence[int], generator: np.random.Generator, *, odd: bool = False, integers: int = 4
) -> Any:
    """Return an array of an ONNX element type.

    Args:
        element: The element type, as in TensorProto.
        shape: The shape.
        generator: Where the values come from.
        odd: See `feeds_of`.
        integers: See `feeds_of`.
    """
    if element == TensorProto.STRING:
        return generator.choice(np.array(["", "a", "bc"], dtype=object), shape)
    dtype = helper.tensor_dtype_to_np_dtype(element)
    if dtype == np.bool_:
        return generator.random(shape) < 0.5
    if dtype.kind in "iu" and dtype.itemsize * 8 >= 8 and dtype.name.lstrip("u") not in {"int2", "int4"}:
        if odd:
            limits = np.iinfo(dtype)
            return generator.choice(np.array([limits.min, limits.max, 0, 1, limits.max // 2 + 1], dtype), shape)
        return generator.integers(0, integers, shape).astype(dtype)
    if odd:
        narrow = dtype.itemsize < 4
        pool = np.array(_ODD_HALVES if narrow else _ODD_FLOATS)
        return generator.choice(pool, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)
