"""How a pattern of zeros lies in the weight of a layer, and which blocks of many layers go by their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.solve import scores
from graphopt.solve.patterns import channels_last, keep_best, within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from graphopt.analysis.layer_statistics import Form
    from graphopt.solve.patterns import Mask, Pattern

    Array = NDArray[Any]
    Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Structure:
    """A pattern in the weight of one layer.

    Attributes:
        form: How the layer's weight is read as matrices.
        shape: Of the weight.
        pattern: What goes together.
    """

    form: Form
    shape: tuple[int, ...]
    pattern: Pattern

    @property
    def columns(self) -> NDArray[np.intp]:
        """The columns in the order in which the pattern groups them: a convolution's by kernel place, then channel."""
        if self.form.op == "Conv" and max(self.pattern.columns, self.pattern.of) > 1:
            return channels_last(self.shape)
        return np.arange(self.form.columns(self.shape))

    def refusal(self) -> str:
        """Return why the weight cannot have the pattern, or nothing."""
        if not self.pattern.of:
            return ""
        inputs = self.shape[1] if self.form.op == "Conv" else self.form.columns(self.shape)
        return f"its {inputs} inputs are no multiple of {self.pattern.of}" if inputs % self.pattern.of else ""

    def matrices(self, values: Array) -> list[Matrix]:
        """Return numbers of the weight's shape as one matrix per group, columns as the pattern groups them."""
        return [part[:, self.columns] for part in self.form.matrices(values)]

    def array(self, masks: Sequence[Mask]) -> Mask:
        """Return masks of such matrices as one of the weight's shape."""
        back = np.argsort(self.columns)
        return self.form.weight([mask[:, back].astype(np.float64) for mask in masks], np.zeros(self.shape, bool))


def masks_by_score(
    structures: Sequence[Structure],
    values: Sequence[Array],
    shares: Sequence[float] | None,
    *,
    share: float,
    rank_within: bool,
) -> list[Mask]:
    """Return which weights of each layer stay where the blocks of least score go.

    Args:
        structures: One per layer, all of one pattern.
        values: Score of each weight, of its weight's shape, not negative.
        shares: Share of zeros of each layer; None ranks the blocks of all layers together. N:M has its own share.
        share: Share of zeros over all layers, where they are ranked together.
        rank_within: Rank by LAMP: each block relative to those of its layer that are not smaller.
    """
    matrices = [each.matrices(value) for each, value in zip(structures, values, strict=True)]
    if not structures:
        return []
    pattern = structures[0].pattern
    if shares is not None or pattern.of:
        wanted = shares or [0.0] * len(structures)
        chosen = [_stacked(parts, pattern, each) for parts, each in zip(matrices, wanted, strict=True)]
        return [each.array(masks) for each, masks in zip(structures, chosen, strict=True)]
    sizes = [[pattern.sizes(part.shape) for part in parts] for parts in matrices]
    means = [
        [pattern.pooled(part) / size for part, size in zip(parts, each, strict=True)]
        for parts, each in zip(matrices, sizes, strict=True)
    ]
    levels = [np.concatenate([part.reshape(-1) for part in parts]) for parts in means]
    if rank_within:
        levels = [scores.lamp(level.astype(np.float32)).astype(np.float64) for level in levels]
    order = np.argsort(np.concatenate(levels), kind="stable")
    weights = np.concatenate([size.reshape(-1) for each in sizes for size in each])
    kept = np.ones(len(order), bool)
    kept[order] = ~within(weights[order], share)
    found, start = [], 0
    for structure, parts, each in zip(structures, matrices, sizes, strict=True):
        masks = []
        for part, size in zip(parts, each, strict=True):
            masks.append(pattern.spread(kept[start : start + size.size].reshape(size.shape), part.shape))
            start += size.size
        found.append(structure.array(masks))
    return found


def blocks_above(structures: Sequence[Structure], values: Sequence[Array], threshold: float) -> list[Mask]:
    """Return which weights of each layer stay: those of blocks whose mean score reaches a threshold; N:M as ever."""
    found = []
    for structure, value in zip(structures, values, strict=True):
        pattern = structure.pattern
        masks = []
        for part in structure.matrices(value):
            if pattern.of:
                masks.append(keep_best(part, pattern, 0.0))
                continue
            mean = pattern.pooled(part) / pattern.sizes(part.shape)
            masks.append(pattern.spread(mean >= threshold, part.shape))
        found.append(structure.array(masks))
    return found


def _stacked(parts: Sequence[Matrix], pattern: Pattern, share: float) -> list[Mask]:
    """Return the masks of a layer's groups: one ranking where blocks do not reach from one group into the next."""
    if len(parts) > 1 and parts[0].shape[0] % pattern.rows == 0:
        return np.split(keep_best(np.concatenate(parts), pattern, share), len(parts))
    return [keep_best(part, pattern, share) for part in parts]
