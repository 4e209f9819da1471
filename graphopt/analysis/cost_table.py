"""When a sparse kernel is faster than the dense operator of ONNX Runtime: measured speedups and what follows from them.

A table is a pure function of shape, sparsity and instruction set, so that one model and one table always give one
result. The default table is part of the package; ``benchmarks/bench_kernels.py --cost-table`` measures another.
"""

from __future__ import annotations

import json
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

_VERSION: Final = 1
_DEFAULT: Final = "sparse_cost.json"
_REMAKE: Final = "Measure it again with benchmarks/bench_kernels.py --cost-table."
ANY_ISA: Final = "any"


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """Measured speedups of the sparse kernel over the dense operator, on a grid.

    Attributes:
        m: Rows of the activations, rising.
        weights: Elements of the dense weight (K * N), rising.
        sparsity: Shares of zeros, rising, 0..1.
        speedup: By instruction set, dense time / sparse time of shape [m, weights, sparsity].
        margin: How much faster than dense the kernel must be before a layer is lowered; 0.1 is 10 %.
        measured_on: CPU and versions, for the report.
    """

    m: tuple[int, ...]
    weights: tuple[int, ...]
    sparsity: tuple[float, ...]
    speedup: Mapping[str, NDArray[np.float64]]
    margin: float
    measured_on: str

    @classmethod
    def default(cls) -> CostTable:
        """Return the table of the package."""
        return _default()

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
        try:
            raw: dict[str, Any] = json.loads(text)
            table = cls(
                m=tuple(int(v) for v in raw["m"]),
                weights=tuple(int(v) for v in raw["weights"]),
                sparsity=tuple(float(v) for v in raw["sparsity"]),
                speedup={str(isa): np.asarray(grid, np.float64) for isa, grid in raw["speedup"].items()},
                margin=float(raw["margin"]),
                measured_on=str(raw["measured_on"]),
            )
            version = raw["version"]
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            what = f"the cost table cannot be understood ({type(cause).__name__}: {cause})"
            raise RecipeError(what, where=where, do=_REMAKE) from cause
        problem = f"its version is {version}" if version != _VERSION else table._problem()
        if problem:
            must = f"A cost table has version {_VERSION}, rising axes and a full grid of positive speedups"
            raise RecipeError(f"the cost table is not valid: {problem}", where=where, must=must, do=_REMAKE)
        return table

    def to_json(self) -> str:
        """Return the table as JSON text, the same for the same table."""
        document = {
            "version": _VERSION,
            "measured_on": self.measured_on,
            "margin": self.margin,
            "m": list(self.m),
            "weights": list(self.weights),
            "sparsity": list(self.sparsity),
            "speedup": {isa: np.round(grid, 3).tolist() for isa, grid in sorted(self.speedup.items())},
        }
        lines = json.dumps(document, indent=1)
        return lines.replace("\n     ", " ").replace("\n    ]", " ]") + "\n"

    def predicted(self, m: int | None, k: int, n: int, sparsity: float, isa: str = ANY_ISA) -> float:
        """Return how many times faster than dense the kernel will be, at least.

        That is the lowest speedup of the measured sizes nearest to the layer's.

        Args:
            m: Rows of the activations; None where unknown, which takes the lowest of all.
            k: Rows of the weight.
            n: Columns of the weight.
            sparsity: Share of zeros, 0..1. Below the lowest measured one the result is 0.
            isa: An instruction set of the table; ``any`` takes the lowest of all.

        Raises:
            RecipeError: The table has no such instruction set.
        """
        if sparsity < self.sparsity[0]:
            return 0.0
        return min((float(np.interp(sparsity, self.sparsity, row)) for row in self._rows(m, k * n, isa)), default=0.0)

    def break_even(self, m: int | None, k: int, n: int, isa: str = ANY_ISA) -> float | None:
        """Return the sparsity from which on the kernel is faster than dense by the margin; None if there is none.

        Args:
            m: Rows of the activations; None where unknown.
            k: Rows of the weight.
            n: Columns of the weight.
            isa: An instruction set of the table, or ``any``.

        Raises:
            RecipeError: The table has no such instruction set.
        """
        crossings = [self._crossing(row) for row in self._rows(m, k * n, isa)]
        known = [crossing for crossing in crossings if crossing is not None]
        return max(known) if known and len(known) == len(crossings) else None

    def _rows(self, m: int | None, weights: int, isa: str) -> list[NDArray[np.float64]]:
        """The measured curves over sparsity that a layer lies between; none where it is smaller than all measured."""
        if isa != ANY_ISA and isa not in self.speedup:
            must = f"It must be one of {', '.join([ANY_ISA, *sorted(self.speedup)])}"
            raise RecipeError(f"the cost table has no instruction set {isa!r}", must=must)
        grids = self.speedup.values() if isa == ANY_ISA else [self.speedup[isa]]
        rows = range(len(self.m)) if m is None else _neighbours(self.m, m)
        return [grid[i, j] for grid in grids for i in rows for j in _neighbours(self.weights, weights)]

    def _crossing(self, speedups: NDArray[np.float64]) -> float | None:
        needed = 1 + self.margin
        if speedups[-1] < needed:
            return None
        steps = list(pairwise(zip(self.sparsity, speedups.tolist(), strict=True)))
        for (low, slower), (high, faster) in reversed(steps):
            if slower < needed:
                return float(low + (high - low) * (needed - slower) / (faster - slower))
        return self.sparsity[0]

    def _problem(self) -> str:
        axes = {"m": self.m, "weights": self.weights, "sparsity": self.sparsity}
        for name, axis in axes.items():
            if not axis or any(b <= a for a, b in pairwise(axis)):
                return f"the axis {name} does not rise"
        if not 0 <= self.sparsity[0] <= self.sparsity[-1] <= 1:
            return "a sparsity is outside 0..1"
        if not self.speedup:
            return "it has no instruction set"
        shape = (len(self.m), len(self.weights), len(self.sparsity))
        for isa, grid in self.speedup.items():
            if grid.shape != shape:
                return f"the grid of {isa} has the shape {list(grid.shape)}, not {list(shape)}"
            if not (np.isfinite(grid).all() and (grid > 0).all()):
                return f"the grid of {isa} has a speedup that is not a positive number"
        return "" if 0 <= self.margin < 10 else "the margin is outside 0..10"


