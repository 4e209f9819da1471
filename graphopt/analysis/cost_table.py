"""When a kernel is faster than ONNX Runtime's dense float32 operator: measured speedups and what follows from them.

Every alternative is measured against the same thing, the dense float32 operator, so that alternatives compare with each
other too: the kernels of this package and the integer operators of ONNX Runtime itself. A table is a pure function of
kernel, shape, level and instruction set, so that one model and one table always give one result.

The default table is part of the package. ``graphopt tune`` measures another on the user's machine and keeps it in the
user's cache, from where it is used until it is named otherwise: the variable GRAPHOPT_COST_TABLE holds a path, or
``default`` for the table of the package.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from graphopt.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

_VERSION: Final = 2
_DEFAULT: Final = "kernel_cost.json"
_REMAKE: Final = "Measure it again with graphopt tune."
ANY_ISA: Final = "any"
DEFAULT_TABLE: Final = "default"
"""What names the table of the package where a path may stand."""
TABLE_VARIABLE: Final = "GRAPHOPT_COST_TABLE"
"""The environment variable that names the table to use where an option does not."""

SPARSITY: Final = "sparsity"
BITS: Final = "bits"

KERNELS: Final[Mapping[str, str]] = {
    "sparse-matmul": SPARSITY,
    "sparse-matmul-4x1": SPARSITY,
    "sparse-matmul-8x1": SPARSITY,
    "sparse-matmul-16x1": SPARSITY,
    "sparse-conv": SPARSITY,
    "sparse-conv-4x1": SPARSITY,
    "sparse-conv-1x1": SPARSITY,
    "sparse-conv-1x1-4x1": SPARSITY,
    "sparse-conv-chained": SPARSITY,
    "sparse-conv-4x1-chained": SPARSITY,
    "sparse-conv-1x1-chained": SPARSITY,
    "sparse-conv-1x1-4x1-chained": SPARSITY,
    "low-bit-matmul": BITS,
    "low-bit-matmul-128": BITS,
    "low-bit-matmul-ternary": BITS,
    "low-bit-matmul-float": BITS,
    "sparse-int8-matmul-1x4": SPARSITY,
    "sparse-int8-matmul-4x4": SPARSITY,
    "sparse-int8-conv-1x4": SPARSITY,
    "sparse-int8-conv-4x4": SPARSITY,
    "dense-int8-matmul": BITS,
    "dense-int8-conv": BITS,
    "matmul-nbits": BITS,
    "matmul-nbits-128": BITS,
}
"""Every alternative to a dense float32 layer, and what its level counts.

