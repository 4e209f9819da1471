"""Let matrix products with weights of few bits run on the low-bit kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from graphopt.analysis.cost_table import CostTable
from graphopt.analysis.types import Types
from graphopt.graph import Constant, Function, Model, Node, is_graph_output, producer, uses
from graphopt.passes.lower.costed import CostedLowering
from graphopt.passes.lower.epilogue import Following, added_inputs, as_bias, read_epilogue
from graphopt.passes.lower.fewbits import CONTRIBUTED, FewBitMatrix, read_nbits, read_operand
from graphopt.passes.lower.linear import STANDARD_DOMAINS, why_other_gemm
from graphopt.passes.lower.lowbit import low_bit_matrix
from graphopt.rewrite.patch import LayerRecord, Patch, Skip, node_label
from graphopt.solve.pack_low_bit import LowBitMatrix, pack_low_bit
from graphopt.target.reading import restored
from graphopt.verify.contract import Contract

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Rewriter, Tensor
    from graphopt.passes.lower.rows import RowCounts

_DOMAIN = "ai.graphopt"
_BYTES = ("int8", "uint8")


@dataclass(frozen=True, slots=True)
class _Site:
    node: Node
    rows: int | None
    epilogue: Following


@dataclass(frozen=True, slots=True)
class _Layer:
    site: _Site
    matrix: LowBitMatrix
    speedup: float
    over: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerLowBitMatmul(CostedLowering):
    """Replace products with weights of 8 bits or fewer by ai.graphopt::LowBitMatMul where that is faster.

    Attributes:
        activations: ``int8``: rounded in every run, in the blocks of the weight, as MatMulNBits does at accuracy level
            4; ``float``: as they are, the weight is restored in the kernel.
        keep: Names of nodes that stay as they are.

    Matches: MatMul and Gemm (alpha = 1, beta = 1, transA = 0) by a matrix behind a DequantizeLinear of constants with
        one scale per tensor, per output or per block of inputs, or behind a Gather of places in a code book of up to 16
        values; single bits that are unpacked first; MatMulNBits. An Add of a bias, an Add of a tensor of the same shape
        and an activation, each the only reader of the one before, go with them.
    Produces: LowBitMatMul with the packed codes, in 1, 2, 3, 4 or 8 bits, whatever they really take; unevenly spaced
        code books are rounded to 255 steps where activations are rounded.
    Requires: float32 activations and scales; blocks of a multiple of 16 inputs; by the cost table a kernel that is
        faster by its margin than the dense operator and, where ONNX Runtime multiplies with integers, than that.
    Preserves: Names, types and shapes of all outputs. Values up to rounding where ``activations`` is float or the
        operator rounded activations already, else not: LOSSY.
    Source: Jacob et al. 2018, arXiv:1712.05877, section 2; layout in kernels/low_bit_matmul/contract.h.
    """

    name: ClassVar[str] = "lower-low-bit-matmul"
    contract: ClassVar[Contract] = Contract.LOSSY
    guard: ClassVar[str] = "layers"

    activations: Literal["int8", "float"] = "int8"
    keep: tuple[str, ...] = ()

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per lowered node, in topological order.

        Raises:
            RecipeError: The cost table cannot be read, or does not have the instruction set.
        """
        table = CostTable.find(self.cost_table)
        types, rows = facts.get(Types), self.counts(model, facts)
        taken: set[Node] = set()
        sites = [_site(node, types, rows, taken) for _, node in model.walk() if _has_few_bits(node)]
        packed: dict[tuple[Tensor, ...], Constant] = {}
        for site in sites:
            node = site.node
            weight = _weight(node)
            if weight is None:
                continue
            if node_label(node) in self.keep:
                yield Skip(node, "kept as asked")
                continue
            layer = weight if isinstance(weight, str) else self._judge(site, weight, table)
            if isinstance(layer, str):
                yield Skip(node, layer)
                continue
            yield self._patch(layer, packed)

    def _judge(self, site: _Site, weight: FewBitMatrix, table: CostTable) -> _Layer | str:
        node, count, (k, n) = site.node, site.rows, weight.values.shape
        if isinstance(node.graph, Function):
            return "it is in the body of a function, which has no initializers; inline the function first"
        refused = why_other_gemm(node) if node.op == "Gemm" else ""
        if refused:
            return refused
        operand = _bias_operand(node)
        if operand is not None and site.epilogue.bias is None:
            return f"what it adds, '{operand.name}', is no constant of one number per output"
        matrix = low_bit_matrix(weight, rounds=self.activations == "int8")
        if isinstance(matrix, str):
            return matrix
        kernel = "low-bit-matmul" if self.activations == "int8" else "low-bit-matmul-float"
        speedup, over = table.predicted(kernel, count, k * n, matrix.bits, self.isa), "dense"
        for name, (other, bits) in _replaced(node, weight).items():
            gain = table.gain(kernel, matrix.bits, other, bits, count, k * n, self.isa)
            if gain and gain < speedup:
                speedup, over = gain, name
        if speedup < 1 + table.margin:
            size = f"{'an unknown number of' if count is None else count} rows of activations"
            known = f"{speedup:.2f} times as fast as {over}" if speedup else "not known to be faster than dense"
            return f"for {size} and a weight of {k} x {n} with {matrix.bits} bits the low-bit kernel is {known}"
        return _Layer(site, matrix, speedup, over)

    def _patch(self, layer: _Layer, packed: dict[tuple[Tensor, ...], Constant]) -> Patch:
        node, matrix, epilogue = layer.site.node, layer.matrix, layer.site.epilogue
        label, nodes = node_label(node), (node, *epilogue.nodes)
        k, n = matrix.codes.shape

        def apply(rewriter: Rewriter) -> None:
            weights = tuple(node.inputs[1:4] if node.op == "MatMulNBits" else node.inputs[1:2])
            # Products of either orientation may share a weight.
            key = (*weights, *((node.inputs[1],) if node.attrs.get("transB", 0) else ()))
            if key not in packed:
                name = f"{node.inputs[1].name}_packed"
                packed[key] = rewriter.constant(pack_low_bit(matrix), name=name, near=node)
            added = added_inputs(rewriter, epilogue.bias, epilogue.residual, n, label=label, near=node)
            attrs = {"K": k, "N": n, "bits": matrix.bits, "block_size": matrix.block, **epilogue.attrs}
            attrs["activations"] = self.activations
            result = rewriter.op(
                "LowBitMatMul",
                [node.inputs[0], packed[key], *added],
                attrs=attrs,
                domain=_DOMAIN,
                like=epilogue.output,
                near=nodes[-1],
                origin=nodes,
            )
            rewriter.replace_tensor(epilogue.output, result)
            rewriter.erase(nodes)
            _drop_unused(rewriter, weights)

        extras = "".join(f" and {other.op} '{node_label(other)}'" for other in epilogue.nodes)
        kind = f"{matrix.bits} bits" + (f", a book of {len(matrix.book)}" if matrix.book else "")
        record = LayerRecord(
            label,
            str(node.op),
            f"LowBitMatMul, {kind}, blocks of {matrix.block}, {self.activations} activations",
            reason=f"at least {layer.speedup:.1f} times as fast as {layer.over} by the cost table",
        )
        return Patch(f"run {node.op} '{label}'{extras} on the low-bit kernel", nodes, apply, (record,))


