"""Equality of outputs under a contract.

* EXACT: the same bits. All NaN count as one value, since no operation promises which NaN it gives; -0 differs from +0.
* ROUNDING: no element differs by more than the tolerance of its output, which `verify.bound` derives from the model.
  Elements that are not numbers (infinite, NaN) and outputs that are not floats follow EXACT, but for those that the
  model itself does not settle within its rounding.
* LOSSY: nothing is demanded but the same names, types, shapes, and no NaN or infinity where the reference has none; the
  figures say what was lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from graphopt.verify.contract import Contract

Outputs: TypeAlias = Mapping[str, Any]
"""Outputs by name: arrays, and lists or dictionaries of them for sequences and maps."""

CEILING_DB = 300.0
"""SQNR of outputs that are equal, which has no finite value."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may differ under ROUNDING.

    Attributes:
        absolute: Largest difference of a float element.
        flips: Elements that may differ in an integer or boolean output, or be settled otherwise in a float one.
    """

    absolute: float = 0.0
    flips: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """One output of two models compared.

    Attributes:
        name: Name of the output; elements of sequences and maps have an index behind it.
        equal: Whether it holds the contract.
        detail: What is wrong, or empty.
        max_abs: Largest absolute difference over elements that are finite in both.
        max_rel: Largest difference over elements, relative to the largest magnitude of the reference.
        sqnr_db: Signal-to-quantization-noise ratio, 10 log10(sum y^2 / sum (y - z)^2), at most `CEILING_DB`.
        agreement: Share of rows whose largest entry is the same, for floats with at least two axes, else None.
        differing: Number of elements that differ in any bit.
    """

    name: str
    equal: bool
    detail: str = ""
    max_abs: float = 0.0
    max_rel: float = 0.0
    sqnr_db: float = CEILING_DB
    agreement: float | None = None
    differing: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """All outputs of two models compared."""

    contract: Contract
    outputs: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Return whether every output holds the contract."""
        return all(output.equal for output in self.outputs)

    @property
    def reason(self) -> str:
        """Return the first output that does not hold the contract, with figures; empty if all do."""
        bad = next((output for output in self.outputs if not output.equal), None)
        return "" if bad is None else f"output {bad.name!r}: {bad.detail}"

    @property
    def sqnr_db(self) -> float:
        """Return the SQNR of the worst output."""
        return min((output.sqnr_db for output in self.outputs), default=CEILING_DB)


def compare(
    reference: Outputs,
    candidate: Outputs,
    contract: Contract,
    tolerances: Mapping[str, Tolerance] | None = None,
) -> Comparison:
    """Compare the outputs of two models on one feed.

    Args:
        reference: Outputs of the model that is right.
        candidate: Outputs of the other one.
        contract: What must hold.
        tolerances: For ROUNDING, by output name; outputs without one must be equal bitwise.
    """
    differences: list[Difference] = []
    for name in reference:
        if name not in candidate:
            differences.append(Difference(name, False, "it is missing"))
            continue
        tolerance = (tolerances or {}).get(name, Tolerance())
        differences.extend(_compare(name, reference[name], candidate[name], contract, tolerance))
    extra = [name for name in candidate if name not in reference]
    differences.extend(Difference(name, False, "the reference has no such output") for name in extra)
    return Comparison(contract, tuple(differences))


def worst(comparisons: Sequence[Comparison]) -> Comparison:
    """Return, per output, the worst over several feeds.

    Args:
        comparisons: At least one; all of the same models.
    """
    merged: dict[str, Difference] = {}
    for comparison in comparisons:
        for output in comparison.outputs:
            known = merged.get(output.name)
            merged[output.name] = output if known is None else _merge(known, output)
    return Comparison(comparisons[0].contract, tuple(merged.values()))


def _merge(first: Difference, second: Difference) -> Difference:
    agreements = [each.agreement for each in (first, second) if each.agreement is not None]
    return Difference(
        first.name,
        first.equal and second.equal,
        first.detail or second.detail,
        max(first.max_abs, second.max_abs),
        max(first.max_rel, second.max_rel),
        min(first.sqnr_db, second.sqnr_db),
        min(agreements) if agreements else None,
        first.differing + second.differing,
    )


def _compare(name: str, a: Any, b: Any, contract: Contract, tolerance: Tolerance) -> list[Difference]:
    if a is None or b is None:
        return [Difference(name, a is b, "" if a is b else "one of the two is empty")]
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if list(a) != list(b):
            return [Difference(name, False, f"the keys are {list(b)}, not {list(a)}")]
        return [each for key in a for each in _compare(f"{name}[{key!r}]", a[key], b[key], contract, tolerance)]
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return [Difference(name, False, f"the sequence has {len(b)} elements, not {len(a)}")]
        pairs = enumerate(zip(a, b, strict=True))
        return [each for i, (x, y) in pairs for each in _compare(f"{name}[{i}]", x, y, contract, tolerance)]
    return [_compare_arrays(name, np.asarray(a), np.asarray(b), contract, tolerance)]