``sparsity``: the share of zeros of the dense weight, 0..1. ``bits``: bits per weight. ``4x1`` and the like are blocks
(outputs x inputs); ``1x1`` convolutions have no window; ``chained`` convolutions read and write padded planes instead
of NCHW, and those without that word, which decide, are the slower of both. Low-bit weights are in blocks of 32 inputs
where no other number is named. ``dense-int8`` and ``matmul-nbits`` are operators of ONNX Runtime.
"""


@dataclass(frozen=True, slots=True, eq=False)
class KernelGrid:
    """Measured speedups of one kernel over the dense float32 operator.

    Attributes:
        m: Rows of the activations, or output positions of a convolution over the whole batch; rising.
        weights: Elements of the dense weight, rising.
        levels: Shares of zeros or bits per weight, rising; see `KERNELS`.
        speedup: By instruction set, dense time / time of the kernel, of shape [m, weights, levels].
    """

    m: tuple[int, ...]
    weights: tuple[int, ...]
    levels: tuple[float, ...]
    speedup: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """Measured speedups of kernels over dense float32 operators.

    Attributes:
        kernels: By name, of `KERNELS`; a kernel that was not measured is not known to be faster anywhere.
        margin: How much faster than its alternative a kernel must be before a layer is lowered; 0.1 is 10 %.
        measured_on: CPU and versions, for the report.
    """

    kernels: Mapping[str, KernelGrid]
    margin: float
    measured_on: str

    @classmethod
    def default(cls) -> CostTable:
        """Return the table of the package."""
        return _default()

    @classmethod
    def find(cls, name: str = "") -> CostTable:
        """Return the table that decides.

        Args:
            name: A path, or ``default`` for the table of the package. If empty, what GRAPHOPT_COST_TABLE names, else
                the one that ``graphopt tune`` made for this user, else that of the package.

        Raises:
            RecipeError: The table cannot be read, or it is not of this version.
        """
        path = table_path(name)
        return cls.load(path) if path else cls.default()

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Read a measured table.

        Args:
            path: A JSON file as `to_json` gives it.

        Raises:
            RecipeError: There is no such file, or it is not a table of this version.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as cause:
            raise RecipeError(
                f"the cost table cannot be read ({cause.strerror})",
                where=str(path),
                do="Correct the path, or leave the option out.",
            ) from cause
        except UnicodeDecodeError as cause:
            what = f"the cost table cannot be understood ({cause.reason})"
            raise RecipeError(what, where=str(path), do=_REMAKE) from cause
        return cls.from_json(text, where=str(path))

    @classmethod
    def from_json(cls, text: str, *, where: str) -> CostTable:
        """Read a table from JSON text.

        Args:
            text: As `to_json` gives it.
            where: What an error names as its place.

        Raises:
            RecipeError: The text is not a table of this version.
        """
        must = (
            f"A cost table has version {_VERSION} and for each kernel rising axes and a full grid of positive speedups"
        )
        try:
            raw: dict[str, Any] = json.loads(text)
            version = raw["version"]
            if version != _VERSION:
                problem = f"its version is {version}"
                raise RecipeError(f"the cost table is not valid: {problem}", where=where, must=must, do=_REMAKE)
            kernels = {str(name): _grid(entry) for name, entry in raw["kernels"].items()}
            table = cls(kernels, float(raw["margin"]), str(raw["measured_on"]))
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            what = f"the cost table cannot be understood ({type(cause).__name__}: {cause})"
            raise RecipeError(what, where=where, do=_REMAKE) from cause
        problem = table._problem()
        if problem:
            raise RecipeError(f"the cost table is not valid: {problem}", where=where, must=must, do=_REMAKE)
        return table

    def to_json(self) -> str:
        """Return the table as JSON text, the same for the same table."""
        kernels = [f"  {json.dumps(name)}: {_entry(self.kernels[name])}" for name in sorted(self.kernels)]
        head = {"version": _VERSION, "measured_on": self.measured_on, "margin": self.margin}
        lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        return "\n".join(["{", *lines, ' "kernels": {', ",\n".join(kernels), " }", "}"]) + "\n"

    def predicted(self, kernel: str, m: int | None, weights: int, level: float, isa: str = ANY_ISA) -> float:
        """Return how many times faster than the dense float32 operator the kernel will be, at least.

        That is the lowest speedup of the measured sizes nearest to the layer's; 0 where nothing is known: the kernel
        was not measured, the layer is smaller than all that was, the sparsity is below the lowest measured one, or the
        bits are not among the measured ones.

        Args:
            kernel: One of `KERNELS`.
            m: Rows of the activations or output positions; None where unknown, which takes the lowest of all.
            weights: Elements of the dense weight.
            level: Share of zeros or bits per weight.
            isa: An instruction set of the table; ``any`` takes the lowest of all.

        Raises:
            RecipeError: The table has no such instruction set.
            ValueError: There is no such kernel.
        """
        grid = self._measured(kernel, isa)
        if grid is None or not _is_covered(kernel, grid, level):
            return 0.0
        return min((_at(grid, row, level) for row in _rows(grid, m, weights, isa)), default=0.0)

    def gain(
        self, kernel: str, level: float, over: str, over_level: float, m: int | None, weights: int, isa: str = ANY_ISA
    ) -> float:
        """Return how many times faster than another alternative the kernel will be, at least; 0 where that is unknown.

        Args:
            kernel: One of `KERNELS`.
            level: Its share of zeros or bits.
            over: The alternative, one of `KERNELS`.
            over_level: Its share of zeros or bits.
            m: Rows of the activations or output positions; None where unknown.
            weights: Elements of the dense weight.
            isa: An instruction set of the table, or ``any``.

        Raises:
            RecipeError: The table has no such instruction set.
            ValueError: There is no such kernel.
        """
        ours, theirs = self._measured(kernel, isa), self._measured(over, isa)
        if ours is None or theirs is None:
            return 0.0
        if not (_is_covered(kernel, ours, level) and _is_covered(over, theirs, over_level)):
            return 0.0
        fast = [_at(ours, row, level) for row in _rows(ours, m, weights, isa)]
        slow = [_at(theirs, row, over_level) for row in _rows(theirs, m, weights, isa)]
        if not fast or not slow:
            return 0.0
        if (ours.m, ours.weights, list(ours.speedup)) == (theirs.m, theirs.weights, list(theirs.speedup)):
            return min(a / b for a, b in zip(fast, slow, strict=True))
        return min(fast) / max(slow)

    def break_even(self, kernel: str, m: int | None, weights: int, isa: str = ANY_ISA) -> float | None:
        """Return the sparsity from which on the kernel is faster than dense by the margin; None if there is none.

        Args:
            kernel: One of `KERNELS` whose level is a sparsity.
            m: Rows of the activations or output positions; None where unknown.
            weights: Elements of the dense weight.
            isa: An instruction set of the table, or ``any``.

        Raises:
            RecipeError: The table has no such instruction set.
            ValueError: There is no such kernel, or its level is bits.
        """
        grid = self._measured(kernel, isa)
        if KERNELS[kernel] != SPARSITY:
            msg = f"{kernel} has no break-even sparsity"
            raise ValueError(msg)
        if grid is None:
            return None
        crossings = [self._crossing(grid.levels, row) for row in _rows(grid, m, weights, isa)]
        known = [crossing for crossing in crossings if crossing is not None]
        return max(known) if known and len(known) == len(crossings) else None

    def fastest(
        self, candidates: Iterable[tuple[str, float]], m: int | None, weights: int, isa: str = ANY_ISA
    ) -> tuple[str, float, float] | None:
        """Return the alternative that is fastest and faster than dense by the margin: kernel, level and speedup.

        Args:
            candidates: Kernels and their levels for this layer; of equally fast ones the first counts.
            m: Rows of the activations or output positions; None where unknown.
            weights: Elements of the dense weight.
            isa: An instruction set of the table, or ``any``.

        Raises:
            RecipeError: The table has no such instruction set.
            ValueError: There is no such kernel.
        """
        found = [(name, level, self.predicted(name, m, weights, level, isa)) for name, level in candidates]
        best = max(found, key=lambda choice: choice[2], default=None)
        return best if best is not None and best[2] >= 1 + self.margin else None

    def _measured(self, kernel: str, isa: str) -> KernelGrid | None:
        if kernel not in KERNELS:
            msg = f"there is no kernel {kernel!r}; there are {', '.join(KERNELS)}"
            raise ValueError(msg)
        known = sorted({name for grid in self.kernels.values() for name in grid.speedup})
        if isa != ANY_ISA and isa not in known:
            must = f"It must be one of {', '.join([ANY_ISA, *known])}"
            raise RecipeError(f"the cost table has no instruction set {isa!r}", must=must)
        return self.kernels.get(kernel)

    def _crossing(self, levels: tuple[float, ...], speedups: NDArray[np.float64]) -> float | None:
        needed = 1 + self.margin
        if speedups[-1] < needed:
            return None
        steps = list(pairwise(zip(levels, speedups.tolist(), strict=True)))
        for (low, slower), (high, faster) in reversed(steps):
            if slower < needed:
                return float(low + (high - low) * (needed - slower) / (faster - slower))
        return levels[0]

    def _problem(self) -> str:
        if not self.kernels:
            return "it has no kernel"
        for name, grid in self.kernels.items():
            if name not in KERNELS:
                return f"there is no kernel '{name}'"
            problem = _problem(grid, KERNELS[name])
            if problem:
                return f"{problem} of {name}"
        return "" if 0 <= self.margin < 10 else "the margin is outside 0..10"


def tuned_path() -> Path:
    """Return where the table that ``graphopt tune`` measured for this user lies, whether it exists or not."""
    return _cache_folder() / "graphopt" / "cost_table.json"


def table_path(name: str = "") -> str:
    """Return the path of the table that decides; empty for that of the package. See `CostTable.find`."""
    named = name or os.environ.get(TABLE_VARIABLE, "")
    if named == DEFAULT_TABLE:
        return ""
    if named:
        return named
    return str(tuned_path()) if tuned_path().is_file() else ""


def table_from_cases(cases: Iterable[Mapping[str, Any]], *, margin: float, measured_on: str) -> CostTable:
    """Make a table from measured cases; of several with the same sizes the lowest speedup counts.

    Args:
        cases: Mappings with ``kernel``, ``isa``, ``m``, ``weights`` (elements), ``level`` and ``speedup``.
        margin: See `CostTable`.
        measured_on: CPU and versions.

    Raises:
        RecipeError: The cases of a kernel do not cover a full grid.
    """
    by_kernel: dict[str, dict[tuple[str, int, int, float], float]] = {}
    for case in cases:
        lowest = by_kernel.setdefault(str(case["kernel"]), {})
        key = (str(case["isa"]), int(case["m"]), int(case["weights"]), float(case["level"]))
        lowest[key] = min(float(case["speedup"]), lowest.get(key, np.inf))
    table = CostTable({name: _grid_of(lowest) for name, lowest in sorted(by_kernel.items())}, margin, measured_on)
    problem = table._problem()
    if problem:
        raise RecipeError(f"the measured cases make no cost table: {problem}", must="They must cover a full grid.")
    return table


@cache
def _default() -> CostTable:
    text = (resources.files("graphopt.analysis") / _DEFAULT).read_text(encoding="utf-8")
    return CostTable.from_json(text, where=_DEFAULT)


def _cache_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _grid(raw: Mapping[str, Any]) -> KernelGrid:
    return KernelGrid(
        m=tuple(int(v) for v in raw["m"]),
        weights=tuple(int(v) for v in raw["weights"]),
        levels=tuple(float(v) for v in raw["levels"]),
        speedup={str(isa): np.asarray(grid, np.float64) for isa, grid in raw["speedup"].items()},
    )


def _entry(grid: KernelGrid) -> str:
    """One kernel as JSON: a line per number of rows."""
    axes = f'"m": {list(grid.m)}, "weights": {list(grid.weights)}, "levels": {[float(v) for v in grid.levels]}'
    isas = []
    for isa, values in sorted(grid.speedup.items()):
        rows = ",\n     ".join(json.dumps(row) for row in np.round(values, 3).tolist())
        isas.append(f"    {json.dumps(isa)}: [\n     {rows}]")
    return f'{{\n   {axes},\n   "speedup": {{\n' + ",\n".join(isas) + "}}"


def _grid_of(lowest: Mapping[tuple[str, int, int, float], float]) -> KernelGrid:
    isas = sorted({isa for isa, _, _, _ in lowest})
    m_axis = sorted({m for _, m, _, _ in lowest})
    sizes = sorted({size for _, _, size, _ in lowest})
    levels = sorted({level for _, _, _, level in lowest})
    grids = {
        isa: np.array([[[lowest.get((isa, m, w, v), np.nan) for v in levels] for w in sizes] for m in m_axis])
        for isa in isas
    }
    return KernelGrid(tuple(m_axis), tuple(sizes), tuple(levels), grids)


def _problem(grid: KernelGrid, level: str) -> str:
    for name, axis in {"m": grid.m, "weights": grid.weights, "levels": grid.levels}.items():
        if not axis or any(b <= a for a, b in pairwise(axis)):
            return f"the axis {name} does not rise"
    if level == SPARSITY and not 0 <= grid.levels[0] <= grid.levels[-1] <= 1:
        return "a sparsity is outside 0..1"
    if not grid.speedup:
        return "there is no instruction set"
    shape = (len(grid.m), len(grid.weights), len(grid.levels))
    for isa, values in grid.speedup.items():
        if values.shape != shape:
            return f"the grid of {isa} has the shape {list(values.shape)}, not {list(shape)}"
        if not (np.isfinite(values).all() and (values > 0).all()):
            return f"the grid of {isa} has a speedup that is not a positive number"
    return ""


def _is_covered(kernel: str, grid: KernelGrid, level: float) -> bool:
    return level >= grid.levels[0] if KERNELS[kernel] == SPARSITY else level in grid.levels


def _at(grid: KernelGrid, row: NDArray[np.float64], level: float) -> float:
    return float(np.interp(level, grid.levels, row))


def _rows(grid: KernelGrid, m: int | None, weights: int, isa: str) -> list[NDArray[np.float64]]:
    """The measured curves over the level that a layer lies between; none where it is smaller than all measured."""
    grids = list(grid.speedup.values()) if isa == ANY_ISA else [grid.speedup[isa]] if isa in grid.speedup else []
    rows = range(len(grid.m)) if m is None else _neighbours(grid.m, m)
    return [values[i, j] for values in grids for i in rows for j in _neighbours(grid.weights, weights)]


def _neighbours(axis: tuple[int, ...], value: int) -> list[int]:
    """Positions of the measured sizes on both sides of a value; none below all of them, the last one above."""
    if value < axis[0]:
        return []
    above = int(np.searchsorted(axis, value))
    if above < len(axis) and axis[above] == value:
        return [above]
    return [above - 1] if above == len(axis) else [above - 1, above]
