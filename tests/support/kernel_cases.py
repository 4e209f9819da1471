"""Small models of every operator of the kernels, with inputs, for tests that run all of them somewhere unusual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from graphopt.solve.pack_low_bit import LowBitMatrix, pack_low_bit
from graphopt.solve.pack_sparse import pack_sparse
from graphopt.solve.pack_sparse_conv import pack_sparse_conv
from graphopt.solve.pack_sparse_int8 import pack_sparse_int8
from int8_calls import block_sparse
from kernel_calls import sparse

DOMAIN = "ai.graphopt"
EXACT = 0.0


@dataclass(frozen=True)
class Case:
    """One model with one feed.

    Attributes:
        name: Unique, fit for a file.
        op: The operator it is about.
        model: The bytes of the model.
        feeds: Inputs in the order of the model.
        rounding: What two instruction sets may differ by, over the largest value of an output.
    """

    name: str
    op: str
    model: bytes
    feeds: dict[str, np.ndarray]
    rounding: float


def all_cases() -> list[Case]:
    """Return the cases of all operators."""
    products = [*sparse_matmul_cases(), *low_bit_matmul_cases(), *sparse_int8_matmul_cases()]
    return [*products, *sparse_conv_cases(), *sparse_int8_conv_cases()]


def large_cases() -> list[Case]:
    """One case of each operator whose work is shared out over threads."""
    product: dict[str, Any] = {"K": 512, "N": 768}
    weight = sparse(512, 768, 0.2)
    codes = np.random.default_rng(0).integers(0, 16, (512, 768)).astype(np.uint8)
    low_bit = pack_low_bit(LowBitMatrix(codes, values((16, 768)), 4, 32, 8))
    int8, scales = block_sparse(576, 768, 4, 0.2), np.full(768, 0.01, np.float32)
    nodes = {
        "sparse_matmul": (op("SparseMatMul", ["x", "w"], **product, activation="gelu"), pack_sparse(weight), (70, 512)),
        "low_bit_matmul": (op("LowBitMatMul", ["x", "w"], **product, bits=4, block_size=32), low_bit, (9, 512)),
        "low_bit_vector": (op("LowBitMatMul", ["x", "w"], **product, bits=4, block_size=32), low_bit, (1, 512)),
        "sparse_int8_matmul": (
            op("SparseInt8MatMul", ["x", "w"], K=576, N=768),
            pack_sparse_int8(int8, scales, unit=4),
            (70, 576),
        ),
        "sparse_int8_conv": (
            op("SparseInt8Conv", ["x", "w"], N=768, kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
            pack_sparse_int8(int8, scales, unit=4),
            (1, 64, 17, 17),
        ),
        "sparse_conv": (
            op("SparseConv", ["x", "w"], out_channels=128, kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
            pack_sparse_conv(sparse_tensor((128, 64, 3, 3), 0.2)),
            (1, 64, 28, 28),
        ),
    }
    return [
        case(f"large_{name}", [node], {"w": packed}, {"x": values(shape)}, EXACT)
        for name, (node, packed, shape) in nodes.items()
    ]


def sparse_matmul_cases() -> list[Case]:
    """One row, a narrow batch, a wide one, and none; all forms; odd sizes; bias, residual and activations."""
    made = []
    for name, shape, n, density, activation, block_rows in (
        ("vector", (1, 301), 130, 0.2, "none", 1),
        ("narrow", (7, 257), 65, 0.1, "relu", 1),
        ("wide", (2, 33, 300), 129, 0.3, "gelu", 1),
        ("one", (1, 1), 1, 1.0, "none", 1),
        ("empty", (0, 40), 9, 0.2, "silu", 1),
        ("blocks_vector", (1, 301), 130, 0.2, "gelu_tanh", 16),
        ("blocks_narrow", (7, 257), 65, 0.1, "relu6", 8),
        ("blocks_wide", (2, 33, 300), 129, 0.3, "silu", 4),
    ):
        k = shape[-1]
        constants = {"w": pack_sparse(sparse(k, n, density), block_rows=block_rows), "b": values((n,), 1)}
        feeds = {"x": values(shape), "r": values((*shape[:-1], n), 2)}
        node = op("SparseMatMul", ["x", "w", "b", "r"], K=k, N=n, activation=activation)
        made.append(case(f"sparse_matmul_{name}", [node], constants, feeds, fp32_sums(k)))
    return made


def low_bit_matmul_cases() -> list[Case]:
    """Every width of a code, every form of zeros, both kinds of activations."""
    made = []
    for bits, block, zeros, book, activations, rows in (
        (8, 32, "constant", (), "int8", 1),
        (4, 32, "bytes", (), "int8", 5),
        (4, 16, "offsets", (), "float", 3),
        (3, 64, "constant", (), "int8", 17),
        (2, 128, "constant", (0.0, 1.0, 2.0), "int8", 2),
        (2, 32, "bytes", (), "float", 1),
        (1, 128, "constant", (), "int8", 9),
        (1, 32, "constant", (), "float", 4),
    ):
        k, n, random = 200, 77, np.random.default_rng(bits)
        blocks = -(-k // block)
        codes = random.integers(0, len(book) or 1 << bits, (k, n)).astype(np.uint8)
        scales = random.uniform(0.5, 1.5, (blocks, n)).astype(np.float32)
        kinds: dict[str, Any] = {
            "constant": 1,
            "bytes": random.integers(0, 1 << bits, (blocks, n)).astype(np.uint8),
            "offsets": random.standard_normal((blocks, n)).astype(np.float32),
        }
        matrix = LowBitMatrix(codes, scales, bits, block, kinds[zeros], book)
        attributes: dict[str, Any] = {"K": k, "N": n, "bits": bits, "block_size": block, "activations": activations}
        node = op("LowBitMatMul", ["x", "w", "b"], **attributes, activation="gelu_tanh")
        constants = {"w": pack_low_bit(matrix), "b": values((n,), 1)}
        name = f"low_bit_matmul_{bits}_{zeros}_{activations}"
        made.append(case(name, [node], constants, {"x": values((rows, k))}, fp32_sums(k)))
    return made


def sparse_conv_cases() -> list[Case]:
    """Strides, pads, dilations, groups, blocks, one axis, and a chain in padded planes."""
    made = []
    for name, shape, weight, group, block, strides, dilations, pads in (
        ("plain", (2, 5, 13, 11), (9, 5, 3, 3), 1, 1, (1, 1), (1, 1), (1, 1, 1, 1)),
        ("strided", (1, 6, 17, 19), (10, 6, 3, 3), 1, 4, (2, 2), (1, 1), (1, 1, 1, 1)),
        ("dilated", (1, 4, 15, 15), (8, 4, 3, 2), 1, 8, (1, 2), (2, 1), (2, 0, 1, 1)),
        ("groups", (1, 8, 9, 9), (12, 4, 5, 5), 2, 1, (1, 1), (1, 1), (2, 2, 2, 2)),
        ("line", (3, 7, 40), (6, 7, 5), 1, 1, (1,), (1,), (2, 2)),
    ):
        packed = pack_sparse_conv(sparse_tensor(weight, 0.3), group=group, block=block)
        attributes: dict[str, Any] = {
            "kernel_shape": weight[2:],
            "strides": strides,
            "dilations": dilations,
            "pads": pads,
        }
        node = op("SparseConv", ["x", "w", "b"], out_channels=weight[0], group=group, **attributes, activation="relu6")
        constants = {"w": packed, "b": values((weight[0],), 1)}
        taps = int(np.prod(weight[1:]))
        made.append(case(f"sparse_conv_{name}", [node], constants, {"x": values(shape)}, fp32_sums(taps)))
    return [*made, padded_chain()]


def padded_chain() -> Case:
    """Two convolutions of one element that hand each other padded planes."""
    size, constants, nodes = (7, 9), {}, [op("ToPadded", ["x"], into="p0")]
    for i, (m, c) in enumerate(((12, 10), (11, 12))):
        constants[f"w{i}"] = pack_sparse_conv(sparse_tensor((m, c, 1, 1), 0.4, i), block=4)
        attributes: dict[str, Any] = {
            "kernel_shape": (1, 1),
            "layout_in": "padded",
            "layout_out": "padded",
            "spatial": size,
        }
        inputs = [f"p{i}", f"w{i}"]
        nodes.append(op("SparseConv", inputs, into=f"p{i + 1}", out_channels=m, **attributes, activation="silu"))
    nodes.append(op("FromPadded", ["p2"], spatial=size))
    return case("sparse_conv_padded_chain", nodes, constants, {"x": values((2, 10, *size))}, 2 * fp32_sums(12))


def sparse_int8_matmul_cases() -> list[Case]:
    """Floats and bytes in and out, on a grid that is given or found, both kinds of blocks."""
    made = []
    for name, unit, rows, from_bytes, to_bytes, static in (
        ("dynamic", 1, 1, False, False, False),
        ("dynamic_batch", 4, 19, False, False, False),
        ("static", 1, 6, False, False, True),
        ("to_bytes", 4, 5, False, True, True),
        ("from_bytes", 1, 33, True, False, True),
        ("bytes", 4, 17, True, True, True),
    ):
        k, n = 203, 70
        weight, scales = block_sparse(k, n, unit, 0.3), np.linspace(0.001, 0.01, n, dtype=np.float32)
        attributes: dict[str, Any] = {"K": k, "N": n, "activation": "relu"}
        attributes |= {"x_scale": 0.02, "x_zero_point": 120} if static else {}
        attributes |= {"output": "uint8", "y_scale": 0.05, "y_zero_point": 3} if to_bytes else {}
        x = np.random.default_rng(3).integers(0, 256, (rows, k)).astype(np.uint8) if from_bytes else values((rows, k))
        packed = pack_sparse_int8(weight, scales, unit=unit)
        constants = {"w": packed.view(np.int8) if to_bytes else packed, "b": values((n,), 1)}
        node = op("SparseInt8MatMul", ["x", "w", "b"], **attributes)
        made.append(case(f"sparse_int8_matmul_{name}", [node], constants, {"x": x}, EXACT))
    return made


def sparse_int8_conv_cases() -> list[Case]:
    """Strides, pads, dilations and groups; floats and bytes in and out."""
    made = []
    for name, shape, window, group, unit, steps, to_bytes in (
        ("plain", (2, 6, 11, 13), (3, 3), 1, 4, {"pads": (1, 1, 1, 1)}, False),
        ("bytes", (1, 8, 9, 9), (1, 1), 1, 1, {}, True),
        ("strided", (1, 5, 15, 14), (3, 2), 1, 1, {"strides": (2, 2), "pads": (1, 0, 1, 1)}, True),
        ("dilated_groups", (1, 8, 12, 12), (3, 3), 2, 4, {"dilations": (2, 1), "pads": (2, 1, 2, 1)}, False),
    ):
        k, n, panel = shape[1] // group * int(np.prod(window)), 32, 16
        weight, scales = block_sparse(k, n, unit, 0.4), np.linspace(0.001, 0.01, n, dtype=np.float32)
        attributes: dict[str, Any] = {"N": n, "kernel_shape": window, "group": group, **steps, "activation": "relu"}
        attributes |= {"output": "uint8", "y_scale": 0.05, "y_zero_point": 3} if to_bytes else {}
        packed = pack_sparse_int8(weight, scales, unit=unit, panel=panel)
        constants = {"w": packed.view(np.int8) if to_bytes else packed, "b": values((n,), 1)}
        node = op("SparseInt8Conv", ["x", "w", "b"], **attributes)
        made.append(case(f"sparse_int8_conv_{name}", [node], constants, {"x": values(shape)}, EXACT))
    return made


def op(kind: str, inputs: list[str], *, into: str = "y", **attributes: Any) -> NodeProto:
    """A node of the kernels' domain."""
    return helper.make_node(kind, inputs, [into], name=f"{kind}_{into}", domain=DOMAIN, **attributes)


