"""Evens out the channels of inputs that are rounded at run time, where one of them sets the grid of all.

A product per channel in front of the rounding divides the wide channels, and the rows of the weights are multiplied by
as much. It takes one operator per tensor, however many layers read it; factors that fit into the operator before are
the business of ``smooth-activations``, and need none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt.analysis.activation_ranges.collect import remembered_ranges
from graphopt.graph import producer
from graphopt.passes.quantize.dynamic import matrix
from graphopt.passes.quantize.writing import drop_unused, short_name
from graphopt.solve.calibrators.evening import even_channels
from graphopt.target.stored import restores_constant

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from graphopt.analysis.activation_ranges import Ranges, TensorRange
    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter, Tensor, Variable

SAMPLES = 128
"""Samples that the ends of channels are taken from; they decide on factors, not on grids."""

LEAST_GAIN_DB = 3.0
"""What the expected error has to fall by for a product to be worth its time."""


@dataclass(frozen=True, slots=True)
class _Factors:
    """What one tensor is divided by.

    Attributes:
        scales: float32, per channel.
        gain_db: By how much the expected error falls.
    """

    scales: NDArray[np.float32]
    gain_db: float


class EvenInputs:
    """The factors of a model's dynamic layers, found on calibration data.

    Args:
        model: The model.
        facts: Its calibration data.
        nodes: The layers that will round their inputs at run time.
        ranges: What is known of activations already, or None.
    """

    def __init__(self, model: Model, facts: Facts, nodes: Collection[Node], ranges: Ranges | None) -> None:
        groups: dict[Tensor, list[Node]] = {}
        here = set(model.graph.nodes)
        for node in nodes:
            if node in here and _can_be_scaled(node):
                groups.setdefault(node.inputs[0], []).append(node)
        seen = _observed(model, facts, groups, ranges)
        self._factors: dict[Node, _Factors] = {}
        for tensor, readers in groups.items():
            found = _factors(seen, tensor, readers)
            self._factors |= {} if found is None else dict.fromkeys(readers, found)
        self._divided: dict[Tensor, Variable] = {}

    def gain_db(self, node: Node) -> float:
        """Return by how much evening lowers the error expected of a layer; 0 where it is left as it is."""
        return self._factors[node].gain_db if node in self._factors else 0.0

    def apply(self, rw: Rewriter, node: Node) -> None:
        """Let a layer read the divided input with the multiplied weight."""
        if node not in self._factors:
            return
        # Patches before this one may have put another tensor in the place of the one that was observed.
        x, weight, scales = node.inputs[0], matrix(node), self._factors[node].scales
        assert weight is not None, "it has been looked at before"
        if x not in self._divided:
            inverse = rw.constant((1 / scales).astype(np.float32), name=f"{short_name(x)}_evening", near=node)
            self._divided[x] = rw.op("Mul", [x, inverse], like=x, near=node, name=f"{short_name(x)}_even")
        old = node.inputs[1]
        turned = node.op == "Gemm" and bool(node.attrs.get("transB", 0))
        wide = weight * scales[:, None]
        values = np.ascontiguousarray(wide.T if turned else wide, np.float32)
        rw.set_input(node, 0, self._divided[x])
        rw.set_input(node, 1, rw.constant(values, name=f"{short_name(old)}_evened", near=node))
        if node.op == "Gemm" and node.attrs.get("alpha", 1.0) != 1.0:
            rw.set_attr(node, "alpha", None)  # `matrix` has multiplied it in
        drop_unused(rw, [old])


def _can_be_scaled(node: Node) -> bool:
    """Tell whether a layer's weight is float and meets the channels of its input one to one."""
    source = producer(node.inputs[1])
    if source is not None and restores_constant(source):
        return False  # its integers were found for the inputs as they are
    return matrix(node) is not None and not (node.op == "Gemm" and node.attrs.get("transA", 0))


def _observed(
    model: Model, facts: Facts, groups: Mapping[Tensor, object], ranges: Ranges | None
) -> Mapping[str, TensorRange]:
    """Return what is known of the inputs of layers: from what was observed already, or from a run of the data."""
    known = {} if ranges is None else {t.name: seen for t in groups if (seen := ranges.get(t.name)) is not None}
    missing = [tensor.name for tensor in groups if tensor.name not in known]
    if not missing or facts.feeds is None:
        return known
    return known | remembered_ranges(model, missing, facts.feeds, histograms=False, samples=SAMPLES)[0]


def _factors(seen: Mapping[str, TensorRange], tensor: Tensor, readers: list[Node]) -> _Factors | None:
    found = seen.get(tensor.name)
    channels = None if found is None else found.channels
    powers = None if found is None else found.channel_powers()
    if channels is None or powers is None or channels.lows is None or channels.highs is None:
        return None
    weights = [weight for node in readers if (weight := matrix(node)) is not None]
    if any(len(weight) != len(powers) for weight in weights):
        return None
    evening = even_channels(channels.lows, channels.highs, powers, np.concatenate(weights, axis=1).astype(np.float64))
    if evening.gain_db < LEAST_GAIN_DB:
        return None
    return _Factors(evening.scales.astype(np.float32), evening.gain_db)
