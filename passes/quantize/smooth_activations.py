"""The pass ``smooth-activations``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphopt.analysis.layer_statistics import Batches
from graphopt.graph.labels import node_label
from graphopt.passes.quantize.channels.links import Link, find_links
from graphopt.passes.quantize.channels.observed import collected, known_statistics, largest
from graphopt.passes.quantize.channels.readers import Layer, layer_of
from graphopt.passes.quantize.channels.rescale import rescale
from graphopt.rewrite import Contract, LayerRecord, Pass, Patch, Skip
from graphopt.solve.smoothing import smooth

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from graphopt.analysis import Facts
    from graphopt.analysis.layer_statistics import LayerStatistics
    from graphopt.graph import Model, Node

    Vector = NDArray[np.float64]

LEAST_CHANGE = 0.02
"""Scales that differ no more than this from one in their middle are not worth a patch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothActivations(Pass):
    """Move outliers of activations into the weights, so that one scale per tensor serves all channels of an activation.

    Needed before the activations of transformers are quantized, in which a few channels are much larger than the rest.

    Attributes:
        alpha: How much is moved: 1 all unevenness of the activations, 0 none but that of the weights; 0.75 for models
            with extreme outliers.
        samples: Calibration samples that ranges are taken from, at most.
        keep: Names of nodes left as they are.

    Matches: MatMul and Gemm with constant weights that alone read what a LayerNormalization, RMSNormalization, a factor
        per channel or a layer writes, past sums and products with constants, Relu, or a product of two activations.
    Produces: The same nodes: channel j divided by s_j where it is written, row j of every weight that reads it
        multiplied by it, s_j = max|x_j|^alpha / max|w_j|^(1 - alpha). No cost at run time.
    Requires: Calibration data or statistics; constants that the types can hold when scaled.
    Preserves: Names, types, shapes, structure; values up to rounding. Zeros stay zeros. A second run changes nothing.
    Source: Xiao et al. 2023, arXiv:2211.10438.
    """

    name: ClassVar[str] = "smooth-activations"
    contract: ClassVar[Contract] = Contract.ROUNDING

    alpha: float = 0.5
    samples: int = 256
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, but it is between 0 and 1")
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}, but it must be 1 or more")

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per group of layers, the last first: what a layer writes changes how it is read."""
        known = known_statistics(facts)
        if facts.feeds is None and known is None:
            yield Skip(model.graph.name or "model", "smoothing activations needs calibration data; give --data")
            return
        links: list[Link] = []
        for found in find_links(model, self.keep, ops=("MatMul", "Gemm"), observed=True):
            if isinstance(found, Skip):
                yield found
            else:
                links.append(found)
        # All are looked up before the first is smoothed: a scaled weight is not the one that statistics belong to.
        told = {link.tensor.name: _told(link, known) for link in links}
        open_links = [link for link in links if isinstance(told[link.tensor.name], str)]
        if facts.feeds is not None:
            told |= largest(model, open_links, Batches.of(facts.feeds, self.samples))
        for link in reversed(links):
            sizes = told[link.tensor.name]
            if isinstance(sizes, str):
                yield Skip(link.readers[0].node, sizes)
            else:
                yield from self._smoothed(link, sizes, facts)

    def _smoothed(self, link: Link, inputs: Vector, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        weights = _weights(link)
        scales = smooth(inputs, weights, self.alpha)
        used = scales[(inputs > 0) & (weights > 0)]
        if not used.size or float(used.max() / used.min()) < (1 + LEAST_CHANGE) ** 2:
            yield Skip(link.readers[0].node, "its inputs are as even as its weights")
            return
        before, after = _unevenness(inputs), _unevenness(inputs / scales)
        what = f"inputs smoothed: the largest channel is {after:.3g} times the mean one, was {before:.3g}"
        records = [LayerRecord(node_label(each.node), each.node.op, what) for each in link.readers]
        names = ", ".join(f"'{node_label(each.node)}'" for each in link.readers)
        yield from rescale(link, scales, facts, f"smooth what {names} read", records)


def _told(link: Link, known: LayerStatistics | None) -> Vector | str:
    """Return max|x_c| of each channel as statistics tell, or why they do not."""
    found = "there are no statistics" if known is None else collected(link, known)
    if isinstance(found, str):
        return found
    if not found.spread.count:
        return "the collected statistics saw nothing of what it reads"
    return np.maximum(np.abs(found.spread.minimum), np.abs(found.spread.maximum))


def _weights(link: Link) -> Vector:
    """Return the size of the largest weight that each channel meets, as the weights are now."""
    found = np.zeros(link.channels)
    for reader in link.readers:
        current = layer_of(reader.node)
        assert isinstance(current, Layer)
        found = np.maximum(found, np.abs(current.grouped()[0]).max(axis=(0, 2)).astype(np.float64))
    return found


def _unevenness(sizes: Vector) -> float:
    used = sizes[sizes > 0]
    return float(used.max() / used.mean()) if used.size else 1.0
