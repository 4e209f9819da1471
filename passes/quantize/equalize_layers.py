"""The pass ``equalize-layers``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.analysis.dense_reference import DenseReference
from graphopt.graph import constant_value, producer
from graphopt.graph.labels import node_label
from graphopt.passes.quantize.channels.links import Link, find_links, write
from graphopt.passes.quantize.channels.readers import Layer, layer_of
from graphopt.passes.quantize.channels.rescale import rescale
from graphopt.rewrite import Contract, LayerRecord, Pass, Patch, Skip
from graphopt.solve.equalization import absorbed, equalize, lower_bounds, unevenness

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray

    from graphopt.analysis import Facts
    from graphopt.graph import Model, Node, Rewriter

    Array = NDArray[Any]
    Vector = NDArray[np.float64]

LEAST_CHANGE = 0.02
"""Scales closer to 1 than this are not worth a patch."""

ITERATIONS = 60
"""Rounds over all links: long chains settle slowly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualizeLayers(Pass):
    """Give the channels between two layers the same range in both, so that one scale per tensor serves all of them.

    Needed before weights are quantized with one scale per tensor, and for depthwise convolutions, whose channels differ
    most; it gains nothing where every channel has a scale of its own.

    Attributes:
        absorb: Also move biases into the next layer where that is exact: nothing but ReLU lies between and the channel
            provably never falls below what is moved, or nothing lies between at all; and nothing is padded.
        keep: Names of nodes left as they are.

    Matches: A Conv, ConvTranspose, Gemm or MatMul whose output goes to layers of the same kinds alone, past Relu,
        LeakyRelu, PRelu, pooling, sums and products with constants, or as one side of a product of activations. Not
        past ReLU6 or to a residual sum: a Min with bounds of each channel's own, or a Mul, would cost more than it
        gains.
    Produces: The same nodes: row c of the first weight and of its bias divided by s_c, column c of the others
        multiplied by it, s_c = sqrt(r1_c r2_c) / r2_c with r the largest |w| of the channel, repeated along chains
        until nothing moves. No cost at run time.
    Requires: Constant float weights that nothing else reads.
    Preserves: Names, types, shapes, structure; values up to rounding. Zeros stay zeros. A second run changes nothing.
    Source: Nagel et al. 2019, arXiv:1906.04721, sections 4.1.1 to 4.1.3; Meller et al. 2019, arXiv:1902.01917.
    """

    name: ClassVar[str] = "equalize-layers"
    contract: ClassVar[Contract] = Contract.ROUNDING

    absorb: bool = True
    keep: tuple[str, ...] = ()

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per link whose scales change, then one per bias that moves."""
        links: list[Link] = []
        for found in find_links(model, self.keep):
            if isinstance(found, Skip):
                yield found
            elif found.writer.layer is None:
                yield Skip(found.readers[0].node, f"its channels are written by {found.writer.node.op}, not by a layer")
            else:
                links.append(found)
        for link, scales in zip(links, _scales(links), strict=True):
            yield from _rescale(link, scales, facts)
        # What compression aims at would have to lose the same biases, but its channels have other bounds.
        absorbs = self.absorb and facts.get(DenseReference).model is None
        for link in links if absorbs else ():
            proposal = _absorb(link)
            if proposal is not None:
                yield proposal


def _scales(links: Sequence[Link]) -> list[Vector]:
    layers: dict[Node, int] = {}
    sizes: list[NDArray[np.float32]] = []

    def place(layer: Layer) -> int:
        if layer.node not in layers:
            layers[layer.node] = len(sizes)
            sizes.append(layer.sizes())
        return layers[layer.node]

    ends = []
    for link in links:
        assert link.writer.layer is not None
        ends.append((place(link.writer.layer), tuple(place(reader) for reader in link.readers)))
    return equalize(sizes, ends, iterations=ITERATIONS)


def _rescale(link: Link, scales: Vector, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
    first, second = link.writer.node, link.readers[0].node
    if float(np.abs(scales - 1).max(initial=0.0)) < LEAST_CHANGE:
        yield Skip(second, "the channels that it reads have the same range as where they are written")
        return
    layer = layer_of(first)
    assert isinstance(layer, Layer)
    before = unevenness(layer.sizes().max(axis=1))
    what = f"channels scaled by {scales.min():.3g} to {scales.max():.3g}; {before:.0%} of the range was unused"
    record = LayerRecord(node_label(first), first.op, what)
    yield from rescale(link, scales, facts, f"equalize '{node_label(first)}' and '{node_label(second)}'", [record])


def _absorb(link: Link) -> Patch | None:
    """Return the move of a bias into the layers that read its channels; None where none can or need move."""
    node, layer = link.writer.node, layer_of(link.writer.node)
    relu = [each.op for each in link.writer.path if each.op not in {"Identity", "Dropout"}]
    # A layer may have got its bias from the link before this one.
    biased = len(node.inputs) > 2 and bool(node.inputs[2].name)
    if isinstance(layer, str) or not biased or relu not in ([], ["Relu"]):
        return None
    if not all(_takes_shift(reader) for reader in link.readers):
        return None
    bias = constant_value(node.inputs[2])
    assert bias is not None
    values = np.broadcast_to(bias.astype(np.float64).reshape(-1), (layer.outputs,)).copy()
    if node.op == "Gemm" and (node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0):
        return None
    bounds = _bounds(layer, values) if relu else None
    part = absorbed(values, bounds)
    if not part.any():
        return None
    lowered = (values - part).reshape(bias.shape).astype(bias.dtype) if bias.size == values.size else None
    if lowered is None:
        return None

    def apply(rewriter: Rewriter) -> None:
        write(rewriter, node, 2, lowered)
        for reader in link.readers:
            write(rewriter, reader.node, 2, _shifted(reader, part))

    moved = int(np.count_nonzero(part))
    record = LayerRecord(node_label(node), node.op, f"{moved} of {len(part)} biases moved into the next layer")
    return Patch(f"absorb biases of '{node_label(node)}'", link.nodes, apply, (record,))


def _takes_shift(reader: Layer) -> bool:
    """Tell whether a shift of what a layer reads is a shift of its bias: no padding, and a place for a bias."""
    node = reader.node
    if node.op == "Gemm":
        plain = node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0
        return plain and _own_bias(reader) is not None
    if node.op != "Conv" or any(node.attrs.get("pads", ())) or _own_bias(reader) is None:
        return False
    return str(node.attrs.get("auto_pad", "NOTSET")) in {"NOTSET", "VALID"}


def _own_bias(reader: Layer) -> Array | None:
    """Return the bias of a layer, zeros where it has none, None where it is not one constant per channel."""
    node = reader.node
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return np.zeros(reader.outputs, reader.value.dtype)
    value = constant_value(node.inputs[2])
    return value if value is not None and value.ndim and value.size == reader.outputs == value.shape[-1] else None


def _shifted(reader: Layer, part: Vector) -> Array:
    """Return the bias of a layer whose inputs fell by so much per channel."""
    current, old = layer_of(reader.node), _own_bias(reader)
    assert isinstance(current, Layer)
    assert old is not None
    weights = current.grouped().astype(np.float64).sum(axis=3)
    pushed = np.einsum("grc,gc->gr", weights, part.reshape(current.groups, -1)).reshape(-1)
    shifted: Array = (old.astype(np.float64) + pushed.reshape(old.shape)).astype(old.dtype)
    return shifted


def _bounds(layer: Layer, bias: Vector) -> Vector:
    low, high = _range(layer.node)
    grouped = layer.grouped().astype(np.float64)
    matrix = grouped.reshape(layer.outputs, -1)
    return lower_bounds(matrix, bias, min(low, 0.0), max(high, 0.0))


def _range(node: Node) -> tuple[float, float]:
    """Return between which numbers the input of a layer provably lies."""
    made = producer(node.inputs[0])
    if made is None:
        return -np.inf, np.inf
    if made.op == "Relu":
        return 0.0, np.inf
    if made.op in {"Sigmoid", "HardSigmoid", "Softmax"}:
        return 0.0, 1.0
    if made.op == "Clip" and len(made.inputs) > 1:
        ends = [constant_value(tensor) if tensor.name else None for tensor in made.inputs[1:3]]
        values = [None if end is None else float(end) for end in ends] + [None]
        low = -np.inf if values[0] is None else values[0]
        return low, np.inf if values[1] is None else values[1]
    return -np.inf, np.inf
