"""Let sparse matrix products run on the sparse kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.passes.lower.costed import Known, LayerLowering
from graphopt.passes.lower.epilogue import added_inputs
from graphopt.passes.lower.linear import Linear, is_linear, match_linear
from graphopt.rewrite.patch import LayerRecord, Patch, node_label
from graphopt.solve.pack_sparse import SparseForm, pack_sparse, sparse_forms
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from graphopt.graph import Constant, Node, Rewriter, Tensor

_DOMAIN = "ai.graphopt"
_HEADERS_BYTES = 4096  # what the packed form of a tiny matrix may have beside its entries


@dataclass(frozen=True, slots=True)
class _Chosen:
    layer: Linear
    form: SparseForm
    speedup: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerSparseMatmul(LayerLowering[_Chosen]):
    """Replace sparse MatMul and Gemm by ai.graphopt::SparseMatMul where that is faster than dense.

    Matches:   MatMul with a constant 2-D float32 weight as second input; Gemm with such a weight, alpha = 1, beta = 1,
               transA = 0 and a constant C that adds one number per column. A following Add of such a constant, an Add
               of a tensor of the result's shape, and a Relu, Clip, Gelu, Swish, x * Sigmoid(x) or Gelu spelled out by
               Erf or Tanh, each the only reader of what is before it, go with them.
    Produces:  SparseMatMul with the packed weight, the bias, the residual and the activation; Y = act(X W + b + R),
               summed in float32 in another order. Of the forms of the weight (single entries, blocks of 4, 8 or 16
               outputs) the one that is fastest by the cost table. The dense weight disappears; a weight that several
               nodes share is packed once.
    Requires:  By the cost table a form is faster than dense by the margin for the share of zeros it leaves out, the
               size of the weight, its rows of activations and the instruction set; every reader of the weight is
               lowered, and the file does not grow. Rows that the model leaves open are those of the smallest of eight
               samples where there is data, else the option ``rows``, else the least favourable of all counts.
    Preserves: Names, types and shapes of all outputs; values up to rounding where activations are finite. An infinity
               or NaN no longer reaches outputs whose weight for it is zero.
    Source:    Elsen et al. 2020, arXiv:1911.09723, section 3; layout in kernels/sparse_matmul/contract.h.
    """

    name: ClassVar[str] = "lower-sparse-matmul"
    contract: ClassVar[Contract] = Contract.ROUNDING

    def judge(self, node: Node, known: Known, taken: set[Node]) -> _Chosen | str | None:
        """Return the fastest form of a product's weight, why it stays, or None for other nodes."""
        layer = match_linear(node, known.types, known.counts, taken) if is_linear(node) else None
        if layer is None or isinstance(layer, str):
            return layer
        weights = layer.k * layer.n
        forms = sparse_forms(layer.weight())
        by_kernel = {_kernel(form): form for form in forms}
        levels = [(kernel, _level(form, weights)) for kernel, form in by_kernel.items()]
        best = known.table.fastest(levels, layer.rows, weights, self.isa)
        if best is not None:
            kernel, _, speedup = best
            return _why_file_grows(by_kernel[kernel], weights) or _Chosen(layer, by_kernel[kernel], speedup)
        needed = known.table.break_even(_kernel(forms[0]), layer.rows, weights, self.isa)
        rows = "an unknown number of" if layer.rows is None else str(layer.rows)
        size = f"for {rows} rows of activations and a weight of {layer.k} x {layer.n}"
        share = f"its weight has {_zeros(forms[0], weights)}"
        return (
            f"{share}; {size} the sparse kernel is faster from {needed:.1%} on"
            if needed is not None
            else f"{share}; {size} the sparse kernel is not known to be faster at any sparsity"
        )

    def lowered(self, chosen: _Chosen, packed: dict[Any, Any]) -> Patch:
        """Return the patch that puts SparseMatMul in the place of a product."""
        return _patch(chosen, packed)


def _patch(chosen: _Chosen, packed: dict[tuple[Tensor, bool, int], Constant]) -> Patch:
    layer, form, epilogue = chosen.layer, chosen.form, chosen.layer.epilogue
    extras = "".join(f" and {node.op} '{node_label(node)}'" for node in layer.nodes[1:])
    label = node_label(layer.node)

    def apply(rewriter: Rewriter) -> None:
        key = (layer.stored_weight, layer.transposed, form.block_rows)
        if key not in packed:
            blob = pack_sparse(layer.weight(), block_rows=form.block_rows)
            packed[key] = rewriter.constant(blob, name=f"{layer.stored_weight.name}_packed", near=layer.node)
        added = added_inputs(rewriter, epilogue.bias, epilogue.residual, layer.n, label=label, near=layer.node)
        result = rewriter.op(
            "SparseMatMul",
            [layer.node.inputs[0], packed[key], *added],
            attrs={"K": layer.k, "N": layer.n, **epilogue.attrs},
            domain=_DOMAIN,
            like=epilogue.output,
            near=layer.nodes[-1],
            origin=layer.nodes,
        )
        rewriter.replace_tensor(epilogue.output, result)
        rewriter.erase(layer.nodes)

    record = LayerRecord(
        label,
        layer.node.op,
        f"SparseMatMul, {_zeros(form, layer.k * layer.n)}",
        reason=f"at least {chosen.speedup:.1f} times as fast as dense by the cost table",
    )
    return Patch(f"run {layer.node.op} '{label}'{extras} on the sparse kernel", layer.nodes, apply, (record,))


def _kernel(form: SparseForm) -> str:
    """The name of the form in the cost table."""
    return "sparse-matmul" if form.block_rows == 1 else f"sparse-matmul-{form.block_rows}x1"


def _level(form: SparseForm, weights: int) -> float:
    """The share of weights that are not stored. The last block may reach beyond the outputs."""
    return max(0.0, 1 - form.stored / weights)


def _zeros(form: SparseForm, weights: int) -> str:
    blocks = f" in blocks of {form.block_rows} outputs" if form.block_rows > 1 else ""
    return f"{_level(form, weights):.1%} zeros{blocks}"


def _why_file_grows(form: SparseForm, weights: int) -> str:
    before = weights * np.dtype(np.float32).itemsize
    grows = form.bytes > before + _HEADERS_BYTES
    return f"its weight of {before} bytes would take {form.bytes} bytes, so that the file would grow" if grows else ""
