"""Let sparse convolutions of 8-bit integers run on the sparse kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.passes.lower.convolution import explicit_pads, group_of, is_conv, why_other_groups, window_attributes
from graphopt.passes.lower.costed import Known, LayerLowering
from graphopt.passes.lower.integers import match_static
from graphopt.passes.lower.replacing import Candidate, Choice, choose, patch
from graphopt.solve.pack_sparse_int8 import conv_matrix, pack_sparse_int8_conv, stored_share
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graphopt.analysis.types import Types
    from graphopt.graph import Node
    from graphopt.rewrite.patch import Patch

_RANKS = (3, 4)
_SPATIAL_FROM = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSparseInt8Conv(LayerLowering[Choice]):
    """Replace sparse convolutions of 8-bit integers by ai.graphopt::SparseInt8Conv where that is faster.

    Matches:   Conv with one or two spatial axes whose input and constant weight come from DequantizeLinear, uint8 and
               int8, the weight with the zero point 0 and one scale or one per output. An Add of floats of the same
               shape, a Relu, Clip, Gelu, Swish, x * Sigmoid(x) or Gelu spelled out by Erf or Tanh and a QuantizeLinear
               to uint8, each the only reader of what is before it, go with it, and so does a QuantizeLinear of its
               input whose result nothing else reads.
    Produces:  SparseInt8Conv with the weight packed in blocks of 1 x 4 or 4 x 4, its fours along the order of the
               weight or along the channels, whichever leaves out more. Bytes stay bytes between integer layers. What
               has one axis is computed with a height of 1, between Unsqueeze and Squeeze where the neighbours are
               others. Pairs of conversions to bytes between these steps go too, unless they cut like a Relu; in
               front of an Add of bytes they stay with it, since the runtime is faster there.
    Requires:  The kernel is faster than the 8-bit convolution of ONNX Runtime and the dense float32 one by the margin
               of the cost table, for the share of blocks that are zero, the output positions and the size; every
               reader of the weight is lowered, so that the file does not grow. Depthwise convolutions and those whose
               pads follow from sizes that are not known stay as they are.
    Preserves: Names, types and shapes of all outputs. Values: LOSSY in name, since results rounded to uint8 may differ
               from those of float arithmetic by one step, as they do in ONNX Runtime's QLinearConv, with which they
               agree to the bit; and by half a step of each pair that goes, more where it cut values.
    Source:    Jacob et al. 2018, arXiv:1712.05877, section 2.2; layout in kernels/sparse_int8/contract.h.
    """

    name: ClassVar[str] = "lower-sparse-int8-conv"
    contract: ClassVar[Contract] = Contract.LOSSY

    def judge(self, node: Node, known: Known, taken: set[Node]) -> Choice | str | None:
        """Return the faster form of a convolution's weight, why it stays, or None for other nodes."""
        candidate = _candidate(node, known.types, taken)
        if candidate is None or isinstance(candidate, str):
            return candidate
        return choose(candidate, known.counts.positions(node.outputs[0]), known.table, self.isa, "conv")

    def lowered(self, chosen: Choice, packed: dict[Any, Any]) -> Patch:
        """Return the patch that puts SparseInt8Conv in the place of a convolution."""
        return patch(chosen, packed)


def _candidate(node: Node, types: Types, taken: set[Node]) -> Candidate | str | None:
    found = match_static(node, types, taken) if is_conv(node) else None
    if found is None or isinstance(found, str):
        return found
    shape = found.values.shape
    if len(shape) not in _RANKS:
        return f"its weight has the shape {list(shape)}; the kernel has one and two spatial axes"
    pads = explicit_pads(node, shape[_SPATIAL_FROM:], types)
    reason = why_other_groups(node, shape) or (pads if isinstance(pads, str) else "")
    if reason or isinstance(pads, str):
        return reason
    window = window_attributes(node, pads)
    layer = found
    if len(shape) == _RANKS[0]:
        layer = replace(found, values=np.ascontiguousarray(found.values[:, :, None]), one_axis=True)
        window |= {name: _with_height(window[name], name) for name in window if name != "group"}
    first, last = (conv_matrix(layer.values, channels_last=order) for order in (False, True))
    channels_last = stored_share(last, 1) < stored_share(first, 1)

    def pack(unit: int) -> NDArray[np.uint8]:
        weight = (layer.values, layer.scales, layer.fixes)
        return pack_sparse_int8_conv(*weight, group=group_of(node), unit=unit, channels_last=channels_last)

    sizes = {"N": int(shape[0]), "kernel_shape": [int(size) for size in layer.values.shape[_SPATIAL_FROM:]]}
    order = {"channels_last": 1} if channels_last else {}
    matrix = last if channels_last else first
    return Candidate(layer, "SparseInt8Conv", {**sizes, **window, **order}, matrix, pack)


def _with_height(values: list[int], name: str) -> list[int]:
    """Numbers of one axis as those of two, of which the first has the size 1."""
    return [0, values[0], 0, values[1]] if name == "pads" else [1, *values]
