"""What one layer becomes at a level of compression: so many bits, so many zeros, a pattern of zeros.

A kind of level is a plain function of the layer's matrices, so that the damage of levels can be compared before any
pass is chosen. With statistics of the layer's inputs the best solvers that the size of the layer allows are used, those
of the passes; without them, rounding to nearest and magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.solve import rounding
from graphopt.solve.least_squares import Statistics, solve_flops, solve_rows
from graphopt.solve.obs import RemovalPath, cut_paths, damped, path_flops, removal_path
from graphopt.solve.patterns import UNSTRUCTURED, Pattern, keep_best
from graphopt.solve.sparse_gpt import sparse_gpt
from graphopt.solve.wanda import wanda_mask

Matrix = NDArray[np.float64]
Given = Sequence[Statistics] | None

MOST_FLOPS = 2e10
"""Work on one layer beyond this goes to a cheaper solver: a few seconds on one core."""

MOST_ROUNDING_FLOPS = 1e11
"""The same for rounding, whose work is all matrix products."""

DAMPING = 0.01
"""Pull towards the weights as they are, relative to the mean square of the inputs."""

_NAMED_LEVELS = {"ternary": rounding.TERNARY, "binary": rounding.BINARY}
FLOAT_BITS = 32.0
"""Bits of a weight that is not compressed; what shares of size are relative to."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of compression.

    Attributes:
        kind: A name in ``KINDS``.
        value: How far, as the kind reads it.
    """

    kind: str
    value: str

    def __str__(self) -> str:
        return f"{self.kind}={self.value}"

    @property
    def size(self) -> float:
        """Share of the layer's size that is left: bits over 32, or weights that are not zero."""
        return KINDS[self.kind].size(self.value)

    @property
    def scales_rows(self) -> bool:
        """Whether a row may be multiplied by a number afterwards: a pruned one may, one on a grid may not."""
        return KINDS[self.kind].scales_rows


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to compress a layer.

    Attributes:
        compress: Makes the matrices V of each group for several values at once, so that what they share is done once.
        size: Returns the share of the size that is left.
        scales_rows: See ``Level.scales_rows``.
        help: What the values are, for people.
    """

    compress: Callable[[Sequence[Matrix], Given, Sequence[str]], list[list[Matrix]]]
    size: Callable[[str], float]
    scales_rows: bool
    help: str


def parse_levels(text: str) -> list[Level]:
    """Return the levels of ``kind=value,value,...``.

    Raises:
        ValueError: The kind is unknown, or a value is none of its values; the message says what is.
    """
    name, equals, values = text.partition("=")
    if name not in KINDS or not equals:
        known = "; ".join(f"{kind}={entry.help}" for kind, entry in KINDS.items())
        raise ValueError(f"'{text}' is no level: write kind=value,value. Kinds: {known}")
    levels = [Level(name, value.strip()) for value in values.split(",")]
    for level in levels:
        try:
            level.size  # noqa: B018 - reading the value checks it
        except ValueError as error:
            raise ValueError(f"'{level}' is no level: {error}") from error
    return list(dict.fromkeys(levels))


def compress(matrices: Sequence[Matrix], given: Given, levels: Sequence[Level]) -> list[list[Matrix]]:
    """Return what a layer becomes at each level.

    Args:
        matrices: W of each group, [R, C], all of one shape.
        given: Statistics of each group's inputs, or None where there are none.
        levels: The levels, of any kinds.

    Returns:
        Per level, V of each group, [R, C].
    """
    found: dict[Level, list[Matrix]] = {}
    for name, kind in KINDS.items():
        wanted = [level for level in levels if level.kind == name]
        if wanted:
            made = kind.compress(matrices, given, [level.value for level in wanted])
            found.update(zip(wanted, made, strict=True))
    return [found[level] for level in levels]


def _grid_levels(value: str) -> rounding.Levels:
    if value in _NAMED_LEVELS:
        return _NAMED_LEVELS[value]
    if not value.isascii() or not value.isdigit():
        raise ValueError("bits are a whole number from 2 to 8, ternary or binary")
    return rounding.integer_levels(int(value))


def _round(matrices: Sequence[Matrix], given: Given, values: Sequence[str]) -> list[list[Matrix]]:
    columns = matrices[0].shape[1]
    work = len(matrices) * (columns**3 + 12 * len(values) * len(matrices[0]) * columns**2)
    if given is None or 2 * work > MOST_ROUNDING_FLOPS:
        cube = np.stack(matrices)
        return [list(_nearest(cube, _grid_levels(value))) for value in values]
    problem = rounding.asymmetric_target(matrices, given)
    found = []
    for value in values:
        grid = rounding.search(problem, _grid_levels(value), "row")
        try:
            start = rounding.gptq(problem, grid)
        except np.linalg.LinAlgError:
            start = grid.nearest(problem.target)
        found.append(list(rounding.alternate(problem, grid, start)[1]))
    return found


def _nearest(cube: NDArray[np.float64], levels: rounding.Levels) -> NDArray[np.float64]:
    return rounding.min_max(cube, levels, "row").nearest(cube)


def _bits_size(value: str) -> float:
    return math.log2(_grid_levels(value).count) / FLOAT_BITS


def _share(value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise ValueError("sparsity is a share of zeros from 0 to below 1")
    return share


def _sparsify(matrices: Sequence[Matrix], given: Given, values: Sequence[str]) -> list[list[Matrix]]:
    return _zeroed(matrices, given, [(UNSTRUCTURED, _share(value)) for value in values])


def _zeroed(matrices: Sequence[Matrix], given: Given, wanted: Sequence[tuple[Pattern, float]]) -> list[list[Matrix]]:
    """Return the weights with zeros in each of several patterns and shares, by the best method that is affordable."""
    if given is None:
        return [_by_size(matrices, pattern, share) for pattern, share in wanted]
    systems = [damped(each.inner, DAMPING) for each in given]
    paths: dict[Pattern, list[RemovalPath]] = {}
    found = []
    for pattern, share in wanted:
        if sum(path_flops(each.shape, pattern) for each in matrices) <= MOST_FLOPS:
            if pattern not in paths:
                paths[pattern] = [removal_path(*each, pattern) for each in zip(matrices, systems, strict=True)]
            cuts = cut_paths(paths[pattern], pattern.share or share)
            masks = [path.mask(cut) for path, cut in zip(paths[pattern], cuts, strict=True)]
            solved = [np.where(mask, weight, 0.0) for weight, mask in zip(matrices, masks, strict=True)]
        elif sum(2 * each.shape[1] ** 2 * sum(each.shape) for each in matrices) <= MOST_FLOPS:
            pruned = [sparse_gpt(*each, pattern, share) for each in zip(matrices, systems, strict=True)]
            solved, masks = [each for each, _ in pruned], [mask for _, mask in pruned]
        else:
            sizes = [np.diag(each.inner) for each in given]
            masks = [wanda_mask(*each, pattern, share) for each in zip(matrices, sizes, strict=True)]
            solved = [np.where(mask, weight, 0.0) for weight, mask in zip(matrices, masks, strict=True)]
        if sum(map(solve_flops, masks)) <= MOST_FLOPS:
            groups = zip(matrices, masks, given, strict=True)
            solved = [solve_rows(*each, damping=DAMPING) for each in groups]
        found.append(solved)
    return found


def _by_size(matrices: Sequence[Matrix], pattern: Pattern, share: float) -> list[Matrix]:
    """Return the weights without those of least size: of all groups together, but in N:M."""
    sizes = np.abs(np.concatenate(matrices))
    masks = np.split(keep_best(sizes, pattern, share), len(matrices))
    return [np.where(mask, weight, 0.0) for weight, mask in zip(matrices, masks, strict=True)]


def _pattern(value: str) -> Pattern:
    pattern = Pattern.parse(value)
    if not pattern.of:
        raise ValueError("a pattern that fixes its own share of zeros is N:M, 2:4 for example")
    return pattern


def _follow_pattern(matrices: Sequence[Matrix], given: Given, values: Sequence[str]) -> list[list[Matrix]]:
    return _zeroed(matrices, given, [(_pattern(value), 0.0) for value in values])


def _pattern_size(value: str) -> float:
    pattern = _pattern(value)
    return pattern.keep / pattern.of


KINDS = {
    "bits": Kind(_round, _bits_size, False, "8,4,3,2 or ternary, binary: bits of a weight, a scale per output row"),
    "sparsity": Kind(_sparsify, lambda value: 1 - _share(value), True, "0.5,0.7,0.9: share of zeros"),
    "pattern": Kind(_follow_pattern, _pattern_size, True, "2:4,1:4: N weights kept of every M side by side"),
}
"""Every kind of level by its name."""

__all__ = ["KINDS", "Kind", "Level", "compress", "parse_levels"]
