"""The pass ``prune-magnitude``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from graphopt.analysis.dense_reference import DenseReference
from graphopt.analysis.layer_statistics import Layer, Refusal, end_layers, find_layers, form_of
from graphopt.analysis.row_scale import RowScale
from graphopt.passes.prune.gradual import quietly
from graphopt.passes.prune.refit_weights import RefitWeights
from graphopt.passes.prune.structure import Structure, blocks_above, masks_by_score
from graphopt.rewrite import Contract, LayerRecord, Pass, Patch, Skip, node_label
from graphopt.rewrite.new_weight import write_weight
from graphopt.solve import scores
from graphopt.solve.patterns import UNSTRUCTURED, Pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis import Facts
    from graphopt.graph import Model, Node, Rewriter

    Mask = NDArray[np.bool_]

STEPS_BY_WEIGHTS = ((2_000_000, 4), (20_000_000, 2))
"""Steps of ``steps: 0`` for models of at most so many weights; each step takes minutes on the largest."""

_HELD_WEIGHTS = 1 << 26
"""Scores of up to this many weights are held; for larger models they are computed again for each look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneMagnitude(Pass):
    """Set the weights of least magnitude to zero.

    Attributes:
        sparsity: Share of zeros over all weights that can be pruned, 0..1; zeros that are there already count.
        scope: How layers share it out. ``local``: every layer the same; ``global``: one ranking of all weights;
            ``lamp``: one ranking of all weights, each relative to those of its layer that are not smaller; ``erk``: by
            the layers' shapes, large ones sparser; ``threshold``: what is below `threshold` goes, whatever the share.
        threshold: For ``threshold``: the least score that stays, which is the absolute value of the weight as the
            layer was trained, before BatchNormalization was folded into it.
        protect_ends: Leave the first and the last layers as they are.
        pattern: Where zeros may lie: ``unstructured``, ``N:M``, or the blocks of outputs by inputs ``4x1``, ``8x1``,
            ``16x1``, ``1x4``, ``4x4``; a block scores the mean of its weights. Inputs of a convolution are grouped
            along the channels of one kernel place. N:M has a share of its own in every layer; where `sparsity` is
            less, the layers whose scores lose least get it until the share is reached.
        depthwise: Prune depthwise convolutions too.
        steps: In how many steps, refitting the weights in between, where there is calibration data: step k of n keeps
            (1 - sparsity)^(k/n). 0 takes 4 steps for up to 2 million weights, 2 for up to 20 million, 1 beyond. Put
            refit-weights behind the pass for the last step.
        keep: Names of nodes left as they are.

    Matches: Conv, ConvTranspose, Gemm and MatMul with a constant float weight of rank 2 or more, in all bodies.
    Produces: The same nodes; W becomes W * [score(W) >= cut], the number of zeros exact to the weight or block, ties in
        order. The score is |W| divided by the scale that BatchNormalization left on each row as it was folded.
    Requires: Finite weights that no other operator reads, that are not quantized, not graph outputs and not inputs. For
        N:M a number of inputs that is a multiple of M.
    Preserves: Names, types, shapes, structure. Not values: LOSSY. Zeros stay zeros; a second run changes nothing.
    Source: Han et al. 2015, arXiv:1506.02626; Lee et al. 2021, arXiv:2010.07611 (lamp); Evci et al. 2020,
        arXiv:1911.11134 (erk).
    """

    name: ClassVar[str] = "prune-magnitude"
    contract: ClassVar[Contract] = Contract.LOSSY
    guard: ClassVar[str] = "strength"

    sparsity: float = 0.5
    scope: Literal["local", "global", "lamp", "erk", "threshold"] = "lamp"
    threshold: float = 0.0
    pattern: str = "unstructured"
    protect_ends: bool = False
    depthwise: bool = False
    steps: int = 1
    keep: tuple[str, ...] = ()

    @property
    def uses_data(self) -> bool:  # type: ignore[override]
        """Whether the calibration feeds decide anything: they do between steps."""
        return self.steps != 1

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"sparsity is {self.sparsity}, but it is a share between 0 and 1 (0.8 for 80 %)")
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ValueError(f"threshold is {self.threshold}, but it is an absolute value, 0 or larger")
        Pattern.parse(self.pattern)
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}, but it is a number of steps, or 0 to choose it by size")

    def with_strength(self, fraction: float) -> Self:
        """Return the pass at a share of its sparsity (of its threshold, for that scope)."""
        return replace(self, sparsity=self.sparsity * fraction, threshold=self.threshold * fraction)

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per weight, and what refits the weights between steps."""
        if facts.feeds is not None and self.scope != "threshold":
            count = self._count_steps(model)
            for step in range(1, count):
                part = replace(self, sparsity=1 - (1 - self.sparsity) ** (step / count), steps=1)
                yield from quietly(part.run(model, facts))
                yield from quietly(RefitWeights(keep=self.keep).run(model, facts))
        yield from self._once(model, facts)

    def _count_steps(self, model: Model) -> int:
        if self.steps:
            return self.steps
        found = find_layers(model, keep=self.keep, depthwise=self.depthwise)
        weights = sum(layer.array().size for layer in found if isinstance(layer, Layer))
        return next((steps for most, steps in STEPS_BY_WEIGHTS if weights <= most), 1)

    def _once(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        layers: list[Layer] = []
        for found in find_layers(model, keep=self.keep, depthwise=self.depthwise):
            if isinstance(found, Refusal):
                yield Skip(found.node, found.reason)
            else:
                layers.append(found)
        if self.protect_ends:
            ends = end_layers(model.graph, {node for layer in layers for node in layer.nodes})
            for layer in layers:
                if ends.intersection(layer.nodes):
                    yield Skip(layer.node, "it is a first or last layer, and these are protected")
            layers = [layer for layer in layers if not ends.intersection(layer.nodes)]
        DenseReference.remember(model, facts)
        if Pattern.parse(self.pattern) == UNSTRUCTURED:
            for layer, mask in self._masks(layers, facts.get(RowScale)):
                yield _prune(layer, mask)
            return
        structures: list[Structure] = []
        structured: list[Layer] = []
        for layer in layers:
            structure = _structure(layer, Pattern.parse(self.pattern))
            if isinstance(structure, str):
                yield Skip(layer.node, structure)
            else:
                structures.append(structure)
                structured.append(layer)
        values = [_scores(layer, facts.get(RowScale)) for layer in structured]
        for layer, mask in zip(structured, self._structured(structured, structures, values), strict=True):
            yield _prune(layer, mask)

    def _structured(
        self, layers: Sequence[Layer], structures: Sequence[Structure], values: Sequence[scores.Scores]
    ) -> list[Mask]:
        """Return which weights of each layer stay, in blocks or N of every M."""
        if self.scope == "threshold":
            return blocks_above(structures, values, self.threshold)
        shares = self._shares(layers) if self.scope in {"local", "erk"} else None
        lamp = self.scope == "lamp"
        masks = masks_by_score(structures, values, shares, share=self.sparsity, rank_within=lamp)
        own = Pattern.parse(self.pattern).share
        if own is None or self.sparsity >= own:
            return masks
        # Fewer zeros than N:M in every layer: the layers whose scores lose least get it.
        lost = [float(value[~mask].sum() / max(value.sum(), 1e-30)) for value, mask in zip(values, masks, strict=True)]
        budget = self.sparsity * sum(value.size for value in values)
        for place in sorted(range(len(masks)), key=lost.__getitem__):
            gone = own * values[place].size
            if gone > budget:
                masks[place] = np.ones(masks[place].shape, bool)
            else:
                budget -= gone
        return masks

    def _masks(self, layers: Sequence[Layer], row_scale: RowScale) -> Iterator[tuple[Layer, Mask]]:
        """Yield every layer with the mask of what it keeps."""
        if self.scope == "threshold":
            for layer in layers:
                yield layer, _scores(layer, row_scale) >= np.float32(self.threshold)
            return
        if self.scope in {"local", "erk"}:
            for layer, share in zip(layers, self._shares(layers), strict=True):
                block = _scores(layer, row_scale)
                yield layer, scores.cut(lambda block=block: [block], _count(share, block.size)).mask(block)[0]  # type: ignore[misc]
            return
        blocks = _blocks(layers, row_scale, scores.lamp if self.scope == "lamp" else None)
        cut = scores.cut(blocks, _count(self.sparsity, sum(layer.array().size for layer in layers)))
        for layer, block in zip(layers, blocks(), strict=True):
            mask, cut = cut.mask(block)
            yield layer, mask

    def _shares(self, layers: Sequence[Layer]) -> list[float]:
        if self.scope == "local":
            return [self.sparsity] * len(layers)
        densities = scores.erk_densities([layer.array().shape for layer in layers], 1 - self.sparsity)
        return [1 - density for density in densities]


def _structure(layer: Layer, pattern: Pattern) -> Structure | str:
    """Return how the pattern lies in a layer's weight, or why it cannot."""
    form = form_of(layer.node, layer.index, layer.array())
    if isinstance(form, str):
        return form
    structure = Structure(form, layer.array().shape, pattern)
    return structure.refusal() or structure


