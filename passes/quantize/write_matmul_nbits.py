"""The pass ``write-matmul-nbits``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from graphopt.graph import Constant
from graphopt.passes.quantize.writing import drop_unused, short_name
from graphopt.rewrite.pass_ import Pass
from graphopt.rewrite.patch import Contract, LayerRecord, Patch, Skip, node_label
from graphopt.target.reading import restored

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from graphopt.analysis.manager import Facts
    from graphopt.graph import Model, Node, Rewriter
    from graphopt.target.reading import Restored

CONTRIBUTED = "com.microsoft"
SMALLEST_BLOCK = 16
WIDTHS = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as MatMulNBits reads it.

    Attributes:
        bits: Of a weight.
        block: Inputs that share a scale.
        inputs: Rows of the weight, K.
        outputs: Columns of the weight, N.
        codes: Packed integers, uint8, N by blocks by block * bits / 8; the lowest bits come first.
        scales: float32, N times blocks.
        zeros: Packed zero points, uint8, or None where all are the middle of the range.
    """

    bits: int
    block: int
    inputs: int
    outputs: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteMatmulNbits(Pass):
    """Replace a MatMul by a weight of 2, 4 or 8 bits in blocks by the operator that reads the packed bits.

    ONNX Runtime makes the same operator when it loads the model; written out the file needs no opset that has the type
    (2 bits are packed below opset 25 too), and how activations are rounded is in the file, not in a session's settings.

    Attributes:
        accuracy_level: 4 rounds activations to int8 in every run, which is what makes it fast; 1 computes in float32.
            There is no default of the runtime to fall back to: without a level 2-bit weights are restored to float in
            every run.

    Matches: MatMul by a matrix behind a DequantizeLinear of constants in blocks along its inputs.
    Produces: MatMulNBits of com.microsoft with the packed weight, its scales and zero points.
    Requires: Blocks of 16, 32, 64 and so on; float32 scales.
    Preserves: Names, types and shapes. Not values where activations are rounded: LOSSY.
    Source: a product of the operator definition of ONNX Runtime 1.31.
    """

    name: ClassVar[str] = "write-matmul-nbits"
    contract: ClassVar[Contract] = Contract.LOSSY
    uses_data: ClassVar[bool] = False
    guard: ClassVar[str] = "layers"

    accuracy_level: Literal[1, 4] = 4
    keep: tuple[str, ...] = ()

    def run(self, model: Model, facts: Facts) -> Generator[Patch | Skip, frozenset[Node], None]:
        """Yield one patch per MatMul, in graph order."""
        for node in [node for _, node in model.walk(functions=False) if node.op == "MatMul"]:
            weight = restored(node.inputs[1]) if node.domain in {None, "", "ai.onnx"} else None
            if weight is None or not weight.is_constant or not weight.block:
                continue
            if node_label(node) in self.keep:
                yield Skip(node, "kept as asked")
                continue
            overridable = [
                tensor
                for tensor in weight.node.inputs
                if isinstance(tensor, Constant) and model.graph.is_overridable(tensor)
            ]
            packed = "its weight may be overridden by callers" if overridable else pack(weight)
            if isinstance(packed, str):
                yield Skip(node, packed)
                continue

            def apply(rw: Rewriter, node: Node = node, packed: Packed = packed) -> None:
                write(rw, node, packed, self.accuracy_level)

            label, what = node_label(node), f"{packed.bits}-bit weights, blocks of {packed.block}"
            record = LayerRecord(label, node.op, what, reason=f"MatMulNBits, accuracy_level {self.accuracy_level}")
            yield Patch(f"write MatMul '{label}' as MatMulNBits, {what}", (node,), apply, (record,))


def pack(weight: Restored) -> Packed | str:
    """Return a weight as MatMulNBits reads it, or why it cannot be."""
    values, scale = weight.values, weight.scale
    assert values is not None
    if values.ndim != 2 or scale is None or scale.ndim != 2:
        return "its weight is no matrix, or its scales are no constant"
    if scale.dtype != np.float32:
        return f"its weight is restored to {scale.dtype.name}"
    if int(weight.node.attrs.get("axis", 1)) % 2 != 0:
        return "its blocks lie along the outputs of the weight"
    block = weight.block
    if block < SMALLEST_BLOCK or block & (block - 1):
        return f"blocks of {block}: only 16, 32, 64 and so on are packed"
    codes = values.astype(np.int64)
    zero = np.zeros(scale.shape, np.int64) if weight.zero is None else weight.zero.astype(np.int64)
    signed = bool((codes < 0).any() or (zero < 0).any())
    low, high = int(min(codes.min(), zero.min())), int(max(codes.max(), zero.max()))
    for bits in WIDTHS:
        middle = 1 << (bits - 1)
        if (-middle <= low and high < middle) if signed else high < 2 * middle:
            break
    else:
        return f"integers from {low} to {high} take more than 8 bits"
    shift = middle if signed else 0
    codes, zero = codes + shift, zero + shift
    inputs, outputs = codes.shape
    padded = np.pad(codes, [(0, -inputs % block), (0, 0)])  # the last block may be shorter: what is missing is not read
    blocks = padded.T.reshape(outputs, -1, block)
    zeros = None if (zero == middle).all() else pack_bits(zero.T, bits).reshape(-1)
    scales = np.ascontiguousarray(np.asarray(scale, np.float32).T).reshape(-1)
    return Packed(bits, block, inputs, outputs, pack_bits(blocks, bits), scales, zeros)


def pack_bits(values: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Return integers packed into bytes along the last axis, the lowest bits first; what is missing is 0."""
    per = 8 // bits
    missing = -values.shape[-1] % per
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])
    parts = padded.reshape(*padded.shape[:-1], -1, per) << (np.arange(per) * bits)
    found: NDArray[np.uint8] = parts.sum(axis=-1).astype(np.uint8)
    return found


def write(rw: Rewriter, node: Node, packed: Packed, accuracy_level: int) -> None:
    """Replace a MatMul."""
    old = node.inputs[1]
    name = short_name(old)
    inputs = [
        node.inputs[0],
        rw.constant(packed.codes, name=f"{name}_packed", near=node),
        rw.constant(packed.scales, name=f"{name}_scale", near=node),
    ]
    if packed.zeros is not None:
        inputs.append(rw.constant(packed.zeros, name=f"{name}_zero_point", near=node))
    attrs: dict[str, Any] = {"K": packed.inputs, "N": packed.outputs, "bits": packed.bits, "block_size": packed.block}
    attrs["accuracy_level"] = accuracy_level
    output = node.outputs[0]
    made = rw.op("MatMulNBits", inputs, attrs=attrs, domain=CONTRIBUTED, near=node, like=output, origin=(node,))
    rw.replace_tensor(output, made)
    rw.erase([node])
    drop_unused(rw, [old])
