"""Feeds for a model and its results, and the difference of what they compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from graphopt.runtime import input_specs, random_feeds

if TYPE_CHECKING:
    from pathlib import Path

    import onnxruntime as ort

Feed = dict[str, np.ndarray]
_OVERRIDES = 5
_ATTENTION_MASKS = {"am", "attention_mask"}


def feeds_for(path: Path, session: ort.InferenceSession, data: Path | None, seed: int) -> list[Feed]:
    """Return at least two feeds; where the model has free dimensions, of different sizes.

    Real feeds (``feeds_NAME.npz``, NAME the beginning of the model's name, one complete feed per sample) are used where
    they exist, two samples joined along the free axes for the larger size; otherwise seeded random values.
    """
    specs = tuple(spec for spec in input_specs(session) if spec.required)
    recorded = sorted(data.glob("feeds_*.npz")) if data is not None and data.is_dir() else []
    for file in recorded:
        if path.stem.startswith(file.stem.removeprefix("feeds_")):
            with np.load(file, allow_pickle=False) as arrays:
                samples = [{spec.name: np.asarray(arrays[spec.name][i]) for spec in specs} for i in (0, 1, 2)]
            joined = {}
            for spec in specs:
                free = next((axis for axis, size in enumerate(spec.shape or ()) if not isinstance(size, int)), None)
                pair = [samples[1][spec.name], samples[2][spec.name]]
                joined[spec.name] = pair[0] if free is None else np.concatenate(pair, axis=free)
            return [samples[0], joined]
    names = {size for spec in specs for size in spec.shape or () if isinstance(size, str)}
    batches = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], str)}
    sizes = [{}, {name: 3 if name in batches else 11 for name in names}]
    return [
        {name: masked(name, np.asarray(value)) for name, value in feed.items()}
        for number, chosen in enumerate(sizes)
        for feed in random_feeds(specs, count=1, seed=seed + number, sizes=chosen)
    ]


def masked(name: str, value: np.ndarray) -> np.ndarray:
    """Return ones and the odd zero at the end of a row for an attention mask, any other value as it is."""
    if name not in _ATTENTION_MASKS:
        return value
    mask = np.ones_like(value)
    mask[1:, -2:] = 0
    return mask


def changed_weights(proto: onnx.ModelProto, names: list[str], seed: int) -> list[Feed]:
    """Return feeds of one changed weight each, for a few overridable inputs of floating point."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    floats = [name for name in names if weights[name].data_type == onnx.TensorProto.FLOAT]
    chosen = floats[:: max(len(floats) // _OVERRIDES, 1)]
    generator = np.random.default_rng(seed)
    found = []
    for name in chosen:
        value = numpy_helper.to_array(weights[name])
        found.append({name: (value * generator.uniform(0.5, 1.5, value.shape) + 0.01).astype(np.float32)})
    return found


def same_bits(expected: list[Any], found: list[Any]) -> bool:
    """Tell whether outputs are equal bit for bit: minus zero is not zero; the payload of NaN aside."""
    for a, b in zip(map(np.asarray, expected), map(np.asarray, found), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        floating = a.dtype.kind in "fc"
        if not np.array_equal(a, b, equal_nan=floating):
            return False
        if a.dtype.kind == "f" and not np.array_equal(np.signbit(a[a == 0]), np.signbit(b[b == 0])):
            return False
    return True


def difference(expected: list[Any], found: list[Any]) -> float:
    """Return the largest difference of any output, relative to its largest value; infinite where shapes or NaN differ.

    Integers and other values that are not of floating point must be equal.
    """
    return max(map(_output_difference, map(np.asarray, expected), map(np.asarray, found)), default=0.0)


def _output_difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else float("inf")
    special = ~np.isfinite(a)
    if not np.array_equal(special, ~np.isfinite(b)) or not np.array_equal(a[special], b[special], equal_nan=True):
        return float("inf")
    wide, other = (np.where(special, 0, value).astype(np.float64) for value in (a, b))
    if not np.any(wide != other):
        return 0.0
    return float(np.abs(wide - other).max() / max(np.abs(wide).max(), np.finfo(a.dtype).tiny))