def _compare_arrays(name: str, a: np.ndarray, b: np.ndarray, contract: Contract, tolerance: Tolerance) -> Difference:
    if a.dtype != b.dtype:
        return Difference(name, False, f"the type is {b.dtype}, not {a.dtype}", sqnr_db=-CEILING_DB)
    if a.shape != b.shape:
        return Difference(name, False, f"the shape is {list(b.shape)}, not {list(a.shape)}", sqnr_db=-CEILING_DB)
    if a.dtype.kind == "c":
        a, b = np.stack([a.real, a.imag], -1), np.stack([b.real, b.imag], -1)
    same = same_bits(a, b)
    differing = int(a.size - np.count_nonzero(same))
    if not is_float(a.dtype):
        allowed = 0 if contract is Contract.EXACT else tolerance.flips if contract is Contract.ROUNDING else a.size
        detail = "" if differing <= allowed else f"{differing} of {a.size} elements differ{_first(a, b, same)}"
        return Difference(name, not detail, detail, differing=differing)
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(finite, np.abs(x - y), 0.0)
    scale = float(np.abs(x[finite]).max(initial=0.0))
    max_abs = float(error.max(initial=0.0))
    max_rel = max_abs / scale if scale else (0.0 if max_abs == 0 else math.inf)
    detail = ""
    unsettled = ~same & ~finite
    if contract is Contract.EXACT and differing:
        detail = f"{differing} of {a.size} elements differ, by at most {max_abs:.3g}{_first(a, b, same)}"
    elif contract is Contract.ROUNDING and np.count_nonzero(unsettled) > tolerance.flips:
        detail = f"NaN or infinity differs{_first(a, b, ~unsettled)}"
    elif contract is Contract.ROUNDING and np.count_nonzero(error > tolerance.absolute) > 0:
        close = error <= tolerance.absolute
        detail = f"it differs by {max_abs:.3g}, the rounding bound is {tolerance.absolute:.3g}{_first(a, b, close)}"
    elif contract is Contract.LOSSY and np.any(np.isfinite(x) & ~np.isfinite(y)):
        detail = f"it is not finite where the reference is{_first(a, b, ~(np.isfinite(x) & ~np.isfinite(y)))}"
    return Difference(name, not detail, detail, max_abs, max_rel, _sqnr(x, y, same), _agreement(x, y), differing)


def same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return, per element, whether two arrays of one type and shape have the same bits; all NaN are the same.

    Args:
        a: An array, not complex.
        b: Another one.
    """
    if a.dtype.kind in "OUS":
        return np.asarray(a == b)
    bits = np.dtype(f"u{a.dtype.itemsize}")
    left = np.ascontiguousarray(a).reshape(a.shape).view(bits)
    right = np.ascontiguousarray(b).reshape(b.shape).view(bits)
    same: np.ndarray = np.asarray(left == right)
    return same | (np.isnan(a) & np.isnan(b)) if is_float(a.dtype) else same


def is_float(dtype: np.dtype[Any]) -> bool:
    """Tell whether elements of a type are real or complex floating-point numbers, those of ml_dtypes included."""
    return dtype.kind in "fc" or (dtype.kind == "V" and "float" in dtype.name)


def _sqnr(x: np.ndarray, y: np.ndarray, same: np.ndarray) -> float:
    if same.all():
        return CEILING_DB
    with np.errstate(invalid="ignore", over="ignore"):
        noise = float(np.square(x - y)[np.isfinite(x)].sum())
        signal = float(np.square(x[np.isfinite(x)]).sum())
    if noise == 0.0:
        return CEILING_DB
    if signal == 0.0 or not math.isfinite(noise):
        return -CEILING_DB
    return min(CEILING_DB, 10.0 * math.log10(signal / noise))


def _agreement(x: np.ndarray, y: np.ndarray) -> float | None:
    if x.ndim < 2 or x.shape[-1] < 2 or x.size == 0:
        return None
    return float(np.mean(x.argmax(axis=-1) == y.argmax(axis=-1)))


def _first(a: np.ndarray, b: np.ndarray, good: np.ndarray) -> str:
    """Return where the first bad element is, and what it is in both."""
    bad = np.argwhere(~np.atleast_1d(good.reshape(a.shape + good.shape[a.ndim :])))
    if not len(bad):
        return ""
    index = tuple(int(i) for i in bad[0])[: a.ndim]
    return f"; first at {list(index)}: {b[index]} instead of {a[index]}"
