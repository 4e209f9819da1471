"""Let sparse convolutions of 8-bit integers run on the sparse kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.analysis.cost_table import CostTable
from graphopt.passes.lower.costed import CostedLowering
from graphopt.passes.lower.integers import STANDARD_DOMAINS, Int8Layer, match_static
from graphopt.passes.lower.replacing import Choice, choose, patch, why_weight_stays
from graphopt.rewrite.patch import Patch, Skip
from graphopt.solve.pack_sparse_int8 import conv_matrix, pack_sparse_int8_conv, stored_share
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np
    from numpy.typing import NDArray

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSparseInt8Conv(CostedLowering):
    """Replace sparse convolutions of 8-bit integers by ai.graphopt::SparseInt8Conv where that is faster.

    Matches:   Conv with two spatial axes whose input and constant weight come from DequantizeLinear, uint8 and int8,
               the weight with the zero point 0 and one scale or one per output. A Relu, Clip or Gelu and a
               QuantizeLinear to uint8 that alone read the result go with it, and so does a QuantizeLinear of its input
               whose result nothing else reads.
    Produces:  SparseInt8Conv with the weight packed in blocks of 1 x 4 or 4 x 4, its fours along the order of the
               weight or along the channels, whichever leaves out more. Bytes stay bytes between integer layers.
    Requires:  The kernel is faster than the 8-bit convolution of ONNX Runtime and the dense float32 one by the margin
               of the cost table, for the share of blocks that are zero, the output positions and the size; every
               reader of the weight is lowered, so that the file does not grow. Depthwise convolutions and those whose
               auto_pad follows from sizes stay as they are.
    Preserves: Names, types and shapes of all outputs. Values: LOSSY in name, since results rounded to uint8 may differ
               from those of float arithmetic by one step, as they do in ONNX Runtime's QLinearConv, with which they
               agree to the bit.
    Source:    Jacob et al. 2018, arXiv:1712.05877, section 2.2; layout in kernels/sparse_int8/contract.h.
    """

    name: ClassVar[str] = "lower-sparse-int8-conv"
    contract: ClassVar[Contract] = Contract.LOSSY

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per lowered node, in topological order.

        Raises:
            RecipeError: The cost table cannot be read, or does not have the instruction set.
        """
        table = CostTable.find(self.cost_table)
        counts = self.counts(model, facts)
        found: dict[Node, tuple[Int8Layer, Choice] | str] = {}
        for _, node in model.walk():
            if node.op != "Conv" or node.domain not in STANDARD_DOMAINS:
                continue
            layer = match_static(node)
            if layer is None:
                continue
            reason = layer if isinstance(layer, str) else _why_other(layer)
            if reason or isinstance(layer, str):
                found[node] = reason
                continue
            matrix = conv_matrix(layer.values, channels_last=_is_channels_last(layer))
            choice = choose(matrix, counts.positions(node.outputs[0]), table, self.isa, "conv")
            found[node] = choice if isinstance(choice, str) else (layer, choice)
        packed: dict[Any, Any] = {}
        for node, known in found.items():
            reason = known if isinstance(known, str) else why_weight_stays(known[0], found)
            if reason or isinstance(known, str):
                yield Skip(node, reason)
                continue
            layer, choice = known
            yield patch(layer, partial(_pack, layer), choice, "SparseInt8Conv", _attributes(layer), packed)


def _why_other(layer: Int8Layer) -> str:
    node, shape = layer.node, layer.values.shape
    if len(shape) != 4:
        return f"its weight has the shape {list(shape)}; the kernel has two spatial axes"
    group = _group(layer)
    if group > 1 and shape[1] == 1:
        return "it is depthwise, where few products share an input; it stays dense"
    if group < 1 or shape[0] % group:
        return f"its {shape[0]} output channels are not a multiple of its {group} groups"
    if node.attrs.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return f"its padding follows from the size of its input (auto_pad is {node.attrs['auto_pad']})"
    pads = node.attrs.get("pads", (0, 0, 0, 0))
    return "it has pads that the kernel does not take" if len(pads) != 4 or min(pads) < 0 else ""


def _group(layer: Int8Layer) -> int:
    return int(layer.node.attrs.get("group", 1))


def _is_channels_last(layer: Int8Layer) -> bool:
    """Whether more fours are zero along the channels than in the order of the weight."""
    first, last = (stored_share(conv_matrix(layer.values, channels_last=order), 1) for order in (False, True))
    return last < first


def _attributes(layer: Int8Layer) -> dict[str, Any]:
    shape, given = layer.values.shape, layer.node.attrs
    made: dict[str, Any] = {"N": int(shape[0]), "kernel_shape": [int(size) for size in shape[2:]]}
    for name in ("strides", "dilations"):
        values = [int(value) for value in given.get(name, ())]
        if any(value != 1 for value in values):
            made[name] = values
    pads = [int(value) for value in given.get("pads", ())]
    if any(pads) and given.get("auto_pad", "NOTSET") == "NOTSET":
        made["pads"] = pads
    if _group(layer) != 1:
        made["group"] = _group(layer)
    if _is_channels_last(layer):
        made["channels_last"] = 1
    return made


def _pack(layer: Int8Layer, unit: int) -> NDArray[np.uint8]:
    return pack_sparse_int8_conv(
        layer.values,
        layer.scales,
        layer.fixes,
        group=_group(layer),
        unit=unit,
        channels_last=_is_channels_last(layer),
    )
