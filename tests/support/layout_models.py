"""Random models in which Transposes meet what they can be moved through: broadcasting, axes, reductions, views.

@given(st.randoms(use_true_random=False))
def test_pass(random): check_pass(MyPass(), layout_model(random))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

Shape = tuple[int, ...]

_UNARY = ("Relu", "Neg", "Abs", "Sigmoid", "Tanh", "Identity", "Floor", "LeakyRelu", "Softplus", "Ceil")
_BINARY = ("Add", "Mul", "Sub", "Max", "Min", "Sum", "Mean")
_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")


def layout_model(random: Random) -> onnx.ModelProto:
    """Return a model of float32 tensors of three to five axes; the first may be a batch of any size.

    Args:
        random: Decides everything.
    """
    builder = _Builder(random)
    for _ in range(random.randint(3, 14)):
        builder.step()
    return builder.model()


@dataclass
class _Builder:
    random: Random
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    known: list[tuple[str, Shape]] = field(default_factory=list)
    inputs: list[tuple[str, list[int | str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        random = self.random
        self.opset = random.choice([9, 11, 12, 13, 15, 17, 18, 20])
        self.rank = random.choice([3, 4, 4, 4, 5])
        self.open_batch = random.random() < 0.4
        base = [random.choice([1, 1, 2, 3, 4]) for _ in range(self.rank)]
        self.perm = tuple(random.sample(range(self.rank), self.rank))
        self.back = tuple(int(axis) for axis in np.argsort(self.perm))
        for place in range(random.choice([1, 2, 2])):
            narrow = place > 0 and random.random() < 0.4
            shape = [1 if narrow and random.random() < 0.4 else size for size in base]
            declared: list[int | str] = list(shape)
            if self.open_batch and shape[0] == base[0]:
                declared[0] = "batch"
            self.inputs.append((f"x{place}", declared))
            self.known.append((f"x{place}", tuple(shape)))

    def step(self) -> None:
        """Add one node, or none where what was drawn does not fit."""
        random = self.random
        steps = [self.transpose] * 7 + [self.unary] * 3 + [self.binary] * 5 + [self.reduction] * 2
        steps += [self.concat, self.slice, self.pad, self.unsqueeze, self.squeeze, self.merge, self.softmax, self.split]
        steps += [self.gather, self.top, self.tile, self.expand, self.product, self.norm, self.resize, self.choose]
        steps += [self.cut, self.quantize]
        name, shape = random.choice(self.known[-6:] if random.random() < 0.7 else self.known)
        if shape:
            random.choice(steps)(name, shape)

    def transpose(self, name: str, shape: Shape) -> None:
        perm = self.random.choice([self.perm, self.back])
        if len(shape) != self.rank or self.random.random() < 0.15:
            perm = tuple(self.random.sample(range(len(shape)), len(shape)))
        self.add("Transpose", [name], [tuple(shape[axis] for axis in perm)], perm=list(perm))

    def unary(self, name: str, shape: Shape) -> None:
        self.add(self.random.choice(_UNARY), [name], [shape])

    def binary(self, name: str, shape: Shape) -> None:
        random = self.random
        if random.random() < 0.5:
            fitting = [(other, size) for other, size in self.known if _broadcast(size, shape) is not None]
            other, size = random.choice(fitting)
        else:
            sizes = [axis if random.random() < 0.5 else 1 for axis in shape]
            if self.open_batch:
                sizes[0] = 1
            size = tuple(sizes[random.randint(0, len(sizes)) :])
            other = self.constant(
                np.array([random.uniform(-2, 2) for _ in range(int(np.prod(size)))], np.float32), size
            )
        pair = [name, other] if random.random() < 0.5 else [other, name]
        joint = _broadcast(size, shape)
        assert joint is not None
        self.add(random.choice(_BINARY), pair, [joint])

    def reduction(self, name: str, shape: Shape) -> None:
        random, rank = self.random, len(shape)
        axes = sorted(random.sample(range(rank), min(rank, random.randint(1, 2))))
        keeps = random.random() < 0.5
        left = tuple(1 if axis in axes else size for axis, size in enumerate(shape) if keeps or axis not in axes)
        op = random.choice(_REDUCTIONS)
        given = [axis - rank if random.random() < 0.3 else axis for axis in axes]
        self.with_axes(op, name, given, left, since=13 if op == "ReduceSum" else 18, keepdims=int(keeps))

    def concat(self, name: str, shape: Shape) -> None:
        random, axis = self.random, self.random.randrange(len(shape))
        fitting = [
            each
            for each in self.known
            if len(each[1]) == len(shape) and all(each[1][a] == shape[a] for a in range(len(shape)) if a != axis)
        ]
        parts = [*(random.choice(fitting) for _ in range(random.randint(1, 2))), (name, shape)]
        joint = sum(part[1][axis] for part in parts)
        result = (*shape[:axis], joint, *shape[axis + 1 :])
        self.add("Concat", [part[0] for part in parts], [result], axis=axis - random.choice([0, len(shape)]))

    def split(self, name: str, shape: Shape) -> None:
        axes = [axis for axis, size in enumerate(shape) if size == 2 and not (self.open_batch and axis == 0)]
        if not axes:
            return
        axis = self.random.choice(axes)
        half = (*shape[:axis], 1, *shape[axis + 1 :])
        attrs = {"num_outputs": 2} if self.opset >= 18 else {}
        self.add("Split", [name], [half, half], axis=axis, **attrs)

    def slice(self, name: str, shape: Shape) -> None:
        axis = len(shape) - 1 if self.open_batch else self.random.randrange(len(shape))
        if shape[axis] < 2:
            return
        result = (*shape[:axis], shape[axis] - 1, *shape[axis + 1 :])
        if self.opset < 10:
            self.add("Slice", [name], [result], starts=[1], ends=[shape[axis]], axes=[axis])
        else:
            self.add("Slice", [name, *(self.integers([v]) for v in (1, shape[axis], axis))], [result])

    def pad(self, name: str, shape: Shape) -> None:
        random, rank = self.random, len(shape)
        pads = [0] * (2 * rank)
        axis = random.randrange(rank)
        pads[axis], pads[axis + rank] = random.randint(0, 1), random.randint(0, 2)
        result = tuple(size + pads[place] + pads[place + rank] for place, size in enumerate(shape))
        if self.opset < 11:
            self.add("Pad", [name], [result], pads=pads)
        else:
            self.add("Pad", [name, self.integers(pads)], [result])

    def unsqueeze(self, name: str, shape: Shape) -> None:
        axis = self.random.randint(0, len(shape))
        self.with_axes("Unsqueeze", name, [axis], (*shape[:axis], 1, *shape[axis:]), since=13)

    def squeeze(self, name: str, shape: Shape) -> None:
        axes = [axis for axis, size in enumerate(shape) if size == 1 and not (self.open_batch and axis == 0)]
        if axes:
            axis = self.random.choice(axes)
            self.with_axes("Squeeze", name, [axis], (*shape[:axis], *shape[axis + 1 :]), since=13)

    def merge(self, name: str, shape: Shape) -> None:
        """Reshape that makes one axis of two."""
        if len(shape) < 2:
            return
        axis = self.random.randrange(len(shape) - 1)
        result = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
        target = [-1, *result[1:]] if self.open_batch else list(result)
        self.add("Reshape", [name, self.integers(target)], [result])

    def softmax(self, name: str, shape: Shape) -> None:
        axis = self.random.randrange(len(shape)) if self.opset >= 13 else len(shape) - 1
        self.add("Softmax", [name], [shape], axis=axis)

    def cut(self, name: str, shape: Shape) -> None:
        """Reshape that makes two axes of one."""
        axes = [axis for axis, size in enumerate(shape) if size in {2, 4} and not (self.open_batch and axis == 0)]
        if axes:
            axis = self.random.choice(axes)
            result = (*shape[:axis], 2, shape[axis] // 2, *shape[axis + 1 :])
            target = [0 if self.open_batch and place == 0 else size for place, size in enumerate(result)]
            self.add("Reshape", [name, self.integers(target)], [result])

    def gather(self, name: str, shape: Shape) -> None:
        axis = self.random.randrange(len(shape))
        if self.open_batch and axis == 0:
            return
        rank = self.random.choice([0, 1, 2])
        indices = np.array([self.random.randrange(shape[axis]) for _ in range(2**rank)], np.int64)
        chosen = self.constant(indices, (2,) * rank)
        result = (*shape[:axis], *(2,) * rank, *shape[axis + 1 :])
        self.add("Gather", [name, chosen], [result], axis=axis - self.random.choice([0, len(shape)]))

    def top(self, name: str, shape: Shape) -> None:
        axis = self.random.randrange(len(shape))
        if self.opset >= 11 and not (self.open_batch and axis == 0):
            result = (*shape[:axis], 1, *shape[axis + 1 :])
            outputs = [f"t{len(self.nodes)}_0", f"i{len(self.nodes)}"]
            self.nodes.append(helper.make_node("TopK", [name, self.integers([1])], outputs, axis=axis))
            self.known.append((outputs[0], result))

    def tile(self, name: str, shape: Shape) -> None:
        counts = [self.random.choice([1, 1, 2]) for _ in shape]
        if self.open_batch:
            counts[0] = 1
        result = tuple(size * count for size, count in zip(shape, counts, strict=True))
        if np.prod(result) < 500:
            self.add("Tile", [name, self.integers(counts)], [result])

    def expand(self, name: str, shape: Shape) -> None:
        if not self.open_batch:
            target = [self.random.choice([1, size]) if size != 1 else self.random.choice([1, 2]) for size in shape]
            target = target[self.random.randint(0, len(target) - 1) :]
            joint = _broadcast(tuple(target), shape)
            assert joint is not None
            self.add("Expand", [name, self.integers(target)], [joint])

    def product(self, name: str, shape: Shape) -> None:
        fitting = [
            each
            for each in self.known
            if len(each[1]) >= 2
            and len(shape) >= 2
            and each[1][-2] == shape[-1]
            and _broadcast(each[1][:-2], shape[:-2]) is not None
        ]
        if fitting:
            other, size = self.random.choice(fitting)
            batch = _broadcast(size[:-2], shape[:-2])
            assert batch is not None
            self.add("MatMul", [name, other], [(*batch, shape[-2], size[-1])])

    def norm(self, name: str, shape: Shape) -> None:
        if len(shape) >= 3 and not (self.open_batch and name.startswith("t") and shape[1] != self.known[0][1][1]):
            values = [self.constant(np.full(shape[1], value, np.float32), (shape[1],)) for value in (1, 0.5, 0.1, 2)]
            self.add("BatchNormalization", [name, *values], [shape])

    def resize(self, name: str, shape: Shape) -> None:
        if self.opset >= 11 and len(shape) == 4:
            scales = [
                1.0 if self.open_batch and place == 0 else self.random.choice([1.0, 1.0, 2.0]) for place in range(4)
            ]
            result = tuple(int(size * scale) for size, scale in zip(shape, scales, strict=True))
            given = self.constant(np.array(scales, np.float32), (4,))
            if np.prod(result) < 500:
                empty = self.constant(np.zeros(0, np.float32), (0,)) if self.opset < 13 else ""
                self.add("Resize", [name, empty, given], [result], mode="nearest")

    def choose(self, name: str, shape: Shape) -> None:
        fitting = [each for each in self.known if _broadcast(each[1], shape) == shape]
        other, _ = self.random.choice(fitting)
        condition = f"t{len(self.nodes)}_c"
        self.nodes.append(helper.make_node("Less", [name, other], [condition]))
        if self.opset >= 9:
            self.add("Where", [condition, other, name], [shape])

    def quantize(self, name: str, shape: Shape) -> None:
        if self.opset < 10:
            return
        axis = self.random.randrange(len(shape))
        count = shape[axis] if self.opset >= 13 and not (self.open_batch and axis == 0) else 0
        size: Shape = (count,) if count else ()
        scale = self.constant(np.linspace(0.1, 0.2, max(1, count), dtype=np.float32), size)
        zero = self.constant(np.arange(max(1, count), dtype=np.uint8) + 100, size)
        attrs = {"axis": axis} if count else {}
        whole = f"q{len(self.nodes)}"
        self.nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [whole], **attrs))
        self.add("DequantizeLinear", [whole, scale, zero], [shape], **attrs)

    # ------------------------------------------------------------------------------------------------------ assembling

    def add(self, op: str, inputs: Sequence[str], shapes: Sequence[Shape], **attrs: Any) -> None:
        outputs = [f"t{len(self.nodes)}_{place}" for place in range(len(shapes))]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=f"n{len(self.nodes)}", **attrs))
        self.known.extend(zip(outputs, shapes, strict=True))

    def with_axes(self, op: str, name: str, axes: list[int], result: Shape, *, since: int, **attrs: Any) -> None:
        if self.opset >= since:
            self.add(op, [name, self.integers(axes)], [result], **attrs)
        else:
            self.add(op, [name], [result], axes=axes, **attrs)

    def integers(self, values: list[int]) -> str:
        return self.constant(np.array(values, np.int64), (len(values),))

    def constant(self, values: np.ndarray[Any, Any], shape: Shape) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values.reshape(shape), name))
        return name

    def model(self) -> onnx.ModelProto:
        """Return the model; every tensor that nobody reads is an output, and one that somebody reads may be."""
        if not self.nodes:
            self.unary(*self.known[0])
        made = [name for name, _ in self.known if name.startswith("t")]
        read = {name for node in self.nodes for name in node.input}
        outputs = dict.fromkeys([*(name for name in made if name not in read), self.random.choice(made)])
        shapes = dict(self.known)
        graph = helper.make_graph(
            self.nodes,
            "layouts",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.inputs],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, None if self.open_batch else shapes[name])
                for name in outputs
            ],
            self.constants,
        )
        imports = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _broadcast(one: Shape, other: Shape) -> Shape | None:
    try:
        return np.broadcast_shapes(one, other)
    except ValueError:
        return None


def is_valid(model: onnx.ModelProto) -> bool:
    """Tell whether a model holds for every batch: what was drawn may contradict itself where the batch is open."""
    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def channels_last_network(blocks: int, *, squeeze: bool = False, concat: bool = False) -> onnx.ModelProto:
    """Return a convolutional network as converters from a framework with channels last write it.

    Each block is a convolution between two Transposes, a bias, Relu and a residual.

    Args:
        blocks: How many blocks.
        squeeze: Whether each block weighs its channels by what a mean over the image says of them.
        concat: Whether every third block joins its input and brings the channels back by a convolution.
    """
    network = _Network(np.random.default_rng(0))
    name = "x"
    for place in range(blocks):
        before = name
        name = network.convolution(name, 8)
        name = network.node("Relu", [network.node("Add", [name, network.constant(8)])])
        if squeeze:
            mean = network.node("ReduceMean", [name], axes=[1, 2], keepdims=1)
            name = network.node("Mul", [name, network.node("Sigmoid", [network.convolution(mean, 8)])])
        if concat and place % 3 == 2:
            joined = network.node("Concat", [name, before], axis=3)
            name = network.convolution(network.node("Add", [joined, network.constant(16)]), 16)
        name = network.node("Add", [name, before])
    network.node("Softmax", [network.node("ReduceMean", [name], axes=[1, 2], keepdims=0)], "y", axis=-1)
    graph = helper.make_graph(
        network.nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6, 5, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        network.constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


@dataclass
class _Network:
    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, inputs: list[str], output: str = "", **attrs: Any) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"n{len(self.nodes)}", **attrs))
        return output

    def constant(self, *shape: int) -> str:
        name = f"c{len(self.constants)}"
        values = self.random.standard_normal(shape).astype(np.float32) / 10
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def convolution(self, name: str, channels: int) -> str:
        """Convolve channels-last to 8 channels."""
        inner = self.node("Transpose", [name], perm=[0, 3, 1, 2])
        inner = self.node("Conv", [inner, self.constant(8, channels, 1, 1)])
        return self.node("Transpose", [inner], perm=[0, 2, 3, 1])
