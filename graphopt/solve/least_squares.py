"""Solves a layer again on the weights it still has, so that it repairs what was removed and what earlier layers lost.

The layer computes y = W x + b. Given samples of its input in the dense model (x) and in the compressed one (z), the
best weights V on a given support minimise E |W x - V z|^2: a linear least-squares problem per output row, which needs
only H = E[z z'], G = E[x z'] and the means.

Source: He et al. 2017, arXiv:1707.06168, section 3.1.2; Hubara et al. 2021, arXiv:2102.08124, section 3.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.threads import cores, one_thread

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

_BLOCK_ROWS = 2048

_FEWER = 0.9
"""Where less than this times as many weights go as stay, a row is solved for those that go."""

_SAFE_DAMPING = 1e-4
"""From here on the damped system has an inverse to many digits, whatever the samples: its condition is C / damping."""

_SURE_DAMPING = 1e-3
"""From here on the damped system is positive definite, whatever was rounded off the sums."""

_ROUNDED_OFF = 1e-12
"""Share of a squared mean below which a variance is none: float32 samples are not that exact."""

_LEAST_DAMPING = 1e-10
"""Share of the trace that is added at least: inverses of a worse condition are made of rounding."""

_STEADY = 0.9
"""Share of the power of samples in their means from which on products are taken in float64."""

_WORTH_THREADS = 1e8
"""Floating-point operations from which on rows are solved on several threads."""


@dataclass(slots=True)
class Moments:
    """Sums over samples of a layer's inputs, dense (x) and compressed (z), of C columns each.

    Attributes:
        symmetric: x is always z, so that one matrix of sums does for all three.
        inner: Sum of z z', [C, C].
        outer: Sum of x x', [C, C].
        cross: Sum of x z', [C, C].
        dense: Sum of x, [C].
        compressed: Sum of z, [C].
        count: Number of samples.
    """

    columns: int
    symmetric: bool = False
    inner: Matrix = field(init=False)
    outer: Matrix = field(init=False)
    cross: Matrix = field(init=False)
    dense: Vector = field(init=False)
    compressed: Vector = field(init=False)
    count: int = 0
    _waiting: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=list)
    _rows_waiting: int = 0

    def __post_init__(self) -> None:
        self.inner = np.zeros((self.columns, self.columns))
        self.outer = self.inner if self.symmetric else np.zeros_like(self.inner)
        self.cross = self.inner if self.symmetric else np.zeros_like(self.inner)
        self.compressed = np.zeros(self.columns)
        self.dense = self.compressed if self.symmetric else np.zeros(self.columns)

    def add(self, dense: NDArray[np.floating], compressed: NDArray[np.floating]) -> None:
        """Add samples: x and z, [n, C] each, row by row of the same sample. Products are float32, sums float64.

        Of a symmetric sum only z is read.
        """
        z = compressed.astype(np.float32)
        self._waiting.append((z if self.symmetric else dense.astype(np.float32), z))
        self._rows_waiting += len(z)
        if self._rows_waiting >= _BLOCK_ROWS:
            self.settle()

    def settle(self) -> None:
        """Take in the samples that wait: few large products are faster than many small ones."""
        if not self._waiting:
            return
        waiting, self._waiting, self._rows_waiting = self._waiting, [], 0
        z = _summable(np.concatenate([part for _, part in waiting]))
        self.inner += z.T @ z
        self.compressed += z.sum(axis=0, dtype=np.float64)
        self.count += len(z)
        if not self.symmetric:
            x = _summable(np.concatenate([part for part, _ in waiting]))
            self.outer += x.T @ x
            self.cross += x.T @ z
            self.dense += x.sum(axis=0, dtype=np.float64)

    def merge(self, other: Moments) -> Moments:
        """Return the sums over the samples of both, which are left as they are."""
        self.settle()
        other.settle()
        found = Moments(self.columns, symmetric=self.symmetric and other.symmetric)
        names = ("inner", "compressed") if found.symmetric else ("inner", "outer", "cross", "dense", "compressed")
        for name in names:
            np.add(getattr(self, name), getattr(other, name), out=getattr(found, name))
        found.count = self.count + other.count
        return found

    def finite(self) -> bool:
        """Tell whether there are samples and no sum overflowed."""
        self.settle()
        return self.count > 0 and all(bool(np.isfinite(sums).all()) for sums in (self.inner, self.outer, self.cross))

    def mean(self, *, centred: bool, last: bool = False) -> Statistics:
        """Return the statistics per sample; centred ones where a bias takes up the means.

        Args:
            centred: Whether the means are taken out.
            last: The sums are not needed any more: their memory becomes that of the statistics.
        """
        self.settle()
        x, z = self.dense / self.count, self.compressed / self.count
        inner = _mean(self.inner, self.count, (z, z) if centred else None, last=last)
        still_z = _constant(inner, z) if centred else None
        _clear(inner, still_z, still_z)
        if self.symmetric:
            return Statistics(inner, inner, inner, x, z)
        outer = _mean(self.outer, self.count, (x, x) if centred else None, last=last)
        cross = _mean(self.cross, self.count, (x, z) if centred else None, last=last)
        still_x = _constant(outer, x) if centred else None
        _clear(outer, still_x, still_x)
        _clear(cross, still_x, still_z)
        return Statistics(inner, outer, cross, x, z)


def _summable(samples: NDArray[np.float32]) -> NDArray[np.floating]:
    """Return samples in the type in which their products are taken: float64 where means outweigh what varies.

    When the means are taken out of the sums, what float32 rounded off the products would be more than what is left.
    """
    if not len(samples):
        return samples
    with np.errstate(over="ignore", invalid="ignore"):
        power = float(np.einsum("nc,nc->", samples, samples, dtype=np.float64))
        means = samples.mean(axis=0, dtype=np.float64)
        steady = len(samples) * float(means @ means)
    return samples.astype(np.float64) if steady > _STEADY * power else samples


def _mean(sums: Matrix, count: int, means: tuple[Vector, Vector] | None, *, last: bool) -> Matrix:
    """Return sums / count - a b', a few rows at a time: the product of the means need not fit memory."""
    found = np.divide(sums, count, out=sums if last else None)
    if means is not None:
        for start in range(0, len(found), _BLOCK_ROWS // 16):
            rows = slice(start, start + _BLOCK_ROWS // 16)
            found[rows] -= np.outer(means[0][rows], means[1])
    return found


def _constant(centred: Matrix, means: Vector) -> NDArray[np.intp]:
    """Return the columns whose variance is what rounding left of it: they never change."""
    return np.flatnonzero(np.diag(centred) <= _ROUNDED_OFF * np.square(means))


def _clear(centred: Matrix, rows: NDArray[np.intp] | None, columns: NDArray[np.intp] | None) -> None:
    """Set moments of what never changes to exactly zero: of noise as small as theirs nothing can be solved."""
    if rows is not None and rows.size:
        centred[rows] = 0.0
    if columns is not None and columns.size:
        centred[:, columns] = 0.0


@dataclass(slots=True)
class Squares:
    """Sums over samples of a layer's inputs z, column by column: what is left of moments for very many columns.

    Attributes:
        inner: Sum of z_j z_j, [C].
        compressed: Sum of z, [C].
        count: Number of samples.
    """

    columns: int
    inner: Vector = field(init=False)
    compressed: Vector = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.inner = np.zeros(self.columns)
        self.compressed = np.zeros(self.columns)

    def add(self, compressed: NDArray[np.floating]) -> None:
        """Add samples z, [n, C]."""
        z = compressed.astype(np.float64)
        self.inner += np.einsum("nc,nc->c", z, z)
        self.compressed += z.sum(axis=0)
        self.count += len(z)

    def merge(self, other: Squares) -> Squares:
        """Return the sums over the samples of both, which are left as they are."""
        found = Squares(self.columns)
        found.inner = self.inner + other.inner
        found.compressed = self.compressed + other.compressed
        found.count = self.count + other.count
        return found

    def finite(self) -> bool:
        """Tell whether there are samples and no sum overflowed."""
        return self.count > 0 and bool(np.isfinite(self.inner).all())


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a layer's problem is stated in: E[z z'], E[x x'] and E[x z'], [C, C], and the means of x and z, [C]."""

    inner: Matrix
    outer: Matrix
    cross: Matrix
    dense_mean: Vector
    compressed_mean: Vector


def identity(columns: int) -> Statistics:
    """Return the statistics of uncorrelated inputs of mean square 1: what stands in where nothing was measured."""
    one = np.eye(columns)
    return Statistics(one, one, one, np.zeros(columns), np.zeros(columns))


def damped(inner: Matrix, damping: float) -> tuple[Matrix, float]:
    """Return H + d I, [C, C], and d: damping * mean of the diagonal of H or more where that is too little, 1 for H = 0.

    Sums of rounded products are positive semidefinite up to rounding only; with little damping, or inputs whose mean
    outweighs what varies, d grows until the system is positive definite in float64.

    Args:
        inner: H, [C, C], finite.
        damping: Relative strength, above 0.

    Cost: C^2; at dampings below 1e-3 a Cholesky factorization, C^3 / 3, or a few.
    """
    diagonal = np.diag(inner)
    strength = max(damping, _LEAST_DAMPING * len(inner)) * float(np.mean(np.abs(diagonal)))
    strength = strength if strength > np.finfo(np.float64).tiny else 1.0
    system = inner.copy()
    places = np.diag_indices_from(system)
    system[places] = diagonal + strength
    while damping < _SURE_DAMPING and not _is_definite(system):
        strength *= 10
        system[places] = diagonal + strength
    return system, strength


def _is_definite(system: Matrix) -> bool:
    try:
        np.linalg.cholesky(system)
    except np.linalg.LinAlgError:
        return False
    return True


def solve_rows(weight: Matrix, support: NDArray[np.bool_], given: Statistics, *, damping: float = 0.01) -> Matrix:
    """Return the weights on the support that best give the dense outputs from the compressed inputs.

    Row r solves (H_SS + d I) v = (w_r G + d w_r)_S on its support S, with d = damping * mean of the diagonal of H: the
    damping pulls towards the old weights, not towards zero, so that too few samples change little.

    Args:
        weight: The dense weights W, [R, C].
        support: Which weights may be other than zero, [R, C].
        given: Statistics of the layer's inputs.
        damping: Relative strength of the pull, above 0.

    Returns:
        V, [R, C], zero off the support. Rows that have no solution in float64 keep the weights they had.

    Cost: `solve_flops`, divided over the cores where that is much.
    """
    system, strength = damped(given.inner, damping)
    wanted = weight @ given.cross + strength * weight
    solved = np.where(support, weight, 0.0)
    groups = _by_support(support)
    inverse = _inverse(system) if len(groups) > 1 and damping >= _SAFE_DAMPING and _few_zeros(support) else None

    def solve(group: tuple[NDArray[np.intp], NDArray[np.intp]]) -> None:
        rows, columns = group
        gone = support.shape[1] - len(columns)
        try:
            if inverse is not None and gone < _FEWER * len(columns):
                found = _without(inverse, wanted[rows], support[rows[0]])
            else:
                found = _solution(system[np.ix_(columns, columns)], wanted[np.ix_(rows, columns)])
        except np.linalg.LinAlgError:
            return
        good = np.isfinite(found).all(axis=1)
        solved[np.ix_(rows[good], columns)] = found[good]

    if len(groups) > 1 and _flops(groups, support) > _WORTH_THREADS:
        with one_thread(), ThreadPoolExecutor(cores()) as pool:
            list(pool.map(solve, groups))
    else:
        for group in groups:
            solve(group)
    return solved


def _inverse(system: Matrix) -> Matrix | None:
    try:
        found = np.asarray(np.linalg.inv(system), np.float64)
    except np.linalg.LinAlgError:
        return None
    return found if np.isfinite(found).all() else None


def _solution(system: Matrix, wanted: Matrix) -> Matrix:
    """Return v with v A = w per row, for a symmetric A."""
    return np.asarray(np.linalg.solve(system, wanted.T).T, np.float64)


def _without(inverse: Matrix, wanted: Matrix, kept: NDArray[np.bool_]) -> Matrix:
    """Return the solution of a system without some of its unknowns, from the inverse of the whole.

    With B the inverse and P what goes, the solution is u - B_:P (B_PP)^-1 u_P for u = B b, b zero on P: the unknowns of
    P get what makes them zero.

    Args:
        inverse: B, [C, C].
        wanted: The right sides, [n, C].
        kept: Which unknowns stay, [C].
    """
    u = np.where(kept, wanted, 0.0) @ inverse
    gone = np.flatnonzero(~kept)
    if len(gone):
        u = u - _solution(inverse[np.ix_(gone, gone)], u[:, gone]) @ inverse[gone]
    return u[:, kept]


def _few_zeros(support: NDArray[np.bool_]) -> bool:
    """Tell whether most rows keep so much that solving for what goes is cheaper."""
    kept = support.sum(axis=1)
    return bool(np.median(support.shape[1] - kept) < _FEWER * np.median(kept))


def _by_support(support: NDArray[np.bool_]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return (rows, columns) for each distinct support that is not empty: rows that share one share a factorization."""
    groups: dict[bytes, list[int]] = {}
    for row, kept in enumerate(support):
        groups.setdefault(np.packbits(kept).tobytes(), []).append(row)
    found = [(np.array(rows), np.flatnonzero(support[rows[0]])) for rows in groups.values()]
    return [(rows, columns) for rows, columns in found if len(columns)]


def row_errors(weight: Matrix, candidate: Matrix, given: Statistics) -> Vector:
    """Return E |w_r x - v_r z|^2 per row, [R].

    Args:
        weight: The dense weights W, [R, C].
        candidate: The weights V that are judged, [R, C].
        given: Statistics, best of samples that V was not fitted on.
    """
    return power(weight, given.outer) - 2 * power(weight, given.cross, candidate) + power(candidate, given.inner)


def rows_improved(weight: Matrix, candidate: Matrix, present: Matrix, given: Statistics) -> NDArray[np.bool_]:
    """Return for which rows the candidate's error is below that of the present weights, [R]; see `row_errors`."""
    aim = weight @ given.cross
    gained = power(candidate, given.inner) - power(present, given.inner)
    return np.asarray(gained < 2 * np.einsum("rc,rc->r", aim, candidate - present))


def power(weight: Matrix, moment: Matrix, other: Matrix | None = None) -> Vector:
    """Return w_r M u_r per row, [R]: the mean square of a row's output where M is E[x x'] and u is w."""
    return np.asarray(np.einsum("rc,rc->r", weight @ moment, weight if other is None else other))


def variance_gain(weight: Matrix, candidate: Matrix, centred: Statistics, *, most: float = 5.0) -> Vector:
    """Return by what each row must be multiplied for its output to vary as much as the dense one, [R].

    A least-squares fit explains less than all of the output and varies less; layer by layer the signal fades.

    Args:
        weight: The dense weights W, [R, C].
        candidate: The weights V, [R, C].
        centred: Statistics with the means taken out.
        most: Gains lie between 1 / most and most; rows that do not vary keep theirs.

    Source: Jordan et al. 2022, arXiv:2211.08403.
    """
    before, after = power(weight, centred.outer), power(candidate, centred.inner)
    known = (after > np.finfo(np.float64).tiny) & (before > np.finfo(np.float64).tiny)
    ratio = np.divide(before, after, out=np.ones_like(before), where=known)
    return np.asarray(np.clip(np.sqrt(ratio), 1 / most, most))


def bias_shift(weight: Matrix, candidate: Matrix, given: Statistics) -> Vector:
    """Return what the bias must gain for the mean output to stay: W E[x] - V E[z], [R].

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2.
    """
    return np.asarray(weight @ given.dense_mean - candidate @ given.compressed_mean)


def solve_flops(support: NDArray[np.bool_]) -> float:
    """Return about how many floating-point operations `solve_rows` takes for this support."""
    return _flops(_by_support(support), support)


def _flops(groups: list[tuple[NDArray[np.intp], NDArray[np.intp]]], support: NDArray[np.bool_]) -> float:
    columns = support.shape[1]
    inverts = len(groups) > 1 and _few_zeros(support)
    total = 2.0 * columns**3 if inverts else 0.0
    for rows, kept in groups:
        gone = columns - len(kept)
        if inverts and gone < _FEWER * len(kept):
            total += 2 / 3 * gone**3 + 2 * len(rows) * (gone**2 + columns**2 + gone * columns)
        else:
            total += 2 / 3 * len(kept) ** 3 + 2 * len(rows) * len(kept) ** 2
    return total