def _count(share: float, size: int) -> int:
    return min(size, math.floor(share * size + 0.5))


def _scores(layer: Layer, row_scale: RowScale) -> scores.Scores:
    scale = row_scale.of(layer.weight)
    if scale is None or scale.size != layer.rows:
        return scores.magnitude(layer.array())
    return scores.unfolded(layer.array(), layer.per_row(scale))


def _blocks(
    layers: Sequence[Layer], row_scale: RowScale, rank: Callable[[scores.Scores], scores.Scores] | None
) -> Callable[[], Iterable[scores.Scores]]:
    """Return what yields the scores of all layers: held where they are few, else computed at each call."""

    def compute() -> Iterator[scores.Scores]:
        for layer in layers:
            block = _scores(layer, row_scale)
            yield rank(block) if rank else block

    if sum(layer.array().size for layer in layers) > _HELD_WEIGHTS:
        return compute
    held = list(compute())
    return lambda: held


def _prune(layer: Layer, mask: Mask) -> Patch | Skip:
    value = layer.array()
    zeros = value.size - np.count_nonzero(value)
    gone = int(np.count_nonzero(value[~mask]))
    if not gone:
        return Skip(layer.node, f"nothing to remove: {zeros / value.size:.1%} of its weights are zero already")
    what = f"{(zeros + gone) / value.size:.1%} zeros"

    def apply(rewriter: Rewriter) -> None:
        pruned = np.where(mask, value, np.zeros((), value.dtype))
        write_weight(rewriter, layer.weight, pruned, layer.node)

    records = tuple(LayerRecord(node_label(node), node.op, what) for node in layer.nodes)
    reason = f"set {gone} of {value.size} weights of {layer.node.op} '{node_label(layer.node)}' to zero"
    return Patch(reason, layer.nodes, apply, records)