def table_from_cases(cases: Iterable[Mapping[str, Any]], *, margin: float, measured_on: str) -> CostTable:
    """Make a table from measured cases; of several with the same sizes the lowest speedup counts.

    Args:
        cases: Mappings with ``isa``, ``shape`` ("MxKxN"), ``sparsity`` (0..1) and ``speedup``.
        margin: See `CostTable`.
        measured_on: CPU and versions.

    Raises:
        RecipeError: The cases do not cover a full grid.
    """
    lowest: dict[tuple[str, int, int, float], float] = {}
    for case in cases:
        m, k, n = (int(v) for v in str(case["shape"]).split("x"))
        key = (str(case["isa"]), m, k * n, float(case["sparsity"]))
        lowest[key] = min(float(case["speedup"]), lowest.get(key, np.inf))
    isas, m_axis, weights, sparsity = (tuple(sorted({key[i] for key in lowest})) for i in range(4))
    grids = {
        str(isa): np.array([[[lowest.get((isa, m, w, s), np.nan) for s in sparsity] for w in weights] for m in m_axis])  # type: ignore[arg-type]
        for isa in isas
    }
    table = CostTable(m_axis, weights, sparsity, grids, margin, measured_on)  # type: ignore[arg-type]
    problem = table._problem()
    if problem:
        raise RecipeError(f"the measured cases make no cost table: {problem}", must="They must cover a full grid.")
    return table


@cache
def _default() -> CostTable:
    text = (resources.files("graphopt.analysis") / _DEFAULT).read_text(encoding="utf-8")
    return CostTable.from_json(text, where=_DEFAULT)


def _neighbours(axis: tuple[int, ...], value: int) -> list[int]:
    """Positions of the measured sizes on both sides of a value; none below all of them, the last one above."""
    if value < axis[0]:
        return []
    above = int(np.searchsorted(axis, value))
    if above < len(axis) and axis[above] == value:
        return [above]
    return [above - 1] if above == len(axis) else [above - 1, above]
