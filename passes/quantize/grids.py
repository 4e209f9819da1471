"""Finds the grids of activations from the ranges that were seen."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from graphopt.analysis.activation_ranges import Ranges
from graphopt.analysis.activation_ranges.choice import WITHOUT_HISTOGRAM, choose
from graphopt.analysis.calibration_cache import CalibrationCache
from graphopt.target.grid import ASYMMETRIC_UINT8, LOGIT_MASK, MASK, MASK_FACTOR, Grid, GridKind, activation_grid

if TYPE_CHECKING:
    from graphopt.analysis.activation_ranges import TensorRange
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Tensor
    from graphopt.solve.calibrators import Span
    from graphopt.target.placement import Group


def ranges_of(model: Model, facts: Facts, calibrator: str, cache: str = "") -> Ranges:
    """Return what a calibration cache knows of the activations, or else what the calibration data shows.

    Args:
        model: The model; only data that a calibrator looks at is collected from it.
        facts: Its calibration data.
        calibrator: What will choose the ranges; not ``auto``, it chooses anew where a cache has chosen.
        cache: The file, or "".

    Raises:
        CalibrationCacheError: The file is none, or of another model.
        DataError: There is neither a cache nor data.
    """
    if not cache:
        return Ranges.observe(model, facts, histograms=False) if calibrator in WITHOUT_HISTOGRAM else facts.get(Ranges)
    known = CalibrationCache.load(cache)
    known.require_tensors(model, cache)
    return known.ranges(calibrator)


class GridOf:
    """The grid of a group of tensors, from the ranges seen.

    Attributes:
        kind: Type and symmetry of the grids.

    Args:
        ranges: What was seen.
        calibrator: How a range follows from it.
        percentile: For the calibrator ``percentile``.
        kind: Type and symmetry of the grids.
    """

    def __init__(self, ranges: Ranges, calibrator: str, percentile: float, kind: GridKind = ASYMMETRIC_UINT8) -> None:
        self._ranges = ranges
        self._calibrator = calibrator
        self._percentile = percentile
        self.kind = kind
        self._grids: dict[int, Grid] = {}

    def __call__(self, group: Group) -> Grid:
        """Return the grid of a group; equal on every call."""
        if id(group) not in self._grids:
            seen = [found for tensor in group.tensors if (found := self._ranges.get(tensor.name)) is not None]
            self._grids[id(group)] = self._over(group, seen, self.kind.number.levels)
        return self._grids[id(group)]

    def few(self, group: Group, tensor: Tensor, levels: int) -> Grid:
        """Return a grid of few levels for one tensor of a group."""
        seen = self._ranges.get(tensor.name)
        return self._over(group, [] if seen is None else [seen], levels)

    def _over(self, group: Group, seen: list[TensorRange], levels: int) -> Grid:
        if group.fixed is not None or not seen:
            return self._grid(*(group.fixed or (0.0, 0.0)), levels)
        mask = self._mask(group)
        spans = [self._span(found, levels, mask) for found in [each for each in seen if each.edited] or seen]
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        if low <= mask and self.kind.mask is not None:
            low = self.kind.mask * (1 if group.logits else MASK_FACTOR)
        if group.bounds is not None:
            low, high = max(low, group.bounds[0]), min(high, group.bounds[1])
        return self._grid(low, high, levels)

    def _grid(self, low: float, high: float, levels: int) -> Grid:
        whole = levels == self.kind.number.levels
        return activation_grid(low, high, levels=None if whole else levels, kind=self.kind)

    def _mask(self, group: Group) -> float:
        """Return the value from which on down a tensor of a group only says that something is left out."""
        if self.kind.mask is None:
            return -inf
        return LOGIT_MASK if group.logits else MASK

    def _span(self, seen: TensorRange, levels: int, mask: float) -> Span:
        if (self.kind.number.real or seen.low <= mask) and seen.chosen is None:
            return seen.low, seen.high  # small values lose nothing by a wide range; masks are cut off by the grid
        return choose(seen, self._calibrator, share=self._percentile, levels=levels, symmetric=self.kind.symmetric)
