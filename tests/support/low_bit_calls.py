"""LowBitMatMul through its C interface and in models, random matrices for it, and what its results may differ by."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from graphopt.solve.pack_low_bit import LowBitMatrix, pack_low_bit
from kernel_calls import ACTIVATIONS, Guarded, address, attempt, blob, call, objection

EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class LowBitLibrary:
    """The kernel through its C interface."""

    dll: ctypes.CDLL

    def run(
        self,
        packed: np.ndarray,
        x: np.ndarray,
        n: int,
        isa: str,
        *,
        rounds: bool = True,
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        activation: str = "none",
        low: float = -np.inf,
        high: float = np.inf,
    ) -> np.ndarray:
        y = Guarded(x.shape[0] * n)
        call(
            self.dll.graphopt_low_bit_matmul_f32,
            *blob(packed),
            isa.encode(),
            ctypes.c_int(int(rounds)),
            address(x),
            ctypes.c_size_t(x.shape[0]),
            address(bias),
            address(residual),
            ctypes.c_int(ACTIVATIONS.index(activation)),
            ctypes.c_float(low),
            ctypes.c_float(high),
            address(y.room),
        )
        return y.written().reshape(x.shape[0], n)

    def check(self, packed: np.ndarray) -> str:
        """Return the library's objection to these bytes, or ''."""
        return objection(self.dll.graphopt_low_bit_matmul_check, packed, 4)

    def choice(self, packed: np.ndarray, isa: str, m: int) -> str:
        """Return how the sums of m rows are made; '' for an instruction set of another platform."""
        arguments = (*blob(packed), isa.encode(), ctypes.c_size_t(m))
        failed, text = attempt(self.dll.graphopt_low_bit_matmul_choice, *arguments)
        return "" if failed else text


def matrix(
    k: int, n: int, bits: int, block: int, zeros: str = "constant", *, book: bool = False, seed: int = 0
) -> LowBitMatrix:
    """A random matrix of this form."""
    rng = np.random.default_rng([seed, k, n, bits, block])
    shape = (-(-k // block), n)
    kinds: dict[str, Any] = {
        "constant": int(rng.integers(0, 1 << bits)),
        "bytes": rng.integers(0, 256, shape, dtype=np.uint8),
        "offsets": rng.standard_normal(shape).astype(np.float32),
    }
    levels = tuple(float(level) for level in rng.integers(0, 256, 1 << bits)) if book else ()
    codes = rng.integers(0, 1 << bits, (k, n), dtype=np.uint8)
    return LowBitMatrix(codes, rng.uniform(0.1, 1.1, shape).astype(np.float32), bits, block, kinds[zeros], levels)


def rounded(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """What activations are rounded to, as the contract says: integers, and the scale of each."""
    padded = np.pad(x, [(0, 0), (0, -x.shape[1] % block)]).reshape(x.shape[0], -(-x.shape[1] // block), block)
    largest = np.abs(padded).max(axis=2, keepdims=True)
    tiny = largest < np.float32(2.0**-100)
    factor = np.where(tiny, np.float32(0), np.float32(127) / np.where(tiny, np.float32(1), largest))
    codes = np.rint(padded * factor).astype(np.int64)
    scale = np.broadcast_to(np.where(tiny, np.float32(0), largest / np.float32(127)), codes.shape)
    flat = (x.shape[0], codes.shape[1] * block)
    return codes.reshape(flat)[:, : x.shape[1]], scale.reshape(flat)[:, : x.shape[1]]


def exact(x: np.ndarray, w: LowBitMatrix, *, rounds: bool) -> tuple[np.ndarray, np.ndarray]:
    """The product in double, and the bound on what float32 sums of it may be off."""
    rows = np.arange(w.codes.shape[0]) // w.block
    levels = np.asarray(w.book)[w.codes] if w.book else w.codes * (2.0 if w.bits == 1 else 1.0)
    scale = w.scales[rows].astype(np.float64)
    offset: np.ndarray | float = 0.0
    zero: np.ndarray | float = 0.0
    if isinstance(w.zeros, np.ndarray) and w.zeros.dtype == np.float32:
        offset = w.zeros[rows].astype(np.float64)
    else:
        zero = w.zeros[rows].astype(np.float64) if isinstance(w.zeros, np.ndarray) else float(w.zeros)
    dense = scale * (levels - zero) + offset
    size = scale * np.abs(levels - zero) + np.abs(offset)
    wide = x.astype(np.float64)
    if rounds:
        codes, steps = rounded(x, w.block)
        wide = codes * steps.astype(np.float64)
    terms = (-(-w.codes.shape[0] // w.block) if rounds else w.codes.shape[0]) + 6
    return wide @ dense, terms * EPS * (np.abs(wide) @ size) + 1e-30


def model(
    w: LowBitMatrix,
    x_shape: list[int | str | None],
    *,
    bias: np.ndarray | None = None,
    residual: list[int | str | None] | None = None,
    packed: np.ndarray | None = None,
    weight_is_input: bool = False,
    **attributes: object,
) -> bytes:
    """A model of one LowBitMatMul."""
    k, n = w.codes.shape
    given: dict[str, object] = {"K": k, "N": n, "bits": w.bits, "block_size": w.block, **attributes}
    stored = pack_low_bit(w) if packed is None else packed
    names = ["x", "w", "b" if bias is not None else "", "r" if residual is not None else ""]
    while not names[-1]:
        names.pop()
    node = helper.make_node("LowBitMatMul", names, ["y"], name="layer", domain="ai.graphopt")
    node.attribute.extend(helper.make_attribute(key, value) for key, value in given.items() if value is not None)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)]
    initializers = [numpy_helper.from_array(stored, "w")]
    if weight_is_input:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.UINT8, [stored.size]))
    if residual is not None:
        inputs.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, residual))
    if bias is not None:
        initializers.append(numpy_helper.from_array(bias, "b"))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.graphopt", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data
