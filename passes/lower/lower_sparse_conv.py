"""Let convolutions with sparse weights run on the sparse kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.passes.lower.convolution import Convolution, is_conv, match_convolution
from graphopt.passes.lower.costed import Known, LayerLowering
from graphopt.passes.lower.epilogue import added_inputs
from graphopt.rewrite.patch import LayerRecord, Patch, node_label
from graphopt.solve.pack_sparse_conv import BLOCKS, block_entries, pack_sparse_conv, packed_conv_bytes
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    import numpy as np

    from graphopt.graph import Constant, Node, Rewriter, Tensor

_DOMAIN = "ai.graphopt"
_HEADERS_BYTES = 4096  # what the packed form of a tiny weight may have beside its entries


@dataclass(frozen=True, slots=True)
class _Choice:
    """How a layer is lowered: channels of a block, share of zeros of what is then stored, and what that gains."""

    layer: Convolution
    block: int
    level: float
    speedup: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSparseConv(LayerLowering[_Choice]):
    """Replace convolutions with sparse weights by ai.graphopt::SparseConv where that is faster than dense.

    Matches:   Conv with one or two spatial axes and a constant float32 weight, any strides, pads, dilations and groups
               but depthwise. A following Add of a tensor of the same shape and then a Relu, Clip with constant bounds,
               Gelu or x * Sigmoid(x), each the only reader, go with it.
    Produces:  SparseConv with the packed weight, the bias, the residual and the activation;
               Y = act(conv(X, W) + b + R), summed in float32 in another order. The weight is stored by single entries
               or by blocks of 4 or 8 output channels, whichever the cost table says is faster. The dense weight
               disappears; a weight that several nodes share is packed once.
    Requires:  The share of zeros is at or above the break-even of the cost table for the weight's size, the output
               positions and the instruction set; every reader of the weight is lowered and the packed form is not
               larger, so that the file does not grow. Positions that the model leaves open are those of the smallest of
               eight samples where there is data, else the option ``rows``, else the least favourable.
    Preserves: Names, types and shapes of all outputs; values up to rounding where activations are finite. An infinity
               or NaN no longer reaches outputs whose weights for it are zero.
    Source:    Elsen et al. 2020, arXiv:1911.09723, section 3; layout in kernels/sparse_conv/contract.h.
    """

    name: ClassVar[str] = "lower-sparse-conv"
    contract: ClassVar[Contract] = Contract.ROUNDING

    def judge(self, node: Node, known: Known, taken: set[Node]) -> _Choice | str | None:
        """Return the faster form of a convolution's weight, why it stays, or None for other nodes."""
        layer = match_convolution(node, known.types, known.counts, taken) if is_conv(node) else None
        if layer is None or isinstance(layer, str):
            return layer
        weight = layer.weight()
        size = weight.size // layer.group
        levels = {block: _level(weight, layer.group, block) for block in BLOCKS}
        wide = 8 if levels[8] >= levels[4] else 4  # of blocks that store as much the wider ones are faster
        names = {_kernel(layer, block): block for block in (1, wide)}
        best = known.table.fastest(
            [(name, levels[block]) for name, block in names.items()], layer.positions, size, self.isa
        )
        if best is not None:
            kernel, level, speedup = best
            return _why_file_grows(weight, layer.group, names[kernel]) or _Choice(layer, names[kernel], level, speedup)
        needed = known.table.break_even(_kernel(layer, 1), layer.positions, size, self.isa)
        where = "an unknown number of" if layer.positions is None else str(layer.positions)
        shape = f"for {where} output positions and a weight of {' x '.join(map(str, weight.shape))}"
        share = f"its weight has {levels[1]:.1%} zeros"
        return (
            f"{share}; {shape} the sparse kernel is faster from {needed:.1%} on"
            if needed is not None
            else f"{share}; {shape} the sparse kernel is not known to be faster at any sparsity"
        )

    def lowered(self, chosen: _Choice, packed: dict[Any, Any]) -> Patch:
        """Return the patch that puts SparseConv in the place of a convolution."""
        return _patch(chosen, packed)


def _kernel(layer: Convolution, block: int) -> str:
    """The name that the cost table has for a form of the kernel; blocks of 8 count as blocks of 4."""
    window = "" if any(size > 1 for size in layer.weight().shape[2:]) else "-1x1"
    return f"sparse-conv{window}" if block == 1 else f"sparse-conv{window}-4x1"


def _level(weight: np.ndarray[Any, Any], group: int, block: int) -> float:
    """The share of elements that are not stored."""
    return 1 - block_entries(weight, group=group, block=block) * block / weight.size


def _patch(choice: _Choice, packed: dict[tuple[Tensor, int, int], Constant]) -> Patch:
    layer = choice.layer
    label = node_label(layer.node)
    extras = "".join(f" and {node.op} '{node_label(node)}'" for node in layer.nodes[1:])

    def apply(rewriter: Rewriter) -> None:
        key = (layer.stored_weight, layer.group, choice.block)
        if key not in packed:
            blob = pack_sparse_conv(layer.weight(), group=layer.group, block=choice.block)
            packed[key] = rewriter.constant(blob, name=f"{layer.stored_weight.name}_packed", near=layer.node)
        residual = layer.epilogue.residual
        added = added_inputs(rewriter, layer.bias, residual, len(layer.weight()), label=label, near=layer.node)
        result = rewriter.op(
            "SparseConv",
            [layer.node.inputs[0], packed[key], *added],
            attrs=layer.attributes(),
            domain=_DOMAIN,
            like=layer.output,
            near=layer.nodes[-1],
            origin=layer.nodes,
        )
        rewriter.replace_tensor(layer.output, result)
        rewriter.erase(layer.nodes)

    rows = "" if choice.block == 1 else f" in blocks of {choice.block} channels"
    record = LayerRecord(
        label,
        layer.node.op,
        f"SparseConv, {choice.level:.1%} zeros{rows}",
        reason=f"at least {choice.speedup:.1f} times as fast as dense by the cost table",
    )
    return Patch(f"run Conv '{label}'{extras} on the sparse kernel", layer.nodes, apply, (record,))


def _why_file_grows(weight: np.ndarray[Any, Any], group: int, block: int) -> str:
    after = packed_conv_bytes(weight, group=group, block=block)
    grows = after > weight.nbytes + _HEADERS_BYTES
    return f"its weight of {weight.nbytes} bytes would take {after} bytes, so that the file would grow" if grows else ""