def case(
    name: str, nodes: list[NodeProto], constants: dict[str, np.ndarray], feeds: dict[str, np.ndarray], rounding: float
) -> Case:
    """A model of these nodes, its inputs with free sizes, its output `y`."""
    kinds = {key: helper.np_dtype_to_tensor_dtype(array.dtype) for key, array in feeds.items()}
    inputs = [
        helper.make_tensor_value_info(
            key, kinds[key], [f"n{i}" if i == 0 else size for i, size in enumerate(array.shape)]
        )
        for key, array in feeds.items()
    ]
    to_bytes = any(each.name == "output" and each.s == b"uint8" for each in nodes[-1].attribute)
    outputs = [helper.make_tensor_value_info("y", TensorProto.UINT8 if to_bytes else TensorProto.FLOAT, None)]
    initializers = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    data = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return Case(name, next(node.op_type for node in nodes if constants.keys() & set(node.input)), data, feeds, rounding)


def fp32_sums(terms: int) -> float:
    """Any two orders of so many products and sums, of numbers of about one and sums of about sqrt(terms) or more."""
    return (terms + 2) * 2.0**-23


def sparse_tensor(shape: tuple[int, ...], density: float, seed: int = 0) -> np.ndarray:
    """Gaussian with about this share of entries."""
    return sparse(shape[0], int(np.prod(shape[1:])), density, seed).reshape(shape)


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Gaussian numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
