"""Models with random weights whose time is that of real ones: a ResNet-50, and a stack of decoder layers in 4 bits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_IR_VERSION = 10
RESNET_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
RESNET_SIDE = 224
DECODER_LAYERS, DECODER_WIDTH, DECODER_INNER, DECODER_HEADS, DECODER_PAST = 8, 2048, 5632, 16, 64
BLOCK = 32


@dataclass(slots=True)
class _Builder:
    """A graph under construction; every node has a name that tells its place."""

    rng: np.random.Generator
    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def input(self, name: str, shape: Sequence[int]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def node(self, name: str, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.y"], name=name, **attributes))
        return f"{name}.y"

    def to_bytes(self, output: str, shape: Sequence[int], opset: int) -> bytes:
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, list(shape))
        graph = helper.make_graph(self.nodes, "subject", self.inputs, [y], self.initializers)
        opsets = [helper.make_opsetid("", opset)]
        data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString()
        return data


def resnet50(
    sparsity: float, *, zeros: tuple[int, int] = (1, 1), seed: int = 0, ir_version: int = _IR_VERSION
) -> bytes:
    """A ResNet-50 for 224 x 224 images, BatchNormalization folded; all layers but the first have so many zeros.

    Args:
        sparsity: Share of zeros.
        zeros: Outputs and inputs of the blocks that are zero together.
        seed: Of the weights.
        ir_version: Of the file.
    """
    b = _Builder(np.random.default_rng(seed))

    def weight(name: str, shape: tuple[int, ...], share: float, gain: float) -> str:
        fan_in = int(np.prod(shape[1:]))
        w = b.rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(gain / (fan_in * (1 - share))))
        if share:
            blocks = (shape[0] // zeros[0], shape[1] // zeros[1], *shape[2:])
            zero = b.rng.random(blocks, np.float32) < share
            w[zero.repeat(zeros[0], 0).repeat(zeros[1], 1)] = 0
        return b.constant(name, w)

    def conv(name: str, x: str, shape: tuple[int, int, int, int], stride: int, share: float, gain: float = 2) -> str:
        w = weight(f"{name}.w", shape, share, gain)
        bias = b.constant(f"{name}.b", 0.1 * b.rng.standard_normal(shape[0], dtype=np.float32))
        pad = shape[2] // 2
        window = {"kernel_shape": shape[2:], "strides": [stride] * 2, "pads": [pad] * 4}
        return b.node(name, "Conv", [x, w, bias], **window)

    x = b.input("x", (1, 3, RESNET_SIDE, RESNET_SIDE))
    x = b.node("stem.relu", "Relu", [conv("stem", x, (64, 3, 7, 7), 2, 0)])
    x = b.node("stem.pool", "MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (width, blocks) in enumerate(RESNET_STAGES):
        for block in range(blocks):
            name, stride = f"s{stage}.b{block}", 2 if stage and not block else 1
            y = b.node(f"{name}.relu1", "Relu", [conv(f"{name}.c1", x, (width, channels, 1, 1), 1, sparsity)])
            y = b.node(f"{name}.relu2", "Relu", [conv(f"{name}.c2", y, (width, width, 3, 3), stride, sparsity)])
            y = conv(f"{name}.c3", y, (4 * width, width, 1, 1), 1, sparsity, gain=0.2)
            if not block:
                x = conv(f"{name}.shortcut", x, (4 * width, channels, 1, 1), stride, sparsity, gain=1)
            x = b.node(f"{name}.relu3", "Relu", [b.node(f"{name}.add", "Add", [y, x])])
            channels = 4 * width
    x = b.node("flat", "Flatten", [b.node("mean", "GlobalAveragePool", [x])])
    x = b.node("head", "Gemm", [x, weight("head.w", (1000, channels), sparsity, 1)], transB=1)
    data = b.to_bytes(x, (1, 1000), 13)
    if ir_version == _IR_VERSION:
        return data
    import onnx

    model = onnx.load_from_string(data)
    model.ir_version = ir_version
    return bytes(model.SerializeToString())


def decoder(
    *, layers: int = DECODER_LAYERS, width: int = DECODER_WIDTH, inner: int = DECODER_INNER, seed: int = 0
) -> bytes:
    """Decoder layers that read one token, weights of 4 bits in blocks of 32 behind DequantizeLinear."""
    b = _Builder(np.random.default_rng(seed))
    head = width // DECODER_HEADS

    def product(name: str, x: str, k: int, n: int) -> str:
        codes = b.rng.integers(-8, 8, (k, n), dtype=np.int8)
        scales = (b.rng.uniform(0.5, 1.5, (k // BLOCK, n)) * np.sqrt(12 / k) / 16).astype(np.float32)
        packed = (codes.reshape(-1, 2) & 15).astype(np.uint8)
        raw = (packed[:, 0] | packed[:, 1] << 4).tobytes()
        b.initializers.append(helper.make_tensor(f"{name}.q", TensorProto.INT4, (k, n), raw, raw=True))
        inputs = [f"{name}.q", b.constant(f"{name}.s", scales)]
        w = b.node(f"{name}.dq", "DequantizeLinear", inputs, axis=0, block_size=BLOCK)
        return b.node(name, "MatMul", [x, w])

    def norm(name: str, x: str) -> str:
        squares = b.node(f"{name}.mean", "ReduceMean", [b.node(f"{name}.square", "Mul", [x, x]), "last"], keepdims=1)
        root = b.node(f"{name}.root", "Sqrt", [b.node(f"{name}.eps", "Add", [squares, "epsilon"])])
        scaled = b.node(f"{name}.div", "Div", [x, root])
        return b.node(f"{name}.scale", "Mul", [scaled, b.constant(f"{name}.gain", np.ones(width, np.float32))])

    def split(name: str, x: str) -> str:
        y = b.node(f"{name}.split", "Reshape", [x, "heads"])
        return b.node(f"{name}.heads", "Transpose", [y], perm=[0, 2, 1, 3])

    b.constant("last", np.array([-1]))
    b.constant("epsilon", np.float32(1e-5).reshape(1))
    b.constant("heads", np.array([1, -1, DECODER_HEADS, head]))
    b.constant("flat", np.array([1, -1, width]))
    b.constant("scale", np.float32(head**-0.5).reshape(1))
    x = b.input("x", (1, 1, width))
    for layer in range(layers):
        name = f"l{layer}"
        h = norm(f"{name}.norm1", x)
        q, k, v = (split(f"{name}.{part}", product(f"{name}.{part}", h, width, width)) for part in "qkv")
        k, v = (
            b.node(
                f"{name}.{part}.past",
                "Concat",
                [b.input(f"{name}.past.{part}", (1, DECODER_HEADS, DECODER_PAST, head)), new],
                axis=2,
            )
            for part, new in (("k", k), ("v", v))
        )
        turned = b.node(f"{name}.turn", "Transpose", [k], perm=[0, 1, 3, 2])
        scores = b.node(f"{name}.scaled", "Mul", [b.node(f"{name}.scores", "MatMul", [q, turned]), "scale"])
        mixed = b.node(f"{name}.mix", "MatMul", [b.node(f"{name}.softmax", "Softmax", [scores], axis=-1), v])
        back = b.node(f"{name}.back", "Transpose", [mixed], perm=[0, 2, 1, 3])
        out = product(f"{name}.o", b.node(f"{name}.joined", "Reshape", [back, "flat"]), width, width)
        x = b.node(f"{name}.add1", "Add", [x, out])
        h = norm(f"{name}.norm2", x)
        gate = product(f"{name}.gate", h, width, inner)
        silu = b.node(f"{name}.silu", "Mul", [gate, b.node(f"{name}.sigmoid", "Sigmoid", [gate])])
        both = b.node(f"{name}.both", "Mul", [silu, product(f"{name}.up", h, width, inner)])
        x = b.node(f"{name}.add2", "Add", [x, product(f"{name}.down", both, inner, width)])
    return b.to_bytes(x, (1, 1, width), 21)
