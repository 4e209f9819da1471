"""The pass ``scale-channels``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from graphopt.analysis.layer_statistics import Batches, Form, Reading, Segments, collect, form_of
from graphopt.graph.labels import node_label
from graphopt.passes.quantize.channels.links import Link, find_links
from graphopt.passes.quantize.channels.observed import MeanSizes, collected, known_statistics
from graphopt.passes.quantize.channels.readers import Layer, layer_of
from graphopt.passes.quantize.channels.rescale import rescale
from graphopt.rewrite import Contract, LayerRecord, Pass, Patch, Skip
from graphopt.solve import rounding
from graphopt.solve.smoothing import Protection, protect
from graphopt.solve.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from numpy.typing import NDArray

    from graphopt.analysis import Facts
    from graphopt.analysis.layer_statistics import LayerStatistics
    from graphopt.graph import Model, Node

    Matrix = NDArray[np.float64]
    Vector = NDArray[np.float64]

MOST_COLUMNS = 8192
"""The second moments of wider layers do not fit memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleChannels(Pass):
    """Enlarge the weights that large inputs meet, so that few bits round them more finely.

    Worth it before weights are rounded to the nearest level, or in blocks; a rounding that weighs errors by the inputs
    gains less.

    Attributes:
        bits: Of a weight, as they will be rounded: 2 to 8.
        granularity: What will share a scale: a ``channel`` of the output, or a ``block`` of inputs of one.
        block: Inputs of a block.
        samples: Calibration samples that are run at most.
        rows: Rows of input that a group of layers is judged on, at most.
        keep: Names of nodes left as they are.

    Matches: Conv without groups, MatMul and Gemm with constant weights that alone read what a normalization, a factor
        per channel or a layer writes, past Relu, pooling, sums and products with constants, or a product of two
        activations.
    Produces: The same nodes: channel j divided by s_j where it is written, column j of every weight that reads it
        multiplied by it, s_j = mean|x_j|^a with the a of 20 for which the outputs of the rounded layers are nearest to
        those of the layers: tr((Q(W s)/s - W) H (Q(W s)/s - W)'), H = E[x x'], up to four times over. No cost at run
        time.
    Requires: Calibration data or statistics; constants that the types can hold when scaled.
    Preserves: Names, types, shapes, structure; values up to rounding. Zeros stay zeros.
    Source: Lin et al. 2024, arXiv:2306.00978.
    """

    name: ClassVar[str] = "scale-channels"
    contract: ClassVar[Contract] = Contract.ROUNDING

    bits: int = 4
    granularity: Literal["channel", "block"] = "block"
    block: int = 32
    samples: int = 256
    rows: int = 8192
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}, but it must be 2 to 8")
        for option in ("block", "samples", "rows"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} is {getattr(self, option)}, but it must be 1 or more")

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per group of layers that gains by it."""
        known = known_statistics(facts)
        if facts.feeds is None and known is None:
            yield Skip(model.graph.name or "model", "scaling channels needs calibration data; give --data")
            return
        links: list[tuple[Link, Form]] = []
        for found in find_links(model, self.keep, ops=("Conv", "MatMul", "Gemm"), observed=True):
            if isinstance(found, Skip):
                yield found
                continue
            form = _form(found)
            if isinstance(form, str):
                yield Skip(found.readers[0].node, form)
            else:
                links.append((found, form))
        # All are looked up before the first is scaled: a scaled weight is not the one that statistics belong to.
        told = [_told(link, known) for link, _ in links]
        batches: Batches | tuple[()] = () if facts.feeds is None else Batches.of(facts.feeds, self.samples)
        # The walk holds activations of the model as it was; what is changed on the way is only scaled.
        unchanged, segments = (model.copy(), Segments(batches)) if batches else (model, None)
        for (link, form), seen in zip(links, told, strict=True):
            with one_thread():
                if not isinstance(seen, str):
                    protection: Protection | str = self._protected(link, *seen)
                elif segments is None:
                    protection = seen
                else:
                    protection = self._search(link, form, segments, unchanged, len(batches), facts.seed)
            yield from self._scaled(link, protection, facts)

    def _search(
        self, link: Link, form: Form, segments: Segments, model: Model, batches: int, seed: int
    ) -> Protection | str:
        name, columns = link.tensor.name, form.columns(link.readers[0].value.shape)
        sizes = MeanSizes([link])
        reading = Reading("all", name, form, columns)
        values: Iterator[tuple[Any, Any]] = ((each, each) for each in sizes.passing(segments.advance(model, [name])))
        sums = collect(values, [reading], rows=-(-self.rows // max(1, batches)), seed=seed)["all"]
        moments = sums.fit[0].merge(sums.judge[0])
        if not moments.finite():
            return "too few samples reached it, or they were not finite"
        return self._protected(link, moments.mean(centred=False).inner, sizes.means(0))

    def _protected(self, link: Link, inner: Matrix, sizes: Vector) -> Protection:
        """Return the scales that lose least.

        Args:
            link: The layers.
            inner: H = E[x x'] of what they read, [C, C].
            sizes: Mean |x_c| of each channel.
        """
        weights = [
            _current(reader).grouped()[0].reshape(reader.outputs, -1).astype(np.float64) for reader in link.readers
        ]
        return protect(weights, inner, np.repeat(sizes, len(inner) // link.channels), self._rounder())

    def _rounder(self) -> Callable[[Matrix], Matrix]:
        levels = rounding.integer_levels(self.bits)
        sharing: rounding.Granularity = "row" if self.granularity == "channel" else self.block

        def rounded(weight: Matrix) -> Matrix:
            return np.asarray(rounding.min_max(weight[None], levels, sharing).nearest(weight[None])[0])

        return rounded

    def _scaled(
        self, link: Link, found: Protection | str, facts: Facts
    ) -> Generator[Patch | Skip, frozenset[Node], None]:
        node = link.readers[0].node
        if isinstance(found, str):
            yield Skip(node, found)
            return
        if not found.exponents:
            yield Skip(node, "no scale of its channels makes rounding it lose less")
            return
        less = 1 - found.after / found.before
        what = f"channels scaled by mean|x|^{found.exponents[0]:.2g}: {less:.0%} less error at {self.bits} bits"
        records = [LayerRecord(node_label(each.node), each.node.op, what) for each in link.readers]
        names = ", ".join(f"'{node_label(each.node)}'" for each in link.readers)
        scales = found.scales.reshape(link.channels, -1)[:, 0]
        yield from rescale(link, scales, facts, f"scale the channels that {names} read", records)


def _told(link: Link, known: LayerStatistics | None) -> tuple[Matrix, Vector] | str:
    """Return H and the mean |x_c| of each channel as statistics tell, or why they do not."""
    found = "there are no statistics" if known is None else collected(link, known)
    if isinstance(found, str):
        return found
    if not found.moments or not found.finite() or not found.spread.count:
        return "of what it reads the collected statistics hold no finite second moments"
    return found.mean(centred=False)[0].inner, found.spread.magnitude / found.spread.count


def _form(link: Link) -> Form | str:
    """Return how the layers of a link read their inputs as rows, or why they cannot be taken together."""
    forms = []
    for reader in link.readers:
        if reader.groups > 1:
            return "its channels are read in groups"
        form = form_of(reader.node, 1, reader.value)
        if isinstance(form, str):
            return form
        if form.columns(reader.value.shape) > MOST_COLUMNS:
            return f"it has more than {MOST_COLUMNS} columns; its statistics would not fit memory"
        forms.append(form)
    first = link.readers[0]
    alike = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")
    for reader in link.readers[1:]:
        same = reader.value.ndim == first.value.ndim and reader.value.shape[2:] == first.value.shape[2:]
        if first.spatial >= 0 and not (
            same and all(reader.node.attrs.get(k) == first.node.attrs.get(k) for k in alike)
        ):
            return "the convolutions that read its input see different windows of it"
    return forms[0]


def _current(reader: Layer) -> Layer:
    found = layer_of(reader.node)
    assert isinstance(found, Layer)
    return found