def _has_few_bits(node: Node) -> bool:
    """Whether a node multiplies with what may be a matrix of few bits."""
    if node.op == "MatMulNBits":
        return bool(node.domain == CONTRIBUTED)
    if node.op not in {"MatMul", "Gemm"} or node.domain not in STANDARD_DOMAINS or len(node.inputs) < 2:
        return False
    made = producer(node.inputs[1])
    return made is not None and made.op in {"DequantizeLinear", "Gather"}


def _site(node: Node, types: Types, rows: RowCounts, taken: set[Node]) -> _Site:
    """What is read of the graph before anything in it changes. What goes with a node is taken from the others."""
    shape = types.shape(node.outputs[0])
    n = node.attrs.get("N", shape[-1] if shape else None)
    if not isinstance(n, int):
        return _Site(node, rows.of(node.inputs[0]), Following(node.outputs[0]))
    epilogue = read_epilogue(node.outputs[0], n, types, bias=_own_bias(node, n), taken=taken)
    taken.update(epilogue.nodes)
    return _Site(node, rows.of(node.inputs[0]), epilogue)


def _weight(node: Node) -> FewBitMatrix | str | None:
    """The matrix of few bits that a node multiplies with, why it cannot be lowered, or None if it has none."""
    if node.op == "MatMulNBits":
        return read_nbits(node)
    transposed = node.op == "Gemm" and bool(node.attrs.get("transB", 0))
    return read_operand(node.inputs[1], transposed=transposed) if len(node.inputs) > 1 else None


def _bias_operand(node: Node) -> Tensor | None:
    place = {"Gemm": 2, "MatMulNBits": 5}.get(str(node.op), len(node.inputs))
    return node.inputs[place] if place < len(node.inputs) and node.inputs[place].name else None


def _own_bias(node: Node, n: int) -> NDArray[np.float32] | None:
    """The bias that a node adds itself."""
    operand = _bias_operand(node)
    return None if operand is None else as_bias(operand, n, rank=2)


def _replaced(node: Node, weight: FewBitMatrix) -> dict[str, tuple[str, int]]:
    """What ONNX Runtime multiplies integers with here: alternatives of the cost table and their bits, by name."""
    if weight.fuses:
        spread = int(weight.values.max()) - int(weight.values.min())
        return {"MatMulNBits": ("matmul-nbits", 2 if spread < 4 else 4 if spread < 16 else 8)}
    operands = [restored(tensor) for tensor in node.inputs[:2]]
    if all(operand is not None and operand.number in _BYTES for operand in operands):
        return {"the dense 8-bit operator": ("dense-int8-matmul", 8)}
    return {}


def _drop_unused(rewriter: Rewriter, tensors: Iterable[Tensor]) -> None:
    """Remove nodes that restore a weight which nothing reads any more."""
    waiting = list(tensors)
    while waiting:
        tensor = waiting.pop()
        source = producer(tensor)
        if source is None or uses(tensor) or is_graph_output(tensor):
            continue
        waiting += list(source.inputs)
        rewriter.erase([source])
